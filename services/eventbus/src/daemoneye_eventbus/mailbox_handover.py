"""Hands over what a mailbox holds, takes it back, and keeps the acknowledgements.

Invariants:

* What is before ``handed_end`` was handed over once; a group never lies on both sides of it.
* Every message handed over and not acknowledged belongs to a batch on record, with its time.
"""

from collections import deque

from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_eventbus.group import Group
from daemoneye_eventbus.mailbox_delivery import Batch, Gap
from daemoneye_eventbus.mailbox_line import Line, Loss
from daemoneye_eventbus.mailbox_stock import Stock, count_of, is_expired, size_of

__all__ = ["Handover"]

FINE_UNACKNOWLEDGED = 64
STEPS = 4
"""A subscriber that may hold more than that without acknowledging gets its next messages when a part of
what it may hold is free. Otherwise each acknowledgement of a few messages would make room for a few, and
a subscriber that once was behind would get them in crumbs ever after (RFC 1122, silly window syndrome).
Below it every place counts: somebody works on each message."""


class Handover:
    """The consumer's side of a mailbox."""

    __slots__ = ("_batches", "_stock", "credit", "handed_end")

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._batches: deque[tuple[int, float]] = deque()  # end of each, and when
        self.credit = stock.limits.initial_credit
        self.handed_end = 0

    def next(self, max_messages: int, max_bytes: int) -> Batch | Gap | None:
        """Returns the next delivery; None when it has to wait for credit or acknowledgements."""
        stock, waiting = self._stock, self._stock.waiting
        now_s = stock.monotonic() if waiting.timed_count else 0.0
        stock.drop_expired(now_s)
        front = waiting.front
        if isinstance(front, Loss):
            return self._tell(front)
        window = self._window(max_messages)
        return self._next_batch(window, max_bytes, now_s) if window > 0 else None

    def acknowledge(self, position: int) -> int:
        """Notes that everything up to a position is done; returns how many messages that adds."""
        if not self._stock.acknowledges:
            raise InvalidSubscriptionError(
                "the subscription delivers at most once; open it with at least once to acknowledge"
            )
        if position >= self.handed_end:
            raise InvalidSubscriptionError(
                f"position {position} was not handed over; acknowledge below {self.handed_end}",
                position=position,
                handed_over=self.handed_end,
            )
        end = position + 1
        done = self._finish(self._stock.unacknowledged, end)
        if not self._stock.unacknowledged:
            done += self._finish_rewound(end)
        while self._batches and self._batches[0][0] <= end:
            self._batches.popleft()
        self._stock.delivered += done
        return done

    def is_overdue(self, now_s: float) -> bool:
        """Returns whether the oldest batch was not acknowledged in time."""
        acknowledgement = self._stock.limits.acknowledgement
        if acknowledgement is None or not self._batches:
            return False
        return self._batches[0][1] + acknowledgement.timeout_s <= now_s

    def rewind(self) -> None:
        """Puts everything that is not acknowledged back to the front, at the same positions."""
        stock = self._stock
        while stock.unacknowledged:
            stock.waiting.push(stock.unacknowledged.pop_last())
        self._batches.clear()

    def _window(self, max_messages: int) -> int:
        """Returns how many messages may be handed over now."""
        acknowledgement = self._stock.limits.acknowledgement
        if acknowledgement is not None:
            bound = acknowledgement.max_unacknowledged
            room = bound - self._stock.unacknowledged.message_count
            step = bound // STEPS if bound > FINE_UNACKNOWLEDGED else 1
            if room < min(step, self._stock.waiting.message_count):
                return 0
            max_messages = min(max_messages, room)
        return max_messages if self.credit is None else min(max_messages, self.credit)

    def _tell(self, loss: Loss) -> Gap:
        waiting = self._stock.waiting
        first = waiting.head
        waiting.pop()
        if self._stock.acknowledges:
            # Kept until something later is acknowledged: a stream may break before it is written.
            self._stock.unacknowledged.append_loss(loss)
        end = first + loss.count
        self.handed_end = max(self.handed_end, end)
        return Gap(first, end - 1, loss.size_bytes, loss.reason)

    def _next_batch(self, max_messages: int, max_bytes: int, now_s: float) -> Batch | None:
        waiting = self._stock.waiting
        first, count, size_bytes = waiting.head, waiting.message_count, waiting.size_bytes
        is_redelivered = first < self.handed_end
        is_plain = not (is_redelivered or waiting.loss_count or waiting.timed_count)
        if is_plain and count <= max_messages and size_bytes <= max_bytes:
            groups = waiting.pop_all()
        else:
            groups = self._collect(max_messages, max_bytes, now_s)
            if not groups:
                return None
            count, size_bytes = count_of(groups), size_of(groups)
        self._note(groups, count, first + count)
        if is_redelivered:
            self._stock.redelivered += count
        return Batch(groups, first, count, size_bytes, is_redelivered)

    def _collect(self, max_messages: int, max_bytes: int, now_s: float) -> list[Group]:
        """Takes groups off the front up to a bound, a loss, or what is handed over first."""
        waiting = self._stock.waiting
        groups: list[Group] = []
        stop = self.handed_end if waiting.head < self.handed_end else waiting.end
        while waiting and waiting.head < stop:
            front = waiting.front
            if isinstance(front, Loss) or is_expired(front, now_s):
                break
            is_fitting = front.count <= max_messages and front.size_bytes <= max_bytes
            if is_fitting or (front.count == 1 and not groups):
                waiting.pop()
                groups.append(front)
                max_messages -= front.count
                max_bytes -= front.size_bytes
            elif groups or not self._may_cut():
                break
            else:
                waiting.cut_first_group(max_messages)
        return groups

    def _may_cut(self) -> bool:
        # Each piece repeats the envelope: without this, one message at a time not acknowledged
        # would make one group take many times its size.
        return not self._stock.unacknowledged.message_count or self._stock.has_room(0, 0)

    def _note(self, groups: list[Group], count: int, end: int) -> None:
        stock = self._stock
        self.handed_end = max(self.handed_end, end)
        if self.credit is not None:
            self.credit -= count
        if stock.acknowledges:
            stock.unacknowledged.extend(groups)
            self._batches.append((end, stock.monotonic()))
        else:
            stock.delivered += count

    def _finish(self, line: Line, end: int) -> int:
        """Takes what was handed over before ``end`` off; returns how many messages that were."""
        start_count = line.message_count
        while line and line.head < end:
            front, before = line.front, line.message_count
            is_whole = line.head + front.count <= end
            if is_whole:
                line.pop()
            else:
                line.skip(end)
            if isinstance(front, Group):
                self._stock.settle(front, before - line.message_count)
            if not is_whole:
                break
        return start_count - line.message_count

    def _finish_rewound(self, end: int) -> int:
        """Takes what went back to wait off the front, up to ``end``; returns how many messages."""
        waiting, before = self._stock.waiting, self._stock.waiting.message_count
        while waiting and waiting.head < end:
            front, left = waiting.front, end - waiting.head
            if front.count <= left:
                waiting.pop()
                if isinstance(front, Group):
                    self._stock.settle(front, front.count)
            elif isinstance(front, Loss):
                waiting.skip(end)
            else:
                waiting.cut_first_group(left)
        self._stock.unacknowledged.end = waiting.head
        return before - waiting.message_count
