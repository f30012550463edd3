"""Publishing over the wire, one batch a call: answers, refusals and what must not reach anybody."""

from collections.abc import Callable
from typing import Any

import pytest

from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_mesh.errors import Code, ErrorReason

TIMEOUT_S = 10
A = "events.process.lifecycle"
SERVICE = "/daemoneye.eventbus.v1.EventBusService/"
ACKNOWLEDGED = eventbus_pb2.PUBLISH_ASSURANCE_ACKNOWLEDGED
MIB = 1 << 20

Build = Callable[..., bytes]

INVALID = (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)
TOO_LARGE = (Code.INVALID_ARGUMENT, ErrorReason.MESSAGE_TOO_LARGE)
BAD_TOPIC = (Code.INVALID_ARGUMENT, ErrorReason.TOPIC_INVALID)
BAD_ENUM = (Code.INVALID_ARGUMENT, ErrorReason.ENUM_UNKNOWN)
DENIED = (Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED)
RATE_LIMITED = (Code.RESOURCE_EXHAUSTED, ErrorReason.RATE_LIMITED)


def correlation_of(**fields: Any) -> eventbus_pb2.CorrelationMetadata:
    return eventbus_pb2.CorrelationMetadata(
        **{"correlation_id": "scan-1", "root_correlation_id": "scan-1", **fields}
    )


OVER_LIMIT = {
    "correlation_id": correlation_of(correlation_id="x" * 257, root_correlation_id="x" * 257),
    "workflow_stage": correlation_of(workflow_stage="x" * 129),
    "tag_count": correlation_of(correlation_tags={str(one): "" for one in range(65)}),
    "tag_key": correlation_of(correlation_tags={"k" * 129: ""}),
    "tag_value": correlation_of(correlation_tags={"k": "v" * 1025}),
    "trace_id": correlation_of(trace_id="A" * 32),
    "root": correlation_of(root_correlation_id="other"),
    "empty": eventbus_pb2.CorrelationMetadata(),
}
FULL = correlation_of(
    correlation_id="x" * 256,
    root_correlation_id="y" * 256,
    parent_correlation_id="z" * 256,
    trace_id="a" * 32,
    span_id="b" * 16,
    workflow_stage="s" * 128,
    correlation_tags={f"{one:0128}": "v" * 1024 for one in range(64)},
)


async def test_batch_is_answered_with_its_counts(bus: Any, message: Build, group: Build) -> None:
    answer = await bus.publish(message(), message(), groups=[group(count=3)])
    assert (answer.accepted_count, answer.routed_count) == (5, 0)
    await bus.subscribe("events.#")
    await bus.subscribe("events.process.#")
    answer = await bus.publish(message(), groups=[group(count=3)])
    assert (answer.accepted_count, answer.routed_count) == (4, 8)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"topic": "events.*"}, BAD_TOPIC),
        ({"topic": ""}, BAD_TOPIC),
        ({"topic": "events.network.dns"}, DENIED),
        ({"topic": "alerts.high.x"}, DENIED),
        ({"source_id": "netmond"}, DENIED),
        ({"source_id": ""}, DENIED),
        ({"message_type": 99}, BAD_ENUM),
        ({"message_type": 0, "event_type": 99}, BAD_ENUM),
        ({"message_type": 0, "priority": 256}, INVALID),
        ({"message_id": "x" * 65}, INVALID),
        *(({"correlation": one}, INVALID) for one in OVER_LIMIT.values()),
    ],
)
@pytest.mark.parametrize("is_grouped", [False, True], ids=["message", "group"])
async def test_unacceptable_envelope_refuses_the_whole_batch(
    bus: Any,
    message: Build,
    group: Build,
    refusal_of: Any,
    *,
    fields: dict[str, Any],
    expected: tuple[Code, ErrorReason],
    is_grouped: bool,
) -> None:
    await bus.subscribe("events.#")
    if is_grouped:
        call = bus.publish(groups=[group(count=2), group(**fields)])
    else:
        call = bus.publish(message(), message(), message(**fields))
    refusal = await refusal_of(call)
    assert (refusal.code, refusal.reason) == expected
    stats = await bus.stats()
    assert (stats.published_count, stats.flow.offered_count) == (0, 0)
    assert dict(stats.refused_count) == {str(expected[1]): 3}


