import asyncio
from contextlib import aclosing

import pytest

from collector_core.subscriber import BusSubscriber, Delivery, Gap, Opened
from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2
from daemoneye_mesh.errors import InvalidRequestError, PermissionDeniedError
from daemoneye_mesh.topic import InvalidPatternError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15
PATTERN = "control.collector.lifecycle"


def batch(*sequences):
    messages = [
        eventbus_pb2.EventBusMessage(metadata=eventbus_pb2.MessageMetadata(source_sequence=one))
        for one in sequences
    ]
    inner = eventbus_service_pb2.MessageBatch(messages=messages)
    return eventbus_service_pb2.SubscribeResponse(batch=inner)


def gap(count, reason):
    marker = eventbus_service_pb2.GapMarker(dropped_count=count, reason=reason)
    return eventbus_service_pb2.SubscribeResponse(gap=marker)


@pytest.fixture
def subscriber(connect, mesh_identity):
    return BusSubscriber(connect(mesh_identity.layout.eventbus_socket), "unit-1", [PATTERN], 77)


async def take(items, count=1):
    async with asyncio.timeout(GUARD_S):
        return [await anext(items) for _ in range(count)]


async def test_opened_comes_first_and_then_messages_in_order(broker, serve, subscriber):
    await serve(broker)
    for one in (batch(1, 2), batch(3)):
        broker.deliveries.put_nowait(one)
    async with aclosing(subscriber.items()) as items:
        opened, *deliveries = await take(items, 3)
        assert subscriber.is_connected
    assert opened == Opened("e1")
    assert all(isinstance(one, Delivery) for one in deliveries)
    got = [message.metadata.source_sequence for one in deliveries for message in one.messages]
    assert got == [1, 2, 3]


async def test_subscription_says_who_wants_what(broker, serve, subscriber):
    await serve(broker)
    async with aclosing(subscriber.items()) as items:
        await take(items)
    config = broker.subscriptions[0].config
    assert config.subscriber_id == "unit-1"
    assert [one.pattern for one in config.topic_patterns] == [PATTERN]
    assert config.qos_settings.max_queue_depth == 77
    assert broker.versions


@pytest.mark.parametrize(
    ("pattern", "is_wild"), [("events.#", True), ("events.+.x", True), ("events.x", False)]
)
async def test_wildcards_are_announced(broker, serve, connect, mesh_identity, pattern, is_wild):
    await serve(broker)
    channel = connect(mesh_identity.layout.eventbus_socket)
    async with aclosing(BusSubscriber(channel, "u", [pattern]).items()) as items:
        await take(items)
    (asked,) = broker.subscriptions[0].config.topic_patterns
    assert asked.wildcard_enabled is is_wild


async def test_gap_is_told_with_its_reason(broker, serve, subscriber):
    await serve(broker)
    broker.deliveries.put_nowait(gap(12, eventbus_service_pb2.GAP_REASON_DROPPED_OLDEST))
    broker.deliveries.put_nowait(gap(1, 4242))
    async with aclosing(subscriber.items()) as items:
        assert (await take(items, 3))[1:] == [Gap(12, "dropped_oldest"), Gap(1, "unspecified")]


async def test_item_of_a_newer_broker_is_skipped(broker, serve, subscriber):
    await serve(broker)
    broker.deliveries.put_nowait(eventbus_service_pb2.SubscribeResponse())
    broker.deliveries.put_nowait(gap(1, eventbus_service_pb2.GAP_REASON_DROPPED_NEWEST))
    async with aclosing(subscriber.items()) as items:
        assert await take(items, 2) == [Opened("e1"), Gap(1, "dropped_newest")]


async def test_subscription_is_opened_again_when_the_broker_is_back(broker, serve, subscriber):
    first = await serve(broker)
    async with aclosing(subscriber.items()) as items:
        assert await take(items) == [Opened("e1")]
        await first.drain(0)
        broker.epoch = "e2"
        await serve(broker)
        assert await take(items) == [Opened("e2")]
        broker.deliveries.put_nowait(gap(3, eventbus_service_pb2.GAP_REASON_DROPPED_OLDEST))
        assert await take(items) == [Gap(3, "dropped_oldest")]


async def test_subscription_is_opened_again_when_the_broker_ends_it(broker, serve, subscriber):
    await serve(broker)
    broker.deliveries.put_nowait(None)
    async with aclosing(subscriber.items()) as items:
        assert await take(items, 2) == [Opened("e1"), Opened("e1")]
    assert len(broker.subscriptions) == 2


@pytest.mark.parametrize(
    "denial",
    [PermissionDeniedError("not yours; ask for less"), InvalidRequestError("no such setting")],
)
async def test_refusal_that_will_not_change_is_raised(broker, serve, subscriber, denial):
    broker.denial = denial
    await serve(broker)
    async with aclosing(subscriber.items()) as items:
        with pytest.raises(type(denial), match=denial.message):
            await take(items)


async def test_closing_the_items_ends_the_subscription(broker, serve, subscriber, eventually):
    await serve(broker)
    async with aclosing(subscriber.items()) as items:
        await take(items)
        assert broker.open_subscriptions == 1
    assert not subscriber.is_connected
    await eventually(lambda: broker.open_subscriptions == 0)


def test_malformed_pattern_is_refused_at_once():
    with pytest.raises(InvalidPatternError):
        BusSubscriber(None, "unit-1", ["events..x"])
