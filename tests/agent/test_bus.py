"""The agent on the bus: refused, connected, overrun."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from collector_core.bus import BrokenError, Delivery, Gap, Opened, ReceivedGroup
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye.eventbus.v1.group_pb2 import GroupEnvelope
from daemoneye_agent.bus import MAX_WAITING_ALERTS, AgentBus
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import PermissionDeniedError

Item = Opened | Delivery | Gap | Exception


class FakeSubscriber:
    """Plays one script of items for each time it is asked, then hangs."""

    def __init__(self, *scripts: list[Item]) -> None:
        self.scripts = list(scripts)
        self.is_connected = False
        self.closed_count = 0

    async def items(self) -> AsyncGenerator[Opened | Delivery | Gap, None]:
        try:
            for item in self.scripts.pop(0):
                if isinstance(item, Exception):
                    raise item
                self.is_connected = True
                yield item
            await asyncio.Event().wait()
        finally:
            self.is_connected = False
            self.closed_count += 1


class FakePipeline:
    def __init__(self) -> None:
        self.taken: list[tuple[int, int]] = []
        self.error: Exception | None = None

    async def process(self, messages: list[Any], undecodable_count: int = 0) -> None:
        if self.error:
            raise self.error
        self.taken.append((len(messages), undecodable_count))


@pytest.fixture
async def bus(short_dir: Path) -> AsyncIterator[AgentBus]:
    channel = open_channel(short_dir / "eventbus.sock")
    yield AgentBus(channel, wall_ns=lambda: 42, refused_pause_s=0.001)
    await channel.close()


async def stop(running: asyncio.Task[None]) -> None:
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_refused_subscription_is_asked_for_again_and_told(
    bus: AgentBus, eventually: Callable[..., Awaitable[None]]
) -> None:
    refusal = PermissionDeniedError("agent/agent may not subscribe; ask the operator")
    refusals: list[list[Item]] = [[BrokenError(refusal)] for _ in range(10_000)]
    fake = FakeSubscriber(*refusals)
    bus._subscription = fake  # type: ignore[assignment]
    running = asyncio.create_task(bus.run(FakePipeline()))  # type: ignore[arg-type]
    await eventually(lambda: "may not subscribe" in bus.refusal)
    assert (bus.is_subscribed, bus.since_ns) == (False, 0)
    fake.scripts.insert(0, [Opened("b")])
    await eventually(lambda: bus.is_subscribed)
    assert (bus.refusal, bus.since_ns) == ("", 42)
    asked = 10_001 - len(fake.scripts)
    await stop(running)
    assert fake.closed_count == asked > 1


async def test_messages_and_gaps_are_taken_in_order(
    bus: AgentBus, eventually: Callable[..., Awaitable[None]]
) -> None:
    message = eventbus_pb2.EventBusMessage()
    undecodable = ReceivedGroup(GroupEnvelope(count=2), b"no block")
    script: list[Item] = [
        Opened("b"),
        Delivery([undecodable, *Delivery.of_messages([message]).groups]),
        Gap(5, "queue_full"),
        Delivery.of_messages([message] * 3),
    ]
    bus._subscription = FakeSubscriber(script)  # type: ignore[assignment]
    pipeline = FakePipeline()
    running = asyncio.create_task(bus.run(pipeline))  # type: ignore[arg-type]
    await eventually(lambda: len(pipeline.taken) == 2)
    assert (pipeline.taken, bus.gap_count) == ([(1, 2), (3, 0)], 5)
    await stop(running)


async def test_every_beginning_of_the_subscription_is_told(
    bus: AgentBus, eventually: Callable[..., Awaitable[None]]
) -> None:
    opened: list[bool] = []
    bus.on_opened(lambda: opened.append(bus.is_subscribed))
    bus._subscription = FakeSubscriber([Opened("b"), Opened("c")])  # type: ignore[assignment]
    running = asyncio.create_task(bus.run(FakePipeline()))  # type: ignore[arg-type]
    await eventually(lambda: opened == [True, True])
    await stop(running)


async def test_defect_in_the_pipeline_ends_the_subscription(bus: AgentBus) -> None:
    fake = FakeSubscriber([Opened("b"), Delivery([])])
    bus._subscription = fake  # type: ignore[assignment]
    pipeline = FakePipeline()
    pipeline.error = LookupError("a defect")
    with pytest.raises(LookupError):
        await bus.run(pipeline)  # type: ignore[arg-type]
    assert fake.closed_count == 1


async def test_alerts_beyond_the_bound_are_counted(bus: AgentBus) -> None:
    message = eventbus_pb2.EventBusMessage()
    message.metadata.topic = "alerts.high.shells"
    for _ in range(MAX_WAITING_ALERTS + 3):
        bus.publish(message)
    assert bus.unpublished_count == 3


async def test_flush_does_not_wait_forever_for_a_broker_that_is_gone(bus: AgentBus) -> None:
    await bus.flush(5)  # nothing waits
    bus.publish(eventbus_pb2.EventBusMessage())
    await bus.flush(0.01)
