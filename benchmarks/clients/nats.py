"""nats-py: publish in a loop with a flush now and then, callbacks with large pending limits.

With its own check of each subject switched off, as its documentation has it for hot paths. Five
subscriptions share one connection, which gets each event five times.
"""

import sys
from importlib import import_module
from typing import Any

from benchmarks.bus_plan import PublishPlan, SubscribePlan
from benchmarks.bus_stamp import Tally

__all__ = ["Receiver", "Sender"]

nats: Any = import_module("nats")
"""Of the peers' interpreter; ours has it not."""

PENDING_MESSAGES = 16 << 20
PENDING_BYTES = 4 << 30


class Sender:
    """Publishes; ``flush`` waits until the server has read everything."""

    def __init__(self, plan: PublishPlan) -> None:
        self._plan = plan
        self._client: Any = None

    async def open(self) -> None:
        """Connects."""
        self._client = await nats.connect(self._plan.link.address, skip_subject_validation=True)

    async def send(self, frames: list[bytes]) -> None:
        """Publishes; the client's flusher sends by itself, and is waited for when flat out."""
        publish, topic = self._client.publish, self._plan.link.topic
        for frame in frames:
            await publish(topic, frame)
        if not self._plan.rate:
            await self._client.flush()

    async def settle(self) -> None:
        """Waits for the server."""
        await self._client.flush()

    async def close(self) -> None:
        """Disconnects."""
        await self._client.close()


class Receiver:
    """Subscribes with callbacks."""

    def __init__(self, plan: SubscribePlan, tallies: list[Tally]) -> None:
        self._plan = plan
        self._tallies = tallies
        self._client: Any = None
        self.reconnects = 0

    async def open(self) -> None:
        """Connects and subscribes."""
        self._client = await nats.connect(
            self._plan.link.address, disconnected_cb=self._lost, error_cb=self._warn
        )
        for tally in self._tallies:
            await self._client.subscribe(
                self._plan.link.topic,
                cb=_callback(tally),
                pending_msgs_limit=PENDING_MESSAGES,
                pending_bytes_limit=PENDING_BYTES,
            )
        await self._client.flush()

    async def close(self) -> None:
        """Disconnects."""
        self._client._disconnected_cb = None
        await self._client.close()

    async def _lost(self) -> None:
        self.reconnects += 1

    async def _warn(self, error: Exception) -> None:
        print(f"nats: {error!r}", file=sys.stderr)


def _callback(tally: Tally) -> Any:
    take = tally.take

    async def callback(message: Any) -> None:
        take(message.data)

    return callback
