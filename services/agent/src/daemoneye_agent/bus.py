"""The agent on the event bus: hears events, says alerts.

Alerts go out through a bounded outbox; they are stored before, so one that does not fit is counted,
logged and still found by ``ListAlerts``.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

import grpc.aio

from collector_core.bus import (
    BrokenError,
    BusPublisher,
    BusSubscription,
    Delivery,
    Gap,
    Opened,
    Outbox,
    SubscriptionOptions,
    to_outbox_message,
)
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_agent.pipeline import Pipeline

__all__ = ["EVENT_PATTERN", "AgentBus"]

EVENT_PATTERN = "events.#"
"""All of them: who left some out would see gaps in the numbers of a source."""
QUEUE_MESSAGES = 200_000
MAX_WAITING_ALERTS = 10_000
MAX_WAITING_BYTES = 32 << 20
REFUSED_PAUSE_S = 10.0

log = logging.getLogger("daemoneye.bus")


class AgentBus:
    """One subscription and one publisher over one channel.

    Args:
        channel: channel to the broker.
        wall_ns: wall clock, for display.
        refused_pause_s: pause before a subscription that was refused is asked for again.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        wall_ns: Callable[[], int] = time.time_ns,
        refused_pause_s: float = REFUSED_PAUSE_S,
    ) -> None:
        options = SubscriptionOptions(
            [EVENT_PATTERN], subscriber_id="agent", max_queue_messages=QUEUE_MESSAGES
        )
        self._subscription = BusSubscription(channel, options)
        self._outbox = Outbox(MAX_WAITING_ALERTS, MAX_WAITING_BYTES)
        self.publisher = BusPublisher(channel, self._outbox)
        self._wall_ns = wall_ns
        self._refused_pause_s = refused_pause_s
        self._since_ns = 0
        self._note_opened: Callable[[], None] = _ignore
        self.refusal = ""
        """Why the broker refuses the subscription; empty while it does not."""
        self.unpublished_count = 0
        """Alerts that found the outbox full."""
        self.gap_count = 0
        """Messages that the broker dropped for us."""

    @property
    def is_subscribed(self) -> bool:
        """Whether events arrive."""
        return self._subscription.is_connected

    @property
    def since_ns(self) -> int:
        """Since when events arrive; 0 while they do not."""
        return self._since_ns if self.is_subscribed else 0

    def publish(self, message: eventbus_pb2.EventBusMessage) -> None:
        """Queues an alert for the bus."""
        if not self._outbox.put_nowait(to_outbox_message(message)):
            self.unpublished_count += 1
            log.error(
                "alert %s is stored but not published: the bus does not take it",
                message.metadata.topic,
            )

    def on_opened(self, note_opened: Callable[[], None]) -> None:
        """Calls back each time the subscription begins anew; what came before may be missing."""
        self._note_opened = note_opened

    async def flush(self, timeout_s: float) -> None:
        """Waits until the broker has taken the alerts that are queued, but not forever."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._outbox.wait_empty()
        except TimeoutError:
            log.warning(
                "%d alerts are stored but not published before the end", self._outbox.pending_count
            )

    async def run(self, pipeline: Pipeline) -> None:
        """Takes everything that arrives through ``pipeline`` until cancelled.

        A broker that refuses the subscription is asked again and again: queries over what is stored
        go on meanwhile, and say that new events do not arrive.
        """
        while True:
            try:
                await self._take_all(pipeline)
            except BrokenError as error:
                self.refusal = error.message
                log.error("the broker refuses the subscription: %s", error.message)
            await asyncio.sleep(self._refused_pause_s)

    async def _take_all(self, pipeline: Pipeline) -> None:
        async with aclosing(self._subscription.items()) as items:
            async for item in items:
                match item:
                    case Opened():
                        self._since_ns = self._wall_ns()
                        self.refusal = ""
                        log.info("subscribed to %s", EVENT_PATTERN)
                        self._note_opened()
                    case Delivery():
                        await pipeline.process(item.messages, item.undecodable_count)
                    case Gap(count, reason):
                        self.gap_count += count
                        log.error("the broker dropped %d events for us: %s", count, reason)


def _ignore() -> None:
    """Nobody wants to know."""
