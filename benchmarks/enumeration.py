"""Enumerating many processes: procmond over its socket, its scanner, and psutil and ps beside it.

All look at the same processes in the same run, taking turns; a figure is the median of the rounds.
"""

import asyncio
import gc
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import psutil

from benchmarks.mesh import Mesh, Process, cpu_s, peak_rss_bytes
from benchmarks.report import Bar, BenchmarkError, Metric, NothingDeliveredError, Outcome
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import (
    collector_control_service_pb2,
    collector_control_service_pb2_grpc,
    collector_service_pb2,
    collector_service_pb2_grpc,
    ipc_pb2,
)
from daemoneye_mesh.channel import open_channel
from daemoneye_procmond.observation import TrackerLimits
from daemoneye_procmond.procfs import ProcFs
from daemoneye_procmond.scanner import Scanner
from daemoneye_procmond.tracker import Tracker

__all__ = ["measure"]

COLLECTOR_ID = "procmond"
PROCESS_COUNT, QUICK_PROCESS_COUNT = 10_000, 2_000
ROUNDS, QUICK_ROUNDS = 5, 3
FIRST_SCAN_LIMIT_S, LATER_SCAN_CPU_LIMIT_S = 1.5, 0.3
FORK_TIMEOUT_S = 120.0
TASK_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 10.0
POLL_S = 0.05
PSUTIL_FIELDS = [
    *("pid", "ppid", "name", "exe", "cmdline", "username", "create_time"),
    *("memory_info", "cpu_times", "status", "num_threads"),
]
PS_COLUMNS = "pid,ppid,comm,args,user,lstart,rss,time,stat,nlwp"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at all processes."""

    record_count: int
    wall_s: float
    cpu_s: float
    chunk_count: int = 0


@dataclass(frozen=True, slots=True)
class Looks:
    """The looks of all rounds."""

    task: Sequence[Look]
    psutil: Sequence[Look]
    ps: Sequence[Look]
    first_scan: Sequence[Look]
    later_scan: Sequence[Look]


async def measure(quick: bool) -> Outcome:
    """Measures all of them over the same processes."""
    count = QUICK_PROCESS_COUNT if quick else PROCESS_COUNT
    rounds = QUICK_ROUNDS if quick else ROUNDS
    async with _many_processes(count), Mesh() as mesh:
        socket = mesh.layout.collector_socket(COLLECTOR_ID)
        # Its own scans would be measured too: the first is waited for, the second never comes.
        procmond = await mesh.serve(
            *("daemoneye_procmond", socket, "--log-level", "error", "--scan-interval-s", "3600")
        )
        source = mesh.token_source(mesh.layout.agent, mesh.layout.collector(COLLECTOR_ID))
        channel = open_channel(socket, source)
        try:
            await _wait_for_inventory(channel, count)
            looks = await _take_turns(channel, procmond.pid, count, rounds)
        finally:
            await channel.close()
        peak_rss = peak_rss_bytes(procmond.pid)
    return Outcome(
        delivered_count=min(look.record_count for look in looks.task),
        settings={"processes": count, "rounds": rounds, "figure": "median of the rounds"},
        results=[*_results(looks), Metric("procmond memory, peak", "MB", peak_rss / 1e6)],
        bars=[] if quick else _bars(looks),
        notes=["the bars are for 10,000 processes: leave QUICK out"] if quick else [],
    )


def _results(looks: Looks) -> list[Metric]:
    task = looks.task
    return [
        Metric("all processes over ExecuteTask", "s", _wall_s(task), _peers(looks, _wall_s)),
        Metric("CPU of that, without the caller", "s", _cpu_s(task), _peers(looks, _cpu_s)),
        Metric("records", "records", _records(task), _peers(looks, _records)),
        Metric("chunks of ExecuteTask", "chunks", float(task[0].chunk_count)),
        Metric("scan, first (inventory)", "s", _wall_s(looks.first_scan)),
        Metric("scan, first, CPU", "s", _cpu_s(looks.first_scan)),
        Metric("scan, later", "s", _wall_s(looks.later_scan)),
        Metric("scan, later, CPU", "s", _cpu_s(looks.later_scan)),
    ]


def _bars(looks: Looks) -> list[Bar]:
    first_s, later_cpu_s = _wall_s(looks.first_scan), _cpu_s(looks.later_scan)
    return [
        Bar.below("first inventory of 10,000 processes", FIRST_SCAN_LIMIT_S, first_s, "s"),
        Bar.below(
            "CPU of a later scan of 10,000 processes", LATER_SCAN_CPU_LIMIT_S, later_cpu_s, "s"
        ),
    ]


def _peers(looks: Looks, figure: Callable[[Sequence[Look]], float]) -> dict[str, float]:
    return {"psutil": figure(looks.psutil), "ps": figure(looks.ps)}


def _wall_s(looks: Sequence[Look]) -> float:
    return statistics.median(look.wall_s for look in looks)


def _cpu_s(looks: Sequence[Look]) -> float:
    return statistics.median(look.cpu_s for look in looks)


def _records(looks: Sequence[Look]) -> float:
    return statistics.median(float(look.record_count) for look in looks)


async def _take_turns(channel: grpc.aio.Channel, pid: int, count: int, rounds: int) -> Looks:
    looks = Looks([], [], [], [], [])
    for _ in range(rounds):
        first, later = await asyncio.to_thread(_scan_twice)
        for kept, look in (
            (looks.task, await _execute_task(channel, pid)),
            (looks.psutil, await asyncio.to_thread(_look_with_psutil)),
            (looks.ps, await _look_with_ps()),
            (looks.first_scan, first),
            (looks.later_scan, later),
        ):
            if look.record_count < count:
                raise NothingDeliveredError(
                    f"a look found {look.record_count} processes where {count} run"
                )
            assert isinstance(kept, list)
            kept.append(look)
    return looks


async def _execute_task(channel: grpc.aio.Channel, pid: int) -> Look:
    stub: collector_service_pb2_grpc.CollectorServiceAsyncStub
    stub = collector_service_pb2_grpc.CollectorServiceStub(channel)
    task = ipc_pb2.DetectionTask(
        task_id=f"bench-{time.monotonic_ns()}", task_type=common_pb2.TASK_TYPE_ENUMERATE_PROCESSES
    )
    request = collector_service_pb2.ExecuteTaskRequest(task=task)
    pids: set[int] = set()
    chunks: list[collector_service_pb2.ExecuteTaskResponse] = []
    begun_s, begun_cpu_s = time.perf_counter(), cpu_s(pid)
    async for chunk in stub.ExecuteTask(request, timeout=TASK_TIMEOUT_S):
        pids.update(record.pid for record in chunk.result.processes)
        chunks.append(chunk)
    wall_s, used_s = time.perf_counter() - begun_s, cpu_s(pid) - begun_cpu_s
    if not chunks or not chunks[-1].is_last or chunks[-1].record_count != len(pids):
        raise BenchmarkError(f"the answer is not whole: {len(pids)} in {len(chunks)} chunks")
    return Look(len(pids), wall_s, used_s, len(chunks))


def _scan_twice() -> tuple[Look, Look]:
    scanner = Scanner(ProcFs(), Tracker(TrackerLimits()))
    gc.collect()
    first = scanner.scan()
    later = scanner.scan()
    return (
        Look(len(first.events), first.duration_s, first.cpu_s),
        Look(later.process_count, later.duration_s, later.cpu_s),
    )


def _look_with_psutil() -> Look:
    psutil.process_iter.cache_clear()
    gc.collect()
    begun_s, begun_cpu_s = time.perf_counter(), time.thread_time()
    found = [process.info for process in psutil.process_iter(PSUTIL_FIELDS)]
    return Look(len(found), time.perf_counter() - begun_s, time.thread_time() - begun_cpu_s)


async def _look_with_ps() -> Look:
    if shutil.which("ps") is None:
        raise BenchmarkError("there is no ps to compare with; install procps")
    begun_cpu_s, begun_s = _cpu_of_children_s(), time.perf_counter()
    ps = await asyncio.create_subprocess_exec(
        *("ps", "--no-headers", "-eo", PS_COLUMNS), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await ps.communicate()
    wall_s = time.perf_counter() - begun_s
    return Look(printed.count(b"\n"), wall_s, _cpu_of_children_s() - begun_cpu_s)


def _cpu_of_children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


async def _wait_for_inventory(channel: grpc.aio.Channel, count: int) -> None:
    stub: collector_control_service_pb2_grpc.CollectorControlServiceAsyncStub
    stub = collector_control_service_pb2_grpc.CollectorControlServiceStub(channel)
    request = collector_control_service_pb2.GetCollectorStatsRequest()
    async with asyncio.timeout(TASK_TIMEOUT_S):
        while True:
            stats = await stub.GetCollectorStats(request, timeout=CALL_TIMEOUT_S)
            if stats.emitted_count >= count:
                return
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def _many_processes(count: int) -> AsyncIterator[None]:
    """Lets ``count`` processes run meanwhile."""
    forker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(Path(__file__).with_name("forker.py")), str(count)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert forker.stdout is not None
        async with asyncio.timeout(FORK_TIMEOUT_S):
            if await forker.stdout.readline() != b"ready\n":
                raise BenchmarkError(f"cannot start {count} processes; raise ulimit -u or pid_max")
        yield
    finally:
        await _end_all(forker)


async def _end_all(forker: Process) -> None:
    assert forker.stdin is not None
    forker.stdin.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(FORK_TIMEOUT_S):
            await forker.wait()
    with suppress(ProcessLookupError):
        os.killpg(forker.pid, signal.SIGKILL)
    await forker.wait()
