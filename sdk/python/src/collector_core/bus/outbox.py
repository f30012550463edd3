"""The bounded queue between a collector's sources and the broker.

Messages with one envelope and consecutive sequences join in a group as they come, so that sending
them costs next to nothing a message. Invariant: accepted = published + refused + pending, and pending
never passes the bounds, but for a single message or group that is larger than they are. A full outbox makes
the source wait; nothing that was accepted is thrown away to make room.

Whoever keeps a log hands in what is already in it group by group (``put_group``), and hears of what
the broker refused for good.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from collector_core.bus.envelope import EnvelopeKey, OutboxMessage
from collector_core.bus.errors import AnswerOrderError, MessageTooLargeError
from collector_core.bus.limits import PublishLimits
from collector_core.bus.outbox_group import GROUP_BYTES, OutboxGroup
from collector_core.bus.wire import KNOWN_PREFIXES, MAX_PREFIX_BYTES, PREFIXES, encode_frames
from daemoneye_mesh.errors import ErrorReason

__all__ = ["BatchSource", "Outbox", "OutboxBatch", "RefusalListener"]

RefusalListener = Callable[[EnvelopeKey, int, int, str], None]
"""Hears which messages are given up: key, first and last sequence, and the reason."""

ENOUGH_BYTES = GROUP_BYTES // 2
"""What fills half a batch is worth sending, however few messages it is."""

ROOMY_BYTES = GROUP_BYTES - KNOWN_PREFIXES - MAX_PREFIX_BYTES
"""A group of this size takes any message with a known prefix."""

log = logging.getLogger("daemoneye.outbox")


@dataclass(frozen=True, slots=True)
class OutboxBatch:
    """Groups sent together and not answered yet."""

    batch_id: int
    groups: Sequence[OutboxGroup]
    count: int
    """Messages in them."""
    size_bytes: int
    """At least what they take on the wire."""


class BatchSource(Protocol):
    """What a publisher sends from."""

    @property
    def waiting_count(self) -> int:
        """Messages that wait to be taken."""

    @property
    def in_flight_count(self) -> int:
        """Batches that wait for an answer."""

    def apply_limits(self, limits: PublishLimits) -> None:
        """Holds everything that waits or comes to what the broker takes."""

    async def wait_waiting(self, count: int) -> None:
        """Returns when so many messages wait, or what waits is enough for a batch."""

    def take(self, max_messages: int, max_bytes: int) -> OutboxBatch | None:
        """Returns what waits as the next batch in flight; None when nothing does."""

    def settle(self, batch_id: int, refused_reason: str | None = None) -> int:
        """Takes the broker's answer up to a batch; returns how many messages that batch was."""

    def settle_before(self, batch_id: int) -> None:
        """Takes note that all batches before this one were accepted."""

    def rewind(self) -> None:
        """Puts batches without an answer back in front."""

    async def wait_empty(self) -> None:
        """Returns when every accepted message was answered."""