@pytest.mark.parametrize(
    "fields",
    [
        {"target_id": "x" * 129},
        {"headers": {str(number): "" for number in range(65)}},
        {"headers": {"k" * 129: ""}},
        {"headers": {"k": "v" * 1025}},
    ],
)
async def test_metadata_of_a_single_message_is_held_to_its_bounds(
    bus: Any, message: Build, refusal_of: Any, fields: dict[str, Any]
) -> None:
    refusal = await refusal_of(bus.publish(message(), message(**fields)))
    assert (refusal.code, refusal.reason) == INVALID
    assert refusal.metadata["index"] == "1"


async def test_envelope_at_every_limit_is_accepted_and_arrives_as_it_is(
    bus: Any, message: Build, group: Build
) -> None:
    stream = await bus.subscribe("events.#")
    encoded = message(
        message_id="x" * 64,
        target_id="x" * 128,
        priority=255,
        ttl_ms=2**63,
        source_epoch=2**64 - 1,
        source_sequence=2**64 - 1,
        headers={f"{number:0128}": "v" * 1024 for number in range(64)},
        correlation=FULL,
    )
    await bus.publish(encoded)
    (arrived,) = await stream.take(1)
    assert arrived == eventbus_pb2.EventBusMessage.FromString(encoded)
    await bus.publish(groups=[group(message_id="x" * 64, correlation=FULL)])
    (arrived,) = await stream.take(1)
    assert (arrived.correlation, arrived.metadata.message_id) == (FULL, "x" * 64)


def sized(topic: str, size_bytes: int) -> bytes:
    """A message of exactly so many bytes."""
    event = eventbus_pb2.EventBusMessage()
    event.metadata.source_id, event.metadata.topic = "procmond", topic
    name_bytes = size_bytes - event.ByteSize() - 24
    for _ in range(24):
        event.collection_event.process_event.process.name = "x" * name_bytes
        if event.ByteSize() == size_bytes:
            return event.SerializeToString()
        name_bytes += size_bytes - event.ByteSize()
    raise AssertionError(f"no message has {size_bytes} bytes")


@pytest.mark.parametrize("size_bytes", [MIB - 1, MIB])
@pytest.mark.parametrize("is_grouped", [False, True], ids=["message", "group"])
async def test_message_up_to_the_largest_size_is_delivered(
    bus: Any, group: Build, size_bytes: int, is_grouped: bool
) -> None:
    stream = await bus.subscribe("events.#")
    encoded = sized(A, size_bytes)
    frames = {"groups": [group(frames=[encoded])]} if is_grouped else {}
    await bus.publish(*([] if is_grouped else [encoded]), **frames)
    (arrived,) = await stream.take(1)
    assert arrived.collection_event.process_event.process.name.startswith("xxx")


@pytest.mark.parametrize("is_grouped", [False, True], ids=["message", "group"])
async def test_larger_message_refuses_the_batch_and_is_named_by_its_index(
    bus: Any, message: Build, group: Build, refusal_of: Any, is_grouped: bool
) -> None:
    encoded = sized(A, MIB + 1)
    if is_grouped:
        call = bus.publish(message(), groups=[group(frames=[message(), encoded])])
    else:
        call = bus.publish(message(), message(), encoded)
    refusal = await refusal_of(call)
    assert (refusal.code, refusal.reason) == TOO_LARGE
    sizes = {"index": "2", "size_bytes": str(MIB + 1), "limit_bytes": str(MIB)}
    assert refusal.metadata == sizes


