"""The health of every socket of a mesh, asked of each process itself, without a token."""

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemoneye_cli.calls import ask
from daemoneye_cli.session import OperatorSession
from daemoneye_mesh.errors import Code, DaemoneyeError
from daemoneye_mesh.layout import RuntimeLayout

__all__ = ["SocketHealth", "SocketState", "check_all", "find_sockets"]

MAX_SOCKETS = 256


class SocketState(StrEnum):
    """What a socket answered."""

    SERVING = "serving"
    NOT_SERVING = "not_serving"
    UNREACHABLE = "unreachable"
    DENIED = "denied"
    NO_ANSWER = "no_answer"


@dataclass(frozen=True, slots=True)
class SocketHealth:
    """The health of one socket."""

    name: str
    socket: Path
    state: SocketState
    latency_ms: float | None
    """How long it took to answer; None without an answer."""
    message: str
    """Why it is not serving; empty when it is."""


def find_sockets(layout: RuntimeLayout) -> tuple[Path, ...]:
    """Returns the sockets to ask: agent and broker in any case, and every collector found."""
    collectors: list[Path] = []
    if layout.collectors_dir.is_dir():
        collectors = sorted(layout.collectors_dir.glob("*.sock"))[:MAX_SOCKETS]
    return (layout.agent_socket, layout.eventbus_socket, *collectors)


async def check_all(session: OperatorSession) -> tuple[SocketHealth, ...]:
    """Asks every socket at once."""
    sockets = await asyncio.to_thread(find_sockets, session.layout)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_check(session, socket)) for socket in sockets]
    return tuple(task.result() for task in tasks)


async def _check(session: OperatorSession, socket: Path) -> SocketHealth:
    name = session.name_of(socket)
    try:
        return await _ask(session, socket, name)
    except DaemoneyeError as error:
        states = {
            Code.DEADLINE_EXCEEDED: SocketState.NO_ANSWER,
            Code.PERMISSION_DENIED: SocketState.DENIED,
        }
        state = states.get(error.code, SocketState.UNREACHABLE)
        return SocketHealth(name, socket, state, None, error.message)


async def _ask(session: OperatorSession, socket: Path, name: str) -> SocketHealth:
    link = await session.open(socket, name)
    try:
        started_s = time.monotonic()
        stub: Any = health_pb2_grpc.HealthStub(link.channel)
        request = health_pb2.HealthCheckRequest()
        answer = await ask(stub.Check, request, link.peer, session.timeout_s(5.0))
        latency_ms = (time.monotonic() - started_s) * 1_000
    finally:
        await link.channel.close()
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return SocketHealth(name, socket, SocketState.SERVING, latency_ms, "")
    message = "it answers, but is not ready or is shutting down"
    return SocketHealth(name, socket, SocketState.NOT_SERVING, latency_ms, message)
