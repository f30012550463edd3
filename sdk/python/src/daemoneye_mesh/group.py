"""Groups of bus messages with one envelope: how they are written, read and taken apart.

A group says once what its messages have in common, so that a broker can carry a hundred messages at
the cost of one (``group.proto``). Invariant: what the envelope says wins over what a message inside
says (MUST-GROUP-02), since only the envelope was verified by the broker.
"""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2, group_pb2

__all__ = ["apply_envelope", "encode_group", "expand_group", "split_block"]


def encode_group(envelope: group_pb2.GroupEnvelope, frames: Sequence[bytes]) -> bytes:
    """Returns an encoded ``MessageGroup``.

    Args:
        envelope: what the messages have in common; its ``count`` is set here.
        frames: encoded ``EventBusMessage``s, which may leave out what the envelope says.
    """
    envelope.count = len(frames)
    block = frame_pb2.MessageBlockFrames(messages=frames).SerializeToString()
    return frame_pb2.GroupFrame(envelope=envelope, block=block).SerializeToString()


def split_block(block: bytes) -> Sequence[bytes]:
    """Returns the encoded messages of an encoded ``MessageBlock``.

    Raises:
        DecodeError: the block is no valid protobuf.
    """
    return frame_pb2.MessageBlockFrames.FromString(block).messages


def apply_envelope(
    message: eventbus_pb2.EventBusMessage | frame_pb2.MessageEnvelope,
    envelope: group_pb2.GroupEnvelope,
    index: int,
) -> None:
    """Gives a message of a group the metadata that it has as one of its own.

    Args:
        message: changed in place.
        envelope: of its group.
        index: of the message in the group.
    """
    metadata = message.metadata
    metadata.topic = envelope.topic
    metadata.message_type = envelope.message_type
    metadata.priority = envelope.priority
    metadata.ttl_ms = envelope.ttl_ms
    metadata.source_id = envelope.source_id
    metadata.source_epoch = envelope.source_epoch
    metadata.source_sequence = envelope.first_sequence and envelope.first_sequence + index
    if envelope.message_id:
        metadata.message_id = envelope.message_id
    message.ClearField("correlation")
    if envelope.HasField("correlation"):
        message.correlation.CopyFrom(envelope.correlation)


def expand_group(envelope: group_pb2.GroupEnvelope, block: bytes) -> list[bytes]:
    """Returns the messages of a group as encoded ``EventBusMessage``s with metadata of their own.

    A message that is no valid protobuf becomes one without payload: its receiver counts and skips
    that (MUST-ENV-03), where the bytes as they are would make it give up the whole batch.

    Raises:
        DecodeError: the block is no valid protobuf.
    """
    expanded = []
    for index, frame in enumerate(split_block(block)):
        try:
            message = frame_pb2.MessageEnvelope.FromString(frame)
        except DecodeError:
            message = frame_pb2.MessageEnvelope()
        apply_envelope(message, envelope, index)
        expanded.append(message.SerializeToString())
    return expanded
