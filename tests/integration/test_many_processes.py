"""Ten thousand real processes in one streamed call."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import collector_service_pb2, collector_service_pb2_grpc, ipc_pb2
from daemoneye_agent.config import AgentSettings
from daemoneye_agent.issuer import KEY_FILE
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.limits import MAX_CHUNK_BYTES
from daemoneye_mesh.token import TokenIssuer, load_or_create_key

pytestmark = pytest.mark.integration

PROCESS_COUNT = 10_000

# Forks children that only wait; they end with the forker. Printing the count says that all are there.
FORKER = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        libc.prctl(1, signal.SIGKILL)
        while True:
            signal.pause()
print("ready", flush=True)
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""


@pytest.fixture
async def crowd() -> AsyncIterator[int]:
    """Starts the processes; yields the pid of their parent."""
    forker = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-c", FORKER, str(PROCESS_COUNT)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert forker.stdout is not None
    try:
        assert await asyncio.wait_for(forker.stdout.readline(), 90) == b"ready\n"
        yield forker.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(forker.pid, signal.SIGKILL)
        await forker.wait()


@pytest.mark.timeout(300)
async def test_ten_thousand_processes_come_in_one_streamed_call(cold_mesh: Any, crowd: int) -> None:
    await cold_mesh.start("agent")
    await cold_mesh.start("eventbus")
    await cold_mesh.start("procmond")
    await cold_mesh.wait_serving("agent", "eventbus", "procmond")

    layout = cold_mesh.layout
    key = load_or_create_key(cold_mesh.state_dir / KEY_FILE)
    ttl = AgentSettings().token_ttl_s
    token = TokenIssuer(key, layout.trust_domain).issue(
        layout.agent, layout.collector("procmond").spiffe_id, timedelta(seconds=ttl)
    )
    channel = open_channel(layout.collector_socket("procmond"), lambda: token)
    try:
        stub: Any = collector_service_pb2_grpc.CollectorServiceStub(channel)
        task = ipc_pb2.DetectionTask(
            task_id="crowd", task_type=common_pb2.TASK_TYPE_ENUMERATE_PROCESSES
        )
        request = collector_service_pb2.ExecuteTaskRequest(task=task)
        chunks = [chunk async for chunk in stub.ExecuteTask(request, timeout=60)]
    finally:
        await channel.close()

    records = [record for chunk in chunks for record in chunk.result.processes]
    mine = {record.pid for record in records if record.ppid == crowd}
    assert len(mine) == PROCESS_COUNT
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert max(chunk.ByteSize() for chunk in chunks) <= MAX_CHUNK_BYTES
    assert chunks[-1].record_count == len(records)

    counted = (
        f"SELECT count(*) AS n FROM process_events WHERE kind = 'inventory' AND ppid = {crowd}"
    )

    async def is_inventoried() -> bool:
        rows = await cold_mesh.find_query(counted)
        return bool(rows) and rows[0]["n"] == PROCESS_COUNT

    await cold_mesh.until(is_inventoried, "all of them are in the inventory")
