"""Publisher and subscription against the real broker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from collector_core.bus import (
    BrokenError,
    BusPublisher,
    BusSubscription,
    Delivery,
    EnvelopeKey,
    Gap,
    Guarantee,
    Opened,
    Outbox,
    Overflow,
    PublishAssurance,
    SlowConsumerError,
    SubscriptionOptions,
)
from daemoneye_eventbus.app import Assembly
from daemoneye_eventbus.config import EventBusSettings
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import PermissionDeniedError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 20
TOPIC = "control.test.x"
AT_LEAST_ONCE = SubscriptionOptions(
    [TOPIC], subscriber_id="s", guarantee=Guarantee.AT_LEAST_ONCE, durable_for_s=60
)


class Bus:
    """A broker, and a publisher of the agent's."""

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh
        self._channels: list[Any] = []
        self.outbox = Outbox(100_000, 32 << 20)
        self._key = EnvelopeKey(topic=TOPIC, source_id=mesh.layout.agent.id, epoch=1)
        self._sequence = 0

    @asynccontextmanager
    async def serve(self, **settings: Any) -> AsyncIterator[None]:
        """Runs a broker."""
        assembly = Assembly(self._mesh.layout, EventBusSettings(**settings))
        await assembly.server.start()
        await assembly.server.set_serving(True)
        try:
            yield
        finally:
            await assembly.server.drain(0)

    def channel(self, identity: Any = None) -> Any:
        """Opens a channel."""
        layout = self._mesh.layout
        source = self._mesh.source(identity or layout.agent, layout.broker)
        self._channels.append(open_channel(layout.eventbus_socket, source))
        return self._channels[-1]

    def subscribe(self, options: SubscriptionOptions) -> BusSubscription:
        """Makes a subscription of the agent's."""
        return BusSubscription(self.channel(), options)

    async def put(self, count: int, size_bytes: int = 10) -> None:
        """Puts numbered messages into the outbox."""
        await self.outbox.put_many([bytes(size_bytes)] * count, self._key, self._sequence + 1)
        self._sequence += count

    async def close(self) -> None:
        """Closes what was opened."""
        for channel in self._channels:
            await channel.close()


@pytest.fixture
async def bus(mesh_identity: Any) -> AsyncIterator[Bus]:
    made = Bus(mesh_identity)
    yield made
    await made.close()


@pytest.fixture
async def publishing(bus: Bus, running: Callable[[Any], Any]) -> BusPublisher:
    publisher = BusPublisher(bus.channel(), bus.outbox)
    running(publisher.run())
    return publisher


async def take(items: Any, count: int = 1) -> list[Any]:
    async with asyncio.timeout(GUARD_S):
        return [await anext(items) for _ in range(count)]


def sequences_of(delivery: Delivery) -> list[int]:
    return [
        group.envelope.first_sequence + index
        for group in delivery.groups
        for index in range(group.count)
    ]


async def take_messages(subscription: BusSubscription, count: int) -> list[int]:
    """Takes and acknowledges until so many messages came; returns their sequences."""
    got: list[int] = []
    async with asyncio.timeout(GUARD_S):
        while len(got) < count:
            item = await anext(subscription)
            assert not isinstance(item, Gap)
            if isinstance(item, Delivery):
                got += sequences_of(item)
                if subscription.options.acknowledges:
                    await subscription.acknowledge(item)
    return got


@pytest.mark.parametrize("guarantee", list(Guarantee))
async def test_messages_arrive_in_order_in_groups(
    bus: Bus, publishing: BusPublisher, guarantee: Guarantee
) -> None:
    options = SubscriptionOptions([TOPIC], guarantee=guarantee, max_queue_messages=50_000)
    async with bus.serve(), bus.subscribe(options) as subscription:
        assert isinstance((await take(subscription))[0], Opened)
        await bus.put(20_000)
        assert await take_messages(subscription, 20_000) == list(range(1, 20_001))
        await bus.outbox.wait_empty()
        assert bus.outbox.published_count == 20_000


async def test_unacknowledged_messages_come_again_after_coming_back(
    bus: Bus, publishing: BusPublisher
) -> None:
    async with bus.serve():
        async with bus.subscribe(AT_LEAST_ONCE) as subscription:
            await take(subscription)
            await bus.put(3)
            delivery = (await take(subscription))[0]
            assert not delivery.redelivered
            done = sequences_of(delivery)
        async with bus.subscribe(AT_LEAST_ONCE) as subscription:
            opened = (await take(subscription))[0]
            assert opened.resumed
            again = (await take(subscription))[0]
            assert again.redelivered
            assert sequences_of(again) == done
            await bus.put(2)
            await subscription.acknowledge(again)


