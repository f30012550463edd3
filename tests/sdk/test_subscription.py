import asyncio
from contextlib import aclosing

import pytest

from collector_core.bus import (
    BrokenError,
    BusSubscription,
    BusyError,
    ClosedError,
    Delivery,
    Gap,
    LinkState,
    Opened,
    Overflow,
    SlowConsumerError,
    SubscriptionOptions,
)
from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2, group_pb2
from daemoneye_mesh.errors import (
    ConflictError,
    ErrorReason,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
)

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15
PATTERN = "control.collector.lifecycle"
OPTIONS = SubscriptionOptions([PATTERN], subscriber_id="unit-1", max_queue_messages=77)


def batch(*sequences, position=0, payload=b""):
    """Messages in one group."""
    envelope = group_pb2.GroupEnvelope(
        topic=PATTERN,
        source_id="s",
        source_epoch=1,
        first_sequence=sequences[0],
        count=len(sequences),
    )
    messages = [eventbus_pb2.EventBusMessage() for _ in sequences]
    for one in messages:
        one.control_message.payload_data = payload
    group = group_pb2.MessageGroup(
        envelope=envelope, block=group_pb2.MessageBlock(messages=messages)
    )
    inner = eventbus_service_pb2.MessageBatch(groups=[group], position=position)
    return eventbus_service_pb2.SubscribeResponse(batch=inner)


def gap(count, reason, **fields):
    marker = eventbus_service_pb2.GapMarker(dropped_count=count, reason=reason, **fields)
    return eventbus_service_pb2.SubscribeResponse(gap=marker)


@pytest.fixture
def subscribe(connect, mesh_identity):
    def make(options=OPTIONS, **arguments):
        return BusSubscription(connect(mesh_identity.layout.eventbus_socket), options, **arguments)

    return make


async def take(items, count=1):
    async with asyncio.timeout(GUARD_S):
        return [await anext(items) for _ in range(count)]


def sequences_of(deliveries):
    return [one.metadata.source_sequence for each in deliveries for one in each.messages]


async def test_opened_comes_first_and_then_messages_in_order(broker, serve, subscribe):
    await serve(broker)
    for one in (batch(1, 2, position=2), batch(3, position=3)):
        broker.deliveries.put_nowait(one)
    subscription = subscribe()
    async with aclosing(subscription.items()) as items:
        opened, *deliveries = await take(items, 3)
        assert subscription.is_connected
    assert opened == Opened("e1")
    assert all(isinstance(one, Delivery) for one in deliveries)
    assert sequences_of(deliveries) == [1, 2, 3]
    assert [(one.count, one.position) for one in deliveries] == [(2, 2), (1, 3)]
    assert deliveries[0].messages[0].metadata.topic == PATTERN
    assert not subscription.is_connected


async def test_messages_without_groups_are_read_too(broker, serve, subscribe):
    await serve(broker)
    message = eventbus_pb2.EventBusMessage()
    message.metadata.source_id = "s"
    message.metadata.source_sequence = 9
    message.metadata.headers["a"] = "b"
    message.correlation.correlation_id = "c"
    inner = eventbus_service_pb2.MessageBatch(messages=[message])
    broker.deliveries.put_nowait(eventbus_service_pb2.SubscribeResponse(batch=inner))
    async with aclosing(subscribe().items()) as items:
        _, delivery = await take(items, 2)
    assert list(delivery.messages) == [message]
    assert delivery.groups[0].envelope.first_sequence == 9


async def test_subscription_says_who_wants_what(broker, serve, subscribe):
    await serve(broker)
    async with aclosing(subscribe().items()) as items:
        await take(items)
    opening = broker.subscriptions[0]
    assert opening.grouped
    assert opening.config.subscriber_id == "unit-1"
    assert [one.pattern for one in opening.config.topic_patterns] == [PATTERN]
    assert opening.config.qos_settings.max_queue_depth == 77
    assert broker.versions


async def test_gap_is_told_with_its_reason(broker, serve, subscribe):
    await serve(broker)
    dropped = eventbus_service_pb2.GAP_REASON_DROPPED_OLDEST
    broker.deliveries.put_nowait(gap(12, dropped, dropped_bytes=3, position=12))
    broker.deliveries.put_nowait(gap(1, 4242))
    async with aclosing(subscribe().items()) as items:
        gaps = (await take(items, 3))[1:]
    assert gaps == [Gap(12, "dropped_oldest", 3, 12), Gap(1, "unspecified")]


