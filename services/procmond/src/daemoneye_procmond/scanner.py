"""One look at all processes, and when to take the next.

Invariant: a scan never raises for what it finds on the host; whatever it could not see is in ``causes``.
"""

import time
from dataclasses import dataclass
from typing import Protocol

from daemoneye_procmond.cause import CauseReason, DegradedCause, coverage_causes
from daemoneye_procmond.errors import CpuShareError, ProcFsUnavailableError
from daemoneye_procmond.event import ProcessEvent
from daemoneye_procmond.observation import Observation, ScanPlan
from daemoneye_procmond.procfs import ProcFs, UnreadableError
from daemoneye_procmond.record import ProcessReading
from daemoneye_procmond.statline import StatLine
from daemoneye_procmond.tracker import Tracker

__all__ = ["Clock", "ScanResult", "Scanner", "SystemClock", "next_delay_s"]

_FORMING_ROUNDS = 3
_FORMING_PAUSE_S = 0.002


class Clock(Protocol):
    """The times a scan needs."""

    def time_ns(self) -> int:
        """Wall clock, nanoseconds since the Unix epoch."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that is never set."""

    def cpu_s(self) -> float:
        """CPU seconds of the calling thread."""

    def sleep(self, pause_s: float) -> None:
        """Lets so many seconds pass."""


class SystemClock:
    """The clocks of the host."""

    def time_ns(self) -> int:
        """Wall clock, nanoseconds since the Unix epoch."""
        return time.time_ns()

    def monotonic_s(self) -> float:
        """Seconds on a clock that is never set."""
        return time.monotonic()

    def cpu_s(self) -> float:
        """CPU seconds of the calling thread."""
        return time.thread_time()

    def sleep(self, pause_s: float) -> None:
        """Lets so many seconds pass."""
        time.sleep(pause_s)


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What one scan found and what it cost."""

    events: tuple[ProcessEvent, ...] = ()
    process_count: int = 0
    """Processes that run, zombies left out."""
    read_count: int = 0
    """Records read in this scan."""
    vanished_count: int = 0
    """Processes that ended while being looked at."""
    unreadable_count: int = 0
    """Processes of which nothing, or not every field, can be read."""
    overflow_count: int = 0
    """Processes left out because the table is full."""
    duration_s: float = 0.0
    cpu_s: float = 0.0
    causes: tuple[DegradedCause, ...] = ()
    """Why the picture is not whole; empty when it is."""


@dataclass(frozen=True, slots=True)
class _Glance:
    stats: list[StatLine]
    unreadable_pids: frozenset[int]
    denied_count: int
    vanished_count: int
    is_hidden: bool


class Scanner:
    """Scans on demand; blocking, for one thread at a time.

    Args:
        procfs: where to look.
        tracker: what is known so far.
        clock: the times.
    """

    def __init__(self, procfs: ProcFs, tracker: Tracker, clock: Clock | None = None) -> None:
        self._procfs = procfs
        self._tracker = tracker
        self._clock = clock or SystemClock()

    def scan(self) -> ScanResult:
        """Looks at every process once and tells what happened since the scan before."""
        begun_s, begun_cpu_s = self._clock.monotonic_s(), self._clock.cpu_s()
        try:
            glance = self._glance()
        except ProcFsUnavailableError as err:
            cause = DegradedCause(CauseReason.COLLECTOR_UNAVAILABLE, err.message)
            return ScanResult(
                duration_s=self._clock.monotonic_s() - begun_s,
                cpu_s=self._clock.cpu_s() - begun_cpu_s,
                causes=(cause,),
            )
        plan = self._tracker.plan(
            Observation(
                stats=glance.stats,
                observed_at_ns=self._clock.time_ns(),
                monotonic_s=self._clock.monotonic_s(),
                unreadable_pids=glance.unreadable_pids,
            )
        )
        readings = self._read(plan)
        events = self._tracker.apply(plan, readings)
        coverage = self._tracker.coverage()
        failed_count = coverage.incomplete_count + len(glance.unreadable_pids) - glance.denied_count
        denied_count = coverage.denied_count + glance.denied_count
        vanished = sum(reading.is_vanished for reading in readings.values())
        return ScanResult(
            events=events,
            process_count=sum(not stat.is_exited for stat in glance.stats),
            read_count=len(readings) - vanished,
            vanished_count=glance.vanished_count + vanished,
            unreadable_count=denied_count + failed_count,
            overflow_count=plan.overflow_count,
            duration_s=self._clock.monotonic_s() - begun_s,
            cpu_s=self._clock.cpu_s() - begun_cpu_s,
            causes=(
                *coverage_causes(
                    denied_count=denied_count,
                    failed_count=failed_count,
                    is_hidden=glance.is_hidden,
                ),
                *_bound_causes(plan.overflow_count, coverage.shortened_count),
            ),
        )

    def _glance(self) -> _Glance:
        pids = self._procfs.list_pids()
        read_stat = self._procfs.read_stat
        stats: list[StatLine] = []
        unreadable: list[int] = []
        denied_count = 0
        for pid in pids:
            try:
                stat = read_stat(pid)
            except UnreadableError as err:
                unreadable.append(pid)
                denied_count += err.is_denied
                continue
            if stat is not None:
                stats.append(stat)
        vanished_count = len(pids) - len(stats) - len(unreadable)
        return _Glance(stats, frozenset(unreadable), denied_count, vanished_count, 1 not in pids)

    def _read(self, plan: ScanPlan) -> dict[int, ProcessReading]:
        readings = {stat.pid: self._read_one(stat) for stat in plan.wanted}
        # One pause for all: however many are held in the middle of an exec, a scan stays short.
        for _round in range(_FORMING_ROUNDS):
            forming = [reading for reading in readings.values() if reading.is_forming]
            if not forming:
                break
            self._clock.sleep(_FORMING_PAUSE_S)
            for reading in forming:
                readings[reading.stat.pid] = self._procfs.read(reading.stat) or reading
        return readings

    def _read_one(self, stat: StatLine) -> ProcessReading:
        return self._procfs.read(stat) or self._procfs.read_vanished(stat)


def next_delay_s(interval_s: float, cpu_s: float, cpu_share: float = 0.05) -> float:
    """How long to wait after a scan that cost ``cpu_s`` before the next one begins.

    Scans begin ``interval_s`` apart, or as much further as it takes to stay within the share.

    Args:
        interval_s: wanted distance of two scans.
        cpu_s: CPU time of the scan that just ended.
        cpu_share: most of one core that scanning may take, over 0 and up to 1.

    Raises:
        CpuShareError: interval or share is out of range.
    """
    if not interval_s > 0 or not 0 < cpu_share <= 1:
        raise CpuShareError(
            f"scan interval {interval_s} s with cpu share {cpu_share} is out of range; "
            "use an interval over 0 and a share over 0 and up to 1",
            interval_s=interval_s,
            cpu_share=cpu_share,
        )
    return max(0.0, interval_s - cpu_s, cpu_s / cpu_share - cpu_s)


def _bound_causes(overflow_count: int, shortened_count: int) -> tuple[DegradedCause, ...]:
    causes: list[DegradedCause] = []
    if overflow_count:
        message = f"{overflow_count} processes are not tracked because the table is full"
        causes.append(DegradedCause(CauseReason.TRUNCATED, message))
    if shortened_count:
        message = f"{shortened_count} processes are kept with cut arguments and paths"
        causes.append(DegradedCause(CauseReason.TRUNCATED, message))
    return tuple(causes)
