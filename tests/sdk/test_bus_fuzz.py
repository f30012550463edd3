"""Whatever a broker sends, its client reads it or leaves it out; nothing foreign is raised.

The broker is verified by its token alone, and it forwards what publishers wrote without decoding it.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collector_core.bus import Delivery, Gap, Opened
from collector_core.bus.received_group import ReceivedGroup
from collector_core.bus.subscribe_request import to_delivery, to_gap, to_opened
from collector_core.bus.wire import encode_frames, iter_frames
from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2, group_pb2

UINT32 = st.integers(0, 3) | st.integers(0, 2**32 - 1)
UINT64 = st.integers(0, 3) | st.integers(0, 2**64 - 1) | st.just(2**64 - 1)
TEXTS = st.text("ab.\x00\n\u00e9\U0001f600", max_size=8)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


def damaged(encoded: bytes, at: float, extra: bytes, length: int) -> bytes:
    place = int(at * len(encoded))
    return encoded[:place] + extra + encoded[place + length :]


def or_damaged(sound: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    broken = st.builds(damaged, sound, st.floats(0, 1), st.binary(max_size=4), st.integers(0, 4))
    return sound | broken


def message_of(metadata: dict[str, Any], exit_code: int) -> bytes:
    message = eventbus_pb2.EventBusMessage(metadata=metadata)
    message.collection_event.process_event.exit_code = exit_code
    return message.SerializeToString()


MESSAGES = or_damaged(
    st.builds(message_of, some(topic=TEXTS, source_id=TEXTS, source_sequence=UINT64), st.just(3))
)


def group_of(envelope: dict[str, Any], frames: Sequence[bytes], lie: int | None) -> bytes:
    fields = {**envelope, "count": len(frames) if lie is None else lie}
    block = frame_pb2.MessageBlockFrames(messages=frames).SerializeToString()
    return frame_pb2.GroupFrame(
        envelope=group_pb2.GroupEnvelope(**fields), block=block
    ).SerializeToString()


ENVELOPES = some(
    topic=TEXTS,
    message_type=st.integers(-1, 9),
    event_type=st.integers(-1, 9),
    priority=UINT32,
    ttl_ms=UINT64,
    source_id=TEXTS,
    source_epoch=UINT64,
    first_sequence=UINT64,
    message_id=TEXTS,
    correlation=some(correlation_id=TEXTS, span_id=TEXTS),
)
GROUPS = or_damaged(
    st.builds(group_of, ENVELOPES, st.lists(MESSAGES, max_size=3), st.none() | UINT32)
)
BATCHES = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGES, max_size=3), "groups": st.lists(GROUPS, max_size=3)},
    optional={"position": UINT64, "redelivered": st.booleans()},
)
RESPONSES = st.one_of(
    BATCHES.map(lambda one: {"batch": one}),
    some(
        dropped_count=UINT64, dropped_bytes=UINT64, reason=st.integers(-1, 99), position=UINT64
    ).map(lambda one: {"gap": one}),
    some(subscription_id=TEXTS, broker_epoch=TEXTS, position=UINT64, resumed=st.booleans()).map(
        lambda one: {"opened": one}
    ),
)


def verify_delivery(delivery: Delivery) -> None:
    assert 0 <= delivery.undecodable_count == delivery.count - len(delivery.messages)
    for group in delivery.groups:
        spans = [(number, 1) for number in range(min(len(group.frames), 4))]
        assert [one.count for one in group.pick(spans)] == [1] * len(spans)


@settings(max_examples=500)
@given(or_damaged(RESPONSES.map(lambda one: frame_pb2.SubscribeFrames(**one).SerializeToString())))
def test_answers_of_a_broker_are_read_or_left_out(encoded: bytes) -> None:
    try:
        response = frame_pb2.SubscribeFrames.FromString(encoded)
    except DecodeError:
        return
    match response.WhichOneof("item"):
        case "batch":
            verify_delivery(to_delivery(response.batch, 1))
        case "gap":
            assert isinstance(to_gap(response.gap), Gap)
        case "opened":
            assert isinstance(to_opened(response.opened, 1), Opened)


LAST_SEQUENCE = group_of({"first_sequence": 2**64 - 1}, [b"", b""], None)


@settings(max_examples=300)
@given(GROUPS | st.binary(max_size=20))
@example(LAST_SEQUENCE)
def test_groups_are_taken_apart_or_left_out(encoded: bytes) -> None:
    group = ReceivedGroup.decode(encoded)
    assert len(group.frames) <= group.count
    verify_delivery(Delivery([group]))


@settings(max_examples=300)
@given(MESSAGES | st.binary(max_size=20))
def test_single_messages_are_read_or_left_out(encoded: bytes) -> None:
    group = ReceivedGroup.of_message(encoded)
    assert list(group.frames) == [encoded]
    verify_delivery(Delivery([group]))


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_frames_come_back_as_they_were_written(frames: list[bytes]) -> None:
    block = encode_frames(frames)
    assert list(iter_frames(block)) == frames
    with suppress(DecodeError):
        assert list(frame_pb2.MessageBlockFrames.FromString(block).messages) == frames
