"""Waiting until a process serves: its socket is there, and its health service says so."""

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemoneye_cli.probe import is_answered
from daemoneye_mesh.channel import open_channel

__all__ = ["wait_until_serving"]

POLL_S = 0.02
WATCH_TIMEOUT_S = 60.0


async def wait_until_serving(socket: Path) -> None:
    """Returns when the server on ``socket`` is SERVING; wrap it in a deadline."""
    while True:
        if await is_answered(socket) and await _watch(socket):
            return
        await asyncio.sleep(POLL_S)


async def _watch(socket: Path) -> bool:
    """Follows the health until it is SERVING; false when the stream broke before."""
    channel = open_channel(socket)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    call = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WATCH_TIMEOUT_S)
    try:
        async for answer in call:
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return True
    except grpc.aio.AioRpcError:
        return False  # it ended, or does not speak to us yet
    finally:
        call.cancel()
        await channel.close()
    return False
