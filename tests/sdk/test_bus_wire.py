"""What is written by hand is what protobuf reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core.bus import EnvelopeKey, OutboxMessage, to_outbox_message
from collector_core.bus.wire import (
    MAX_PREFIX_BYTES,
    encode_frames,
    encode_group_parts,
    encode_publish_request,
    frame_prefix,
    iter_frames,
)
from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2, frame_pb2, group_pb2
from daemoneye_mesh.correlation import Correlation
from daemoneye_mesh.group import apply_envelope, split_block
from daemoneye_mesh.limits import MAX_MESSAGE_BYTES

FRAMES = st.lists(st.binary(max_size=300), min_size=1, max_size=20)
COUNTS = st.integers(0, 2**64 - 1)
GROUPS = st.lists(st.tuples(COUNTS, FRAMES), max_size=4)
KEY = EnvelopeKey(
    topic="events.process.lifecycle",
    source_id="unit",
    event_type=4,
    priority=255,
    ttl_ms=60_000,
    epoch=2**64 - 1,
    correlation=Correlation(correlation_id="a", root_correlation_id="a", tags={"k": "v"}),
)


@given(FRAMES)
def test_frames_are_a_message_block(frames: list[bytes]) -> None:
    block = encode_frames(frames)
    assert block == frame_pb2.MessageBlockFrames(messages=frames).SerializeToString()
    assert list(split_block(block)) == frames
    assert list(iter_frames(bytearray(block))) == frames


@pytest.mark.parametrize("size_bytes", [0, 1, 127, 128, 4_095, 4_096, 16_384, MAX_MESSAGE_BYTES])
def test_frame_of_any_size_is_a_message_block(size_bytes: int) -> None:
    block = encode_frames([bytes(size_bytes)])
    assert list(split_block(block)) == [bytes(size_bytes)] == list(iter_frames(block))
    assert len(frame_prefix(size_bytes)) <= MAX_PREFIX_BYTES


def test_no_frames_are_an_empty_block() -> None:
    assert encode_frames([]) == b""


@given(st.integers(1, 2**64 - 1), GROUPS, st.integers(0, 2))
def test_request_is_a_publish_stream_request(
    batch_id: int, groups: list[tuple[int, list[bytes]]], assurance: int
) -> None:
    parts = [
        encode_group_parts(KEY.head, first, len(frames), encode_frames(frames))
        for first, frames in groups
    ]
    encoded = encode_publish_request(batch_id, parts, assurance)
    request = frame_pb2.PublishStreamFrames.FromString(encoded)
    assert (request.batch_id, request.assurance) == (batch_id, assurance)
    assert [len(group) for group in request.groups] == [size for size, _ in parts]
    for (first, frames), group in zip(groups, request.groups, strict=True):
        decoded = frame_pb2.GroupFrame.FromString(group)
        assert decoded.envelope.first_sequence == first
        assert decoded.envelope.count == len(frames)
        assert decoded.envelope.correlation.correlation_tags == {"k": "v"}
        assert list(split_block(decoded.block)) == frames
        assert len(group) <= KEY.size_bytes + len(decoded.block)


def test_message_and_its_outbox_message_are_the_same_to_a_receiver() -> None:
    message = eventbus_pb2.EventBusMessage()
    message.metadata.topic = "alerts.high.shells"
    message.metadata.message_type = eventbus_pb2.MESSAGE_TYPE_ALERT
    message.metadata.source_id = "agent"
    message.metadata.message_id = "alert-1"
    message.metadata.priority = 7
    message.metadata.ttl_ms = 5
    message.metadata.timestamp = 42
    message.metadata.headers["a"] = "b"
    message.metadata.target_id = "somebody"
    message.correlation.correlation_id = message.correlation.root_correlation_id = "c"
    message.alert.alert_id = "1"
    out = to_outbox_message(message)
    assert isinstance(out, OutboxMessage)
    envelope = group_pb2.GroupEnvelope.FromString(out.key.head)
    received = eventbus_pb2.EventBusMessage.FromString(out.frame)
    assert not received.metadata.topic
    assert not received.HasField("correlation")
    apply_envelope(received, envelope, 0)
    assert received == message


def test_twin_of_the_request_has_its_numbers() -> None:
    request = eventbus_service_pb2.PublishStreamRequest.FromString(
        encode_publish_request(9, [encode_group_parts(KEY.head, 1, 1, encode_frames([b""]))], 2)
    )
    assert request.batch_id == 9
    assert request.assurance == eventbus_pb2.PUBLISH_ASSURANCE_ACKNOWLEDGED
    assert request.groups[0].envelope.priority == 255
