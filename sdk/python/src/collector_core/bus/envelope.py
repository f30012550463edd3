"""What messages say about themselves before they are sent, taken out of them for their group.

Invariant: an ``EnvelopeKey`` that exists is within the bounds of its correlation; topics are checked
by whoever knows what may be published, at the latest by the broker.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from collector_core.bus.wire import MAX_GROUP_OVERHEAD_BYTES
from daemoneye.eventbus.v1 import eventbus_pb2, group_pb2
from daemoneye_mesh.correlation import Correlation
from daemoneye_mesh.correlation_message import from_message, to_message

__all__ = ["EnvelopeKey", "OutboxMessage", "to_outbox_message"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeKey:
    """What the messages of one group have in common. Make one a topic and keep it.

    Args:
        topic: where they are published.
        source_id: id of the publisher's own identity.
        message_type: number of the ``MessageType``.
        event_type: number of the ``EventType``; without meaning unless they are collection events.
        priority: 0 to 255.
        ttl_ms: how long each may wait at the broker; 0 without a bound.
        epoch: life of the publisher's sequence; 0 when they have no place in one.
        correlation: what they belong to.
        message_id: of the one message with this key; empty when there may be several.
    """

    topic: str
    source_id: str
    message_type: int = eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT
    event_type: int = 0
    priority: int = 0
    ttl_ms: int = 0
    epoch: int = 0
    correlation: Correlation | None = None
    message_id: str = ""
    head: bytes = field(init=False, repr=False, compare=False)
    """The encoded envelope without sequence and count."""
    size_bytes: int = field(init=False, repr=False, compare=False)
    """Most that a group spends on its envelope."""

    def __post_init__(self) -> None:
        envelope = group_pb2.GroupEnvelope(
            topic=self.topic,
            message_type=eventbus_pb2.MessageType.ValueType(self.message_type),
            event_type=eventbus_pb2.EventType.ValueType(self.event_type),
            priority=self.priority,
            ttl_ms=self.ttl_ms,
            source_id=self.source_id,
            source_epoch=self.epoch,
            message_id=self.message_id,
            correlation=to_message(self.correlation) if self.correlation else None,
        )
        head = envelope.SerializeToString()
        object.__setattr__(self, "head", head)
        object.__setattr__(self, "size_bytes", len(head) + MAX_GROUP_OVERHEAD_BYTES)


class OutboxMessage(NamedTuple):
    """One message on its way out."""

    key: EnvelopeKey
    """What it has in common with others."""
    sequence: int
    """Its place in the sequence of the key's epoch, from 1; 0 without one."""
    frame: bytes
    """The encoded ``EventBusMessage``; what the key says may be left out of it."""


def to_outbox_message(message: eventbus_pb2.EventBusMessage) -> OutboxMessage:
    """Takes the envelope out of a message that says everything itself.

    Args:
        message: left as it is.

    Raises:
        InvalidCorrelationError: its correlation is beyond a bound of the contract.
    """
    metadata = message.metadata
    key = EnvelopeKey(
        topic=metadata.topic,
        source_id=metadata.source_id,
        message_type=metadata.message_type,
        event_type=message.collection_event.event_type,
        priority=metadata.priority,
        ttl_ms=metadata.ttl_ms,
        epoch=metadata.source_epoch,
        correlation=from_message(message.correlation) if message.HasField("correlation") else None,
        message_id=metadata.message_id,
    )
    rest = eventbus_pb2.EventBusMessage()
    rest.CopyFrom(message)
    rest.ClearField("correlation")
    for name in ("topic", "message_type", "priority", "ttl_ms", "source_id"):
        rest.metadata.ClearField(name)
    rest.metadata.ClearField("source_epoch")
    rest.metadata.ClearField("source_sequence")
    return OutboxMessage(key, metadata.source_sequence, rest.SerializeToString())
