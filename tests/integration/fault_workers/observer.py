"""What a user can see of a mesh in trouble, and what is in its store at the end.

Works on the ``Mesh`` of the conftest, which cannot be imported here.
"""

import asyncio
import contextlib
import json
import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc.aio

from daemoneye.agent.v1 import collector_admin_service_pb2, collector_admin_service_pb2_grpc
from daemoneye.common.v1 import completeness_pb2
from daemoneye.ipc.v1 import collector_health_pb2

WORKERS = Path(__file__).parent
GENERATOR = WORKERS.parent / "chaos_workers" / "generator.py"
SETTLE_S = 40.0
CALL_TIMEOUT_S = 5.0
FLOOD_AGENT_FLAGS = ("--collectors", "procmond=process,flood=filesystem+performance")
"""For an agent that knows the collector ``flood``, too."""
PROCMOND_FLAGS = ("--scan-interval-s", "0.3", "--scan-cpu-share", "0.5")

Key = tuple[int, int]
"""Epoch and sequence of an event."""


async def run_python(mesh: Any, name: str, *arguments: str, **environment: str) -> None:
    """Starts a Python program as a process of the mesh."""
    with (mesh.root / f"{name}.log").open("ab") as log:
        mesh.processes[name] = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error"),
            *arguments,
            env={**mesh.environment, **environment},
            stdout=log,
            stderr=log,
        )


async def start_mesh(mesh: Any, *procmond_flags: str) -> None:
    """Starts a mesh and waits for it."""
    for name, flags in (("agent", ()), ("eventbus", ()), ("procmond", procmond_flags)):
        await mesh.start(name, *PROCMOND_FLAGS[: 4 * (name == "procmond")], *flags)
    await mesh.wait_serving("agent", "eventbus", "procmond")


@contextlib.asynccontextmanager
async def generating(rate: int, life_s: float) -> AsyncIterator[None]:
    """Lets processes come and go."""
    generator = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(GENERATOR), str(rate), str(life_s)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield
    finally:
        await generator.communicate(b"")


@contextlib.asynccontextmanager
async def a_process() -> AsyncIterator[int]:
    """A process that runs meanwhile; its id."""
    child = await asyncio.create_subprocess_exec("/bin/sleep", "120")
    try:
        yield child.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def wal_of(mesh: Any, collector_id: str = "procmond") -> Path:
    """Directory of the log of a collector."""
    directory: Path = mesh.state_dir / "collectors" / collector_id / "wal"
    return directory


async def check(mesh: Any, collector_id: str = "procmond") -> Any:
    """How a collector says that it is; None while it cannot be asked."""
    stub: Any = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(mesh.channel())
    request = collector_admin_service_pb2.CheckCollectorRequest(collector_id=collector_id)
    try:
        return (await stub.CheckCollector(request, timeout=CALL_TIMEOUT_S)).health
    except grpc.aio.AioRpcError:
        return None


async def collector(mesh: Any, collector_id: str = "procmond") -> Any:
    """What the agent knows of a collector."""
    stub: Any = collector_admin_service_pb2_grpc.CollectorAdminServiceStub(mesh.channel())
    request = collector_admin_service_pb2.ListCollectorsRequest()
    answer = await stub.ListCollectors(request, timeout=CALL_TIMEOUT_S)
    return next(one for one in answer.collectors if one.collector_id == collector_id)


def state_name(info: Any) -> str:
    """The state that the agent holds a collector to be in."""
    return collector_admin_service_pb2.CollectorState.Name(info.state)


async def component(mesh: Any, name: str, collector_id: str = "procmond") -> tuple[str, str]:
    """Status and message of one part of a collector."""
    health = await check(mesh, collector_id)
    for one in health.components if health is not None else ():
        if one.name == name:
            status = collector_health_pb2.CollectorStatus.Name(one.status)
            return status.removeprefix("COLLECTOR_STATUS_"), one.message
    return "", ""


async def causes(mesh: Any) -> set[tuple[str, str]]:
    """Reason and subject of everything that the mesh says it cannot see."""
    try:
        found = (await mesh.status()).completeness.causes
    except grpc.aio.AioRpcError:
        return set()
    name = completeness_pb2.DegradedReason.Name
    return {(name(one.reason).removeprefix("DEGRADED_REASON_"), one.subject) for one in found}


