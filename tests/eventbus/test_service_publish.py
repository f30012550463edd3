"""Publishing over the wire: answers, refusals and what must not reach anybody."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest

from daemoneye.common.v1 import error_pb2
from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_mesh.errors import Code, DaemoneyeError, ErrorReason
from daemoneye_mesh.rpc_status import from_detail, from_rpc_error

TIMEOUT_S = 10
METHODS = "/daemoneye.eventbus.v1.EventBusService/"

Message = Callable[..., bytes]


def request_of(*encoded: bytes) -> pb.PublishRequest:
    return pb.PublishRequest(
        messages=[eventbus_pb2.EventBusMessage.FromString(one) for one in encoded]
    )


def batch_of(batch_id: int, *encoded: bytes) -> pb.PublishStreamRequest:
    return pb.PublishStreamRequest(batch_id=batch_id, messages=request_of(*encoded).messages)


async def refusal_of(call: Any) -> DaemoneyeError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_batch_is_answered_with_its_counts(bus: Any, message: Message) -> None:
    answer = await bus.collector().Publish(request_of(message(), message()), timeout=TIMEOUT_S)
    assert (answer.accepted_count, answer.routed_count) == (2, 0)


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"topic": "events.*"}, Code.INVALID_ARGUMENT, ErrorReason.TOPIC_INVALID),
        ({"topic": ""}, Code.INVALID_ARGUMENT, ErrorReason.TOPIC_INVALID),
        ({"topic": "events.network.dns"}, Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED),
        ({"topic": "alerts.high.x"}, Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED),
        ({"source_id": "netmond"}, Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED),
        ({"source_id": ""}, Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED),
        ({"message_type": 99}, Code.INVALID_ARGUMENT, ErrorReason.ENUM_UNKNOWN),
        ({"message_type": 0, "priority": 256}, Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID),
        ({"ttl_ms": 1}, Code.UNIMPLEMENTED, ErrorReason.FEATURE_UNSUPPORTED),
        ({"message_id": "x" * 65}, Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID),
        ({"target_id": "x" * 129}, Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID),
        (
            {"headers": {str(number): "" for number in range(65)}},
            Code.INVALID_ARGUMENT,
            ErrorReason.REQUEST_INVALID,
        ),
        ({"headers": {"k" * 129: ""}}, Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID),
        ({"headers": {"k": "v" * 1025}}, Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID),
    ],
)
async def test_unacceptable_envelope_refuses_the_batch(
    bus: Any, message: Message, fields: dict[str, Any], code: Code, reason: ErrorReason
) -> None:
    request = request_of(message(), message(**fields))
    refusal = await refusal_of(bus.collector().Publish(request, timeout=TIMEOUT_S))
    assert (refusal.code, refusal.reason) == (code, reason)
    stats = await bus.agent().GetBusStats(pb.GetBusStatsRequest(), timeout=TIMEOUT_S)
    assert stats.published_count == 0
    assert dict(stats.refused_count) == {str(reason): 2}


async def test_envelope_at_every_limit_is_accepted(bus: Any, message: Message) -> None:
    encoded = message(
        message_id="x" * 64,
        target_id="x" * 128,
        priority=255,
        message_type=eventbus_pb2.MESSAGE_TYPE_HEARTBEAT,
        headers={f"{number:0128}": "v" * 1024 for number in range(64)},
    )
    answer = await bus.collector().Publish(request_of(encoded), timeout=TIMEOUT_S)
    assert answer.accepted_count == 1


@pytest.mark.parametrize(
    ("count", "size_bytes", "reason"),
    [
        (0, 0, ErrorReason.BATCH_EMPTY),
        (1, 1 << 20, ErrorReason.MESSAGE_TOO_LARGE),
        (10_001, 0, ErrorReason.MESSAGE_TOO_LARGE),
    ],
)
async def test_batch_beyond_a_limit_is_refused(
    bus: Any, message: Message, count: int, size_bytes: int, reason: ErrorReason
) -> None:
    event = eventbus_pb2.EventBusMessage.FromString(message())
    event.collection_event.process_event.process.name = "x" * size_bytes
    request = pb.PublishRequest(messages=[event] * count)
    refusal = await refusal_of(bus.collector().Publish(request, timeout=TIMEOUT_S))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, reason)


@pytest.mark.parametrize("method", ["Publish", "PublishStream"])
async def test_request_that_does_not_decode_is_refused_without_a_trace(
    bus: Any, method: str
) -> None:
    channel = bus.channel_of(bus.layout.collector("procmond"), ["process"])
    if method == "Publish":
        call = channel.unary_unary(METHODS + method)(b"\xff\xff", timeout=TIMEOUT_S)
    else:
        call = channel.stream_unary(METHODS + method)(iter([b"\xff\xff"]), timeout=TIMEOUT_S)
    refusal = await refusal_of(call)
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)
    assert "does not decode" in refusal.message


async def test_message_that_does_not_decode_is_refused_by_its_index(
    bus: Any, message: Message
) -> None:
    channel = bus.channel_of(bus.layout.collector("procmond"), ["process"])
    encoded = frame_pb2.PublishFrames(messages=[message(), b"\xff"]).SerializeToString()
    refusal = await refusal_of(channel.unary_unary(METHODS + "Publish")(encoded, timeout=TIMEOUT_S))
    assert refusal.reason is ErrorReason.REQUEST_INVALID
    assert refusal.metadata["index"] == "1"


async def test_stream_answers_each_batch_in_order_and_goes_on_after_a_refusal(
    bus: Any, message: Message
) -> None:
    batches = [
        batch_of(1, message()),
        batch_of(2, message(), message(topic="events.*")),
        batch_of(3),
        batch_of(7, message(), message()),
        batch_of(7, message()),
        batch_of(8, message()),
    ]
    call = bus.collector().PublishStream(iter(batches), timeout=TIMEOUT_S)
    answers = [answer async for answer in call]
    assert [answer.batch_id for answer in answers] == [1, 2, 3, 7, 7, 8]
    assert [answer.accepted_count for answer in answers] == [1, 0, 0, 2, 0, 1]
    assert [answer.error.reason for answer in answers if answer.HasField("error")] == [
        error_pb2.ERROR_REASON_TOPIC_INVALID,
        error_pb2.ERROR_REASON_BATCH_EMPTY,
        error_pb2.ERROR_REASON_REQUEST_INVALID,
    ]
    assert "does not rise" in from_detail(answers[4].error).message


async def test_draining_answers_what_was_published_and_ends_the_stream(
    bus: Any, message: Message
) -> None:
    async def requests() -> AsyncIterator[pb.PublishStreamRequest]:
        yield batch_of(1, message())
        await asyncio.Event().wait()

    call = bus.collector().PublishStream(requests(), timeout=TIMEOUT_S)
    assert (await anext(aiter(call))).accepted_count == 1
    await bus.server.drain()
    refusal = await refusal_of(anext(aiter(call)))
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, ErrorReason.DRAINING)
