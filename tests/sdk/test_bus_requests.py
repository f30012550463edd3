"""What a subscriber asks of the broker while its subscription stands."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from collector_core.bus import (
    BusSubscription,
    Delivery,
    Guarantee,
    LinkState,
    Opened,
    SubscriptionOptions,
)
from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2, group_pb2
from daemoneye_mesh.errors import (
    DeadlineError,
    ErrorReason,
    InvalidRequestError,
    PermissionDeniedError,
    UnavailableError,
)

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15
PATTERN = "control.collector.lifecycle"
AT_MOST_ONCE = SubscriptionOptions([PATTERN], subscriber_id="unit-1")
AT_LEAST_ONCE = replace(AT_MOST_ONCE, guarantee=Guarantee.AT_LEAST_ONCE)
EXACTLY_ONCE = replace(AT_MOST_ONCE, guarantee=Guarantee.EXACTLY_ONCE)


def batch(*sequences, position=0, redelivered=False, source_id="s"):
    envelope = group_pb2.GroupEnvelope(
        topic=PATTERN,
        source_id=source_id,
        source_epoch=1,
        first_sequence=sequences[0],
        count=len(sequences),
    )
    messages = [eventbus_pb2.EventBusMessage() for _ in sequences]
    group = group_pb2.MessageGroup(
        envelope=envelope, block=group_pb2.MessageBlock(messages=messages)
    )
    inner = eventbus_service_pb2.MessageBatch(
        groups=[group], position=position, redelivered=redelivered
    )
    return eventbus_service_pb2.SubscribeResponse(batch=inner)


@pytest.fixture
def subscribe(connect, mesh_identity):
    def make(options=AT_MOST_ONCE, **arguments):
        return BusSubscription(connect(mesh_identity.layout.eventbus_socket), options, **arguments)

    return make


async def take(items, count=1):
    async with asyncio.timeout(GUARD_S):
        return [await anext(items) for _ in range(count)]


def sequences_of(*deliveries):
    return [one.metadata.source_sequence for each in deliveries for one in each.messages]


async def test_each_request_is_answered_though_nobody_iterates(broker, serve, subscribe):
    await serve(broker)
    options = replace(AT_MOST_ONCE, credit=10)
    async with subscribe(options) as subscription:
        for number in range(1, 201):  # the answers come behind these
            broker.deliveries.put_nowait(batch(number))
        await subscription.pause()
        await subscription.resume()
        assert await subscription.flush() == 7
        await subscription.grant(5)
        other = SubscriptionOptions(["events.#"], event_types=[2], guarantee=Guarantee.EXACTLY_ONCE)
        await subscription.update(other)
        assert broker.actions == ["pause", "resume", "flush", "credit", "update"]
        got = await take(subscription, 201)
    assert sequences_of(*got[1:]) == list(range(1, 201))
    *_, credit, update = broker.requests
    assert credit.credit.messages == 5
    config = update.update.config
    assert [one.pattern for one in config.topic_patterns] == ["events.#"]
    assert list(config.event_type_filters) == [2]
    assert not config.subscriber_id
    assert not config.HasField("qos_settings")
    assert subscription.options == replace(options, patterns=["events.#"], event_types=[2])


async def test_refused_request_is_raised_and_the_subscription_goes_on(broker, serve, subscribe):
    await serve(broker)
    broker.change = lambda request: PermissionDeniedError("not yours; ask for less")
    async with subscribe() as subscription:
        with pytest.raises(PermissionDeniedError, match="not yours"):
            await subscription.update(SubscriptionOptions(["alerts.#"]))
        assert subscription.options == AT_MOST_ONCE
        with pytest.raises(PermissionDeniedError):
            await subscription.unsubscribe()
        broker.deliveries.put_nowait(batch(1))
        assert sequences_of((await take(subscription, 2))[1]) == [1]


async def test_request_without_an_answer_runs_out_of_time(broker, serve, subscribe):
    await serve(broker)
    broker.is_silent = True
    async with subscribe() as subscription:
        with pytest.raises(DeadlineError, match=r"did not answer within 0\.2 s"):
            await subscription.flush(timeout_s=0.2)


async def test_request_without_a_broker_runs_out_of_time(subscribe):
    async with subscribe() as subscription:
        with pytest.raises(DeadlineError):
            await subscription.flush(timeout_s=0.1)


async def test_request_waits_until_the_subscription_stands(broker, serve, subscribe):
    async with subscribe() as subscription:
        asking = asyncio.ensure_future(subscription.flush(timeout_s=GUARD_S))
        await asyncio.sleep(0)
        await serve(broker)
        assert await asking == 7


async def test_request_that_is_lost_with_its_stream_is_raised(broker, serve, subscribe, eventually):
    await serve(broker)
    broker.is_silent = True
    async with subscribe() as subscription:
        asking = asyncio.ensure_future(subscription.flush())
        await eventually(lambda: broker.requests)
        broker.deliveries.put_nowait(UnavailableError("going", reason=ErrorReason.DRAINING))
        with pytest.raises(UnavailableError, match="lost before the broker answered"):
            await asking


async def test_pause_holds_across_a_reconnect_until_resumed(broker, serve, subscribe, eventually):
    await serve(broker)
    async with subscribe() as subscription:
        await subscription.pause()
        broker.deliveries.put_nowait(None)
        await eventually(lambda: broker.actions == ["pause", "pause"])
        await subscription.resume()
        broker.deliveries.put_nowait(None)
        await eventually(lambda: len(broker.subscriptions) == 3)
        await subscription.wait_for_state(LinkState.READY)
        await subscription.flush()
        assert broker.actions == ["pause", "pause", "resume", "flush"]


async def test_update_holds_across_a_reconnect(broker, serve, subscribe, eventually):
    await serve(broker)
    async with subscribe() as subscription:
        await subscription.update(SubscriptionOptions(["events.#"]))
        broker.deliveries.put_nowait(None)
        await eventually(lambda: len(broker.subscriptions) == 2)
        patterns = [one.pattern for one in broker.subscriptions[1].config.topic_patterns]
        assert patterns == ["events.#"]


async def test_credit_that_is_left_is_asked_for_after_a_reconnect(
    broker, serve, subscribe, eventually
):
    await serve(broker)
    async with subscribe(replace(AT_MOST_ONCE, credit=10)) as subscription:
        broker.deliveries.put_nowait(batch(1, 2, 3))
        await take(subscription, 2)
        await subscription.grant(4)
        broker.deliveries.put_nowait(None)
        await eventually(lambda: len(broker.subscriptions) == 2)
    assert [one.initial_credit for one in broker.subscriptions] == [10, 11]


async def test_credit_without_the_option_is_refused(broker, serve, subscribe):
    await serve(broker)
    async with subscribe() as subscription:
        with pytest.raises(InvalidRequestError, match="option credit"):
            await subscription.grant(1)


async def test_iteration_ends_after_unsubscribing(broker, serve, subscribe):
    await serve(broker)
    broker.deliveries.put_nowait(batch(1))
    got = []
    async with subscribe() as subscription, asyncio.timeout(GUARD_S):
        async for item in subscription:
            got.append(item)
            if isinstance(item, Delivery):
                await subscription.unsubscribe()
    assert len(got) == 2
    assert len(broker.subscriptions) == 1


async def test_items_end_after_unsubscribing(broker, serve, subscribe):
    await serve(broker)
    subscription = subscribe()
    async with aclosing(subscription.items()) as items:
        assert await take(items) == [Opened("e1")]
        await subscription.unsubscribe()
        assert [item async for item in items] == []
    assert subscription.state is LinkState.IDLE


@pytest.mark.parametrize("durable_for_s", [None, 60.0])
async def test_history_is_asked_for_once_and_then_only_since_the_loss(
    *, broker, serve, subscribe, eventually, durable_for_s
):
    await serve(broker)
    clock = [100.0]
    options = replace(
        AT_MOST_ONCE, history_s=3_600.0, history_messages=9, durable_for_s=durable_for_s
    )
    async with subscribe(options, monotonic=lambda: clock[0]) as subscription:
        await take(subscription)
        clock[0] += 20.0
        broker.deliveries.put_nowait(None)
        await eventually(lambda: len(broker.subscriptions) == 2)
    first, second = (one.history for one in broker.subscriptions)
    assert (first.max_age_ms, first.max_messages) == (3_600_000, 9)
    assert second.max_age_ms == 21_000


async def test_acknowledgements_are_cumulative(broker, serve, subscribe, eventually):
    await serve(broker)
    for number in range(1, 51):
        broker.deliveries.put_nowait(batch(number, position=number))
    async with subscribe(AT_LEAST_ONCE) as subscription:
        for delivery in (await take(subscription, 51))[1:]:
            await subscription.acknowledge(delivery)
        await eventually(lambda: broker.requests and broker.requests[-1].ack.position == 50)
    positions = [request.ack.position for request in broker.requests]
    assert positions == sorted(set(positions))
    assert len(positions) < 50


async def test_nothing_is_acknowledged_at_most_once(broker, serve, subscribe):
    await serve(broker)
    broker.deliveries.put_nowait(batch(1, position=1))
    async with subscribe() as subscription:
        _, delivery = await take(subscription, 2)
        with pytest.raises(InvalidRequestError, match="AT_LEAST_ONCE"):
            await subscription.acknowledge(delivery)


async def test_acknowledgement_never_goes_to_another_life(broker, serve, subscribe, eventually):
    await serve(broker)
    broker.deliveries.put_nowait(batch(1, 2, 3, position=3))
    broker.deliveries.put_nowait(None)
    async with subscribe(AT_LEAST_ONCE) as subscription:
        _, old = await take(subscription, 2)
        await eventually(lambda: len(broker.subscriptions) == 2)
        await subscription.wait_for_state(LinkState.READY)
        await subscription.acknowledge(old)
        broker.deliveries.put_nowait(batch(1, position=1))
        _, new = await take(subscription, 2)
        await subscription.acknowledge(new)
        await eventually(lambda: broker.requests)
    assert [request.ack.position for request in broker.requests] == [1]


async def test_acknowledged_delivery_that_comes_again_is_held_back_and_acknowledged(
    broker, serve, subscribe, eventually
):
    await serve(broker)
    options = replace(AT_LEAST_ONCE, durable_for_s=60.0)
    broker.deliveries.put_nowait(batch(1, 2, position=2))
    broker.deliveries.put_nowait(None)
    async with subscribe(options) as subscription:
        _, first = await take(subscription, 2)
        broker.opened = {"resumed": True}
        await eventually(lambda: len(broker.subscriptions) == 2)
        await subscription.wait_for_state(LinkState.READY)
        await subscription.acknowledge(first)  # the stream that brought it is gone
        broker.deliveries.put_nowait(batch(1, 2, position=2, redelivered=True))
        broker.deliveries.put_nowait(batch(3, position=3))
        opened, second = await take(subscription, 2)
        assert opened.resumed
        assert sequences_of(second) == [3]
        await eventually(lambda: broker.requests)
    assert [request.ack.position for request in broker.requests] == [2]
    assert subscription.suppressed_count == 2


@pytest.mark.parametrize("options", [AT_LEAST_ONCE, EXACTLY_ONCE])
async def test_unacknowledged_delivery_that_comes_again_is_yielded_again(
    broker, serve, subscribe, options
):
    await serve(broker)
    broker.deliveries.put_nowait(batch(1, position=1))
    broker.deliveries.put_nowait(batch(1, position=1, redelivered=True))
    async with subscribe(options) as subscription:
        _, first, second = await take(subscription, 3)
    assert sequences_of(first, second) == [1, 1]
    assert (first.redelivered, second.redelivered) == (False, True)


async def test_exactly_once_holds_back_what_was_acknowledged_to_a_broker_that_is_gone(
    broker, serve, subscribe, eventually
):
    await serve(broker)
    for one in (batch(1, 2, 3, position=3), None):
        broker.deliveries.put_nowait(one)
    async with subscribe(EXACTLY_ONCE) as subscription:
        _, first = await take(subscription, 2)
        await subscription.acknowledge(first)
        await eventually(lambda: len(broker.subscriptions) == 2)
        # Another life: its publisher repeats what it had no answer for.
        broker.deliveries.put_nowait(batch(2, 3, 4, 5, position=4))
        broker.deliveries.put_nowait(batch(4, position=5, source_id="other"))
        _, second, third = await take(subscription, 3)
    assert sequences_of(second) == [4, 5]
    assert sequences_of(third) == [4]
    assert subscription.suppressed_count == 2


async def test_held_back_delivery_is_acknowledged_only_after_what_came_before_it(
    broker, serve, subscribe, eventually
):
    await serve(broker)
    for one in (batch(1, position=1), None):
        broker.deliveries.put_nowait(one)
    async with subscribe(EXACTLY_ONCE) as subscription:
        _, first = await take(subscription, 2)
        await subscription.acknowledge(first)
        await eventually(lambda: len(broker.subscriptions) == 2)
        broker.requests.clear()
        broker.deliveries.put_nowait(batch(2, position=1))
        broker.deliveries.put_nowait(batch(1, position=2))
        broker.deliveries.put_nowait(batch(3, position=3))
        _, second, third = await take(subscription, 3)
        assert sequences_of(second, third) == [2, 3]
        assert not broker.requests
        await subscription.acknowledge(second)
        await eventually(lambda: broker.requests)
    assert [request.ack.position for request in broker.requests] == [2]
