"""What a mailbox holds, and what becomes of what it cannot hold.

The row of what was handed over and not acknowledged goes on in the row of what waits. Counts and
positions are exact to the message.

Invariant: pending messages are within the bounds; pending bytes too, but for the envelopes that
cutting a group has repeated.
"""

from collections import Counter
from collections.abc import Callable

from daemoneye_eventbus.group import Group
from daemoneye_eventbus.mailbox_delivery import DropReason, MailboxCounters
from daemoneye_eventbus.mailbox_limits import MailboxLimits, OverflowPolicy, Retention
from daemoneye_eventbus.mailbox_line import Line, Loss, TimedGroup, fit_group
from daemoneye_eventbus.receipt import Receipt

__all__ = ["Stock", "count_of", "is_expired", "size_of"]

FINE_COUNT = 16
"""Groups up to so many messages are always cut to the message."""
COARSE_PART = 64
"""A larger group which is less than this part of both bounds is dropped whole: cutting it would
cost a subscriber that does not keep up as much time as one that does."""


class Stock:
    """Everything pending in one mailbox, with its bounds and counters.

    Args:
        limits: bounds and policy.
        monotonic: clock for how long messages may wait.
    """

    __slots__ = (
        "_is_kept",
        "_is_pushing",
        "acknowledges",
        "delivered",
        "dropped",
        "filtered",
        "limits",
        "max_bytes",
        "max_messages",
        "monotonic",
        "offered",
        "redelivered",
        "unacknowledged",
        "waiting",
    )

    def __init__(self, limits: MailboxLimits, monotonic: Callable[[], float]) -> None:
        self.limits = limits
        self.monotonic = monotonic
        self.acknowledges = limits.acknowledgement is not None
        self.unacknowledged = Line()
        self.waiting = Line()
        self.offered = self.delivered = self.filtered = self.redelivered = 0
        self.dropped: Counter[DropReason] = Counter()
        self.use_own_bounds()

    def use_own_bounds(self) -> None:
        """Puts the bounds and the policy of the limits in force."""
        limits = self.limits
        self.max_messages, self.max_bytes = limits.max_messages, limits.max_bytes
        self._is_pushing = limits.policy is OverflowPolicy.DROP_OLDEST
        self._is_kept = False

    def use_retention(self, retention: Retention | None) -> None:
        """Puts bounds for a subscriber that is away in force as well; the oldest make room."""
        if retention is not None:
            self.max_messages = min(self.max_messages, retention.max_messages)
            self.max_bytes = min(self.max_bytes, retention.max_bytes)
        self._is_pushing = self._is_kept = True
        self._make_room(0, 0)

    def counters(self) -> MailboxCounters:
        """Returns a snapshot of the counters."""
        waiting, handed = self.waiting, self.unacknowledged
        return MailboxCounters(
            offered=self.offered,
            delivered=self.delivered,
            filtered=self.filtered,
            dropped=dict(self.dropped),
            pending=waiting.message_count + handed.message_count,
            pending_bytes=waiting.size_bytes + handed.size_bytes,
            unacknowledged=handed.message_count,
            redelivered=self.redelivered,
        )

    def has_room(self, count: int, size_bytes: int) -> bool:
        """Returns whether so many messages of that size fit."""
        waiting, handed = self.waiting, self.unacknowledged
        return (
            waiting.message_count + handed.message_count + count <= self.max_messages
            and waiting.size_bytes + handed.size_bytes + size_bytes <= self.max_bytes
        )

    @property
    def is_half_free(self) -> bool:
        """Whether half of both bounds is free."""
        waiting, handed = self.waiting, self.unacknowledged
        return (
            2 * (waiting.message_count + handed.message_count) <= self.max_messages
            and 2 * (waiting.size_bytes + handed.size_bytes) <= self.max_bytes
        )

    def put(self, group: Group) -> bool:
        """Queues what fits of a group and drops what does not; returns whether all of it fitted."""
        self.offered += group.count
        entry = self._admit(group)
        if self.has_room(entry.count, entry.size_bytes):
            self.waiting.append(entry)
            return True
        if self._is_pushing:
            self._put_pushing(entry)
        else:
            self._put_prefix(entry)
        return False

    def replace(self, position: int, group: Group) -> bool:
        """Puts a group of one message in the place of one that waits; False if there is none.

        Neither is anything done when the bounds do not allow it.
        """
        old = self.waiting.isolate(position)
        if old is None or not self.has_room(0, group.size_bytes - old.size_bytes):
            return False
        entry = self._admit(group)
        if old.receipt is not None and self.acknowledges:
            # Whoever waits for the first copy goes on waiting, for the one in its place.
            receipt = old.receipt.beside(group.receipt)
            entry = self._timed(group.with_receipt(receipt))
        self.waiting.replace(position, entry)
        return True

    def follow(self, position: int, receipt: Receipt) -> None:
        """Lets a receipt wait for the group that has a position, once."""
        for line in (self.unacknowledged, self.waiting) if self.acknowledges else ():
            group = line.find(position)
            if group is not None and not (group.receipt and group.receipt.includes(receipt)):
                done_count = line.done_count if line.front is group else 0
                receipt.expect(group.count - done_count)
                group.receipt = receipt.beside(group.receipt)

    def flush(self) -> int:
        """Drops everything that waits; returns how many messages."""
        count = self.waiting.message_count
        while self.waiting.message_count:
            self._lose_first(DropReason.FLUSHED)
        return count

    def drop_expired(self, now_s: float) -> None:
        """Drops groups at the front that waited too long."""
        if self.waiting.timed_count:
            while is_expired(self.waiting.first_group, now_s):
                self._lose_first(DropReason.EXPIRED)

    def refuse(self, group: Group) -> None:
        """Counts a group that is offered after the end."""
        self.offered += group.count
        self.dropped[DropReason.CLOSED] += group.count
        self._fail(group)

    def discard(self, line: Line) -> None:
        """Drops a line because the subscription has ended."""
        if line.message_count:
            self.dropped[DropReason.CLOSED] += line.message_count
        for group in line.groups():
            self._fail(group)
        line.clear()

    def withdraw(self) -> list[Group]:
        """Takes everything that waits, to be put elsewhere; its receipts go on expecting it."""
        now_s = self.monotonic()
        groups = [
            group.without_timer(now_s) if isinstance(group, TimedGroup) else group
            for group in self.waiting.groups()
        ]
        if groups:
            self.dropped[DropReason.MOVED] += self.waiting.message_count
        self.waiting.clear()
        return groups

    def settle(self, group: Group, count: int) -> None:
        """Tells the publisher of a group, if it waits for it, that messages of it are done."""
        if group.receipt is not None and self.acknowledges and count:
            group.receipt.settle(count)

    def _fail(self, group: Group) -> None:
        if group.receipt is not None and self.acknowledges:
            group.receipt.fail()

    def _admit(self, group: Group) -> Group:
        """Returns a group as it is queued, its acknowledgement expected."""
        if group.receipt is not None and self.acknowledges:
            group.receipt.expect(group.count)
        return self._timed(group) if group.envelope.ttl_ms else group

    def _timed(self, group: Group) -> Group:
        ttl_ms = group.envelope.ttl_ms
        return TimedGroup(group, self.monotonic() + ttl_ms / 1000) if ttl_ms else group

    @property
    def _push_reason(self) -> DropReason:
        return DropReason.RETENTION if self._is_kept else DropReason.DROPPED_OLDEST

    def _put_pushing(self, group: Group) -> None:
        """Queues the longest end of a group that could be held at all, and makes room for it."""
        handed = self.unacknowledged
        room = self.max_messages - handed.message_count, self.max_bytes - handed.size_bytes
        kept, lost = _cut_to_fit(group, *room, from_end=True)
        if kept:
            self._make_room(count_of(kept), size_of(kept))
        self._lose_arriving(lost, self._push_reason)
        self.waiting.extend(kept)

    def _put_prefix(self, group: Group) -> None:
        """Queues the longest beginning of a group that fits now."""
        policy, held = self.limits.policy, self.counters()
        room = self.max_messages - held.pending, self.max_bytes - held.pending_bytes
        is_whole = policy is not OverflowPolicy.DISCONNECT and self._is_coarse(group)
        kept, lost = ([], [group]) if is_whole else _cut_to_fit(group, *room)
        self.waiting.extend(kept)
        is_blocking = policy is OverflowPolicy.BLOCK
        self._lose_arriving(lost, DropReason.DEADLINE if is_blocking else DropReason.DROPPED_NEWEST)

    def _make_room(self, count: int, size_bytes: int) -> None:
        """Drops the oldest waiting messages until so much fits."""
        waiting, handed = self.waiting, self.unacknowledged
        while (group := waiting.first_group) is not None and not self.has_room(count, size_bytes):
            held = waiting.message_count + handed.message_count + count
            held_bytes = waiting.size_bytes + handed.size_bytes + size_bytes
            if (
                group.count <= max(1, held - self.max_messages)
                or group.size_bytes <= held_bytes - self.max_bytes
                or self._is_coarse(group)
            ):
                self._lose_first(self._push_reason)
            else:
                waiting.cut_first_group(1)

    def _is_coarse(self, group: Group) -> bool:
        return (
            group.count > FINE_COUNT
            and group.count * COARSE_PART <= self.max_messages
            and group.size_bytes * COARSE_PART <= self.max_bytes
        )

    def _lose_first(self, reason: DropReason) -> None:
        lost = self.waiting.lose_first_group(reason)
        self.dropped[reason] += lost.count
        self.settle(lost, lost.count)

    def _lose_arriving(self, lost: list[Group], reason: DropReason) -> None:
        for group in lost:
            self.waiting.append_loss(Loss(group.count, group.size_bytes, reason))
            self.dropped[reason] += group.count
            self.settle(group, group.count)


def is_expired(group: Group | None, now_s: float) -> bool:
    """Returns whether a group waited longer than it may."""
    return isinstance(group, TimedGroup) and group.deadline_s <= now_s


def count_of(groups: list[Group]) -> int:
    """Returns the number of messages."""
    return sum(group.count for group in groups)


def size_of(groups: list[Group]) -> int:
    """Returns the size in bytes."""
    return sum(group.size_bytes for group in groups)


def _cut_to_fit(
    group: Group, max_messages: int, max_bytes: int, *, from_end: bool = False
) -> tuple[list[Group], list[Group]]:
    """Returns what is kept of a group and what is lost."""
    is_average_too_large = max_bytes * group.count < group.size_bytes
    if max_messages <= 0 or (is_average_too_large and group.count > FINE_COUNT):
        return [], [group]
    return fit_group(group, max_messages, max_bytes, from_end=from_end)
