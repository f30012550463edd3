"""Tells a publisher when everybody who acknowledges has acknowledged its batch.

A receipt travels with the groups of one batch, through queues, splits and consumer groups. What a
subscriber was told in a gap is settled too: that was its declared policy. What was lost with a
subscriber that ended is not.
"""

import asyncio

from daemoneye_eventbus.errors import NoSubscriberError

__all__ = ["Receipt"]


class Receipt:
    """Counts the deliveries of one batch that wait for an acknowledgement; for one event loop."""

    __slots__ = ("_done", "_open_count")

    def __init__(self) -> None:
        self._open_count = 0
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_expected(self) -> bool:
        """Whether anybody is to acknowledge."""
        return self._open_count > 0

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
        """Returns when everything is settled.

        Raises:
            NoSubscriberError: nobody was to acknowledge, or a subscription ended before it had.
        """
        if not self.is_expected and not self._done.done():
            raise NoSubscriberError
        await asyncio.shield(self._done)