async def test_item_of_a_newer_broker_is_skipped(broker, serve, subscribe):
    await serve(broker)
    broker.deliveries.put_nowait(eventbus_service_pb2.SubscribeResponse())
    broker.deliveries.put_nowait(gap(1, eventbus_service_pb2.GAP_REASON_DROPPED_NEWEST))
    async with aclosing(subscribe().items()) as items:
        assert await take(items, 2) == [Opened("e1"), Gap(1, "dropped_newest")]


async def test_subscription_is_opened_again_when_the_broker_is_back(broker, serve, subscribe):
    first = await serve(broker)
    async with aclosing(subscribe().items()) as items:
        assert await take(items) == [Opened("e1")]
        await first.drain(0)
        broker.epoch = "e2"
        await serve(broker)
        assert await take(items) == [Opened("e2")]
        broker.deliveries.put_nowait(gap(3, eventbus_service_pb2.GAP_REASON_DROPPED_OLDEST))
        assert await take(items) == [Gap(3, "dropped_oldest")]


async def test_subscription_is_opened_again_when_the_broker_ends_it(broker, serve, subscribe):
    await serve(broker)
    broker.deliveries.put_nowait(None)
    async with aclosing(subscribe().items()) as items:
        assert await take(items, 2) == [Opened("e1"), Opened("e1")]
    assert len(broker.subscriptions) == 2


@pytest.mark.parametrize(
    "denial",
    [
        PermissionDeniedError("not yours; ask for less"),
        InvalidRequestError("no such setting"),
        UnsupportedError("not here", feature="x"),
        ConflictError("somebody newer is here"),
    ],
)
async def test_refusal_that_will_not_change_breaks_it(broker, serve, subscribe, denial):
    broker.denial = denial
    await serve(broker)
    subscription = subscribe()
    async with aclosing(subscription.items()) as items:
        with pytest.raises(BrokenError, match=denial.message) as broken:
            await take(items)
    assert type(broken.value.cause) is type(denial)
    assert (broken.value.reason, broken.value.metadata) == (denial.reason, denial.metadata)
    assert subscription.state is LinkState.IDLE


async def test_refusal_that_comes_before_the_first_request_is_told_as_what_it_is(
    broker, serve, subscribe
):
    broker.denial = PermissionDeniedError("not yours; ask for less")
    await serve(broker)
    subscription = subscribe()
    for _ in range(100):
        async with aclosing(subscription.items()) as items:
            with pytest.raises(BrokenError, match="not yours"):
                await take(items)


async def test_refusal_that_may_pass_is_tried_again(broker, serve, subscribe, eventually):
    broker.denial = OverloadedError("too many subscriptions; try again later")
    await serve(broker)
    async with aclosing(subscribe().items()) as items:
        task = asyncio.ensure_future(take(items))
        await eventually(lambda: len(broker.versions) >= 2)
        broker.denial = None
        assert await task == [Opened("e1")]


async def test_what_had_come_is_yielded_before_the_reason_why_it_ended(broker, serve, subscribe):
    await serve(broker)
    for one in (batch(1), batch(2), PermissionDeniedError("revoked")):
        broker.deliveries.put_nowait(one)
    async with aclosing(subscribe().items()) as items:
        _, *deliveries = await take(items, 3)
        assert sequences_of(deliveries) == [1, 2]
        with pytest.raises(BrokenError, match="revoked"):
            await take(items)


async def test_slow_consumer_is_told_when_it_does_not_want_to_come_back(broker, serve, subscribe):
    await serve(broker)
    slow = OverloadedError("too slow; read faster", reason=ErrorReason.SLOW_CONSUMER, limit=5)
    broker.deliveries.put_nowait(slow)
    options = SubscriptionOptions(
        [PATTERN], policy=Overflow.DISCONNECT, resubscribe_when_slow=False
    )
    async with aclosing(subscribe(options).items()) as items:
        await take(items)
        with pytest.raises(SlowConsumerError, match="read faster") as raised:
            await take(items)
    assert raised.value.metadata == {"limit": "5"}


async def test_slow_consumer_comes_back_by_default(broker, serve, subscribe):
    await serve(broker)
    broker.deliveries.put_nowait(OverloadedError("slow", reason=ErrorReason.SLOW_CONSUMER))
    async with aclosing(subscribe().items()) as items:
        assert await take(items, 2) == [Opened("e1"), Opened("e1")]


