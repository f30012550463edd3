"""Events and records as a collector's author makes them, and as they go over the wire."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from collector_core.bus.envelope import EnvelopeKey, OutboxMessage
from collector_core.bus.errors import MessageTooLargeError
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import collection_gap_pb2, event_data_pb2, eventbus_pb2
from daemoneye_mesh.limits import MAX_MESSAGE_BYTES

__all__ = ["Emit", "Event", "EventClass", "EventData", "Record", "Sequencer"]

EventData = (
    event_data_pb2.ProcessEventData
    | event_data_pb2.NetworkEventData
    | event_data_pb2.FilesystemEventData
    | event_data_pb2.PerformanceEventData
    | event_data_pb2.TriggerEventData
    | collection_gap_pb2.CollectionGapData
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

MAX_KNOWN_KEYS = 256
"""Topics whose envelope is kept; it is made again each time for the others."""

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
    collection_gap_pb2.CollectionGapData: (
        "collection_gap",
        eventbus_pb2.EVENT_TYPE_COLLECTION_GAP_EVENT,
    ),
}


class EventClass(StrEnum):
    """What may happen to an event when there is too much of everything."""

    LIFECYCLE = "lifecycle"
    """It is never left out; its source waits."""
    METADATA = "metadata"
    """It may be left out under pressure: the next one tells as much."""
    SAMPLE = "sample"
    """It is left out first: a measurement among many."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something a source saw."""

    topic: str
    """Where it is published, such as ``events.process.lifecycle``."""
    data: EventData
    """What was seen."""
    time_ns: int = field(default_factory=time.time_ns)
    """When it was seen, nanoseconds since the Unix epoch."""
    event_class: EventClass = EventClass.LIFECYCLE
    """Whether it may be left out under pressure."""


Emit = Callable[[Event], Awaitable[None]]
"""Hands an event to the SDK; waits while the collector cannot take more, so that a source slows down."""


class Sequencer:
    """Numbers the events of one collector and encodes them.

    Args:
        source_id: id of the collector.
        epoch: life of the sequence; greater than any before it.
        sequence: the last one given out before.
    """

    def __init__(self, source_id: str, epoch: int, sequence: int = 0) -> None:
        self.source_id = source_id
        self.epoch = epoch
        self.sequence = sequence
        """The last sequence given out."""
        self._keys: dict[tuple[str, int], EnvelopeKey] = {}

    def encode(self, event: Event) -> OutboxMessage:
        """Returns the event as a message with the next sequence, which ``advance`` uses up.

        Raises:
            MessageTooLargeError: the event is larger than a message may be.
        """
        name, event_type = _FIELDS[type(event.data)]
        payload = eventbus_pb2.CollectionEventPayload(event_type=event_type)
        getattr(payload, name).CopyFrom(event.data)
        message = eventbus_pb2.EventBusMessage(
            metadata=eventbus_pb2.MessageMetadata(timestamp=event.time_ns),
            collection_event=payload,
        )
        frame = message.SerializeToString()
        key = self._key(event.topic, event_type)
        if len(frame) + key.size_bytes > MAX_MESSAGE_BYTES:
            raise MessageTooLargeError(len(frame) + key.size_bytes, MAX_MESSAGE_BYTES)
        return OutboxMessage(key, self.sequence + 1, frame)

    def advance(self) -> None:
        """Uses up the sequence of the message encoded last: it will be published."""
        self.sequence += 1

    def _key(self, topic: str, event_type: int) -> EnvelopeKey:
        key = self._keys.get((topic, event_type))
        if key is None:
            key = EnvelopeKey(
                topic=topic, source_id=self.source_id, event_type=event_type, epoch=self.epoch
            )
            if len(self._keys) < MAX_KNOWN_KEYS:
                self._keys[topic, event_type] = key
        return key