@pytest.mark.parametrize(("over_by", "is_accepted"), [(-1, True), (0, True), (1, False)])
async def test_batch_is_bounded_in_bytes(
    bus: Any, refusal_of: Any, over_by: int, is_accepted: bool
) -> None:
    messages = [sized(A, MIB)] * 3 + [sized(A, MIB // 2), sized(A, MIB // 2 + over_by)]
    if is_accepted:
        assert (await bus.publish(*messages)).accepted_count == 5
        return
    refusal = await refusal_of(bus.publish(*messages))
    assert (refusal.code, refusal.reason) == TOO_LARGE
    assert refusal.metadata == {"size": str(4 * MIB + 1), "limit": str(4 * MIB), "unit": "bytes"}


@pytest.mark.parametrize("single", [0, 5])
@pytest.mark.parametrize(("count", "is_accepted"), [(9_999, True), (10_000, True), (10_001, False)])
async def test_batch_is_bounded_in_messages(
    bus: Any,
    message: Build,
    group: Build,
    refusal_of: Any,
    *,
    single: int,
    count: int,
    is_accepted: bool,
) -> None:
    call = bus.publish(*[message()] * single, groups=[group(count=count - single)])
    if is_accepted:
        assert (await call).accepted_count == count
        return
    refusal = await refusal_of(call)
    assert (refusal.code, refusal.reason) == TOO_LARGE
    assert refusal.metadata["unit"] == "messages"
    assert dict((await bus.stats()).refused_count) == {"MESSAGE_TOO_LARGE": count}


async def test_batch_without_messages_is_refused(bus: Any, refusal_of: Any) -> None:
    refusal = await refusal_of(bus.publish())
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, ErrorReason.BATCH_EMPTY)


@pytest.mark.parametrize(
    ("claimed", "count"), [(0, 0), (0, 2), (1, 2), (3, 2), (2**32 - 1, 2), (1, 0)]
)
async def test_group_with_another_count_than_messages_is_refused(
    bus: Any, group: Build, refusal_of: Any, claimed: int, count: int
) -> None:
    lie = group(count=count, claimed=claimed)
    refusal = await refusal_of(bus.publish(groups=[group(count=4), lie]))
    assert (refusal.code, refusal.reason) == INVALID
    assert refusal.metadata["index"] == "4"
    assert (await bus.stats()).published_count == 0


async def test_group_of_several_cannot_have_one_message_id(
    bus: Any, group: Build, refusal_of: Any
) -> None:
    refusal = await refusal_of(bus.publish(groups=[group(count=2, message_id="one")]))
    assert (refusal.code, refusal.reason) == INVALID


@pytest.mark.parametrize(("first", "is_accepted"), [(2**64 - 3, True), (2**64 - 2, False)])
async def test_group_cannot_count_past_the_greatest_sequence(
    bus: Any, group: Build, refusal_of: Any, first: int, is_accepted: bool
) -> None:
    call = bus.publish(groups=[group(count=3, first_sequence=first)])
    if is_accepted:
        assert (await call).accepted_count == 3
    else:
        assert (await refusal_of(call)).reason is ErrorReason.REQUEST_INVALID


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff",
        frame_pb2.GroupFrame(block=b"\xff\xff").SerializeToString(),
        b"\x0a\x7f",
        b"\x0a\x02\x0a\xff",
    ],
)
async def test_group_that_does_not_decode_is_refused_by_its_index(
    bus: Any, group: Build, refusal_of: Any, garbage: bytes
) -> None:
    refusal = await refusal_of(bus.publish(groups=[group(count=3), garbage]))
    assert (refusal.code, refusal.reason) == INVALID
    assert refusal.metadata["index"] == "3"
    assert "does not decode" in refusal.message
    assert dict((await bus.stats()).refused_count) == {"REQUEST_INVALID": 4}


