"""A bounded queue of encoded messages for one subscriber, which tells what it had to drop.

Every message offered gets a position (0, 1, 2, ...). Between the head, which is the next position
to hand over, and the tail each position is either a queued frame or part of a gap, so a gap is
always told at the place where the loss happened and gaps that touch are one. There is at most one
gap more than there are frames, so the gaps are as bounded as the queue.

Invariant: ``offered == delivered + sum(dropped.values()) + pending`` after every operation.
"Delivered" means handed to the consumer. Putting never waits; one consumer takes.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from daemoneye_eventbus.errors import InvalidSubscriptionError, MailboxBusyError

__all__ = [
    "Batch",
    "CloseReason",
    "Closed",
    "Delivery",
    "DropReason",
    "Gap",
    "Mailbox",
    "MailboxCounters",
    "MailboxLimits",
    "OverflowPolicy",
]


class OverflowPolicy(StrEnum):
    """What happens to a message that does not fit."""

    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    DISCONNECT = "disconnect"


class DropReason(StrEnum):
    """Why a message was not delivered."""

    DROPPED_OLDEST = "dropped_oldest"
    """The queue was full, and the oldest messages made room."""
    DROPPED_NEWEST = "dropped_newest"
    """The queue was full, and arriving messages were dropped."""
    CLOSED = "closed"
    """The subscription had ended, or ended with the message still queued."""


class CloseReason(StrEnum):
    """Why a mailbox ended."""

    UNSUBSCRIBED = "unsubscribed"
    SLOW_CONSUMER = "slow_consumer"
    REFUSED = "refused"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class MailboxLimits:
    """Bounds of one mailbox; both hold at all times."""

    max_messages: int
    max_bytes: int
    policy: OverflowPolicy = OverflowPolicy.DROP_OLDEST

    def __post_init__(self) -> None:
        for name, value in (("max_messages", self.max_messages), ("max_bytes", self.max_bytes)):
            if value < 1:
                raise InvalidSubscriptionError(
                    f"{name} is {value}; use at least 1", setting=name, value=value, minimum=1
                )


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive messages in the order they were offered."""

    frames: Sequence[bytes]
    first_position: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages that were dropped, from the first to the last position (both included)."""

    first_position: int
    last_position: int
    size_bytes: int
    reason: DropReason

    @property
    def count(self) -> int:
        """Number of messages dropped."""
        return self.last_position - self.first_position + 1


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing more will come."""

    reason: CloseReason


Delivery = Batch | Gap | Closed


@dataclass(frozen=True, slots=True)
class MailboxCounters:
    """What became of every message offered so far, and how much is queued now."""

    offered: int
    delivered: int
    dropped: Mapping[DropReason, int]
    pending: int
    pending_bytes: int


_FULL_REASONS = {
    OverflowPolicy.DROP_OLDEST: DropReason.DROPPED_OLDEST,
    OverflowPolicy.DROP_NEWEST: DropReason.DROPPED_NEWEST,
    OverflowPolicy.DISCONNECT: DropReason.DROPPED_NEWEST,
}


