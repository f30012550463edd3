"""The twins of frame.proto carry the same bytes as the service messages (MUST-FRAME-01)."""

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2, frame_pb2, group_pb2

TWINS = {
    "PublishFrames": eventbus_service_pb2.PublishRequest,
    "PublishStreamFrames": eventbus_service_pb2.PublishStreamRequest,
    "GroupFrame": group_pb2.MessageGroup,
    "MessageBlockFrames": group_pb2.MessageBlock,
    "MessageEnvelope": eventbus_pb2.EventBusMessage,
    "CollectionEventHead": eventbus_pb2.CollectionEventPayload,
    "MessageBatchFrames": eventbus_service_pb2.MessageBatch,
    "SubscribeFrames": eventbus_service_pb2.SubscribeResponse,
}
PARTIAL = {"MessageEnvelope", "CollectionEventHead"}
"""Twins that leave out what routing does not need; it stays in their unknown fields."""
OPAQUE = {
    eventbus_pb2.EventBusMessage.DESCRIPTOR,
    group_pb2.MessageGroup.DESCRIPTOR,
    group_pb2.MessageBlock.DESCRIPTOR,
}
"""What a twin has as bytes."""
MESSAGE = eventbus_pb2.EventBusMessage(
    metadata=eventbus_pb2.MessageMetadata(topic="events.process.lifecycle", source_sequence=7),
    heartbeat=eventbus_pb2.HeartbeatPayload(component_id="procmond"),
)


def test_every_message_of_frame_proto_has_a_twin() -> None:
    assert set(frame_pb2.DESCRIPTOR.message_types_by_name) == set(TWINS)


@pytest.mark.parametrize("name", sorted(TWINS))
def test_a_twin_has_the_fields_of_its_message(name: str) -> None:
    twin: Descriptor = frame_pb2.DESCRIPTOR.message_types_by_name[name]
    other: Descriptor = TWINS[name].DESCRIPTOR
    for field in twin.fields:
        same: FieldDescriptor = other.fields_by_number[field.number]
        assert same.name == field.name
        assert same.is_repeated == field.is_repeated
        assert field.type == (
            FieldDescriptor.TYPE_BYTES if same.message_type in OPAQUE else same.type
        )
    if name not in PARTIAL:
        assert len(twin.fields) == len(other.fields)


def test_a_batch_of_frames_reads_as_a_batch_of_messages() -> None:
    frames = frame_pb2.SubscribeFrames(
        batch=frame_pb2.MessageBatchFrames(messages=[MESSAGE.SerializeToString()] * 3, position=9)
    )
    read = eventbus_service_pb2.SubscribeResponse.FromString(frames.SerializeToString())
    assert list(read.batch.messages) == [MESSAGE] * 3
    assert read.batch.position == 9


def test_a_published_batch_reads_as_frames_with_the_same_bytes() -> None:
    request = eventbus_service_pb2.PublishStreamRequest(batch_id=4, messages=[MESSAGE, MESSAGE])
    frames = frame_pb2.PublishStreamFrames.FromString(request.SerializeToString())
    assert frames.batch_id == 4
    assert list(frames.messages) == [MESSAGE.SerializeToString()] * 2
    envelope = frame_pb2.MessageEnvelope.FromString(frames.messages[0])
    assert envelope.metadata == MESSAGE.metadata
    assert envelope.SerializeToString() == MESSAGE.SerializeToString()


def test_a_group_of_frames_reads_as_a_group_of_messages() -> None:
    envelope = group_pb2.GroupEnvelope(topic="events.process.lifecycle", count=2)
    block = frame_pb2.MessageBlockFrames(messages=[MESSAGE.SerializeToString()] * 2)
    group = frame_pb2.GroupFrame(envelope=envelope, block=block.SerializeToString())
    request = frame_pb2.PublishFrames(groups=[group.SerializeToString()])
    read = eventbus_service_pb2.PublishRequest.FromString(request.SerializeToString())
    assert read.groups[0].envelope == envelope
    assert list(read.groups[0].block.messages) == [MESSAGE] * 2