async def test_subscription_gives_up_when_it_was_told_to(subscribe):
    options = SubscriptionOptions([PATTERN], give_up_after_s=0.3)
    async with aclosing(subscribe(options).items()) as items:
        with pytest.raises(BrokenError, match=r"no broker answered within 0\.3 s") as broken:
            await take(items)
    assert isinstance(broken.value.cause, UnavailableError)


async def test_subscription_that_is_refused_too_long_gives_up_with_the_refusal(
    broker, serve, subscribe
):
    broker.denial = OverloadedError("too many subscriptions; try again later")
    await serve(broker)
    options = SubscriptionOptions([PATTERN], give_up_after_s=0.5)
    async with aclosing(subscribe(options).items()) as items:
        with pytest.raises(BrokenError, match="too many subscriptions"):
            await take(items)


async def test_closing_the_items_ends_the_subscription(broker, serve, subscribe, eventually):
    await serve(broker)
    subscription = subscribe()
    async with aclosing(subscription.items()) as items:
        await take(items)
        assert broker.open_subscriptions == 1
    assert not subscription.is_connected
    await eventually(lambda: broker.open_subscriptions == 0)


async def test_items_may_be_asked_for_again(broker, serve, subscribe):
    await serve(broker)
    subscription = subscribe()
    for _ in range(3):
        async with aclosing(subscription.items()) as items:
            assert await take(items) == [Opened("e1")]


async def test_subscription_is_held_open_and_iterated(broker, serve, subscribe, eventually):
    await serve(broker)
    broker.deliveries.put_nowait(batch(1))
    async with subscribe() as subscription:
        got = await take(subscription, 2)
        assert sequences_of(got[1:]) == [1]
    await eventually(lambda: broker.open_subscriptions == 0)
    assert subscription.state is LinkState.CLOSED
    with pytest.raises(ClosedError):
        await anext(subscription)
    with pytest.raises(ClosedError):
        await anext(subscription.items())
    with pytest.raises(ClosedError):
        await subscription.pause()


async def test_closing_wakes_whoever_iterates(broker, serve, subscribe):
    await serve(broker)
    async with subscribe() as subscription:
        await take(subscription)
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        await subscription.aclose()
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(ClosedError):
                await waiting


async def test_only_one_may_iterate(broker, serve, subscribe):
    await serve(broker)
    async with subscribe() as subscription:
        with pytest.raises(BusyError):
            await anext(subscription.items())
        await take(subscription)
        waiting = asyncio.ensure_future(anext(subscription))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await anext(subscription)
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_states_are_told_in_order(broker, serve, subscribe):
    states = []
    subscription = subscribe(on_state=states.append)
    await serve(broker)
    async with subscription, asyncio.timeout(GUARD_S):
        await subscription.wait_for_state(LinkState.READY)
        broker.deliveries.put_nowait(UnavailableError("going", reason=ErrorReason.DRAINING))
        await subscription.wait_for_state(LinkState.BACKOFF)
        await subscription.wait_for_state(LinkState.READY)
    assert states == [
        LinkState.CONNECTING,
        LinkState.READY,
        LinkState.BACKOFF,
        LinkState.CONNECTING,
        LinkState.READY,
        LinkState.CLOSED,
    ]


async def test_consumer_that_stops_is_felt_by_the_broker(broker, serve, subscribe, eventually):
    await serve(broker)
    for number in range(1, 101):
        broker.deliveries.put_nowait(batch(number, payload=bytes(100_000)))
    async with subscribe() as subscription:
        await take(subscription, 2)
        await eventually(lambda: broker.deliveries.qsize() < 95)
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert broker.deliveries.qsize() > 50
        rest = await take(subscription, 99)
    assert sequences_of(rest) == list(range(2, 101))


async def test_broken_group_is_counted_and_the_rest_goes_on(broker, serve, subscribe):
    await serve(broker)
    broken = batch(1, 2)
    broken.batch.groups[0].envelope.count = 3
    broker.deliveries.put_nowait(broken)
    broker.deliveries.put_nowait(batch(4))
    async with aclosing(subscribe().items()) as items:
        _, first, second = await take(items, 3)
    assert (first.count, first.undecodable_count, len(first.messages)) == (3, 1, 2)
    assert sequences_of([second]) == [4]
