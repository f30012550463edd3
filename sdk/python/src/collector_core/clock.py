"""The clocks of a collector, and noticing when time went by without it.

Durations are measured on clocks that nobody sets. The monotonic clock stands still while the host is
suspended, the boottime clock does not, and the wall clock may jump either way: comparing the three
tells a host that slept, a process that was stopped and a wall clock that was set from one another.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from collector_core.listeners import Listeners

__all__ = ["Clock", "ClockEvent", "ClockEventKind", "SuspendWatch", "SystemClock", "sleep_unless"]

TICK_S = 1.0
LATE_S = 5.0
"""A tick that comes later than this means that the process, or its event loop, was not run."""
SUSPENDED_S = 1.0
"""Less sleep than this is not worth an event; it adds up until it is."""
STEPPED_S = 2.0
"""How far the wall clock may wander off before it counts as set."""
GRACE_S = 5.0
"""How long others get to report again after the collector itself was away."""
READING_S = 0.05
"""Clocks that took longer to read do not belong to one moment."""
READING_ATTEMPTS = 3

log = logging.getLogger("daemoneye.clock")


class Clock(Protocol):
    """Where a collector takes its time from; tests bring their own."""

    def monotonic_s(self) -> float:
        """Seconds on a clock that is never set and stands still while the host is suspended."""
        ...

    def boottime_s(self) -> float:
        """Seconds on a clock that is never set and goes on while the host is suspended."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the Unix epoch; may jump."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Returns after ``delay_s`` on the monotonic clock."""
        ...


class SystemClock:
    """The clocks of the kernel."""

    def monotonic_s(self) -> float:
        """As of ``Clock``."""
        return time.monotonic()

    def boottime_s(self) -> float:
        """As of ``Clock``."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        """As of ``Clock``."""
        return time.time_ns()

    async def sleep(self, delay_s: float) -> None:
        """As of ``Clock``."""
        await asyncio.sleep(delay_s)


async def sleep_unless(clock: Clock, delay_s: float | None, event: asyncio.Event) -> None:
    """Returns when ``event`` is set, at the latest after ``delay_s``; without end if that is None."""
    if delay_s is None:
        await event.wait()
        return
    waits = {
        asyncio.ensure_future(clock.sleep(delay_s)),
        asyncio.ensure_future(_wait_set(event)),
    }
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _wait_set(event: asyncio.Event) -> None:
    await event.wait()


class ClockEventKind(StrEnum):
    """What happened to the time of a process."""

    SUSPENDED = "SUSPENDED"
    """The host slept."""
    STALLED = "STALLED"
    """The process was stopped, starved of CPU, or kept its event loop busy."""
    WALL_STEPPED = "WALL_STEPPED"
    """The wall clock was set."""


@dataclass(frozen=True, slots=True)
class ClockEvent:
    """Something that happened to the time of the process."""

    kind: ClockEventKind
    duration_s: float
    """How long it was away, or how far the wall clock jumped: negative when it went back."""
    at_ns: int
    """When it was noticed, nanoseconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """The three clocks at one moment."""

    monotonic_s: float
    boottime_s: float
    wall_ns: int

    @property
    def asleep_s(self) -> float:
        return self.boottime_s - self.monotonic_s

    @property
    def booted_at_s(self) -> float:
        return self.wall_ns / 1e9 - self.boottime_s


class SuspendWatch:
    """Notices suspends, stalls and steps of the wall clock.

    Args:
        clock: the clocks to compare.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        start = _read(clock)
        self._asleep_s = start.asleep_s
        self._booted_at_s = start.booted_at_s
        self._due_s: float | None = None
        self._absent_s = 0.0
        self._grace_until_s = 0.0
        self._listeners = Listeners[ClockEvent]("the clocks")
        self.event_count: Counter[ClockEventKind] = Counter()
        """Events so far, by kind."""

    def on_event(self, listener: Callable[[ClockEvent], None]) -> None:
        """Calls ``listener`` with each event."""
        self._listeners.add(listener)

    def awake_s(self) -> float:
        """Seconds that do not count what was slept or stalled away; looks at the clocks first."""
        return self.tick().boottime_s - self._absent_s

    def grace_until(self) -> float:
        """Boottime in seconds until which nobody is to be blamed for silence; 0 before any event."""
        return self._grace_until_s

    async def run(self) -> None:
        """Looks at the clocks every second until cancelled; stalls are noticed only meanwhile."""
        try:
            while True:
                self._due_s = self._clock.monotonic_s() + TICK_S
                await self._clock.sleep(TICK_S)
                self.tick()
        finally:
            self._due_s = None

    def tick(self) -> _Reading:
        """Compares the clocks with what they should say, tells of what happened, returns them."""
        now = _read(self._clock)
        events = [
            ClockEvent(kind, duration_s, now.wall_ns)
            for kind, duration_s in (
                (ClockEventKind.SUSPENDED, self._take_sleep(now)),
                (ClockEventKind.STALLED, self._take_stall(now)),
                (ClockEventKind.WALL_STEPPED, self._take_step(now)),
            )
            if duration_s
        ]
        for event in events:
            self.event_count[event.kind] += 1
            log.warning("clock: %s %+.1f s", event.kind, event.duration_s)
            self._listeners.tell(event)
        return now

    def _take_sleep(self, now: _Reading) -> float:
        slept_s = now.asleep_s - self._asleep_s
        if slept_s <= SUSPENDED_S:
            return 0.0
        self._asleep_s = now.asleep_s
        self._note_absence(slept_s, now)
        return slept_s

    def _take_stall(self, now: _Reading) -> float:
        if self._due_s is None or now.monotonic_s - self._due_s <= LATE_S:
            return 0.0
        late_s = now.monotonic_s - self._due_s
        # Whoever looks first tells of it; the late tick itself comes after that.
        self._due_s = now.monotonic_s + TICK_S
        self._note_absence(late_s, now)
        return late_s

    def _take_step(self, now: _Reading) -> float:
        # Both clocks go on during a suspend and are slewed alike: only setting one parts them.
        stepped_s = now.booted_at_s - self._booted_at_s
        if abs(stepped_s) <= STEPPED_S:
            return 0.0
        self._booted_at_s = now.booted_at_s
        return stepped_s

    def _note_absence(self, absent_s: float, now: _Reading) -> None:
        self._absent_s += absent_s
        self._grace_until_s = now.boottime_s + GRACE_S


def _read(clock: Clock) -> _Reading:
    # A process may be stopped between two clocks; what it read then would look like a jump.
    reading = _read_once(clock)
    for _ in range(READING_ATTEMPTS - 1):
        if clock.boottime_s() - reading.boottime_s <= READING_S:
            break
        reading = _read_once(clock)
    return reading


def _read_once(clock: Clock) -> _Reading:
    boottime_s = clock.boottime_s()
    return _Reading(clock.monotonic_s(), boottime_s, clock.wall_ns())
