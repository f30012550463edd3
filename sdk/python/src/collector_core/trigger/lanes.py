"""The queue between deciding and emitting: two lanes that share one budget.

Invariant: what was taken counts against the budget until it is done, and goes back to the front of
its lane when it is not.
"""

import asyncio
from collections import deque
from enum import StrEnum
from typing import Generic, TypeVar

from collector_core.analysis import TriggerPriority

__all__ = ["Lanes", "Refusal"]

PRESSURE_SHARE = 0.8
"""Fill from which on requests of low priority are refused."""

T = TypeVar("T")


class Refusal(StrEnum):
    """Why a request was not emitted."""

    DUPLICATE = "duplicate"
    RATE_LIMITED = "rate_limited"
    BACKPRESSURE = "backpressure"
    QUEUE_FULL = "queue_full"
    INVALID = "invalid"
    EMIT_FAILED = "emit_failed"


class Lanes(Generic[T]):
    """Items that wait: CRITICAL and HIGH first, then NORMAL and LOW, in order of arrival."""

    def __init__(self) -> None:
        self._high: deque[T] = deque()
        self._low: deque[T] = deque()
        self._taken = 0
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._high) + len(self._low) + self._taken

    def refusal_of(self, priority: TriggerPriority, limit: int) -> Refusal | None:
        """Returns why an item of ``priority`` cannot be put; None when it can."""
        if len(self) >= limit:
            return Refusal.QUEUE_FULL
        if priority is TriggerPriority.LOW and len(self) >= PRESSURE_SHARE * limit:
            return Refusal.BACKPRESSURE
        return None

    def put(self, item: T, priority: TriggerPriority) -> None:
        """Appends an item."""
        self._lane(priority).append(item)
        self._filled.set()

    async def take(self) -> T:
        """Returns the next item, once there is one."""
        while not (self._high or self._low):
            self._filled.clear()
            await self._filled.wait()
        self._taken += 1
        return (self._high or self._low).popleft()

    def finish(self) -> None:
        """Gives the place of a taken item free."""
        self._taken -= 1

    def put_back(self, item: T, priority: TriggerPriority) -> None:
        """Returns a taken item to where it came from."""
        self._taken -= 1
        self._lane(priority).appendleft(item)
        self._filled.set()

    def _lane(self, priority: TriggerPriority) -> deque[T]:
        return self._high if priority >= TriggerPriority.HIGH else self._low
