"""Events and records as a collector's author makes them, and as they go over the wire."""

import time
from dataclasses import dataclass, field

from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError
from daemoneye_mesh.limits import MAX_MESSAGE_BYTES

__all__ = ["Event", "EventData", "Record", "Sequencer"]

EventData = (
    event_data_pb2.ProcessEventData
    | event_data_pb2.NetworkEventData
    | event_data_pb2.FilesystemEventData
    | event_data_pb2.PerformanceEventData
    | event_data_pb2.TriggerEventData
)
"""The typed contents of an event, one message a domain."""

Record = (
    common_pb2.ProcessRecord
    | common_pb2.NetworkRecord
    | common_pb2.FilesystemRecord
    | common_pb2.PerformanceRecord
    | common_pb2.HashResult
)
"""One record of a task's result."""

_FIELDS: dict[type, tuple[str, eventbus_pb2.EventType.ValueType]] = {
    event_data_pb2.ProcessEventData: ("process_event", eventbus_pb2.EVENT_TYPE_PROCESS_EVENT),
    event_data_pb2.NetworkEventData: ("network_event", eventbus_pb2.EVENT_TYPE_NETWORK_EVENT),
    event_data_pb2.FilesystemEventData: (
        "filesystem_event",
        eventbus_pb2.EVENT_TYPE_FILESYSTEM_EVENT,
    ),
    event_data_pb2.PerformanceEventData: (
        "performance_event",
        eventbus_pb2.EVENT_TYPE_PERFORMANCE_EVENT,
    ),
    event_data_pb2.TriggerEventData: ("trigger_event", eventbus_pb2.EVENT_TYPE_TRIGGER_EVENT),
}


@dataclass(frozen=True, slots=True)
class Event:
    """Something a source saw."""

    topic: str
    """Where it is published, such as ``events.process.lifecycle``."""
    data: EventData
    """What was seen."""
    time_ns: int = field(default_factory=time.time_ns)
    """When it was seen, nanoseconds since the Unix epoch."""


class Sequencer:
    """Numbers the events of one collector and encodes them.

    Args:
        source_id: id of the collector.
        epoch: life of the sequence; greater than any before it.
    """

    def __init__(self, source_id: str, epoch: int) -> None:
        self.source_id = source_id
        self.epoch = epoch
        self.sequence = 0
        """The last sequence given out."""

    def encode(self, event: Event) -> bytes:
        """Returns the encoded EventBusMessage with the next sequence, which ``advance`` uses up.

        Raises:
            InvalidRequestError: the event is larger than a message may be.
        """
        name, event_type = _FIELDS[type(event.data)]
        payload = eventbus_pb2.CollectionEventPayload(event_type=event_type)
        getattr(payload, name).CopyFrom(event.data)
        message = eventbus_pb2.EventBusMessage(
            metadata=eventbus_pb2.MessageMetadata(
                topic=event.topic,
                message_type=eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT,
                timestamp=event.time_ns,
                source_id=self.source_id,
                source_epoch=self.epoch,
                source_sequence=self.sequence + 1,
            ),
            collection_event=payload,
        )
        frame = message.SerializeToString()
        if len(frame) > MAX_MESSAGE_BYTES:
            raise InvalidRequestError(
                f"an event of {len(frame)} bytes is more than {MAX_MESSAGE_BYTES}; truncate its"
                " fields and mark them in truncated_fields",
                reason=ErrorReason.MESSAGE_TOO_LARGE,
                size_bytes=len(frame),
                limit_bytes=MAX_MESSAGE_BYTES,
            )
        return frame

    def advance(self) -> None:
        """Uses up the sequence of the frame encoded last: it will be published."""
        self.sequence += 1
