"""The queue of one subscription: groups of messages, bounded, which tells what it had to drop.

Every message offered and not filtered gets a position (0, 1, 2, ...). What was handed over and not
acknowledged, then what waits, make one row without a position left out (see ``mailbox_line``): a
gap is told at the place where the loss happened.

Invariants, after every operation:

* ``offered == delivered + filtered + sum(dropped.values()) + pending``. Delivered means handed to
  the consumer or, with acknowledgements, acknowledged.
* Pending is within the bounds (see ``mailbox_stock``).
* Putting never waits; one consumer takes.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from daemoneye_eventbus.errors import InvalidSubscriptionError, MailboxBusyError
from daemoneye_eventbus.group import Group
from daemoneye_eventbus.mailbox_delivery import (
    Batch,
    Closed,
    CloseReason,
    Delivery,
    DropReason,
    Gap,
    MailboxCounters,
    Notice,
)
from daemoneye_eventbus.mailbox_handover import Handover
from daemoneye_eventbus.mailbox_limits import (
    Acknowledgement,
    MailboxLimits,
    OverflowPolicy,
    Retention,
)
from daemoneye_eventbus.mailbox_room import Room
from daemoneye_eventbus.mailbox_stock import Stock
from daemoneye_eventbus.receipt import Receipt

__all__ = [
    "Acknowledgement",
    "Batch",
    "CloseReason",
    "Closed",
    "Delivery",
    "DropReason",
    "Gap",
    "Mailbox",
    "MailboxCounters",
    "MailboxLimits",
    "Notice",
    "OverflowPolicy",
    "Retention",
]


class Mailbox:
    """The queue of one subscription; see the module docstring.

    Args:
        limits: bounds and policies.
        retention: bounds while the subscriber is away; None keeps those of ``limits``.
        monotonic: clock for everything that times out.
    """

    __slots__ = (
        "_close_reason",
        "_handover",
        "_is_attached",
        "_is_held_up",
        "_is_paused",
        "_is_taking",
        "_notices",
        "_ready",
        "_room",
        "_stock",
        "limits",
        "retention",
    )

    def __init__(
        self,
        limits: MailboxLimits,
        retention: Retention | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.retention = retention
        self._stock = Stock(limits, monotonic)
        self._handover = Handover(self._stock)
        self._room = Room() if limits.policy is OverflowPolicy.BLOCK else None
        self._is_attached = True
        self._is_paused = False
        self._close_reason: CloseReason | None = None
        self._notices: deque[Notice] = deque()
        self._ready = asyncio.Event()
        self._is_taking = False
        self._is_held_up = False  # the consumer waits although there is something: no use to wake

    @property
    def close_reason(self) -> CloseReason | None:
        """Why the mailbox ended, or None while it is open."""
        return self._close_reason

    @property
    def is_paused(self) -> bool:
        """Whether the subscriber stopped delivery."""
        return self._is_paused

    @property
    def is_attached(self) -> bool:
        """Whether the subscriber is there."""
        return self._is_attached

    @property
    def is_blocking(self) -> bool:
        """Whether publishers are to wait for room: the policy says so, and it is not stalled."""
        return (
            self._room is not None
            and not self._room.is_stalled
            and self._is_attached
            and self._close_reason is None
        )

    @property
    def next_position(self) -> int:
        """Position of the next delivery; for who counts from 1, of the one before it."""
        return self._stock.waiting.head

    @property
    def pending_count(self) -> int:
        """Messages held, those not acknowledged included."""
        return self._stock.waiting.message_count + self._stock.unacknowledged.message_count

    def counters(self) -> MailboxCounters:
        """Returns a snapshot of the counters."""
        return self._stock.counters()

    def put(self, group: Group) -> int:
        """Offers the messages of a group in order and returns the position of the first.

        A closed mailbox counts them and gives them no positions.
        """
        stock = self._stock
        position = stock.waiting.end
        if self._close_reason is not None:
            stock.refuse(group)
            return position
        if not stock.put(group) and self.limits.policy is OverflowPolicy.DISCONNECT:
            self._disconnect()
        if not self._is_held_up:
            self._ready.set()
        return position

    def filter_out(self, count: int) -> None:
        """Counts messages that were offered and held back; they take no position."""
        self._stock.offered += count
        self._stock.filtered += count

    def replace(self, position: int, group: Group) -> bool:
        """Puts a repeat, a group of one message, in the place of the message at a position.

        The repeat counts as offered and filtered in any case.

        Returns:
            False, with nothing changed, when the message at the position was handed over or
            dropped, or the bounds do not allow it.
        """
        self.filter_out(1)
        if self._close_reason is not None or position < self._handover.handed_end:
            return False
        return self._stock.replace(position, group)

    def follow(self, position: int, receipt: Receipt) -> None:
        """Lets a receipt wait for the message at a position, with the rest of its group, too.

        For who publishes a message again without having heard what became of it. When it is done
        already there is nothing to wait for. The group must be in no other mailbox.
        """
        self._stock.follow(position, receipt)

    def post(self, notice: Notice) -> None:
        """Lets the consumer have a notice next; whoever posts bounds their number."""
        self._notices.append(notice)
        self._ready.set()

    def has_room(self, count: int, size_bytes: int) -> bool:
        """Returns whether so many messages of that size fit."""
        return self._stock.has_room(count, size_bytes)

    async def wait_for_room(self, count: int, size_bytes: int, timeout_s: float) -> bool:
        """Waits until so much fits and returns whether it does; for the policy ``block``.

        For what is larger than the mailbox it waits until that is empty, and returns False then.
        When the wait was in vain the mailbox is stalled: ``is_blocking`` is False, and nobody waits
        for it, until half of it is free.
        """
        least = min(count, self.limits.max_messages), min(size_bytes, self.limits.max_bytes)
        if self._room is not None:
            await self._room.wait(lambda: not self.is_blocking or self.has_room(*least), timeout_s)
        return self._close_reason is None and self.has_room(count, size_bytes)

    async def take(self, max_messages: int, max_bytes: int) -> Delivery:
        """Waits for something to deliver and returns all of it that fits.

        A batch has at most ``max_messages`` messages and ``max_bytes`` bytes, but always at least
        one message, and it never reaches across a gap. Messages need credit and a place among the
        unacknowledged, gaps do not. Cancelling the wait loses nothing.

        Raises:
            MailboxBusyError: another task is waiting here already.
        """
        if self._is_taking:
            raise MailboxBusyError
        self._is_taking = True
        try:
            while (delivery := self._next(max_messages, max_bytes)) is None:
                self._is_held_up = bool(self._stock.waiting)
                self._ready.clear()
                await self._ready.wait()
        finally:
            self._is_taking = self._is_held_up = False
        return delivery

    def pause(self) -> None:
        """Stops delivery; messages keep queueing."""
        self._is_paused = True

    def resume(self) -> None:
        """Starts delivery again."""
        self._is_paused = False
        self._ready.set()

    def grant(self, count: int) -> None:
        """Lets so many messages more be handed over.

        Raises:
            InvalidSubscriptionError: the subscription was opened without credit, or the count is
                below 1.
        """
        if self._handover.credit is None:
            raise InvalidSubscriptionError(
                "the subscription was opened without initial_credit; open it with one to use credit"
            )
        if count < 1:
            raise InvalidSubscriptionError(
                f"the credit is {count} messages; grant at least 1", count=count, minimum=1
            )
        self._handover.credit += count
        self._ready.set()

    def acknowledge(self, position: int) -> int:
        """Notes that everything up to a position is done; returns how many messages that adds.

        What was handed over and waits to be handed over again is done then, too.

        Raises:
            InvalidSubscriptionError: the position was not handed over yet, or the subscription
                does not acknowledge.
        """
        done = self._handover.acknowledge(position)
        self._wake()
        return done

    def expire(self, now_s: float) -> None:
        """Puts back what was not acknowledged in time, and drops what waited too long.

        When the oldest batch is overdue, everything handed over goes back to the front, to be
        delivered again in order at the same positions, gaps in between included.

        Args:
            now_s: on the mailbox's clock.
        """
        if self._handover.is_overdue(now_s):
            self._handover.rewind()
        self._stock.drop_expired(now_s)
        self._wake()

    def flush(self) -> int:
        """Drops everything that waits to be handed over; returns how many messages."""
        count = self._stock.flush()
        self._wake()
        return count

    def detach(self) -> None:
        """Notes that the subscriber is away: what it did not acknowledge waits again.

        From now on the bounds of the retention hold as well, and the oldest messages make room.
        """
        self._is_attached = False
        self._handover.rewind()
        self._stock.use_retention(self.retention)
        self._wake()

    def attach(self) -> None:
        """Notes that the subscriber is back, with its first credit and not paused."""
        self._is_attached = True
        self._is_paused = False
        self._handover.credit = self.limits.initial_credit
        self._stock.use_own_bounds()
        self._wake()

    def succeed(self) -> "Mailbox":
        """Returns a mailbox that goes on with all this one holds, attached; ends this one.

        For a subscriber that comes back while its former stream may still take from here.
        """
        heir = Mailbox(self.limits, self.retention, self._stock.monotonic)
        self._handover.rewind()
        heir._stock, self._stock = self._stock, heir._stock
        heir._handover, self._handover = self._handover, heir._handover
        heir.attach()
        self.close(CloseReason.SUPERSEDED)
        return heir

    def close(self, reason: CloseReason, *, drain: bool = False) -> None:
        """Ends the mailbox and wakes its consumer; the first reason given stands.

        Args:
            reason: told to the consumer after the last delivery.
            drain: leave what waits to be taken, and what was handed over to be acknowledged until
                the end is taken; otherwise it is dropped and counted.
        """
        if self._close_reason is None:
            self._close_reason = reason
        if not drain:
            self._discard()
        self._wake()

    def withdraw(self) -> list[Group]:
        """Ends the mailbox and returns what is pending, in order, for another one.

        It counts as moved. A receipt goes on expecting it, and the mailbox it is put in expects it
        again: if this mailbox acknowledges, settle ``group.receipt`` for ``group.count`` once the
        group was put there. Groups whose messages may wait only so long come with the time that is
        left.
        """
        self._handover.rewind()
        groups = self._stock.withdraw()
        self.close(CloseReason.UNSUBSCRIBED)
        return groups

    def _next(self, max_messages: int, max_bytes: int) -> Delivery | None:
        if self._notices:
            return self._notices.popleft()
        delivery = None
        is_waiting = len(self._stock.waiting) > 0
        if is_waiting and self._is_attached and not self._is_paused:
            delivery = self._handover.next(max_messages, max_bytes)
        if delivery is not None:
            self._notice_room()
            return delivery
        reason = self._close_reason
        # Whoever asked to be disconnected when slow is not waited for.
        if reason is None or (is_waiting and reason is not CloseReason.SLOW_CONSUMER):
            return None
        self._discard()
        return Closed(reason)

    def _disconnect(self) -> None:
        if self._is_attached:
            self.close(CloseReason.SLOW_CONSUMER, drain=True)

    def _discard(self) -> None:
        self._stock.discard(self._stock.unacknowledged)
        self._stock.discard(self._stock.waiting)

    def _wake(self) -> None:
        """Lets everybody who waits look again."""
        self._ready.set()
        self._notice_room()

    def _notice_room(self) -> None:
        if self._room is not None:
            self._room.notice(is_half_free=self._stock.is_half_free)
