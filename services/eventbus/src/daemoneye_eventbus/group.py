"""The unit that the broker carries: messages of one source on one topic.

Invariant: a group is not changed once made, and its content stays encoded; it is taken apart only
to split it at the bound of a queue, or for a subscriber that wants single messages.
"""

from dataclasses import dataclass, replace
from typing import Protocol, Self

from daemoneye_eventbus.receipt import Receipt
from daemoneye_mesh.correlation import Correlation

__all__ = ["Content", "Envelope", "Group"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What the messages of a group have in common; all of it verified.

    Args:
        topic: a valid topic.
        source_id: id of the publisher.
        count: number of messages, at least 1.
        message_type: number of the ``MessageType``.
        event_type: number of the ``EventType``; None when the messages are no collection events.
        priority: 0 to 255.
        ttl_ms: how long each may wait; 0 without a bound.
        source_epoch: life of the publisher's sequence; 0 without one.
        first_sequence: of the first message; 0 without a sequence.
        message_id: of the only message; empty when it has none or there are several.
        correlation: what all of them belong to.
    """

    topic: str
    source_id: str
    count: int = 1
    message_type: int = 0
    event_type: int | None = None
    priority: int = 0
    ttl_ms: int = 0
    source_epoch: int = 0
    first_sequence: int = 0
    message_id: str = ""
    correlation: Correlation | None = None

    def counting(self, count: int) -> "Envelope":
        """Returns the same envelope around this many messages."""
        return replace(self, count=count)

    def split(self, count: int) -> tuple["Envelope", "Envelope"]:
        """Returns the envelopes of the first ``count`` messages and of the others."""
        sequence = self.first_sequence and self.first_sequence + count
        return (
            replace(self, count=count),
            replace(self, count=self.count - count, first_sequence=sequence),
        )


class Content(Protocol):
    """The encoded messages of a group, envelope included."""

    @property
    def size_bytes(self) -> int:
        """Encoded size."""

    def split(self, count: int) -> tuple[Self, Self]:
        """Returns the first ``count`` messages, 0 < count < all, and the others."""


class Group:
    """Messages with one envelope.

    Args:
        envelope: what they have in common.
        content: the messages.
        receipt: of the batch they came in, when its publisher waits for acknowledgements.
    """

    __slots__ = ("content", "count", "envelope", "receipt", "size_bytes", "topic")

    def __init__(
        self, envelope: Envelope, content: Content, receipt: Receipt | None = None
    ) -> None:
        self.envelope = envelope
        self.content = content
        self.receipt = receipt
        self.topic = envelope.topic
        self.count = envelope.count
        self.size_bytes = content.size_bytes

    def with_receipt(self, receipt: Receipt | None) -> "Group":
        """Returns the same messages, with another one who waits for their acknowledgement."""
        return Group(self.envelope, self.content, receipt)

    def split(self, count: int) -> tuple["Group", "Group"]:
        """Returns the first ``count`` messages, 0 < count < self.count, and the others."""
        first, second = self.envelope.split(count)
        head, tail = self.content.split(count)
        return Group(first, head, self.receipt), Group(second, tail, self.receipt)
