"""What a mailbox tells its consumer, and what it counts.

Invariant: deliveries come in the order of their positions, and leave none out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from daemoneye_eventbus.group import Group

__all__ = [
    "Batch",
    "CloseReason",
    "Closed",
    "Delivery",
    "DropReason",
    "Gap",
    "MailboxCounters",
    "Notice",
]


class DropReason(StrEnum):
    """Why a message was not delivered."""

    DROPPED_OLDEST = "dropped_oldest"
    """The queue was full, and the oldest messages made room."""
    DROPPED_NEWEST = "dropped_newest"
    """The queue was full, and arriving messages were dropped."""
    EXPIRED = "expired"
    """It waited longer than its ``ttl_ms``."""
    DEADLINE = "deadline"
    """The queue was full, and publishers had waited for room as long as they may."""
    RETENTION = "retention"
    """The subscriber was away, and what is kept for it was full."""
    FLUSHED = "flushed"
    """The subscriber threw it away."""
    CLOSED = "closed"
    """The subscription had ended, or ended with the message still pending."""
    MOVED = "moved"
    """The subscription ended, and another member of its consumer group got the message."""


class CloseReason(StrEnum):
    """Why a mailbox ended."""

    UNSUBSCRIBED = "unsubscribed"
    """The subscriber ended it."""
    SLOW_CONSUMER = "slow_consumer"
    """It overflowed under the policy ``disconnect``."""
    DRAINING = "draining"
    """The broker shuts down."""
    SUPERSEDED = "superseded"
    """The same durable subscription was opened again."""
    EXPIRED = "expired"
    """It was durable, and nobody came back in time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive messages in the order they were offered.

    Args:
        groups: the messages.
        first_position: of the first message.
        count: number of messages.
        size_bytes: size of all groups.
        is_redelivered: whether all of them were handed over before, and not acknowledged.
    """

    groups: Sequence[Group]
    first_position: int
    count: int
    size_bytes: int
    is_redelivered: bool = False

    @property
    def last_position(self) -> int:
        """Position of the last message."""
        return self.first_position + self.count - 1


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


@dataclass(frozen=True, slots=True)
class Notice:
    """Something else that the consumer is to be told, between two deliveries."""

    content: object


Delivery = Batch | Gap | Notice | Closed


@dataclass(frozen=True, slots=True)
class MailboxCounters:
    """What became of every message offered so far, and how much is pending now.

    Args:
        offered: messages offered.
        delivered: messages handed over; with acknowledgements, messages acknowledged.
        filtered: messages held back by a filter or as repeats.
        dropped: messages dropped, by reason.
        pending: messages held, those not acknowledged included.
        pending_bytes: size of what is held.
        unacknowledged: of those pending, handed over and not acknowledged.
        redelivered: messages handed over again; no part of the sum.
    """

    offered: int
    delivered: int
    filtered: int
    dropped: Mapping[DropReason, int]
    pending: int
    pending_bytes: int
    unacknowledged: int
    redelivered: int
