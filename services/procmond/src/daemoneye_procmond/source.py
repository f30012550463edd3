"""The source of process events: scans in a thread, and ``ENUMERATE_PROCESSES`` on demand."""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence

from collector_core import (
    CollectorSettings,
    Emit,
    Event,
    EventClass,
    EventSource,
    SourceCaps,
    SourceContext,
    TaskReport,
)
from collector_core.interval import sleep_interval
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import collector_service_pb2, ipc_pb2
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import InvalidRequestError
from daemoneye_procmond.cause import DegradedCause
from daemoneye_procmond.config import ProcmondSettings
from daemoneye_procmond.enumeration import EnumerationTally, ProcessQuery, enumerate_processes
from daemoneye_procmond.event import EventKind, ProcessEvent
from daemoneye_procmond.message import TOPICS, to_event_message, to_record_message
from daemoneye_procmond.observation import TrackerLimits
from daemoneye_procmond.procfs import ProcFs
from daemoneye_procmond.scanner import Scanner, ScanResult, next_delay_s
from daemoneye_procmond.schema import PROCESSES_TABLE
from daemoneye_procmond.tracker import Tracker

__all__ = ["COLLECTOR_ID", "ProcessSource"]

COLLECTOR_ID = "procmond"
READ_BATCH = 256
"""Records read in the thread before the loop gets to send them."""

RECHECK_COUNT = 20
"""Known processes read again in each scan. 200 cost 16 ms of CPU a scan, 3 % of a core; 20 cost a
tenth of it, and what changes without showing in the stat line (ids, cgroup) is still noticed within
seconds: a host of 400 processes is through after 20 scans, which are 10 s."""

CLASSES = {EventKind.MODIFIED: EventClass.METADATA}
"""What may be left out under pressure; all else is the life of a process."""

log = logging.getLogger("daemoneye.procmond")


class ProcessSource(EventSource):
    """Watches processes by scanning ``/proc``.

    Args:
        settings: interval, CPU share and bounds.
    """

    name = "processes"
    caps = SourceCaps.PROCESS | SourceCaps.SYSTEM_WIDE
    task_types = frozenset({common_pb2.TASK_TYPE_ENUMERATE_PROCESSES})
    tables: Sequence[collector_service_pb2.TableDescription] = (PROCESSES_TABLE,)

    def __init__(self, settings: ProcmondSettings) -> None:
        self._settings = settings
        self._scanner: Scanner
        self._scanning: asyncio.Future[ScanResult] | None = None
        self._pending: deque[ProcessEvent] = deque()
        self._last: ScanResult | None = None
        self.unusable_count = 0
        """Events that did not fit into a message."""

    async def prepare(self, context: SourceContext) -> None:
        """Opens procfs; refuses to start where there is none."""
        procfs = await asyncio.to_thread(ProcFs, self._settings.proc_dir)
        limits = TrackerLimits(
            process_count=self._settings.max_processes, recheck_count=RECHECK_COUNT
        )
        self._scanner = Scanner(procfs, Tracker(limits))

    async def reconfigure(self, settings: CollectorSettings) -> None:
        """Scans at another pace from the next scan on."""
        assert isinstance(settings, ProcmondSettings)  # noqa: S101 -- the collector has no others
        self._settings = settings

    async def watch(self, emit: Emit) -> None:
        """Scans and emits what happened, until cancelled."""
        while True:
            result = await self._scan()
            while self._pending:
                await self._emit(self._pending[0], emit)
                self._pending.popleft()
            await sleep_interval(lambda result=result: self._delay_s(result))  # type: ignore[misc]

    def _delay_s(self, result: ScanResult) -> float:
        settings = self._settings
        return next_delay_s(settings.scan_interval_s, result.cpu_s, settings.scan_cpu_share)

    def degradations(self) -> Sequence[Degradation]:
        """Polling itself, and what the last scan could not see."""
        interval_s = self._settings.scan_interval_s
        polling = Degradation(
            DegradedReason.POLLING,
            COLLECTOR_ID,
            f"processes are polled every {interval_s:g} s; one that lives shorter may go unseen",
        )
        causes = self._last.causes if self._last else ()
        found = [polling, *_to_degradations(causes)]
        if self.unusable_count:
            message = f"{self.unusable_count} events did not fit into a message and were left out"
            found.append(Degradation(DegradedReason.EVENTS_LOST, COLLECTOR_ID, message))
        return found

    async def close(self) -> None:
        """Waits for a scan under way: its thread must not outlive the collector."""
        if self._scanning is not None:
            await asyncio.wait({self._scanning})
            self._scanning.exception()  # nobody is left who would want to know

    async def _emit(self, event: ProcessEvent, emit: Emit) -> None:
        try:
            data = to_event_message(event)
            event_class = CLASSES.get(event.kind, EventClass.LIFECYCLE)
            await emit(Event(TOPICS[event.kind], data, event.observed_at_ns, event_class))
        except (InvalidRequestError, ValueError) as error:
            # Tried again it would fail again, and nothing behind it would ever get out.
            self.unusable_count += 1
            reason = error.message if isinstance(error, InvalidRequestError) else "out of range"
            log.error("%s of pid %d left out: %s", event.kind, event.record.pid, reason)

    async def _scan(self) -> ScanResult:
        # A scan moves the tracker on, so its events must survive a pause in the middle of it.
        if self._scanning is None:
            self._scanning = asyncio.ensure_future(asyncio.to_thread(self._scanner.scan))
        try:
            result = await asyncio.shield(self._scanning)
        except Exception:  # the scan failed: the next attempt is another one
            self._scanning = None
            raise
        self._scanning = None
        if self._last is None:
            log.info("inventory: %d processes", result.process_count)
        self._last = result
        self._pending.extend(result.events)
        return result

    async def execute(
        self, task: ipc_pb2.DetectionTask, report: TaskReport
    ) -> AsyncIterator[common_pb2.ProcessRecord]:
        """Yields the processes that the filter admits, read right now."""
        wanted = task.process_filter
        query = ProcessQuery(
            names=tuple(wanted.process_names),
            pids=tuple(wanted.pids),
            executable_pattern=(
                wanted.executable_pattern if wanted.HasField("executable_pattern") else None
            ),
        )
        tally = EnumerationTally()
        procfs = await asyncio.to_thread(ProcFs, self._settings.proc_dir)
        records = map(to_record_message, enumerate_processes(procfs, query, tally))
        while batch := await asyncio.to_thread(lambda: list(itertools.islice(records, READ_BATCH))):
            for record in batch:
                yield record
        report.degradations.extend(_to_degradations(tally.causes))


def _to_degradations(causes: Sequence[DegradedCause]) -> list[Degradation]:
    return [
        Degradation(DegradedReason(cause.reason.upper()), COLLECTOR_ID, cause.message)
        for cause in causes
    ]