class Mailbox:
    """The queue of one subscriber; see the module docstring."""

    __slots__ = (
        "_close_reason",
        "_delivered",
        "_dropped",
        "_frames",
        "_full_reason",
        "_gaps",
        "_head",
        "_is_taking",
        "_offered",
        "_pending_bytes",
        "_ready",
        "_tail",
        "limits",
    )

    def __init__(self, limits: MailboxLimits) -> None:
        self.limits = limits
        # One reason a mailbox, so that gaps which come to touch can always be told as one.
        self._full_reason = _FULL_REASONS[limits.policy]
        self._frames: deque[bytes] = deque()
        self._gaps: deque[Gap] = deque()
        self._pending_bytes = 0
        self._head = 0
        self._tail = 0
        self._offered = 0
        self._delivered = 0
        self._dropped: Counter[DropReason] = Counter()
        self._close_reason: CloseReason | None = None
        self._ready = asyncio.Event()
        self._is_taking = False

    @property
    def close_reason(self) -> CloseReason | None:
        """Why the mailbox ended, or None while it is open."""
        return self._close_reason

    def counters(self) -> MailboxCounters:
        """Returns a snapshot of the counters."""
        return MailboxCounters(
            offered=self._offered,
            delivered=self._delivered,
            dropped=dict(self._dropped),
            pending=len(self._frames),
            pending_bytes=self._pending_bytes,
        )

    def put_nowait(self, frame: bytes) -> None:
        """Offers one message."""
        self.put_many_nowait((frame,), len(frame))

    def put_many_nowait(self, frames: Sequence[bytes], size_bytes: int) -> None:
        """Offers messages in order.

        Args:
            frames: the encoded messages.
            size_bytes: their lengths added up; the caller knows it and fans out to many mailboxes.
        """
        count = len(frames)
        self._offered += count
        if self._close_reason is not None:
            self._dropped[DropReason.CLOSED] += count
            return
        limits = self.limits
        if (
            len(self._frames) + count > limits.max_messages
            or self._pending_bytes + size_bytes > limits.max_bytes
        ):
            self._put_crowded(frames, size_bytes)
        else:
            self._append(frames, size_bytes)
        self._ready.set()

    async def take(self, max_messages: int, max_bytes: int) -> Delivery:
        """Waits for something to deliver and returns all of it that fits.

        A batch has at most ``max_messages`` messages and ``max_bytes`` bytes, but always at least
        one message, and it never reaches across a gap. Cancelling the wait loses nothing.

        Raises:
            MailboxBusyError: another task is waiting here already.
        """
        if self._is_taking:
            raise MailboxBusyError
        self._is_taking = True
        try:
            while (delivery := self._next(max_messages, max_bytes)) is None:
                self._ready.clear()
                await self._ready.wait()
        finally:
            self._is_taking = False
        return delivery

    def close(self, reason: CloseReason, *, drain: bool = False) -> None:
        """Ends the mailbox and wakes its consumer; the first reason given stands.

        Args:
            reason: told to the consumer after the last delivery.
            drain: leave what is queued to be taken; otherwise it is dropped and counted.
        """
        if self._close_reason is None:
            self._close_reason = reason
        if not drain:
            self._dropped[DropReason.CLOSED] += len(self._frames)
            self._frames.clear()
            self._gaps.clear()
            self._pending_bytes = 0
            self._head = self._tail
        self._ready.set()

    def _append(self, frames: Sequence[bytes], size_bytes: int) -> None:
        self._frames.extend(frames)
        self._pending_bytes += size_bytes
        self._tail += len(frames)

    def _put_crowded(self, frames: Sequence[bytes], size_bytes: int) -> None:
        limits = self.limits
        is_stalled = len(self._frames) >= limits.max_messages
        if limits.policy is OverflowPolicy.DROP_NEWEST and is_stalled:
            self._drop_newest(len(frames), size_bytes)
            return
        is_storable = len(frames) <= limits.max_messages and size_bytes <= limits.max_bytes
        if limits.policy is OverflowPolicy.DROP_OLDEST and is_storable:
            self._make_room(len(frames), size_bytes)
            self._append(frames, size_bytes)
            return
        for frame in frames:
            self._put_one_crowded(frame)

    def _put_one_crowded(self, frame: bytes) -> None:
        limits, size_bytes = self.limits, len(frame)
        if self._close_reason is not None:
            self._dropped[DropReason.CLOSED] += 1
            return
        if limits.policy is OverflowPolicy.DROP_OLDEST and size_bytes <= limits.max_bytes:
            self._make_room(1, size_bytes)
        if self._has_room(1, size_bytes):
            self._append((frame,), size_bytes)
            return
        self._drop_newest(1, size_bytes)
        if limits.policy is OverflowPolicy.DISCONNECT:
            self.close(CloseReason.SLOW_CONSUMER, drain=True)

    def _has_room(self, count: int, size_bytes: int) -> bool:
        return (
            len(self._frames) + count <= self.limits.max_messages
            and self._pending_bytes + size_bytes <= self.limits.max_bytes
        )

    def _drop_newest(self, count: int, size_bytes: int) -> None:
        self._dropped[self._full_reason] += count
        first, last = self._tail, self._tail + count - 1
        if self._gaps and self._gaps[-1].last_position == self._tail - 1:
            last_gap = self._gaps.pop()
            first, size_bytes = last_gap.first_position, last_gap.size_bytes + size_bytes
        self._gaps.append(Gap(first, last, size_bytes, self._full_reason))
        self._tail += count

    def _make_room(self, count: int, size_bytes: int) -> None:
        frames, limits = self._frames, self.limits
        lost = lost_bytes = 0
        while frames and (
            len(frames) + count > limits.max_messages
            or self._pending_bytes - lost_bytes + size_bytes > limits.max_bytes
        ):
            lost_bytes += len(frames.popleft())
            lost += 1
        if lost:
            self._pending_bytes -= lost_bytes
            self._dropped[self._full_reason] += lost
            self._widen_head_gap(lost, lost_bytes)

    def _widen_head_gap(self, lost: int, lost_bytes: int) -> None:
        """Makes one gap of the frames just lost and of every gap they reached or lay between."""
        gaps, end = self._gaps, self._head
        while True:
            while gaps and gaps[0].first_position == end:
                absorbed = gaps.popleft()
                end = absorbed.last_position + 1
                lost_bytes += absorbed.size_bytes
            if not lost:
                break
            step = min(lost, gaps[0].first_position - end) if gaps else lost
            end += step
            lost -= step
        gaps.appendleft(Gap(self._head, end - 1, lost_bytes, self._full_reason))

    def _next(self, max_messages: int, max_bytes: int) -> Delivery | None:
        if self._gaps and self._gaps[0].first_position == self._head:
            gap = self._gaps.popleft()
            self._head = gap.last_position + 1
            return gap
        if self._frames:
            return self._next_batch(max_messages, max_bytes)
        return None if self._close_reason is None else Closed(self._close_reason)

    def _next_batch(self, max_messages: int, max_bytes: int) -> Batch:
        queued, first = self._frames, self._head
        reach = self._gaps[0].first_position - first if self._gaps else len(queued)
        if reach == len(queued) <= max_messages and self._pending_bytes <= max_bytes:
            frames, size_bytes = list(queued), self._pending_bytes
            queued.clear()
        else:
            frames, size_bytes = self._pop(min(reach, max_messages), max_bytes)
        self._pending_bytes -= size_bytes
        self._head += len(frames)
        self._delivered += len(frames)
        return Batch(frames, first, size_bytes)

    def _pop(self, max_messages: int, max_bytes: int) -> tuple[list[bytes], int]:
        frames = [self._frames.popleft()]
        size_bytes = len(frames[0])
        while len(frames) < max_messages and size_bytes + len(self._frames[0]) <= max_bytes:
            size_bytes += len(self._frames[0])
            frames.append(self._frames.popleft())
        return frames, size_bytes
