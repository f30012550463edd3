"""Publishers waiting for room in a mailbox of the policy ``block``.

Invariant: once a wait has been in vain nobody waits again before half of the queue is free, so that
a subscriber which does not read delays publishers once and not for every batch.
"""

import asyncio
from collections.abc import Callable

__all__ = ["Room"]


class Room:
    """Tells those who wait when something has left the queue."""

    __slots__ = ("_freed", "is_stalled")

    def __init__(self) -> None:
        self._freed = asyncio.Event()
        self.is_stalled = False

    def notice(self, *, is_half_free: bool) -> None:
        """Notes that the queue has changed."""
        if is_half_free:
            self.is_stalled = False
        self._freed.set()

    async def wait(self, is_over: Callable[[], bool], timeout_s: float) -> None:
        """Returns when there is nothing more to wait for, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while not (self.is_stalled or is_over()):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            if not is_over():
                self.is_stalled = True
                self._freed.set()  # the others have waited for the same stall
