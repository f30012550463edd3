"""What a subscriber may ask on its open stream, how it is answered, and what ends the stream."""

from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest

from daemoneye.common.v1 import error_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_control_pb2
from daemoneye.eventbus.v1 import subscription_pb2 as sub
from daemoneye_mesh.errors import Code, ErrorReason
from daemoneye_mesh.rpc_status import from_detail

A, B = "events.process.lifecycle", "events.process.metadata"
SERVICE = "/daemoneye.eventbus.v1.EventBusService/"
AT_LEAST_ONCE = 1
INVALID = (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)
DENIED = (Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED)
BAD_PATTERN = (Code.INVALID_ARGUMENT, ErrorReason.PATTERN_INVALID)

Build = Callable[..., bytes]
PAUSE, RESUME = {"pause": pb.PauseDelivery()}, {"resume": pb.ResumeDelivery()}


def update_to(
    *patterns: str, **config: Any
) -> dict[str, subscription_control_pb2.UpdateSubscription]:
    asked = [sub.TopicPattern(pattern=one, wildcard_enabled=True) for one in patterns]
    fields = sub.SubscriptionConfig(topic_patterns=asked, **config)
    return {"update": subscription_control_pb2.UpdateSubscription(config=fields)}


def ack(position: int) -> dict[str, pb.AckDeliveries]:
    return {"ack": pb.AckDeliveries(position=position)}


def credit(messages: int) -> dict[str, subscription_control_pb2.GrantCredit]:
    return {"credit": subscription_control_pb2.GrantCredit(messages=messages)}


async def test_request_is_answered_with_its_id(bus: Any) -> None:
    stream = await bus.subscribe("events.#")
    stream.send(request_id=7, **PAUSE)
    stream.send(**RESUME)
    stream.send(request_id=2**64 - 1, **PAUSE)
    assert [(await stream.changed()).request_id for _ in range(2)] == [7, 2**64 - 1]


async def test_paused_subscription_keeps_what_comes_until_it_goes_on(
    bus: Any, message: Build
) -> None:
    stream = await bus.subscribe("events.#")
    await stream.ask(**PAUSE)
    await bus.publish(message(source_sequence=1), message(source_sequence=2))
    (listed,) = await bus.listed()
    assert (listed.is_paused, listed.flow.pending_count) == (True, 2)
    response = await stream.ask(**PAUSE)
    assert not response.HasField("error")
    stream.send(**RESUME)
    assert await stream.sequences(2) == [1, 2]


async def test_update_takes_effect_and_what_waits_already_stays(bus: Any, message: Build) -> None:
    stream = await bus.subscribe(A, initial_credit=0)
    await bus.publish(message(A, source_sequence=1), message(B, source_sequence=2))
    assert not (await stream.ask(**update_to(B, message_type_filters=[4]))).HasField("error")
    await bus.publish(
        message(A, source_sequence=3, message_type=4),
        message(B, source_sequence=4),
        message(B, source_sequence=5, message_type=4),
    )
    stream.send(**credit(9))
    assert await stream.sequences(2) == [1, 5]
    (listed,) = await bus.listed()
    assert (list(listed.patterns), list(listed.config.message_type_filters)) == ([B], [4])
    assert (listed.flow.offered_count, listed.flow.filtered_count) == (3, 1)


async def test_flush_throws_away_what_waits_and_tells_how_much(bus: Any, group: Build) -> None:
    stream = await bus.subscribe("events.#", initial_credit=2)
    await bus.publish(groups=[group(count=5, first_sequence=1)])
    assert await stream.sequences(2) == [1, 2]
    assert (await stream.ask(flush=subscription_control_pb2.FlushQueue())).flushed_count == 3
    gap = await stream.gap()
    assert (gap.dropped_count, gap.position, gap.reason) == (3, 5, pb.GAP_REASON_FLUSHED)
    assert (await stream.ask(flush=subscription_control_pb2.FlushQueue())).flushed_count == 0


