"""Messages with one envelope that go out together, encoded as they come."""

from collector_core.bus.envelope import EnvelopeKey
from collector_core.bus.wire import frame_prefix, iter_frames

__all__ = ["GROUP_BYTES", "GROUP_MESSAGES", "OutboxGroup"]

GROUP_MESSAGES = 2_000
GROUP_BYTES = 256 << 10
"""Bounds within which a group still grows; the first message may be larger than the latter."""


class OutboxGroup:
    """A group that grows until it is taken.

    Args:
        key: what its messages have in common.
        first_sequence: of its first message; 0 without a sequence.
    """

    __slots__ = (
        "block",
        "count",
        "first_sequence",
        "key",
        "largest_bytes",
        "max_count",
        "next_sequence",
        "size_bytes",
    )

    def __init__(self, key: EnvelopeKey, first_sequence: int) -> None:
        self.key = key
        self.first_sequence = first_sequence
        self.next_sequence = first_sequence
        self.count = 0
        self.max_count = 1 if key.message_id else GROUP_MESSAGES
        self.size_bytes = key.size_bytes
        """At least what it takes on the wire."""
        self.largest_bytes = 0
        """Its largest message, without the envelope."""
        self.block = bytearray()
        """Its messages as an encoded ``MessageBlock``."""

    @property
    def room_count(self) -> int:
        """How many messages it may still take."""
        return self.max_count - self.count

    @property
    def room_bytes(self) -> int:
        """How many bytes it may still take."""
        return GROUP_BYTES - self.size_bytes

    def joins(self, key: EnvelopeKey, sequence: int, added_bytes: int) -> bool:
        """Whether a message, which takes so many bytes, may be the next one of this group."""
        return (
            sequence == self.next_sequence
            and (key is self.key or key == self.key)
            and self.count < self.max_count
            and self.size_bytes + added_bytes <= GROUP_BYTES
        )

    def append(self, prefix: bytes, frame: bytes) -> None:
        """Takes the next message in."""
        block = self.block
        block += prefix
        block += frame
        size_bytes = len(frame)
        self.size_bytes += size_bytes + len(prefix)
        self.count += 1
        if size_bytes > self.largest_bytes:  # noqa: PLR1730 -- a call costs more than this
            self.largest_bytes = size_bytes
        if self.first_sequence:
            self.next_sequence += 1

    def extend(self, block: bytes, count: int, largest_bytes: int) -> None:
        """Takes the next messages in, encoded as a block."""
        self.block += block
        self.size_bytes += len(block)
        self.count += count
        self.largest_bytes = max(self.largest_bytes, largest_bytes)
        if self.first_sequence:
            self.next_sequence += count

    def fits(self, max_messages: int, max_bytes: int) -> bool:
        """Whether it is within the bounds."""
        return self.count <= max_messages and self.size_bytes <= max_bytes

    def fits_messages(self, max_message_bytes: int) -> bool:
        """Whether each of its messages, envelope included, is within a bound."""
        return self.largest_bytes + self.key.size_bytes <= max_message_bytes

    def split(self, max_messages: int, max_bytes: int) -> "tuple[OutboxGroup, OutboxGroup | None]":
        """Returns its first messages, as many as fit and at least one, and the others."""
        head, tail = OutboxGroup(self.key, self.first_sequence), None
        for frame in iter_frames(self.block):
            added_bytes = len(frame) + len(frame_prefix(len(frame)))
            is_full = head.count >= max_messages or head.size_bytes + added_bytes > max_bytes
            if tail is None and head.count and is_full:
                tail = OutboxGroup(self.key, head.next_sequence)
            (head if tail is None else tail).append_frame(frame)
        return head, tail

    def without_larger(self, max_message_bytes: int) -> "list[OutboxGroup]":
        """Returns the groups that are left when messages beyond a bound are taken out."""
        kept: list[OutboxGroup] = []
        is_open = False
        for index, frame in enumerate(iter_frames(self.block)):
            fits = len(frame) + self.key.size_bytes <= max_message_bytes
            if fits and not is_open:
                sequence = self.first_sequence and self.first_sequence + index
                kept.append(OutboxGroup(self.key, sequence))
            if fits:
                kept[-1].append_frame(frame)
            is_open = fits or (is_open and not self.first_sequence)
        return kept

    def append_frame(self, frame: bytes) -> None:
        """Takes the next message in."""
        self.append(frame_prefix(len(frame)), frame)