class Outbox:
    """Messages that wait for the broker, and batches that wait for its answer; for one event loop.

    Args:
        max_messages: bound in messages, those in flight included.
        max_bytes: bound in bytes, those in flight included.
        on_refused: hears of every group that is given up.
    """

    def __init__(
        self, max_messages: int, max_bytes: int, on_refused: RefusalListener | None = None
    ) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._on_refused = on_refused
        self._max_message_bytes = PublishLimits().max_message_bytes
        self._waiting: deque[OutboxGroup] = deque()
        self._last: OutboxGroup | None = None
        self._in_flight: deque[OutboxBatch] = deque()
        self._last_batch_id = 0
        self._wanted_count = 0
        """Messages that the taker waits for; 0 while it does not."""
        self._enough = asyncio.Event()
        self._room = asyncio.Event()
        self._empty = asyncio.Event()
        self.published_count = 0
        self.refused_count: Counter[str] = Counter()
        self.pending_count = 0
        """Messages accepted and not answered."""
        self.pending_bytes = 0
        """Their size, envelopes of groups included."""
        self.waiting_count = 0
        """Messages that wait to be taken."""

    @property
    def accepted_count(self) -> int:
        """Messages that were ever taken in."""
        return self.pending_count + self.published_count + self.refused_count.total()

    @property
    def in_flight_count(self) -> int:
        """Batches that wait for an answer."""
        return len(self._in_flight)

    async def put(self, message: OutboxMessage) -> None:
        """Accepts a message, waiting while there is no room.

        Raises:
            MessageTooLargeError: the broker does not take a message of this size.
        """
        while not self.put_nowait(message):
            await self._wait_room()

    def put_nowait(self, message: OutboxMessage) -> bool:
        """Accepts a message if there is room; returns whether there was.

        Raises:
            MessageTooLargeError: the broker does not take a message of this size.
        """
        key, sequence, frame = message
        size_bytes = len(frame)
        group = self._last
        # The usual case, and the one that has to be fast: one more of the same kind.
        if (
            group is not None
            and group.key is key
            and group.next_sequence == sequence
            and group.largest_bytes >= size_bytes < KNOWN_PREFIXES
            and group.size_bytes < ROOMY_BYTES
            and group.count < group.max_count
            and self.pending_count < self._max_messages
            and self.pending_bytes + size_bytes < self._max_bytes - MAX_PREFIX_BYTES
        ):
            prefix = PREFIXES[size_bytes]
            block = group.block
            block += prefix
            block += frame
            size_bytes += len(prefix)
            group.size_bytes += size_bytes
            group.count += 1
            if sequence:
                group.next_sequence = sequence + 1
            self.pending_bytes += size_bytes
            self.pending_count += 1
            self.waiting_count += 1
            if self._wanted_count:
                self._tell_taker()
            return True
        return self._put_slowly(message)

    async def put_many(
        self, frames: Sequence[bytes], key: EnvelopeKey, first_sequence: int = 0
    ) -> None:
        """Accepts messages of one kind in order, waiting while there is no room.

        A caller that is cancelled finds in ``accepted_count`` how many were accepted before.

        Args:
            frames: encoded messages.
            key: what they have in common.
            first_sequence: of the first one, the others follow; 0 without a sequence.

        Raises:
            MessageTooLargeError: the broker does not take one of them; none was accepted.
        """
        sizes = set(map(len, frames))
        largest_bytes = max(sizes, default=0)
        if largest_bytes + key.size_bytes > self._max_message_bytes:
            raise MessageTooLargeError(largest_bytes + key.size_bytes, self._max_message_bytes)
        done = 0
        while done < len(frames):
            sequence = first_sequence and first_sequence + done
            group = self._find_group(key, sequence, largest_bytes)
            room = self._room_count(group, largest_bytes)
            if not room:
                await self._wait_room()
                continue
            chunk = frames[done : done + room]
            self._extend(group, chunk, sizes)
            done += len(chunk)

    def put_group(self, group: OutboxGroup) -> bool:
        """Accepts a whole group if there is room, or nothing else; returns whether there was.

        The group must not change afterwards, and the broker must take messages of its size.
        """
        is_first = not self.pending_count
        fits_messages = self.pending_count + group.count <= self._max_messages
        fits_bytes = self.pending_bytes + group.size_bytes <= self._max_bytes
        if not is_first and not (fits_messages and fits_bytes):
            return False
        if group.fits_messages(self._max_message_bytes):
            self._admit(group)
            return True
        fitting = group.without_larger(self._max_message_bytes)
        self._refuse_larger(group, fitting)
        for one in fitting:
            self._admit(one)
        return True

    async def wait_room(self) -> None:
        """Returns when something was answered, so that there may be room."""
        await self._wait_room()

    def take(self, max_messages: int, max_bytes: int) -> OutboxBatch | None:
        """Returns whatever waits, up to the bounds, as the next batch in flight.

        Args:
            max_messages: most messages in the batch.
            max_bytes: most bytes in it, unless its first message alone has more.
        """
        if not self._waiting:
            return None
        if not self._waiting[0].fits(max_messages, max_bytes):
            self._split_first(max_messages, max_bytes)
        groups: list[OutboxGroup] = []
        count = size_bytes = 0
        while self._waiting:
            group = self._waiting[0]
            if groups and not group.fits(max_messages - count, max_bytes - size_bytes):
                break
            groups.append(self._waiting.popleft())
            count += group.count
            size_bytes += group.size_bytes
        if not self._waiting:
            self._last = None
        self.waiting_count -= count
        self._last_batch_id += 1
        batch = OutboxBatch(self._last_batch_id, groups, count, size_bytes)
        self._in_flight.append(batch)
        return batch

    async def wait_waiting(self, count: int) -> None:
        """Returns when so many messages wait, or what waits is enough for a batch."""
        while not self._has_waiting(count):
            self._wanted_count = count
            self._enough.clear()
            try:
                await self._enough.wait()
            finally:
                self._wanted_count = 0

    def settle(self, batch_id: int, refused_reason: str | None = None) -> int:
        """Takes the broker's answer; returns how many messages were in the batch that it names.

        Batches before it were accepted, and it too unless a reason says otherwise.

        Raises:
            AnswerOrderError: no such batch is in flight.
        """
        self.settle_before(batch_id)
        batch = self._in_flight.popleft()
        if refused_reason is None:
            self.published_count += batch.count
        else:
            self.refused_count[refused_reason] += batch.count
            for group in batch.groups:
                self._tell_refused(group, group.first_sequence, group.count, refused_reason)
        self._forget(batch.count, batch.size_bytes)
        return batch.count

    def settle_before(self, batch_id: int) -> None:
        """Takes note that all batches before this one were accepted.

        Raises:
            AnswerOrderError: no such batch is in flight.
        """
        if not self._in_flight or not (
            self._in_flight[0].batch_id <= batch_id <= self._in_flight[-1].batch_id
        ):
            raise AnswerOrderError(batch_id)
        while self._in_flight[0].batch_id < batch_id:
            batch = self._in_flight.popleft()
            self.published_count += batch.count
            self._forget(batch.count, batch.size_bytes)

    def rewind(self) -> None:
        """Puts batches without an answer back in front: the connection they went out on is gone."""
        while self._in_flight:
            batch = self._in_flight.pop()
            self._waiting.extendleft(reversed(batch.groups))
            self.waiting_count += batch.count
        self._tell_taker()

    def apply_limits(self, limits: PublishLimits) -> None:
        """Holds everything that waits or comes to what the broker takes.

        What was accepted under a larger limit cannot be sent any more; it is counted as refused.
        """
        self._max_message_bytes = limits.max_message_bytes
        if all(group.fits_messages(self._max_message_bytes) for group in self._waiting):
            return
        kept: deque[OutboxGroup] = deque()
        for group in self._waiting:
            fitting = group.without_larger(self._max_message_bytes)
            kept.extend(fitting)
            self._count_too_large(group, fitting)
        self._waiting = kept
        self._last = None

    async def wait_empty(self) -> None:
        """Returns when every accepted message was answered."""
        while self.pending_count:
            self._empty.clear()
            await self._empty.wait()

    def _admit(self, group: OutboxGroup) -> None:
        self._last = None
        self._waiting.append(group)
        self.pending_bytes += group.size_bytes
        self.pending_count += group.count
        self.waiting_count += group.count
        if self._wanted_count:
            self._tell_taker()

    def _tell_refused(self, group: OutboxGroup, first: int, count: int, reason: str) -> None:
        if self._on_refused is not None and first:
            self._on_refused(group.key, first, first + count - 1, reason)

    def _put_slowly(self, message: OutboxMessage) -> bool:
        key, sequence, frame = message
        if len(frame) + key.size_bytes > self._max_message_bytes:
            raise MessageTooLargeError(len(frame) + key.size_bytes, self._max_message_bytes)
        group = self._find_group(key, sequence, len(frame))
        if not self._room_count(group, len(frame)):
            return False
        self._extend(group, [frame], {len(frame)})
        return True

    def _find_group(self, key: EnvelopeKey, sequence: int, largest_bytes: int) -> OutboxGroup:
        """Returns the group that takes the next message: the last one, or one not begun yet."""
        group = self._last
        if group is not None and group.joins(key, sequence, largest_bytes + MAX_PREFIX_BYTES):
            return group
        return OutboxGroup(key, sequence)

    def _room_count(self, group: OutboxGroup, largest_bytes: int) -> int:
        """Returns how many messages of at most this size fit the group and the bounds."""
        if not self.pending_count:
            free_messages, free_bytes = self._max_messages, max(self._max_bytes, GROUP_BYTES)
        else:
            free_messages = self._max_messages - self.pending_count
            free_bytes = self._max_bytes - self.pending_bytes
        if not group.count:
            free_bytes -= group.size_bytes
        fitting = min(free_bytes, group.room_bytes) // (largest_bytes + MAX_PREFIX_BYTES)
        if not group.count and free_bytes >= largest_bytes + MAX_PREFIX_BYTES:
            fitting = max(fitting, 1)
        if not self.pending_count:
            fitting = max(fitting, 1)
        return max(0, min(fitting, free_messages, group.room_count))

    def _extend(self, group: OutboxGroup, frames: Sequence[bytes], sizes: Set[int]) -> None:
        if not group.count:
            self._last = group
            self._waiting.append(group)
            self.pending_bytes += group.size_bytes
        block = encode_frames(frames, sizes)
        group.extend(block, len(frames), max(sizes))
        self.pending_bytes += len(block)
        self.pending_count += len(frames)
        self.waiting_count += len(frames)
        if self._wanted_count:
            self._tell_taker()

    def _split_first(self, max_messages: int, max_bytes: int) -> None:
        group = self._waiting.popleft()
        head, tail = group.split(max_messages, max_bytes)
        pieces = [head] if tail is None else [head, tail]
        self._waiting.extendleft(reversed(pieces))
        self.pending_bytes += sum(piece.size_bytes for piece in pieces) - group.size_bytes
        if self._last is group:
            self._last = None

    def _count_too_large(self, group: OutboxGroup, kept: Sequence[OutboxGroup]) -> None:
        count = self._refuse_larger(group, kept)
        self.waiting_count -= count
        self._forget(count, group.size_bytes - sum(one.size_bytes for one in kept))

    def _refuse_larger(self, group: OutboxGroup, kept: Sequence[OutboxGroup]) -> int:
        """Counts and tells what of a group is too large for the broker."""
        count = group.count - sum(one.count for one in kept)
        if not count:
            return 0
        reason = ErrorReason.MESSAGE_TOO_LARGE
        self.refused_count[reason] += count
        log.error(
            "%d events of %s are larger than the %d bytes that the broker takes",
            count,
            group.key.topic,
            self._max_message_bytes,
        )
        first = group.first_sequence
        for one in kept if first else ():
            if one.first_sequence > first:
                self._tell_refused(group, first, one.first_sequence - first, reason)
            first = one.next_sequence
        if first and first < group.next_sequence:
            self._tell_refused(group, first, group.next_sequence - first, reason)
        return count

    def _forget(self, count: int, size_bytes: int) -> None:
        self.pending_count -= count
        self.pending_bytes -= size_bytes
        self._room.set()
        if not self.pending_count:
            self._empty.set()

    def _has_waiting(self, count: int) -> bool:
        if self.waiting_count >= count:
            return True
        return bool(self._waiting) and self._waiting[0].size_bytes >= ENOUGH_BYTES

    def _tell_taker(self) -> None:
        if self._has_waiting(self._wanted_count):
            self._enough.set()

    async def _wait_room(self) -> None:
        self._room.clear()
        await self._room.wait()