async def test_no_more_is_handed_over_than_there_is_credit_for(bus: Any, group: Build) -> None:
    stream = await bus.subscribe("events.#", initial_credit=0)
    await bus.publish(groups=[group(count=10, first_sequence=1)])
    await stream.ask(**credit(3))
    assert (await bus.listed())[0].flow.pending_count in {7, 10}
    assert await stream.sequences(3) == [1, 2, 3]
    await stream.ask(**PAUSE)
    assert (await bus.listed())[0].flow.pending_count == 7
    stream.send(**RESUME)
    stream.send(**credit(100))
    assert await stream.sequences(7) == [4, 5, 6, 7, 8, 9, 10]


async def test_unsubscribing_is_answered_and_ends_the_stream_well(bus: Any) -> None:
    stream = await bus.subscribe("events.#", subscriber_id="x", retention_policy=durable())
    assert (await stream.ask(unsubscribe=subscription_control_pb2.Unsubscribe())).request_id == 1
    assert await stream.is_over()
    assert await stream.call.code() == grpc.StatusCode.OK
    assert await bus.listed() == []


def durable() -> sub.RetentionPolicy:
    return sub.RetentionPolicy(retention_duration_ms=60_000)


async def test_unsubscribing_without_an_id_ends_the_stream_well(bus: Any) -> None:
    stream = await bus.subscribe("events.#")
    stream.send(unsubscribe=subscription_control_pb2.Unsubscribe())
    assert await stream.is_over()
    assert await stream.call.code() == grpc.StatusCode.OK


async def test_what_comes_after_unsubscribing_leaves_nothing_behind(
    bus: Any, message: Build
) -> None:
    stream = await bus.subscribe("events.#")
    stream.send(unsubscribe=subscription_control_pb2.Unsubscribe())
    for _ in range(3):
        stream.send(**update_to("events.#"))
    while await bus.listed():
        pass
    assert (await bus.publish(message())).routed_count == 0


REFUSED = [
    (update_to(), INVALID),
    (update_to("events.*"), BAD_PATTERN),
    (update_to("events.#", subscriber_id="other"), INVALID),
    (update_to("events.#", qos_settings=sub.QosSettings()), INVALID),
    ({"update": subscription_control_pb2.UpdateSubscription()}, INVALID),
    (ack(1), INVALID),
    (credit(1), INVALID),
    ({}, INVALID),
    ({"open": pb.OpenSubscription()}, INVALID),
]


@pytest.mark.parametrize(("action", "expected"), REFUSED)
async def test_request_that_cannot_be_done_is_answered_and_nothing_changes(
    bus: Any, message: Build, action: dict[str, Any], expected: tuple[Code, ErrorReason]
) -> None:
    stream = await bus.subscribe("events.#")
    refusal = from_detail((await stream.ask(**action)).error)
    assert (refusal.code, refusal.reason) == expected
    await bus.publish(message(source_sequence=4))
    assert await stream.sequences(1) == [4]


@pytest.mark.parametrize(("action", "expected"), REFUSED)
async def test_request_without_an_id_that_cannot_be_done_ends_the_stream(
    bus: Any, action: dict[str, Any], expected: tuple[Code, ErrorReason]
) -> None:
    stream = await bus.subscribe("events.#")
    stream.send(**action)
    refusal = await stream.refusal()
    assert (refusal.code, refusal.reason) == expected


async def test_update_beyond_the_grant_is_refused(bus: Any, opening_of: Any) -> None:
    opening = opening_of("control.shutdown.#")
    stream = await bus.open(opening, bus.collector())
    refusal = from_detail((await stream.ask(**update_to("events.#"))).error)
    assert (refusal.code, refusal.reason) == DENIED


@pytest.mark.parametrize(("count", "is_done"), [(0, True), (2, True), (3, True), (4, False)])
async def test_only_what_was_handed_over_can_be_acknowledged(
    bus: Any, group: Build, count: int, is_done: bool
) -> None:
    stream = await bus.subscribe("events.#", delivery_guarantee=AT_LEAST_ONCE)
    await bus.publish(groups=[group(count=3)])
    assert (await stream.batch()).position == 3
    changed = await stream.ask(**ack(count))
    assert changed.HasField("error") != is_done
    delivered = count if is_done else 0
    (listed,) = await bus.listed()
    assert listed.flow.delivered_count == delivered
    assert listed.flow.unacknowledged_count == 3 - delivered


