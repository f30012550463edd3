"""Groups as they go over the wire, and as the broker's domain knows them.

Invariant: the encoded group is forwarded as the bytes that came.
"""

from collections.abc import Iterator, Sequence

from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2, group_pb2
from daemoneye_eventbus.group import Envelope, Group
from daemoneye_mesh.correlation_message import from_message, to_message
from daemoneye_mesh.group import encode_group, expand_group, split_block

__all__ = ["GroupContent", "make_group", "read_envelope", "write_envelope"]


class GroupContent:
    """An encoded ``MessageGroup``; see ``daemoneye_eventbus.group.Content``."""

    __slots__ = ("encoded", "size_bytes")

    def __init__(self, encoded: bytes) -> None:
        self.encoded = encoded
        self.size_bytes = len(encoded)

    def split(self, count: int) -> tuple["GroupContent", "GroupContent"]:
        """Returns the first ``count`` messages and the others, each as a group of its own."""
        group = frame_pb2.GroupFrame.FromString(self.encoded)
        frames = list(split_block(group.block))
        rest = group_pb2.GroupEnvelope()
        rest.CopyFrom(group.envelope)
        if rest.first_sequence:
            rest.first_sequence += count
        head = encode_group(group.envelope, frames[:count])
        return GroupContent(head), GroupContent(encode_group(rest, frames[count:]))

    def messages(self, max_bytes: int) -> Iterator[list[bytes]]:
        """Yields the encoded messages, each with metadata of its own, by lists of ``max_bytes``.

        A list has one message at least. Ten thousand messages that share an envelope of 70 kB are
        small as a group, and would fill the memory if each got its copy at once.
        """
        group = frame_pb2.GroupFrame.FromString(self.encoded)
        count = group.envelope.count
        if count > 1 and len(group.block) + count * group.envelope.ByteSize() > max_bytes:
            for part in self.split(count // 2):
                yield from part.messages(max_bytes)
        else:
            yield expand_group(group.envelope, group.block)


def make_group(envelope: Envelope, frames: Sequence[bytes]) -> Group:
    """Returns a group of encoded messages, as many as the envelope says."""
    return Group(envelope, GroupContent(encode_group(write_envelope(envelope), frames)))


def read_envelope(message: group_pb2.GroupEnvelope) -> Envelope:
    """Returns the envelope of a message, not verified."""
    is_event = message.message_type == eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT
    has_correlation = message.HasField("correlation")
    return Envelope(
        topic=message.topic,
        source_id=message.source_id,
        count=message.count,
        message_type=message.message_type,
        event_type=message.event_type if is_event else None,
        priority=message.priority,
        ttl_ms=message.ttl_ms,
        source_epoch=message.source_epoch,
        first_sequence=message.first_sequence,
        message_id=message.message_id,
        correlation=from_message(message.correlation) if has_correlation else None,
    )


def write_envelope(envelope: Envelope) -> group_pb2.GroupEnvelope:
    """Returns the message of an envelope."""
    message = group_pb2.GroupEnvelope(
        topic=envelope.topic,
        message_type=eventbus_pb2.MessageType.ValueType(envelope.message_type),
        event_type=eventbus_pb2.EventType.ValueType(envelope.event_type or 0),
        priority=envelope.priority,
        ttl_ms=envelope.ttl_ms,
        source_id=envelope.source_id,
        source_epoch=envelope.source_epoch,
        first_sequence=envelope.first_sequence,
        count=envelope.count,
        message_id=envelope.message_id,
    )
    if envelope.correlation is not None:
        message.correlation.CopyFrom(to_message(envelope.correlation))
    return message