async def ask_cli(mesh: Any, *arguments: str) -> tuple[int | None, str]:
    """Runs ``daemoneye``; returns its exit status and everything that it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemoneye_cli", *arguments),
        env=mesh.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode, out.decode()


async def settle(mesh: Any, collector_id: str = "procmond") -> Any:
    """Waits until all that is in a log is stored; returns the counters."""

    async def find_settled() -> Any:
        stats = await mesh.collector_stats(collector_id)
        if stats is None or stats.unacknowledged_count or stats.pending_count:
            return None
        return stats

    return await mesh.until(find_settled, f"all of {collector_id} is stored", SETTLE_S)


async def stop(mesh: Any) -> None:
    """Ends the mesh as an operator does; everybody ends well."""
    for name in mesh.processes.keys() - {"procmond", "agent", "eventbus"}:
        process = mesh.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20) == 0, mesh.logs()
    statuses = await mesh.stop()
    assert set(statuses.values()) <= {0}, (statuses, mesh.logs())


async def until_seen(mesh: Any, pid: int) -> None:
    """Waits until the beginning of a process is stored."""
    sql = f"SELECT pid FROM process_events WHERE kind = 'start' AND pid = {pid}"
    await mesh.until(lambda: mesh.find_query(sql), f"the beginning of process {pid} is stored")


def read_store(mesh: Any, sql: str) -> list[dict[str, Any]]:
    """Reads the event store past the agent."""
    store = sqlite3.connect(f"file:{mesh.state_dir / 'events.db'}?mode=ro", uri=True)
    try:
        store.row_factory = sqlite3.Row
        return [dict(row) for row in store.execute(sql)]
    finally:
        store.close()


def stored_keys(mesh: Any, source_id: str = "procmond") -> list[Key]:
    """Epoch and sequence of every event in the store, in the order of arrival."""
    tables = ("process_events", "collection_gaps", "collector_events")
    selects = (
        f"SELECT {'gap' if table == 'collection_gaps' else 'event'}_id AS id, source_epoch,"
        f" source_sequence FROM {table} WHERE source_id = '{source_id}'"
        for table in tables
    )
    rows = read_store(mesh, f"{' UNION ALL '.join(selects)} ORDER BY id")
    return [(row["source_epoch"], row["source_sequence"]) for row in rows]


def losses_of(mesh: Any, source_id: str = "procmond") -> list[dict[str, Any]]:
    """What is recorded as missing."""
    return read_store(
        mesh,
        f"SELECT * FROM event_losses WHERE source_id = '{source_id}'"
        " ORDER BY source_epoch, first_sequence",
    )


def lost_keys(losses: Sequence[dict[str, Any]]) -> set[Key]:
    """Epoch and sequence of what is recorded as missing."""
    return {
        (one["source_epoch"], sequence)
        for one in losses
        for sequence in range(one["first_sequence"], one["last_sequence"] + 1)
    }


def check_whole(mesh: Any, last: Key, source_id: str = "procmond") -> list[Key]:
    """Asserts that one epoch is in the store once up to its last event, and that nothing is lost."""
    keys = stored_keys(mesh, source_id)
    assert twice(keys) == []
    epoch, sequence = last
    expected = {(epoch, number) for number in range(1, sequence + 1)}
    missing = expected - set(keys)
    assert missing == set(), f"{len(missing)} of {len(expected)} are not stored"
    assert losses_of(mesh, source_id) == []
    return keys


def twice(keys: Sequence[Key]) -> list[Key]:
    """What is there more than once."""
    return [key for key, count in Counter(keys).items() if count > 1]


def gaps_of(mesh: Any, source_id: str = "procmond") -> list[dict[str, Any]]:
    """What a collector said that it did not see."""
    return read_store(mesh, f"SELECT * FROM collection_gaps WHERE source_id = '{source_id}'")


def rss_bytes(process: Any, peak: bool = False) -> int:
    """Resident memory of a process, now or at its peak."""
    field = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} for {process.pid}")


def log_lines(mesh: Any, name: str) -> list[dict[str, Any]]:
    """What a process logged; a line that is no JSON is a traceback and fails the test."""
    lines = (mesh.root / f"{name}.log").read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines]


async def event_count(mesh: Any) -> int:
    """Events of processes in the store."""
    rows = await mesh.find_query("SELECT count(*) AS n FROM process_events")
    return int(rows[0]["n"]) if rows else 0
