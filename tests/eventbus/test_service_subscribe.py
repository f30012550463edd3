"""Subscribing over the wire: what arrives, what is told, what is refused and how it ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from daemoneye.eventbus.v1 import eventbus_pb2, subscription_control_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_pb2 as sub
from daemoneye_mesh.errors import Code, ErrorReason

A, B = "events.process.lifecycle", "events.process.metadata"
AT_LEAST_ONCE, EXACTLY_ONCE = 1, 2
MERGE_DUPLICATES = 2
INVALID = (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)
FULL = (Code.RESOURCE_EXHAUSTED, ErrorReason.LIMIT_REACHED)

Build = Callable[..., bytes]


def floor_of(pattern: str, priority: int) -> sub.TopicPattern:
    return sub.TopicPattern(pattern=pattern, wildcard_enabled=True, priority=priority)


async def stats_without_subscriptions(bus: Any) -> pb.GetBusStatsResponse:
    """Asks until the broker has noticed that nobody is there any more."""
    while (stats := await bus.stats()).subscription_count:
        pass
    return stats


async def test_messages_arrive_as_they_were_published(bus: Any, message: Build) -> None:
    stream = await bus.subscribe("events.#")
    encoded = [message(source_epoch=7, source_sequence=one + 1) for one in range(5)]
    await bus.publish(*encoded)
    taken = await stream.take(5)
    assert [one.SerializeToString(deterministic=True) for one in taken] == encoded


async def test_opening_tells_what_is_granted(bus: Any) -> None:
    plain = (await bus.subscribe("events.#")).opened
    assert (plain.max_queue_messages, plain.max_queue_bytes) == (65_536, 16 << 20)
    assert (plain.ack_timeout_ms, plain.max_unacknowledged_messages) == (0, 0)
    assert (plain.resumed, plain.position, plain.history_complete) == (False, 0, True)
    asked = {"max_queue_depth": 9, "max_queue_bytes": 1 << 20, "ack_timeout_ms": 500}
    other = (await bus.subscribe("events.#", delivery_guarantee=AT_LEAST_ONCE, **asked)).opened
    assert (other.max_queue_messages, other.max_queue_bytes) == (9, 1 << 20)
    assert (other.ack_timeout_ms, other.max_unacknowledged_messages) == (500, 9)
    assert other.subscription_id != plain.subscription_id
    assert other.broker_epoch == plain.broker_epoch == (await bus.stats()).broker_epoch


async def test_only_matching_topics_arrive_and_positions_count_from_one(
    bus: Any, message: Build
) -> None:
    stream = await bus.subscribe(B)
    await bus.publish(message(A), message(B, source_sequence=1), message(A))
    await bus.publish(message(B, source_sequence=2), message(B, source_sequence=3))
    batches = [await stream.batch()]
    while batches[-1].position < 3:
        batches.append(await stream.batch())
    taken = [one.metadata.source_sequence for batch in batches for one in batch.messages]
    assert taken == [1, 2, 3]
    assert batches[0].position == len(batches[0].messages)


@pytest.mark.parametrize(
    ("asked", "passing"),
    [
        ({"message_type_filters": [4]}, [2]),
        ({"event_type_filters": [1]}, [2, 3]),
        ({"topic_patterns": [floor_of("events.#", 9)]}, [4]),
        ({"topic_patterns": [floor_of("events.#", 9), floor_of(A, 0)]}, [1, 2, 3, 4, 5]),
        ({"correlation_filter": sub.CorrelationFilter(correlation_patterns=["scan-*"])}, [5]),
        ({"correlation_filter": sub.CorrelationFilter(workflow_stages=["hash"])}, [5]),
        ({"correlation_filter": sub.CorrelationFilter(correlation_tags={"k": "w"})}, []),
        ({"correlation_filter": sub.CorrelationFilter(any_correlation_tags={"k": "v"})}, [5]),
        ({"correlation_filter": sub.CorrelationFilter(min_sequence_number=4)}, []),
        ({"correlation_filter": sub.CorrelationFilter(max_sequence_number=3)}, [5]),
        ({"correlation_filter": sub.CorrelationFilter()}, [1, 2, 3, 4, 5]),
    ],
)
async def test_filters_hold_back_what_they_do_not_let_through(
    bus: Any, message: Build, asked: dict[str, Any], passing: list[int]
) -> None:
    stream = await bus.subscribe("events.#", **asked)
    correlation = eventbus_pb2.CorrelationMetadata(
        correlation_id="scan-1",
        root_correlation_id="scan-1",
        workflow_stage="hash",
        correlation_tags={"k": "v"},
        sequence_number=3,
    )
    await bus.publish(
        message(source_sequence=1),
        message(source_sequence=2, message_type=eventbus_pb2.MESSAGE_TYPE_HEARTBEAT),
        message(source_sequence=3, event_type=eventbus_pb2.EVENT_TYPE_NETWORK_EVENT),
        message(source_sequence=4, priority=9),
        message(source_sequence=5, correlation=correlation),
    )
    assert await stream.sequences(len(passing)) == passing
    flow = (await bus.stats()).flow
    assert (flow.offered_count, flow.filtered_count) == (5, 5 - len(passing))
    assert (flow.pending_count, dict(flow.dropped_count)) == (0, {})


async def test_half_closing_does_not_end_the_subscription(bus: Any, message: Build) -> None:
    stream = await bus.subscribe("events.#")
    stream.send_nothing_more()
    await bus.publish(message())
    assert len(await stream.take(1)) == 1


async def test_dropped_messages_are_told_as_a_gap_at_their_place(
    bus: Any, message: Build, group: Build
) -> None:
    stream = await bus.subscribe("events.#", max_queue_depth=2)
    await bus.publish(groups=[group(count=5, first_sequence=1)])
    gap = await stream.gap()
    assert (gap.dropped_count, gap.position, gap.reason) == (3, 3, pb.GAP_REASON_DROPPED_OLDEST)
    assert gap.dropped_bytes > 0
    batch = await stream.batch()
    assert [one.metadata.source_sequence for one in batch.messages] == [4, 5]
    assert batch.position == 5
    flow = (await bus.stats()).flow
    assert (flow.offered_count, flow.delivered_count) == (5, 2)
    assert dict(flow.dropped_count) == {"dropped_oldest": 3}


async def test_arriving_messages_are_dropped_when_that_was_asked_for(
    bus: Any, group: Build
) -> None:
    policy = pb.OVERFLOW_POLICY_DROP_NEWEST
    stream = await bus.subscribe("events.#", max_queue_depth=2, overflow_policy=policy)
    await bus.publish(groups=[group(count=5, first_sequence=1)])
    assert await stream.sequences(2) == [1, 2]
    gap = await stream.gap()
    assert (gap.dropped_count, gap.position, gap.reason) == (3, 5, pb.GAP_REASON_DROPPED_NEWEST)


async def test_overflow_under_disconnect_ends_the_subscription(bus: Any, group: Build) -> None:
    policy = pb.OVERFLOW_POLICY_DISCONNECT
    stream = await bus.subscribe("events.#", max_queue_depth=1, overflow_policy=policy)
    await bus.publish(groups=[group(count=3)])
    assert len((await stream.batch()).messages) == 1
    assert (await stream.gap()).reason == pb.GAP_REASON_DROPPED_NEWEST
    refusal = await stream.refusal()
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, ErrorReason.SLOW_CONSUMER)
    assert refusal.metadata == {"max_messages": "1", "max_bytes": str(16 << 20)}
    flow = (await stats_without_subscriptions(bus)).flow
    assert (flow.delivered_count, dict(flow.dropped_count)) == (1, {"dropped_newest": 2})


async def test_message_that_waited_too_long_is_told_as_a_gap(bus: Any, message: Build) -> None:
    stream = await bus.subscribe("events.#", initial_credit=0)
    await bus.publish(message(ttl_ms=1), message(ttl_ms=60_000, source_sequence=2))
    gap = await stream.gap()
    assert (gap.dropped_count, gap.position, gap.reason) == (1, 1, pb.GAP_REASON_EXPIRED)
    stream.send(credit=subscription_control_pb2.GrantCredit(messages=1))
    assert await stream.sequences(1) == [2]


async def test_repeat_takes_the_place_of_the_copy_that_waits(bus: Any, message: Build) -> None:
    stream = await bus.subscribe("events.#", duplicate_handling=MERGE_DUPLICATES, initial_credit=0)
    first = [message(source_epoch=1, source_sequence=one) for one in (1, 2, 3)]
    await bus.publish(*first)
    await bus.publish(message(source_epoch=1, source_sequence=2, headers={"copy": "second"}))
    stream.send(credit=subscription_control_pb2.GrantCredit(messages=9))
    taken = await stream.take(3)
    assert [dict(one.metadata.headers) for one in taken] == [{}, {"copy": "second"}, {}]
    await bus.publish(message(source_epoch=1, source_sequence=2, headers={"copy": "third"}))
    await bus.publish(message(source_epoch=1, source_sequence=4))
    assert await stream.sequences(1) == [4]
    flow = (await bus.stats()).flow
    assert (flow.offered_count, flow.delivered_count, flow.filtered_count) == (6, 4, 2)


async def test_exactly_once_holds_back_repeats(bus: Any, message: Build, group: Build) -> None:
    stream = await bus.subscribe("events.#", delivery_guarantee=EXACTLY_ONCE)
    await bus.publish(groups=[group(count=3, source_epoch=1, first_sequence=1)])
    await bus.publish(groups=[group(count=4, source_epoch=1, first_sequence=2)])
    await bus.publish(message(message_id="a"), message(message_id="a"), message())
    sequences = await stream.sequences(7)
    assert sequences == [1, 2, 3, 4, 5, 0, 0]
    assert (await bus.stats()).flow.filtered_count == 3


async def test_cancelled_subscription_is_gone_and_still_counted(bus: Any, message: Build) -> None:
    stream = await bus.subscribe("events.#")
    await bus.publish(message(), message())
    await stream.take(2)
    stream.call.cancel()
    stats = await stats_without_subscriptions(bus)
    assert (stats.flow.offered_count, stats.flow.delivered_count) == (2, 2)
    assert (await bus.publish(message())).routed_count == 0
    assert bus.broker.quota.usages() == {}


async def test_draining_delivers_what_waits_and_ends_the_subscription(
    bus: Any, message: Build
) -> None:
    stream = await bus.subscribe("events.#", initial_credit=0)
    await bus.publish(message())
    await bus.stats()
    bus.broker.drain()
    stream.send(credit=subscription_control_pb2.GrantCredit(messages=1))
    assert len(await stream.take(1)) == 1
    refusal = await stream.refusal()
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, ErrorReason.DRAINING)


@pytest.mark.parametrize(
    "first",
    [
        pb.SubscribeRequest(),
        pb.SubscribeRequest(pause=pb.PauseDelivery()),
        pb.SubscribeRequest(ack=pb.AckDeliveries(position=1), request_id=1),
        pb.SubscribeRequest(unsubscribe=subscription_control_pb2.Unsubscribe()),
        pb.SubscribeRequest(open=pb.OpenSubscription()),
        None,
    ],
)
async def test_stream_that_does_not_begin_with_an_opening_is_refused(
    bus: Any, refusal_of: Any, first: pb.SubscribeRequest | None
) -> None:
    requests = iter([first] if first else [])
    call = bus.agent().Subscribe(requests, timeout=10)
    refusal = await refusal_of(anext(aiter(call)))
    assert (refusal.code, refusal.reason) == INVALID
    assert (await bus.stats()).subscription_count == 0
    assert bus.broker.quota.usages() == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_queue_depth": 1_000_001}, INVALID),
        ({"max_queue_bytes": (16 << 20) + 1}, INVALID),
        ({"max_queue_bytes": (1 << 20) - 1}, INVALID),
        ({"overflow_policy": 9}, (Code.INVALID_ARGUMENT, ErrorReason.ENUM_UNKNOWN)),
        (
            {"consumer_group": "a", "subscriber_id": "b", "retention_policy": {}},
            (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID),
        ),
    ],
)
async def test_opening_that_cannot_be_honoured_is_refused_and_leaves_nothing(
    bus: Any,
    opening_of: Any,
    refusal_of: Any,
    *,
    fields: dict[str, Any],
    expected: tuple[Code, ErrorReason],
) -> None:
    refusal = await refusal_of(bus.open(opening_of("events.#", **fields)))
    assert (refusal.code, refusal.reason) == expected
    assert bus.broker.totals().subscriptions == 0
    assert bus.broker.quota.usages() == {}


async def test_pattern_wider_than_the_grant_is_refused(
    bus: Any, opening_of: Any, refusal_of: Any
) -> None:
    asked = opening_of("control.collector.instance.procmond.#", "events.#")
    refusal = await refusal_of(bus.open(asked, bus.collector()))
    assert (refusal.code, refusal.reason) == (Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED)


async def test_only_who_is_granted_it_may_make_publishers_wait(
    bus: Any, opening_of: Any, refusal_of: Any
) -> None:
    asked = opening_of("events.#", overflow_policy=pb.OVERFLOW_POLICY_BLOCK)
    refusal = await refusal_of(bus.open(asked, bus.operator()))
    assert (refusal.code, refusal.reason) == (Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED)
    assert (await bus.open(asked, bus.agent())).opened.subscription_id


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"max_subscriptions": 2}, {}),
        ({"max_streams_per_identity": 2}, {}),
        ({"max_subscriptions_per_identity": 2}, {}),
        ({"max_queue_bytes_per_identity": 3 << 20}, {"max_queue_bytes": 3 << 19}),
    ],
)
async def test_subscription_beyond_a_limit_is_refused_until_another_one_ends(
    start_bus: Any, opening_of: Any, refusal_of: Any, *, settings: Any, asked: Any
) -> None:
    bus = await start_bus(**settings)
    opening = opening_of("events.#", **asked)
    first, _second = await bus.open(opening), await bus.open(opening)
    refusal = await refusal_of(bus.open(opening))
    assert (refusal.code, refusal.reason) == FULL
    if "max_subscriptions" not in settings:
        assert (await bus.open(opening, bus.operator())).opened.subscription_id
    assert not (await first.ask(unsubscribe=subscription_control_pb2.Unsubscribe())).HasField(
        "error"
    )
    assert await first.is_over()
    assert (await bus.open(opening)).opened.subscription_id


async def test_publisher_waits_for_a_subscription_that_asked_for_it(bus: Any, group: Build) -> None:
    stream = await bus.subscribe(
        "events.#",
        overflow_policy=pb.OVERFLOW_POLICY_BLOCK,
        block_timeout_ms=5_000,
        max_queue_depth=5,
        initial_credit=0,
    )
    await bus.publish(groups=[group(count=5, first_sequence=1)])
    waiting = asyncio.ensure_future(bus.publish(groups=[group(count=5, first_sequence=6)]))
    assert (await bus.stats()).published_count == 5
    assert not waiting.done()
    stream.send(credit=subscription_control_pb2.GrantCredit(messages=10))
    assert (await waiting).routed_count == 5
    assert await stream.sequences(10) == list(range(1, 11))


async def test_publisher_waits_once_for_a_subscriber_that_does_not_read(
    bus: Any, group: Build
) -> None:
    stream = await bus.subscribe(
        "events.#",
        overflow_policy=pb.OVERFLOW_POLICY_BLOCK,
        block_timeout_ms=50,
        max_queue_depth=2,
        initial_credit=0,
    )
    for first in (1, 3, 5, 7):
        await bus.publish(groups=[group(count=2, first_sequence=first)])
    stream.send(credit=subscription_control_pb2.GrantCredit(messages=9))
    assert await stream.sequences(2) == [1, 2]
    gap = await stream.gap()
    assert (gap.dropped_count, gap.reason) == (6, pb.GAP_REASON_DEADLINE)