async def test_message_that_does_not_decode_is_refused_by_its_index(
    bus: Any, message: Build, refusal_of: Any
) -> None:
    refusal = await refusal_of(bus.publish(message(), b"\xff"))
    assert (refusal.code, refusal.reason) == INVALID
    assert refusal.metadata["index"] == "1"


@pytest.mark.parametrize("method", ["Publish", "PublishStream"])
async def test_request_that_does_not_decode_is_refused_without_a_trace(
    bus: Any, refusal_of: Any, method: str
) -> None:
    channel = bus.channel_of(bus.layout.collector("procmond"), ["process"])
    if method == "Publish":
        call = channel.unary_unary(SERVICE + method)(b"\xff\xff", timeout=TIMEOUT_S)
    else:
        call = channel.stream_unary(SERVICE + method)(iter([b"\xff\xff"]), timeout=TIMEOUT_S)
    refusal = await refusal_of(call)
    assert (refusal.code, refusal.reason) == INVALID
    assert "does not decode" in refusal.message


async def test_unknown_assurance_is_refused(bus: Any, message: Build, refusal_of: Any) -> None:
    refusal = await refusal_of(bus.publish(message(), message(), assurance=9))
    assert (refusal.code, refusal.reason) == BAD_ENUM
    assert dict((await bus.stats()).refused_count) == {"ENUM_UNKNOWN": 2}


async def test_batch_over_the_rate_is_told_when_to_come_back(
    start_bus: Any, message: Build, group: Build, refusal_of: Any
) -> None:
    bus = await start_bus(rate_limits=("collector/+ events.process 10/s burst 10",))
    await bus.publish(groups=[group(count=10)])
    refusal = await refusal_of(bus.publish(message(), groups=[group(count=4)]))
    assert (refusal.code, refusal.reason) == RATE_LIMITED
    assert 0 < refusal.retry_after_s <= 0.5
    stats = await bus.stats()
    assert (stats.published_count, dict(stats.refused_count)) == (10, {"RATE_LIMITED": 5})
    assert (await bus.publish(group_heartbeat())).accepted_count == 1


def group_heartbeat() -> bytes:
    event = eventbus_pb2.EventBusMessage()
    event.metadata.source_id = "procmond"
    event.metadata.topic = "control.health.heartbeat.procmond"
    event.metadata.message_type = eventbus_pb2.MESSAGE_TYPE_HEARTBEAT
    return event.SerializeToString()


async def test_batch_nobody_acknowledges_is_refused_when_that_was_asked_for(
    bus: Any, message: Build, refusal_of: Any
) -> None:
    await bus.subscribe("events.#")
    refusal = await refusal_of(bus.publish(message(), assurance=ACKNOWLEDGED))
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, ErrorReason.NO_SUBSCRIBER)
    assert (await bus.stats()).published_count == 0


async def test_messages_of_one_envelope_reach_a_grouped_subscriber_as_groups(
    bus: Any, message: Build
) -> None:
    stream = await bus.subscribe("events.#", grouped=True)
    numbered = [message(source_epoch=7, source_sequence=one) for one in (1, 2, 3)]
    apart = message(source_epoch=7, source_sequence=5)
    named = message(source_epoch=7, source_sequence=6, message_id="x")
    urgent = message(source_epoch=7, source_sequence=7, priority=9)
    elsewhere = message("events.process.metadata", source_epoch=7, source_sequence=8)
    await bus.publish(*numbered, apart, named, urgent, elsewhere)
    groups: list[Any] = []
    while len(groups) < 5:
        batch = await stream.batch()
        assert not batch.messages
        groups += batch.groups
    envelopes = [(one.envelope.first_sequence, one.envelope.count) for one in groups]
    assert envelopes == [(1, 3), (5, 1), (6, 1), (7, 1), (8, 1)]
    assert [one.envelope.message_id for one in groups] == ["", "", "x", "", ""]
    assert groups[0].block.messages[1].collection_event.process_event.exit_code == 3


