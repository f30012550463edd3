"""A clock that moves only when it is told to, for tests of collectors.

Invariant: nothing here waits for real time; a sleeper wakes when the clock was moved to its time.
"""

import asyncio
import heapq
import itertools

__all__ = ["ManualClock"]

TURNS = 40
"""Turns of the event loop that let everything run which was woken."""


class ManualClock:
    """All clocks of a collector, moved by hand; fits ``collector_core.clock.Clock``.

    Args:
        wall_ns: what the wall clock says at first, nanoseconds since the Unix epoch.
    """

    def __init__(self, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._monotonic_s = 1_000.0
        self._asleep_s = 0.0
        self._wall_offset_ns = wall_ns - round(self._monotonic_s * 1e9)
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def monotonic_s(self) -> float:
        """As of ``Clock``."""
        return self._monotonic_s

    def boottime_s(self) -> float:
        """As of ``Clock``."""
        return self._monotonic_s + self._asleep_s

    def wall_ns(self) -> int:
        """As of ``Clock``."""
        return round(self.boottime_s() * 1e9) + self._wall_offset_ns

    async def sleep(self, delay_s: float) -> None:
        """Returns once the clock was moved on by ``delay_s``."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due_s = self._monotonic_s + delay_s
        heapq.heappush(self._sleepers, (due_s, next(self._order), woken))
        await woken

    def advance(self, seconds: float) -> None:
        """Moves on at once, as if the process had been stopped meanwhile; sleepers are late."""
        self._move_to(self._monotonic_s + seconds)

    async def pass_time(self, seconds: float) -> None:
        """Moves on bit by bit: every sleeper wakes at its time and runs before time goes on."""
        end_s = self._monotonic_s + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self._move_to(self._sleepers[0][0])
            await self.settle()
        self._move_to(end_s)
        await self.settle()

    def suspend(self, seconds: float) -> None:
        """The host sleeps: the monotonic clock stands still, the others go on."""
        self._asleep_s += seconds

    def step_wall(self, seconds: float) -> None:
        """Somebody sets the wall clock, back when negative."""
        self._wall_offset_ns += round(seconds * 1e9)

    async def settle(self) -> None:
        """Lets everything run that can without time going on."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def _move_to(self, monotonic_s: float) -> None:
        self._monotonic_s = max(self._monotonic_s, monotonic_s)
        while self._sleepers and self._sleepers[0][0] <= self._monotonic_s:
            woken = heapq.heappop(self._sleepers)[2]
            if not woken.done():
                woken.set_result(None)
