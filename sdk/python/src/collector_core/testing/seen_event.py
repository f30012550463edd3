"""Events as they arrive in a test: unpacked, each with its place in the sequence of its collector."""

from dataclasses import dataclass
from typing import Any, cast

from collector_core.event import EventData
from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2
from daemoneye_mesh.group import expand_group
from daemoneye_mesh.topic import matches

__all__ = ["SeenEvent", "messages_of"]


@dataclass(frozen=True, slots=True)
class SeenEvent:
    """One collection event of a collector."""

    topic: str
    """Where it was published."""
    source_id: str
    """Id of the collector."""
    epoch: int
    """Life of the sequence."""
    sequence: int
    """Place in the sequence, from 1."""
    time_ns: int
    """When it was seen, nanoseconds since the Unix epoch."""
    data: EventData
    """What was seen; its type says which domain."""
    message: eventbus_pb2.EventBusMessage
    """The whole, envelope included."""

    @classmethod
    def of(cls, message: eventbus_pb2.EventBusMessage) -> "SeenEvent | None":
        """Returns the event in a message, or None when it holds none."""
        field = message.collection_event.WhichOneof("event_data")
        if message.WhichOneof("payload") != "collection_event" or field is None:
            return None
        metadata = message.metadata
        return cls(
            topic=metadata.topic,
            source_id=metadata.source_id,
            epoch=metadata.source_epoch,
            sequence=metadata.source_sequence,
            time_ns=metadata.timestamp,
            data=cast("EventData", getattr(message.collection_event, field)),
            message=message,
        )

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from every other event: collector, epoch, sequence."""
        return self.source_id, self.epoch, self.sequence

    def is_on(self, topic_pattern: str) -> bool:
        """Whether its topic matches a pattern: ``+`` is one segment, ``#`` zero or more."""
        return matches(topic_pattern, self.topic)


PublishedBatch = eventbus_service_pb2.PublishStreamRequest | eventbus_service_pb2.PublishRequest


def messages_of(batch: PublishedBatch) -> list[eventbus_pb2.EventBusMessage]:
    """Returns the messages of a batch with full metadata, those in groups included.

    Raises:
        ValueError: the count of a group is not that of its messages.
    """
    messages = list(batch.messages)
    for group in batch.groups:
        frames = expand_group(group.envelope, group.block.SerializeToString())
        if len(frames) != group.envelope.count:
            raise ValueError(f"a group of {len(frames)} messages says {group.envelope.count}")
        messages += map(cast("Any", eventbus_pb2.EventBusMessage.FromString), frames)
    return messages