async def test_groups_reach_a_grouped_subscriber_as_the_bytes_that_came(
    bus: Any, group: Build
) -> None:
    encoded = group(frames=[b"\xff", b""], source_epoch=1, first_sequence=4, correlation=FULL)
    channel = bus.channel_of(bus.layout.agent)
    method = channel.stream_stream(SERVICE + "Subscribe", response_deserializer=None)
    raw = method(iter([opening_as_bytes()]), timeout=TIMEOUT_S)
    await anext(aiter(raw))
    await bus.publish(groups=[encoded])
    frames = frame_pb2.SubscribeFrames.FromString(await anext(aiter(raw)))
    assert list(frames.batch.groups) == [encoded]
    raw.cancel()


def opening_as_bytes() -> bytes:
    opening = pb.OpenSubscription(grouped=True)
    opening.config.topic_patterns.add(pattern="events.#", wildcard_enabled=True)
    return pb.SubscribeRequest(open=opening).SerializeToString()


async def test_message_of_a_group_arrives_alone_with_all_its_metadata(
    bus: Any, group: Build
) -> None:
    stream = await bus.subscribe("events.#")
    fields = {"source_epoch": 5, "first_sequence": 9, "priority": 7, "ttl_ms": 60_000}
    await bus.publish(groups=[group(count=3, event_type=0, correlation=FULL, **fields)])
    taken = await stream.take(3)
    assert [one.metadata.source_sequence for one in taken] == [9, 10, 11]
    for one in taken:
        assert one.correlation == FULL
        metadata = one.metadata
        assert (metadata.topic, metadata.source_id, metadata.source_epoch) == (A, "procmond", 5)
        assert (metadata.priority, metadata.ttl_ms) == (7, 60_000)
        assert one.collection_event.process_event.exit_code == 3


async def test_message_of_a_group_that_lies_about_its_envelope_is_corrected(
    bus: Any, message: Build, group: Build
) -> None:
    stream = await bus.subscribe("events.#")
    lie = message(
        "alerts.critical.forged",
        source_id="agent",
        source_epoch=99,
        source_sequence=99,
        priority=255,
        message_type=eventbus_pb2.MESSAGE_TYPE_ALERT,
        correlation=correlation_of(),
    )
    await bus.publish(groups=[group(frames=[lie], source_epoch=1, first_sequence=2)])
    (arrived,) = await stream.take(1)
    metadata = arrived.metadata
    assert (metadata.topic, metadata.source_id, metadata.priority) == (A, "procmond", 0)
    assert (metadata.source_epoch, metadata.source_sequence) == (1, 2)
    assert metadata.message_type == eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT
    assert not arrived.HasField("correlation")


async def test_message_of_a_group_that_does_not_decode_breaks_no_plain_subscriber(
    bus: Any, message: Build, group: Build
) -> None:
    stream = await bus.subscribe("events.#")
    frames = [message(), b"\xff\xff", message()]
    await bus.publish(groups=[group(frames=frames, first_sequence=1)])
    taken = await stream.take(3)
    assert [one.metadata.source_sequence for one in taken] == [1, 2, 3]
    assert [one.WhichOneof("payload") is None for one in taken] == [False, True, False]


async def test_group_that_grows_when_taken_apart_comes_in_responses_of_bearable_size(
    bus: Any, group: Build
) -> None:
    stream = await bus.subscribe("events.#")
    await bus.publish(groups=[group(count=500, first_sequence=1, correlation=FULL)])
    sequences: list[int] = []
    while len(sequences) < 500:
        batch = await stream.batch()
        assert batch.ByteSize() <= MIB + FULL.ByteSize() + 1_000
        sequences += [one.metadata.source_sequence for one in batch.messages]
        assert batch.position == len(sequences)
    assert sequences == list(range(1, 501))
