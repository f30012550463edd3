"""From the log to the publisher's outbox: in order, from memory or from disk, and again on demand.

Invariant: every event of the log that is not acknowledged is handed to the outbox once in each life of
the collector, in the order of its sequence, and once more for each replay. What does not fit into the
outbox is read from disk when it does.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collector_core.bus.outbox import Outbox
from collector_core.bus.outbox_group import OutboxGroup
from collector_core.delivery.committer import RETRY_S, in_thread
from collector_core.wal import EventLog, LogUnwritableError
from daemoneye_mesh.errors import OverloadedError

__all__ = ["MAX_REPLAYS", "Feeder"]

MAX_REPLAYS = 64
"""Ranges that wait to be sent again; more are refused."""

READ_BYTES = 1 << 20
"""Read from disk at once."""

log = logging.getLogger("daemoneye.wal")


@dataclass(slots=True)
class _Range:
    epoch: int
    next: int
    last: int
    is_replay: bool


class Feeder:
    """Hands over what is in the log.

    Args:
        event_log: the log, opened.
        outbox: where the publisher takes from.
        on_trouble: hears why the log cannot be read, and an empty text when it can.
    """

    def __init__(
        self,
        event_log: EventLog,
        outbox: Outbox,
        on_trouble: Callable[[str], None] = lambda trouble: None,
    ) -> None:
        self._log = event_log
        self._on_trouble = on_trouble
        self._outbox = outbox
        self._ranges: deque[_Range] = deque()
        self._next = 1
        """First sequence of the current epoch that was not handed over."""
        self._is_behind = False
        """Whether there is more on disk than was handed over."""
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self.replayed_count = 0
        """Events handed over again because somebody asked."""
        self._begin()

    @property
    def is_idle(self) -> bool:
        """Whether everything that is in the log was handed over."""
        return not self._ranges and not self._is_behind

    async def wait_idle(self) -> None:
        """Returns when everything that is in the log was handed over."""
        await self._idle.wait()

    def hand_on(self, groups: Sequence[OutboxGroup]) -> None:
        """Takes groups that were just written to the log."""
        for group in groups:
            if self._is_behind or not self._outbox.put_group(group):
                self._fall_behind()
                return
            self._next = group.next_sequence

    def replay(self, epoch: int, first: int, last: int) -> None:
        """Has a range sent again, after the ranges that were asked for before.

        Raises:
            OverloadedError: too many ranges wait.
        """
        if any(
            one.epoch == epoch and one.next <= first and last <= one.last for one in self._ranges
        ):
            return  # it is on its way
        if len(self._ranges) >= MAX_REPLAYS:
            raise OverloadedError(
                f"{MAX_REPLAYS} ranges wait to be replayed; ask again later", limit=MAX_REPLAYS
            )
        self._ranges.append(_Range(epoch, first, last, is_replay=True))
        self._wake()

    def skip_to(self, epoch: int, acknowledged: int) -> None:
        """Leaves out what was acknowledged meanwhile."""
        if epoch == self._log.epoch and acknowledged >= self._next:
            self._next = acknowledged + 1
        for one in self._ranges:
            if one.epoch == epoch:
                one.next = max(one.next, acknowledged + 1)

    async def run(self) -> None:
        """Reads from disk what could not be handed over directly, until cancelled."""
        while True:
            await self._work.wait()
            try:
                if self._ranges:
                    await self._feed_range(self._ranges[0])
                if self._is_behind:
                    await self._catch_up()
            except LogUnwritableError as error:  # a file is damaged and cannot be mended now
                log.error("events cannot be read from the log yet: %s", error.message)
                self._on_trouble(error.message)
                await asyncio.sleep(RETRY_S)
            else:
                self._on_trouble("")
            self._rest_when_idle()

    def _begin(self) -> None:
        """Everything that earlier lives left behind goes first."""
        positions = sorted(self._log.positions(), key=lambda one: one.epoch)
        for one in positions:
            first = max(one.acknowledged_sequence + 1, one.first_sequence)
            if one.epoch == self._log.epoch:
                self._next = first
                self._is_behind = first <= one.last_sequence
            elif first <= one.last_sequence:
                self._ranges.append(_Range(one.epoch, first, one.last_sequence, is_replay=False))
        self._wake()
        self._rest_when_idle()

    def _fall_behind(self) -> None:
        if not self._is_behind:
            log.debug("the broker does not keep up; events are read from disk")
        self._is_behind = True
        self._wake()

    def _wake(self) -> None:
        self._idle.clear()
        self._work.set()

    def _rest_when_idle(self) -> None:
        if self.is_idle:
            self._work.clear()
            self._idle.set()

    async def _feed_range(self, wanted: _Range) -> None:
        """Hands over the next piece of a range; the range is dropped when it is done."""
        groups = await self._read(wanted.epoch, wanted.next, wanted.last)
        for group in groups:
            await self._put(group)
            wanted.next = group.next_sequence
            if wanted.is_replay:
                self.replayed_count += group.count
        if not groups or wanted.next > wanted.last:
            self._ranges.remove(wanted)

    async def _catch_up(self) -> None:
        groups = await self._read(self._log.epoch, self._next, self._log.last_sequence)
        for group in groups:
            await self._put(group)
            self._next = max(self._next, group.next_sequence)
        if not groups:
            self._next = max(self._next, self._log.last_sequence + 1)
        self._is_behind = self._next <= self._log.last_sequence

    async def _read(self, epoch: int, first: int, last: int) -> Sequence[OutboxGroup]:
        if first > last:
            return ()
        return await in_thread(lambda: self._log.read(epoch, first, last, READ_BYTES))

    async def _put(self, group: OutboxGroup) -> None:
        while not self._outbox.put_group(group):
            await self._outbox.wait_room()
