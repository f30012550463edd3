"""What a subscription yields."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from collector_core.bus.received_group import ReceivedGroup
from daemoneye.eventbus.v1 import eventbus_pb2

__all__ = ["Delivery", "Gap", "Item", "Opened"]


@dataclass(frozen=True, slots=True)
class Opened:
    """The subscription stands; what was published before it may be missing."""

    broker_epoch: str
    """Another value than last time: the broker restarted and its queues are gone."""
    resumed: bool = False
    """Whether a durable subscription goes on where it stood."""
    history_complete: bool = True
    """Whether the retained messages reach back as far as ``history_s`` asked."""
    position: int = 0
    """Delivery position before the first delivery that follows."""
    subscription_id: str = ""
    """Its id at the broker, for operators."""
    max_queue_messages: int = 0
    """Bound of the broker's queue, as granted."""
    max_queue_bytes: int = 0
    """Bound of the broker's queue, as granted."""
    life: int = field(default=0, compare=False)
    """Which life of the subscription this is; positions count within one."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages that the broker dropped exactly here."""

    dropped_count: int
    reason: str
    """Such as ``dropped_oldest`` or ``expired``; see ``GapReason``."""
    dropped_bytes: int = 0
    position: int = 0
    """Delivery position of the last missing message."""


class Delivery:
    """Messages in order.

    Args:
        groups: the messages, by envelope.
        position: delivery position of the last message; 0 when the broker did not say.
        redelivered: whether they were handed over before and not acknowledged.
        life: which life of the subscription the position belongs to.
    """

    __slots__ = ("_messages", "groups", "life", "position", "redelivered")

    def __init__(
        self,
        groups: Sequence[ReceivedGroup],
        position: int = 0,
        redelivered: bool = False,
        life: int = 0,
    ) -> None:
        self.groups = groups
        self.position = position
        self.redelivered = redelivered
        self.life = life
        self._messages: list[eventbus_pb2.EventBusMessage] | None = None

    @classmethod
    def of_messages(
        cls, messages: Sequence[eventbus_pb2.EventBusMessage], position: int = 0
    ) -> "Delivery":
        """Returns a delivery of messages that say everything themselves."""
        groups = [ReceivedGroup.of_message(one.SerializeToString()) for one in messages]
        return cls(groups, position)

    @property
    def count(self) -> int:
        """How many messages there are, those that cannot be read included."""
        return sum(group.count for group in self.groups)

    @property
    def size_bytes(self) -> int:
        """Their encoded size."""
        return sum(len(group.block) for group in self.groups)

    @property
    def messages(self) -> Sequence[eventbus_pb2.EventBusMessage]:
        """The messages with full metadata; decoded when first asked for."""
        if self._messages is None:
            self._messages = [one for group in self.groups for one in group.messages]
        return self._messages

    @property
    def undecodable_count(self) -> int:
        """Messages left out because they are no valid protobuf: the broker checks envelopes."""
        return self.count - len(self.messages)


Item = Opened | Delivery | Gap
"""What a subscription yields."""
