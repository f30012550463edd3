"""The source loses no event to a pause, a failure or an event that fits into no message."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from collector_core import Event, SourceContext, TaskReport
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_mesh.completeness import DegradedReason
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError
from daemoneye_procmond.config import ProcmondSettings
from daemoneye_procmond.errors import InvalidPatternError, ProcFsUnavailableError
from daemoneye_procmond.scanner import ScanResult
from daemoneye_procmond.source import RECHECK_COUNT, ProcessSource

Eventually = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


class Sink:
    """Takes events, or waits before it takes the next one."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.error: Exception | None = None

    async def emit(self, event: Event) -> None:
        await self.is_open.wait()
        data: Any = event.data
        if self.error is not None and data.process.pid == 5:
            raise self.error
        self.taken.append((event.topic.rpartition(".")[2], data.process.pid))


class HeldScanner:
    """Scans like the real one, but not before it is let go, or fails."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.go_on = threading.Event()
        self.begun_count = 0
        self.error: Exception | None = None

    def scan(self) -> ScanResult:
        self.begun_count += 1
        assert self.go_on.wait(20)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        result: ScanResult = self.inner.scan()
        return result


def context_of(settings: ProcmondSettings) -> SourceContext:
    unused: Any = None
    return SourceContext(lambda: settings, unused, unused)


@pytest.fixture
async def source(proc_tree: Any) -> AsyncIterator[ProcessSource]:
    settings = ProcmondSettings(proc_dir=proc_tree.root, scan_interval_s=0.05, scan_cpu_share=1.0)
    source = ProcessSource(settings)
    await source.prepare(context_of(settings))
    yield source
    await source.close()


@pytest.fixture
def held(source: ProcessSource) -> HeldScanner:
    scanner = HeldScanner(source._scanner)
    source._scanner = scanner  # type: ignore[assignment]
    return scanner


async def stop(watching: asyncio.Task[None]) -> None:
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_inventory_comes_first_and_then_what_happens(
    source: ProcessSource, proc_tree: Any, eventually: Eventually
) -> None:
    sink = Sink()
    watching = asyncio.create_task(source.watch(sink.emit))
    await eventually(lambda: sink.taken == [("batch", 1)])
    proc_tree.add(5, start_ticks=9000)
    await eventually(lambda: sink.taken[1:] == [("lifecycle", 5)])
    proc_tree.remove(5)
    await eventually(lambda: sink.taken[2:] == [("lifecycle", 5)])
    await stop(watching)


async def test_pause_in_the_middle_of_a_scan_loses_nothing_and_repeats_nothing(
    source: ProcessSource, held: HeldScanner, proc_tree: Any, eventually: Eventually
) -> None:
    proc_tree.add(5)
    sink = Sink()
    watching = asyncio.create_task(source.watch(sink.emit))
    await eventually(lambda: held.begun_count == 1)
    await stop(watching)
    held.go_on.set()
    watching = asyncio.create_task(source.watch(sink.emit))
    await eventually(lambda: held.begun_count >= 2)
    await stop(watching)
    assert sorted(sink.taken) == [("batch", 1), ("batch", 5)]


async def test_pause_while_events_wait_for_room_loses_nothing_and_repeats_nothing(
    source: ProcessSource, proc_tree: Any, eventually: Eventually
) -> None:
    for pid in range(2, 30):
        proc_tree.add(pid)
    sink = Sink()
    for _ in range(5):
        watching = asyncio.create_task(source.watch(sink.emit))
        sink.is_open.clear()
        await eventually(lambda: len(source._pending) > 0 or len(sink.taken) == 29)
        sink.is_open.set()
        await asyncio.sleep(0)
        sink.is_open.clear()
        await stop(watching)
    sink.is_open.set()
    watching = asyncio.create_task(source.watch(sink.emit))
    await eventually(lambda: len(sink.taken) >= 29)
    await stop(watching)
    assert sorted(pid for _, pid in sink.taken) == list(range(1, 30))


async def test_scan_that_failed_is_not_remembered(
    source: ProcessSource, held: HeldScanner, eventually: Eventually
) -> None:
    held.go_on.set()
    held.error = MemoryError()
    sink = Sink()
    with pytest.raises(MemoryError):
        await source.watch(sink.emit)
    watching = asyncio.create_task(source.watch(sink.emit))
    await eventually(lambda: sink.taken == [("batch", 1)])
    await stop(watching)


@pytest.mark.parametrize("error", [InvalidRequestError("too large"), ValueError("out of range")])
async def test_event_that_fits_into_no_message_is_counted_and_holds_up_nobody(
    source: ProcessSource, proc_tree: Any, eventually: Eventually, error: Exception
) -> None:
    for pid in (4, 5, 6):
        proc_tree.add(pid)
    sink = Sink()
    sink.error = error
    watching = asyncio.create_task(source.watch(sink.emit))
    await eventually(lambda: len(sink.taken) == 3)
    await stop(watching)
    assert sorted(pid for _, pid in sink.taken) == [1, 4, 6]
    assert source.unusable_count == 1
    lost = [one for one in source.degradations() if one.reason is DegradedReason.EVENTS_LOST]
    assert len(lost) == 1


async def test_closing_waits_for_the_scan_under_way(
    source: ProcessSource, held: HeldScanner, eventually: Eventually
) -> None:
    watching = asyncio.create_task(source.watch(Sink().emit))
    await eventually(lambda: held.begun_count == 1)
    await stop(watching)
    closing = asyncio.create_task(source.close())
    await asyncio.sleep(0)
    assert not closing.done()
    held.go_on.set()
    await closing


async def test_polling_is_always_said(source: ProcessSource) -> None:
    (polling,) = source.degradations()
    assert polling.reason is DegradedReason.POLLING
    assert "0.05 s" in polling.message


async def test_known_processes_are_read_again_a_few_at_a_time(
    source: ProcessSource, proc_tree: Any
) -> None:
    for pid in range(2, 60):
        proc_tree.add(pid)
    await asyncio.to_thread(source._scanner.scan)
    second = await asyncio.to_thread(source._scanner.scan)
    assert second.read_count == RECHECK_COUNT == 20


async def test_source_refuses_to_start_where_there_is_no_procfs(tmp_path: Any) -> None:
    settings = ProcmondSettings(proc_dir=tmp_path / "nothing")
    source = ProcessSource(settings)
    with pytest.raises(ProcFsUnavailableError):
        await source.prepare(context_of(settings))
    await source.close()


async def enumerated(source: ProcessSource, **wanted: Any) -> tuple[list[int], TaskReport]:
    report = TaskReport()
    task = ipc_pb2.DetectionTask(
        task_id="t",
        task_type=common_pb2.TASK_TYPE_ENUMERATE_PROCESSES,
        process_filter=common_pb2.ProcessFilter(**wanted),
    )
    return [record.pid async for record in source.execute(task, report)], report


async def test_enumeration_returns_all_processes_and_what_could_not_be_seen(
    source: ProcessSource, proc_tree: Any
) -> None:
    for pid in range(2, 600):
        proc_tree.add(pid)
    pids, report = await enumerated(source)
    assert pids == list(range(1, 600))
    assert report.degradations == []
    proc_tree.remove(1)
    _, report = await enumerated(source)
    assert [one.reason for one in report.degradations] == [DegradedReason.UNPRIVILEGED]


async def test_enumeration_honours_every_filter(source: ProcessSource, proc_tree: Any) -> None:
    proc_tree.add(5, comm=b"nc", exe=b"/usr/bin/nc")
    proc_tree.add(6, comm=b"nc", exe=b"/tmp/nc")
    assert (await enumerated(source, pids=[5, 99]))[0] == [5]
    assert (await enumerated(source, process_names=["nc"]))[0] == [5, 6]
    assert (await enumerated(source, process_names=["nc"], executable_pattern="/tmp/*"))[0] == [6]
    assert (await enumerated(source, process_names=["gone"]))[0] == []


@pytest.mark.parametrize("pattern", ["", "x" * 257])
async def test_enumeration_refuses_a_pattern_out_of_bounds(
    source: ProcessSource, pattern: str
) -> None:
    with pytest.raises(InvalidPatternError) as refused:
        await enumerated(source, executable_pattern=pattern)
    assert refused.value.reason is ErrorReason.REQUEST_INVALID
