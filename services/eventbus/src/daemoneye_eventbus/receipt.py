"""Tells a publisher when everybody who acknowledges has acknowledged its batch.

A receipt travels with the groups of one batch, through queues, splits and consumer groups. What a
subscriber was told in a gap is settled too: that was its declared policy. What was lost with a
subscriber that ended is not.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from daemoneye_eventbus.errors import NoSubscriberError

__all__ = ["Receipt"]


class Receipt:
    """Counts the deliveries of one batch that wait for an acknowledgement; for one event loop."""

    __slots__ = ("_done", "_open_count")

    def __init__(self) -> None:
        self._open_count = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_settled(self) -> bool:
        """Whether ``wait`` would return, or raise, at once."""
        return self._done.done() or not self._open_count

    @contextmanager
    def offering(self) -> Iterator[None]:
        """Keeps it open while the batch is offered: what is done meanwhile is not all of it."""
        self.expect(1)
        try:
            yield
        finally:
            self.settle(1)

    def expect(self, count: int) -> None:
        """Notes that this many messages went to a subscription that acknowledges."""
        self._open_count += count

    def settle(self, count: int) -> None:
        """Notes that this many were acknowledged, or told as a gap."""
        self._open_count -= count
        if self._open_count == 0 and not self._done.done():
            self._done.set_result(None)

    def fail(self) -> None:
        """Notes that a subscription ended without having acknowledged."""
        if not self._done.done():
            self._done.set_exception(NoSubscriberError())
            self._done.exception()  # a publisher that left need not hear of it

    async def wait(self) -> None:
        """Returns when everything is settled; at once when nobody is to acknowledge.

        Raises:
            NoSubscriberError: a subscription ended before it had acknowledged.
        """
        if self._open_count or self._done.done():
            await asyncio.shield(self._done)

    def includes(self, receipt: "Receipt") -> bool:
        """Whether what is noted here is noted there too."""
        return receipt is self

    def beside(self, other: "Receipt | None") -> "Receipt":
        """Returns a receipt that notes everything in both."""
        return self if other is None else _Pair(self, other)


class _Pair(Receipt):
    """Two who wait for the same messages."""

    __slots__ = ("_both",)

    def __init__(self, first: Receipt, second: Receipt) -> None:
        super().__init__()
        self._both = (first, second)

    def expect(self, count: int) -> None:
        for receipt in self._both:
            receipt.expect(count)

    def settle(self, count: int) -> None:
        for receipt in self._both:
            receipt.settle(count)

    def fail(self) -> None:
        for receipt in self._both:
            receipt.fail()

    def includes(self, receipt: Receipt) -> bool:
        return any(one.includes(receipt) for one in self._both)