async def test_requests_are_done_by_the_broker(bus: Bus, publishing: BusPublisher) -> None:
    options = SubscriptionOptions([TOPIC], credit=5, guarantee=Guarantee.AT_LEAST_ONCE)
    async with bus.serve(), bus.subscribe(options) as subscription:
        await take(subscription)
        await subscription.pause()
        await bus.put(20)
        await bus.outbox.wait_empty()
        assert await subscription.flush() == 20
        await subscription.resume()
        (gap,) = await take(subscription)
        assert (gap.dropped_count, gap.reason) == (20, "flushed")
        await bus.put(9)
        assert await take_messages(subscription, 5) == [21, 22, 23, 24, 25]
        await subscription.grant(4)
        assert await take_messages(subscription, 4) == [26, 27, 28, 29]
        await subscription.update(SubscriptionOptions(["control.other.#"]))
        await bus.put(1)
        await bus.outbox.wait_empty()
        await subscription.unsubscribe()
        assert [item async for item in subscription] == []


async def test_rate_limited_publisher_gets_everything_through_in_order(
    bus: Bus, publishing: BusPublisher
) -> None:
    options = SubscriptionOptions([TOPIC], max_queue_messages=50_000)
    limits = {"rate_limits": ["agent/agent control 20000/s burst 4000"]}
    async with bus.serve(**limits), bus.subscribe(options) as subscription:
        await take(subscription)
        await bus.put(12_000)
        assert await take_messages(subscription, 12_000) == list(range(1, 12_001))
        assert not bus.outbox.refused_count


async def test_acknowledged_assurance_waits_for_the_acknowledgement(
    bus: Bus, running: Callable[[Any], Any]
) -> None:
    publisher = BusPublisher(bus.channel(), bus.outbox, PublishAssurance.ACKNOWLEDGED)
    async with bus.serve():
        running(publisher.run())
        await bus.put(5)  # nobody is there to acknowledge yet
        async with bus.subscribe(AT_LEAST_ONCE) as subscription:
            _, delivery = await take(subscription, 2)
            assert bus.outbox.published_count == 0
            await subscription.acknowledge(delivery)
            async with asyncio.timeout(GUARD_S):
                await bus.outbox.wait_empty()
        assert bus.outbox.published_count == 5


async def test_broker_that_restarts_loses_no_message_for_who_subscribes_again(
    bus: Bus, running: Callable[[Any], Any]
) -> None:
    publisher = BusPublisher(bus.channel(), bus.outbox, PublishAssurance.ACKNOWLEDGED)
    running(publisher.run())
    options = SubscriptionOptions([TOPIC], subscriber_id="s", guarantee=Guarantee.EXACTLY_ONCE)
    async with bus.subscribe(options) as subscription:
        got: list[int] = []
        for _ in range(4):
            async with bus.serve():
                await bus.put(5_000)
                got += await take_messages(subscription, 2_000)
        async with bus.serve():
            got += await take_messages(subscription, 20_000 - len(got))
            async with asyncio.timeout(GUARD_S):
                await bus.outbox.wait_empty()
    assert got == list(range(1, 20_001))


async def test_forbidden_pattern_breaks_the_subscription(bus: Bus, mesh_identity: Any) -> None:
    async with bus.serve():
        channel = bus.channel(mesh_identity.layout.collector("unit"))
        subscription = BusSubscription(channel, SubscriptionOptions(["alerts.#"]))
        async with subscription:
            with pytest.raises(BrokenError) as broken:
                await take(subscription)
        assert isinstance(broken.value.cause, PermissionDeniedError)


async def test_slow_consumer_is_told(bus: Bus, publishing: BusPublisher) -> None:
    options = SubscriptionOptions(
        [TOPIC], policy=Overflow.DISCONNECT, max_queue_messages=100, resubscribe_when_slow=False
    )
    async with bus.serve(), bus.subscribe(options) as subscription:
        await take(subscription)
        await subscription.pause()
        await bus.put(500)
        with pytest.raises(SlowConsumerError):
            await take_messages(subscription, 500)


async def test_history_is_delivered_to_who_comes_late(bus: Bus, publishing: BusPublisher) -> None:
    async with bus.serve():
        await bus.put(10)
        await bus.outbox.wait_empty()
        options = SubscriptionOptions([TOPIC], history_s=60.0, history_messages=4)
        async with bus.subscribe(options) as subscription:
            assert await take_messages(subscription, 4) == [7, 8, 9, 10]
