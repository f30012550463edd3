"""collector_core.bus: events into the outbox as they are made, frames of groups as they arrive.

The subscriber has the agent's identity and asks that publishers wait when its queue is full, as the
agent may: what is published is delivered, and nothing else holds the publisher back. Neither side
encodes or decodes the event, as with every system here.
"""

import asyncio
import time
from contextlib import aclosing, suppress
from pathlib import Path

from benchmarks.bus_plan import PublishPlan, SubscribePlan
from benchmarks.bus_stamp import Tally
from benchmarks.report import BenchmarkError
from collector_core.bus import (
    BusPublisher,
    BusSubscription,
    Delivery,
    EnvelopeKey,
    Gap,
    Guarantee,
    LinkState,
    Opened,
    Outbox,
    Overflow,
    SubscriptionOptions,
)
from collector_core.settings import CollectorSettings
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.token import FileTokenSource

__all__ = ["Receiver", "Sender"]

SOURCE_ID = "bench"
OPEN_TIMEOUT_S = 10.0
BLOCK_TIMEOUT_S = 5.0


class Sender:
    """Publishes with the bounds that a collector has by default."""

    def __init__(self, plan: PublishPlan) -> None:
        link, defaults = plan.link, CollectorSettings()
        self._channel = open_channel(
            Path(link.address), FileTokenSource(Path(link.token_file)).token
        )
        self._outbox = Outbox(defaults.outbox_messages, defaults.outbox_bytes)
        self._publisher = BusPublisher(self._channel, self._outbox)
        self._key = EnvelopeKey(topic=link.topic, source_id=SOURCE_ID, epoch=time.time_ns())
        self._running: asyncio.Task[None] | None = None
        self._sent = 0

    async def open(self) -> None:
        """Connects."""
        self._running = asyncio.create_task(self._publisher.run())
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await self._publisher.wait_for_state(LinkState.READY)

    async def send(self, frames: list[bytes]) -> None:
        """Puts them into the outbox, which makes us wait when it is full."""
        await self._outbox.put_many(frames, self._key, self._sent + 1)
        self._sent += len(frames)

    async def settle(self) -> None:
        """Waits until the broker has answered for everything.

        Raises:
            BenchmarkError: it refused some.
        """
        await self._outbox.wait_empty()
        if self._outbox.refused_count:
            raise BenchmarkError(f"the broker refused events: {dict(self._outbox.refused_count)}")

    async def close(self) -> None:
        """Disconnects."""
        await _end(self._running)
        await self._channel.close()


class Receiver:
    """Subscribes; several subscriptions are streams of one channel."""

    def __init__(self, plan: SubscribePlan, tallies: list[Tally]) -> None:
        link = plan.link
        self._channel = open_channel(
            Path(link.address), FileTokenSource(Path(link.token_file)).token
        )
        self._options = SubscriptionOptions(
            patterns=[link.topic],
            guarantee=Guarantee(link.guarantee),
            policy=Overflow.BLOCK,
            block_timeout_s=BLOCK_TIMEOUT_S,
        )
        self._tallies = tallies
        self._opened = [asyncio.Event() for _ in tallies]
        self._running: list[asyncio.Task[None]] = []
        self.reconnects = 0

    async def open(self) -> None:
        """Subscribes and waits for the broker's word."""
        pairs = zip(self._tallies, self._opened, strict=True)
        self._running = [asyncio.create_task(self._receive(*pair)) for pair in pairs]
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            for opened in self._opened:
                await opened.wait()

    async def close(self) -> None:
        """Disconnects."""
        for task in self._running:
            await _end(task)
        await self._channel.close()

    async def _receive(self, tally: Tally, opened: asyncio.Event) -> None:
        subscription = BusSubscription(self._channel, self._options)
        async with aclosing(subscription.items()) as items:
            async for item in items:
                match item:
                    case Opened():
                        self.reconnects += opened.is_set()
                        opened.set()
                    case Gap(dropped_count=count):
                        tally.announced += count
                    case Delivery():
                        for group in item.groups:
                            tally.take_all(group.frames)
                        if self._options.acknowledges:
                            await subscription.acknowledge(item)


async def _end(task: "asyncio.Task[None] | None") -> None:
    """Cancels a task and takes its failure, if it had one, as ours."""
    if task is None:
        return
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
