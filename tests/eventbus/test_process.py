"""The broker as a process: it serves, refuses bad settings, and leaves nothing behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemoneye_eventbus.config import EventBusSettings
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import InvalidConfigError

pytestmark = pytest.mark.integration
TIMEOUT_S = 30


@asynccontextmanager
async def broker_process(root: Path, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "daemoneye_eventbus",
        *flags,
        env={**os.environ, "DAEMONEYE_RUNTIME_DIR": str(root), "HOME": str(root)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def wait_until_serving(root: Path) -> None:
    channel = open_channel(root / "eventbus.sock")
    try:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S, wait_for_ready=True
        )
        while answer.status != health_pb2.HealthCheckResponse.SERVING:
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    finally:
        await channel.close()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_process_serves_until_a_signal_and_leaves_no_socket(
    tmp_path: Path, stop: signal.Signals
) -> None:
    root = tmp_path / "run"
    async with asyncio.timeout(TIMEOUT_S), broker_process(root) as process:
        await wait_until_serving(root)
        process.send_signal(stop)
        assert await process.wait() == 0
    assert not (root / "eventbus.sock").exists()


async def test_second_broker_on_one_socket_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "run"
    async with asyncio.timeout(TIMEOUT_S), broker_process(root):
        await wait_until_serving(root)
        async with broker_process(root) as second:
            _, said = await second.communicate()
            assert second.returncode == 1
    assert b"SOCKET_UNUSABLE" in said
    assert b"another server holds it" in said
    assert b"Traceback" not in said


async def test_unknown_flag_and_bad_value_are_refused(tmp_path: Path) -> None:
    flags = ("--max-subscription", "1", "--max-queue-bytes", "1")
    async with asyncio.timeout(TIMEOUT_S), broker_process(tmp_path, *flags) as process:
        _, said = await process.communicate()
    assert process.returncode == 2
    assert b"--max-subscriptions" in said
    assert b"max_queue_bytes" in said


def test_default_queue_beyond_the_largest_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="at most"):
        EventBusSettings(default_queue_messages=11, max_queue_messages=10)