async def test_acknowledging_twice_or_backwards_changes_nothing(bus: Any, group: Build) -> None:
    stream = await bus.subscribe("events.#", delivery_guarantee=AT_LEAST_ONCE)
    await bus.publish(groups=[group(count=3)])
    await stream.batch()
    for position in (2, 2, 1, 0):
        assert not (await stream.ask(**ack(position))).HasField("error")
    (listed,) = await bus.listed()
    assert (listed.flow.delivered_count, listed.flow.unacknowledged_count) == (2, 1)


async def test_no_more_is_handed_over_than_may_be_unacknowledged(bus: Any, group: Build) -> None:
    stream = await bus.subscribe(
        "events.#", delivery_guarantee=AT_LEAST_ONCE, max_unacknowledged_messages=2
    )
    await bus.publish(groups=[group(count=5, first_sequence=1)])
    assert (await stream.batch()).position == 2
    stream.send(**ack(1))
    assert (await stream.batch()).position == 3
    stream.send(**ack(3))
    assert (await stream.batch()).position == 5


async def test_what_is_not_acknowledged_in_time_comes_again(bus: Any, group: Build) -> None:
    stream = await bus.subscribe("events.#", delivery_guarantee=AT_LEAST_ONCE, ack_timeout_ms=100)
    await bus.publish(groups=[group(count=3, first_sequence=1)])
    first = await stream.batch()
    assert (first.position, first.redelivered) == (3, False)
    stream.send(**ack(1))
    again = await stream.batch()
    assert (again.position, again.redelivered) == (3, True)
    assert [one.metadata.source_sequence for one in again.messages] == [2, 3]
    await stream.ask(**ack(3))
    (listed,) = await bus.listed()
    assert (listed.flow.delivered_count, listed.flow.pending_count) == (3, 0)
    assert listed.flow.redelivered_count >= 2


async def test_subscriber_that_reads_no_answers_has_to_wait_and_gets_all_of_them(bus: Any) -> None:
    stream = await bus.subscribe("events.#")
    for number in range(1, 301):
        stream.send(request_id=number, **PAUSE)
    answers = [(await stream.changed()).request_id for _ in range(300)]
    assert answers == list(range(1, 301))


async def test_request_that_does_not_decode_ends_the_stream_and_the_subscription(
    bus: Any, refusal_of: Any
) -> None:
    opening = pb.OpenSubscription()
    opening.config.topic_patterns.add(pattern="events.#", wildcard_enabled=True)
    requests = [pb.SubscribeRequest(open=opening).SerializeToString(), b"\xff\xff"]
    channel = bus.channel_of(bus.layout.agent)
    call = channel.stream_stream(SERVICE + "Subscribe")(iter(requests), timeout=10)
    responses = aiter(call)
    await anext(responses)
    refusal = await refusal_of(anext(responses))
    assert (refusal.code, refusal.reason) == INVALID
    assert refusal.message.startswith("the request does not decode")
    assert await bus.listed() == []


async def test_refusal_in_an_answer_says_everything_a_status_would(bus: Any) -> None:
    stream = await bus.subscribe("events.#")
    error = (await stream.ask(**update_to("events.*"))).error
    assert error.reason == error_pb2.ERROR_REASON_PATTERN_INVALID
    assert "events.*" in error.metadata["pattern"]


@pytest.mark.parametrize("method", ["NegotiateVersion", "GetBusStats", "ListSubscriptions"])
async def test_call_that_does_not_decode_is_refused_as_the_mistake_of_the_caller(
    bus: Any, refusal_of: Any, method: str
) -> None:
    channel = bus.channel_of(bus.layout.agent)
    refusal = await refusal_of(channel.unary_unary(SERVICE + method)(b"\xff\xff", timeout=10))
    assert (refusal.code, refusal.reason) == INVALID
    assert refusal.metadata == {"expected": f"{method}Request"}
