"""Subscribing over the wire: what arrives, what is refused, how it ends; versions and counters."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_pb2 as sub
from daemoneye_eventbus.errors import SlowConsumerError
from daemoneye_eventbus.mailbox import Closed, CloseReason, Mailbox, MailboxLimits
from daemoneye_eventbus.service_subscription import raise_end
from daemoneye_mesh.errors import Code, DaemoneyeError, ErrorReason
from daemoneye_mesh.rpc_status import from_rpc_error

TIMEOUT_S = 10
A, B = "events.process.lifecycle", "events.process.metadata"

Message = Callable[..., bytes]


def pattern_of(pattern: str, **fields: Any) -> sub.TopicPattern:
    return sub.TopicPattern(pattern=pattern, **{"wildcard_enabled": True, **fields})


def opening_of(*patterns: str, **config: Any) -> pb.SubscribeRequest:
    fields = {"topic_patterns": [pattern_of(one) for one in patterns], **config}
    return pb.SubscribeRequest(open=pb.OpenSubscription(config=sub.SubscriptionConfig(**fields)))


def opening_with(**fields: Any) -> pb.SubscribeRequest:
    config = sub.SubscriptionConfig(topic_patterns=[pattern_of("events.#")])
    return pb.SubscribeRequest(open=pb.OpenSubscription(config=config, **fields))


class Requests:
    """What a subscriber sends: some requests at once, more on demand, and no end before told."""

    def __init__(self, *requests: pb.SubscribeRequest) -> None:
        self.queue: asyncio.Queue[pb.SubscribeRequest | None] = asyncio.Queue()
        for request in requests:
            self.queue.put_nowait(request)

    async def __aiter__(self) -> AsyncIterator[pb.SubscribeRequest]:
        while (request := await self.queue.get()) is not None:
            yield request


async def subscribe(stub: Any, requests: Requests) -> tuple[Any, pb.SubscriptionOpened]:
    responses = aiter(stub.Subscribe(aiter(requests), timeout=TIMEOUT_S))
    first = await anext(responses)
    assert first.WhichOneof("item") == "opened"
    return responses, first.opened


async def publish(bus: Any, *encoded: bytes) -> None:
    messages = [eventbus_pb2.EventBusMessage.FromString(one) for one in encoded]
    request = pb.PublishRequest(messages=messages)
    await bus.collector().Publish(request, timeout=TIMEOUT_S)


async def take(responses: Any, count: int) -> list[eventbus_pb2.EventBusMessage]:
    taken: list[eventbus_pb2.EventBusMessage] = []
    while len(taken) < count:
        taken += (await anext(responses)).batch.messages
    return taken


async def refusal_of(awaitable: Any) -> DaemoneyeError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return from_rpc_error(caught.value)


async def stats_of(bus: Any) -> pb.GetBusStatsResponse:
    answer: pb.GetBusStatsResponse = await bus.agent().GetBusStats(
        pb.GetBusStatsRequest(), timeout=TIMEOUT_S
    )
    return answer


async def test_messages_arrive_as_they_were_published(bus: Any, message: Message) -> None:
    responses, opened = await subscribe(bus.agent(), Requests(opening_of("events.#")))
    encoded = [message(source_epoch=7, source_sequence=one + 1) for one in range(5)]
    await publish(bus, *encoded)
    taken = await take(responses, 5)
    assert [one.SerializeToString(deterministic=True) for one in taken] == encoded
    assert (opened.max_queue_messages, opened.max_queue_bytes) == (65_536, 16 << 20)


async def test_only_matching_topics_arrive_and_positions_count_from_one(
    bus: Any, message: Message
) -> None:
    responses, _ = await subscribe(bus.agent(), Requests(opening_of(B)))
    await publish(bus, message(A), message(B, source_sequence=1), message(A))
    await publish(bus, message(B, source_sequence=2), message(B, source_sequence=3))
    batches = [(await anext(responses)).batch]
    while batches[-1].position < 3:
        batches.append((await anext(responses)).batch)
    taken = [one.metadata.source_sequence for batch in batches for one in batch.messages]
    assert taken == [1, 2, 3]
    assert batches[0].position == len(batches[0].messages)


async def test_half_closing_does_not_end_the_subscription(bus: Any, message: Message) -> None:
    requests = Requests(opening_of("events.#"))
    requests.queue.put_nowait(None)
    responses, _ = await subscribe(bus.agent(), requests)
    await publish(bus, message())
    assert len(await take(responses, 1)) == 1


async def test_dropped_messages_are_told_as_a_gap_at_their_place(
    bus: Any, message: Message
) -> None:
    config = {"qos_settings": sub.QosSettings(max_queue_depth=2)}
    responses, opened = await subscribe(bus.agent(), Requests(opening_of("events.#", **config)))
    assert opened.max_queue_messages == 2
    encoded = [message(source_sequence=one + 1) for one in range(5)]
    await publish(bus, *encoded)
    gap = (await anext(responses)).gap
    assert (gap.dropped_count, gap.position, gap.reason) == (3, 3, pb.GAP_REASON_DROPPED_OLDEST)
    assert gap.dropped_bytes == sum(map(len, encoded[:3]))
    batch = (await anext(responses)).batch
    assert [one.metadata.source_sequence for one in batch.messages] == [4, 5]
    assert batch.position == 5
    flow = (await stats_of(bus)).flow
    assert (flow.offered_count, flow.delivered_count) == (5, 2)
    assert dict(flow.dropped_count) == {"dropped_oldest": 3}


async def test_overflow_under_disconnect_ends_the_subscription(bus: Any, message: Message) -> None:
    opening = opening_with(overflow_policy=pb.OVERFLOW_POLICY_DISCONNECT)
    opening.open.config.qos_settings.max_queue_depth = 1
    responses, _ = await subscribe(bus.agent(), Requests(opening))
    await publish(bus, message(), message(), message())
    assert len((await anext(responses)).batch.messages) == 1
    assert (await anext(responses)).gap.reason == pb.GAP_REASON_DROPPED_NEWEST
    refusal = await refusal_of(anext(responses))
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, ErrorReason.LIMIT_REACHED)


async def stats_without_subscriptions(bus: Any) -> pb.GetBusStatsResponse:
    """Asks until the broker has noticed that nobody is there any more."""
    stats = await stats_of(bus)
    return stats if not stats.subscription_count else await stats_without_subscriptions(bus)


async def test_cancelled_subscription_is_gone_and_still_counted(bus: Any, message: Message) -> None:
    call = bus.agent().Subscribe(aiter(Requests(opening_of("events.#"))), timeout=TIMEOUT_S)
    responses = aiter(call)
    await anext(responses)
    await publish(bus, message(), message())
    await take(responses, 2)
    call.cancel()
    async with asyncio.timeout(TIMEOUT_S):
        stats = await stats_without_subscriptions(bus)
    assert (stats.flow.offered_count, stats.flow.delivered_count) == (2, 2)
    await publish(bus, message())
    assert (await stats_of(bus)).flow.offered_count == 2


async def test_draining_delivers_what_waits_and_ends_the_subscription(
    bus: Any, message: Message
) -> None:
    responses, _ = await subscribe(bus.agent(), Requests(opening_of("events.#")))
    await publish(bus, message())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bus.server.drain())
        assert len(await take(responses, 1)) == 1
        refusal = await refusal_of(anext(responses))
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, ErrorReason.DRAINING)


OUT_OF_RANGE = (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)
UNKNOWN_ENUM = (Code.INVALID_ARGUMENT, ErrorReason.ENUM_UNKNOWN)
BAD_PATTERN = (Code.INVALID_ARGUMENT, ErrorReason.PATTERN_INVALID)
NOT_OFFERED = (Code.UNIMPLEMENTED, ErrorReason.FEATURE_UNSUPPORTED)
QOS = "qos_settings"
AT_LEAST_ONCE: Any = sub.DELIVERY_GUARANTEE_AT_LEAST_ONCE
EXACTLY_ONCE: Any = sub.DELIVERY_GUARANTEE_EXACTLY_ONCE
DROP: Any = sub.DUPLICATE_HANDLING_DROP_DUPLICATES
UNKNOWN: Any = 9


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (opening_of(), OUT_OF_RANGE),
        (opening_of("events.*"), BAD_PATTERN),
        (opening_of(topic_patterns=[pattern_of("events.#", wildcard_enabled=False)]), BAD_PATTERN),
        (opening_of(topic_patterns=[pattern_of("events.#", priority=1)]), NOT_OFFERED),
        (opening_of(topic_patterns=[pattern_of("events.#", priority=256)]), OUT_OF_RANGE),
        (
            opening_of(
                topic_patterns=[pattern_of(A, metadata={str(one): "" for one in range(65)})]
            ),
            OUT_OF_RANGE,
        ),
        (opening_of(*[f"events.t{one}" for one in range(65)]), OUT_OF_RANGE),
        (opening_of(A, subscriber_id="x" * 129), OUT_OF_RANGE),
        (opening_of(A, subscriber_id="a\nb"), OUT_OF_RANGE),
        (opening_of(A, message_type_filters=[0]), NOT_OFFERED),
        (opening_of(A, event_type_filters=[0]), NOT_OFFERED),
        (
            opening_of(A, correlation_filter=sub.CorrelationFilter(correlation_ids=["x"])),
            NOT_OFFERED,
        ),
        (opening_of(A, **{QOS: sub.QosSettings(delivery_guarantee=AT_LEAST_ONCE)}), NOT_OFFERED),
        (opening_of(A, **{QOS: sub.QosSettings(delivery_guarantee=EXACTLY_ONCE)}), NOT_OFFERED),
        (opening_of(A, **{QOS: sub.QosSettings(delivery_guarantee=UNKNOWN)}), UNKNOWN_ENUM),
        (opening_of(A, **{QOS: sub.QosSettings(duplicate_handling=DROP)}), NOT_OFFERED),
        (opening_of(A, **{QOS: sub.QosSettings(duplicate_handling=UNKNOWN)}), UNKNOWN_ENUM),
        (
            opening_of(A, **{QOS: sub.QosSettings(retention_policy=sub.RetentionPolicy())}),
            NOT_OFFERED,
        ),
        (opening_of(A, **{QOS: sub.QosSettings(max_queue_depth=1_000_001)}), OUT_OF_RANGE),
        (opening_with(max_queue_bytes=(16 << 20) + 1), OUT_OF_RANGE),
        (opening_with(max_queue_bytes=(1 << 20) - 1), OUT_OF_RANGE),
        (opening_with(overflow_policy=9), UNKNOWN_ENUM),
        (pb.SubscribeRequest(pause=pb.PauseDelivery()), OUT_OF_RANGE),
        (pb.SubscribeRequest(), OUT_OF_RANGE),
    ],
)
async def test_opening_that_cannot_be_honoured_is_refused(
    bus: Any, request_: pb.SubscribeRequest, expected: tuple[Code, ErrorReason]
) -> None:
    refusal = await refusal_of(subscribe(bus.agent(), Requests(request_)))
    assert (refusal.code, refusal.reason) == expected
    assert (await stats_of(bus)).subscription_count == 0


async def test_settings_that_ask_for_what_is_done_anyway_are_accepted(bus: Any) -> None:
    opening = opening_of(
        "events.#",
        correlation_filter=sub.CorrelationFilter(),
        qos_settings=sub.QosSettings(ordered_delivery=True),
    )
    _, opened = await subscribe(bus.agent(), Requests(opening))
    assert opened.subscription_id


async def test_stream_that_ends_before_opening_is_refused(bus: Any) -> None:
    requests = Requests()
    requests.queue.put_nowait(None)
    refusal = await refusal_of(subscribe(bus.agent(), requests))
    assert (refusal.code, refusal.reason) == OUT_OF_RANGE


async def test_pattern_wider_than_the_grant_is_refused(bus: Any) -> None:
    requests = Requests(opening_of("control.collector.instance.procmond.#", "events.#"))
    refusal = await refusal_of(subscribe(bus.collector(), requests))
    assert (refusal.code, refusal.reason) == (Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (opening_of("events.#"), OUT_OF_RANGE),
        (pb.SubscribeRequest(), OUT_OF_RANGE),
        (pb.SubscribeRequest(ack=pb.AckDeliveries(position=1)), NOT_OFFERED),
        (pb.SubscribeRequest(pause=pb.PauseDelivery()), NOT_OFFERED),
        (pb.SubscribeRequest(resume=pb.ResumeDelivery()), NOT_OFFERED),
    ],
)
async def test_later_request_that_cannot_be_honoured_ends_the_subscription(
    bus: Any, second: pb.SubscribeRequest, expected: tuple[Code, ErrorReason]
) -> None:
    requests = Requests(opening_of("events.#"))
    responses, _ = await subscribe(bus.agent(), requests)
    requests.queue.put_nowait(second)
    refusal = await refusal_of(anext(responses))
    assert (refusal.code, refusal.reason) == expected


async def test_subscription_beyond_the_limit_is_refused(bus: Any) -> None:
    agent = bus.agent()
    kept = [await subscribe(agent, Requests(opening_of(A))) for _ in range(3)]
    refusal = await refusal_of(subscribe(agent, Requests(opening_of(A))))
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, ErrorReason.LIMIT_REACHED)
    assert len(kept) == 3


async def test_open_subscriptions_are_listed(bus: Any, message: Message) -> None:
    agent = bus.agent()
    first, opened = await subscribe(agent, Requests(opening_of("events.#", subscriber_id="screen")))
    second, _ = await subscribe(agent, Requests(opening_of("control.#", "alerts.#")))
    await publish(bus, message())
    await take(first, 1)
    answer = await agent.ListSubscriptions(pb.ListSubscriptionsRequest(), timeout=TIMEOUT_S)
    one, two = answer.subscriptions
    assert (one.subscription_id, one.subscriber_id) == (opened.subscription_id, "screen")
    assert (one.identity, list(one.patterns)) == ("agent/agent", ["events.#"])
    assert (one.flow.offered_count, one.flow.delivered_count) == (1, 1)
    assert (two.subscriber_id, two.flow.offered_count) == (two.subscription_id, 0)
    assert one.opened_at.ToNanoseconds() <= two.opened_at.ToNanoseconds()
    assert second is not None


async def test_stats_tell_the_busiest_topic_first(bus: Any, message: Message) -> None:
    await publish(bus, message(A), message(B), message(B))
    stats = await stats_of(bus)
    assert [(one.topic, one.published_count) for one in stats.topics] == [(B, 2), (A, 1)]
    assert stats.published_count == 3
    assert stats.published_bytes == sum(one.published_bytes for one in stats.topics)
    assert stats.broker_epoch


def version(major: int, minor: int = 0, name: str = "") -> eventbus_pb2.MessageVersion:
    return eventbus_pb2.MessageVersion(major=major, minor=minor, protocol_version=name)


@pytest.mark.parametrize(
    ("offered", "preferred", "expected"),
    [
        ([version(1)], None, version(1)),
        ([version(1, 2), version(1, 3), version(2)], None, version(1, 3)),
        ([version(1, 2), version(1, 3)], version(1, 2), version(1, 2)),
        ([version(1), version(2)], version(2), version(1)),
        ([version(1, name="daemoneye")], None, version(1, name="daemoneye")),
    ],
)
async def test_version_is_the_preferred_or_the_highest_in_common(
    bus: Any,
    offered: list[eventbus_pb2.MessageVersion],
    preferred: eventbus_pb2.MessageVersion | None,
    expected: eventbus_pb2.MessageVersion,
) -> None:
    request = eventbus_pb2.VersionNegotiationRequest(
        supported_versions=offered, preferred_version=preferred
    )
    answer = await bus.collector().NegotiateVersion(
        pb.NegotiateVersionRequest(request=request), timeout=TIMEOUT_S
    )
    assert answer.response.negotiated_version == expected
    assert answer.response.negotiation_success
    limits = (answer.max_message_bytes, answer.max_batch_bytes, answer.max_batch_messages)
    assert limits == (1 << 20, 4 << 20, 10_000)


@pytest.mark.parametrize(
    ("offered", "preferred", "reason"),
    [
        ([], None, ErrorReason.REQUEST_INVALID),
        ([version(1)] * 17, None, ErrorReason.REQUEST_INVALID),
        ([version(1)], version(1, 1), ErrorReason.REQUEST_INVALID),
        ([version(2)], None, ErrorReason.VERSION_UNSUPPORTED),
        ([version(1, name="other")], None, ErrorReason.VERSION_UNSUPPORTED),
    ],
)
async def test_versions_without_anything_in_common_are_refused(
    bus: Any,
    offered: list[eventbus_pb2.MessageVersion],
    preferred: eventbus_pb2.MessageVersion | None,
    reason: ErrorReason,
) -> None:
    request = eventbus_pb2.VersionNegotiationRequest(
        supported_versions=offered, preferred_version=preferred
    )
    call = bus.collector().NegotiateVersion(
        pb.NegotiateVersionRequest(request=request), timeout=TIMEOUT_S
    )
    assert (await refusal_of(call)).reason is reason


def test_end_for_slowness_names_the_bounds() -> None:
    mailbox = Mailbox(MailboxLimits(5, 6))
    with pytest.raises(SlowConsumerError) as caught:
        raise_end(mailbox, Closed(CloseReason.SLOW_CONSUMER))
    assert caught.value.metadata == {"max_messages": "5", "max_bytes": "6"}
