"""Items between the task that reads the stream and the one that works on them.

Invariant: the reader waits while more than ``READ_AHEAD_BYTES`` lie here, so that a consumer that
stops is felt by the broker; but not while an answer is awaited, which comes behind the items.
"""

import asyncio
from collections import deque

from collector_core.bus.items import Delivery, Item

__all__ = ["READ_AHEAD_BYTES", "Inbox"]

READ_AHEAD_BYTES = 512 << 10
READ_AHEAD_ITEMS = 1_024
MAX_BYTES = 32 << 20
"""Bound while an answer is awaited."""


class Inbox:
    """Items in order, and how they end; for one event loop, one reader and one consumer."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._size_bytes = 0
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._error: BaseException | None = None
        self._is_ended = False
        self.is_hurried = False
        """Whether an answer is awaited behind the items."""

    @property
    def is_ended(self) -> bool:
        """Whether nothing comes any more."""
        return self._is_ended

    def put(self, item: Item) -> None:
        """Adds an item."""
        self._items.append(item)
        self._size_bytes += _size_of(item)
        self._arrived.set()

    async def wait_room(self) -> None:
        """Returns when the next item may be read."""
        while self._is_full:
            self._taken.clear()
            await self._taken.wait()

    async def get(self) -> Item:
        """Returns the next item.

        Raises:
            StopAsyncIteration: there will be none.
            BaseException: what ended them.
        """
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._is_ended:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        item = self._items.popleft()
        self._size_bytes -= _size_of(item)
        self._taken.set()
        return item

    def hurry(self, is_hurried: bool) -> None:
        """Says whether an answer is awaited."""
        self.is_hurried = is_hurried
        self._taken.set()

    def end(self, error: BaseException | None = None) -> None:
        """Says that nothing comes any more; the first ending counts."""
        if not self._is_ended:
            self._is_ended, self._error = True, error
            self._arrived.set()

    def discard(self) -> None:
        """Throws away what nobody will take."""
        self._items.clear()
        self._size_bytes = 0
        self._taken.set()

    @property
    def _is_full(self) -> bool:
        if self.is_hurried:
            return self._size_bytes >= MAX_BYTES
        return self._size_bytes >= READ_AHEAD_BYTES or len(self._items) >= READ_AHEAD_ITEMS


def _size_of(item: Item) -> int:
    return item.size_bytes if isinstance(item, Delivery) else 0
