"""A group as it came from the broker: taken apart only when somebody looks inside.

What cannot be read is left out and counted (``Delivery.undecodable_count``), and logged for debugging
only: else any publisher could fill its subscribers' logs.
"""

import logging
from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from collector_core.bus.wire import encode_frames
from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2, group_pb2
from daemoneye_mesh.correlation import MAX_SEQUENCE_NUMBER
from daemoneye_mesh.group import apply_envelope, split_block

__all__ = ["ReceivedGroup"]

log = logging.getLogger("daemoneye.subscription")


class ReceivedGroup:
    """Messages with one envelope.

    Args:
        envelope: what they have in common, verified by the broker.
        block: encoded ``MessageBlock``.
    """

    __slots__ = ("_frames", "_messages", "block", "count", "envelope")

    def __init__(self, envelope: group_pb2.GroupEnvelope, block: bytes) -> None:
        self.envelope = envelope
        self.block = block
        self.count = envelope.count
        """How many messages there are, those that cannot be read included."""
        self._frames: Sequence[bytes] | None = None
        self._messages: list[eventbus_pb2.EventBusMessage] | None = None

    @classmethod
    def decode(cls, encoded: bytes) -> "ReceivedGroup":
        """Reads an encoded ``MessageGroup``; what is none becomes one message without contents."""
        try:
            group = frame_pb2.GroupFrame.FromString(encoded)
        except DecodeError:
            log.debug("%d bytes from the broker are no group; left out", len(encoded))
            return cls(group_pb2.GroupEnvelope(count=1), b"")
        if group.envelope.first_sequence + max(group.envelope.count, 1) - 1 > MAX_SEQUENCE_NUMBER:
            log.debug("a group passes the greatest sequence number; left out")
            return cls(group_pb2.GroupEnvelope(count=1), b"")
        return cls(group.envelope, group.block)

    @classmethod
    def of_message(cls, frame: bytes) -> "ReceivedGroup":
        """Returns a group of one message that says everything itself."""
        envelope = group_pb2.GroupEnvelope(count=1)
        try:
            message = frame_pb2.MessageEnvelope.FromString(frame)
        except DecodeError:
            return cls(envelope, encode_frames([frame]))
        metadata = message.metadata
        envelope.topic = metadata.topic
        envelope.message_type = metadata.message_type
        envelope.event_type = message.collection_event.event_type
        envelope.priority = metadata.priority
        envelope.ttl_ms = metadata.ttl_ms
        envelope.source_id = metadata.source_id
        envelope.source_epoch = metadata.source_epoch
        envelope.first_sequence = metadata.source_sequence
        envelope.message_id = metadata.message_id
        if message.HasField("correlation"):
            envelope.correlation.CopyFrom(message.correlation)
        return cls(envelope, encode_frames([frame]))

    @property
    def frames(self) -> Sequence[bytes]:
        """The encoded messages, without what the envelope says; empty when the block is broken."""
        if self._frames is None:
            try:
                self._frames = split_block(self.block)[: self.count]
            except DecodeError:
                log.debug("a group of %d messages cannot be read; left out", self.count)
                self._frames = ()
        return self._frames

    @property
    def messages(self) -> Sequence[eventbus_pb2.EventBusMessage]:
        """The messages with full metadata, without those that are no valid protobuf."""
        if self._messages is None:
            self._messages = [
                message
                for index, frame in enumerate(self.frames)
                if (message := self._decode(frame, index)) is not None
            ]
        return self._messages

    def pick(self, spans: Iterable[tuple[int, int]]) -> "list[ReceivedGroup]":
        """Returns parts of the group, each given by the index of its first message and a count."""
        parts = []
        for index, count in spans:
            envelope = group_pb2.GroupEnvelope()
            envelope.CopyFrom(self.envelope)
            envelope.count = count
            if envelope.first_sequence:
                envelope.first_sequence += index
            parts.append(ReceivedGroup(envelope, encode_frames(self.frames[index : index + count])))
        return parts

    def _decode(self, frame: bytes, index: int) -> eventbus_pb2.EventBusMessage | None:
        try:
            message = eventbus_pb2.EventBusMessage.FromString(frame)
        except DecodeError:
            log.debug("a message of %d bytes is no EventBusMessage; left out", len(frame))
            return None
        apply_envelope(message, self.envelope, index)
        return message
