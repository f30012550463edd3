"""The twins of frame.proto carry the same bytes as the service messages (MUST-FRAME-01)."""

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2, frame_pb2

TWINS = {
    "PublishFrames": eventbus_service_pb2.PublishRequest,
    "PublishStreamFrames": eventbus_service_pb2.PublishStreamRequest,
    "MessageEnvelope": eventbus_pb2.EventBusMessage,
    "MessageBatchFrames": eventbus_service_pb2.MessageBatch,
    "SubscribeFrames": eventbus_service_pb2.SubscribeResponse,
}
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
        is_frame = same.message_type is eventbus_pb2.EventBusMessage.DESCRIPTOR
        assert field.type == (FieldDescriptor.TYPE_BYTES if is_frame else same.type)
    if name != "MessageEnvelope":
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
