"""redis-py with hiredis: pipelines of PUBLISH, and ``PubSub.listen`` in a thread of its own.

A connection of Redis has a channel once, so each subscription is a connection, read by a thread.
"""

import asyncio
import threading
from importlib import import_module
from typing import Any

from benchmarks.bus_plan import PublishPlan, SubscribePlan
from benchmarks.bus_stamp import Tally

__all__ = ["Receiver", "Sender"]

redis: Any = import_module("redis")
"""Of the peers' interpreter; ours has it not."""

OPEN_TIMEOUT_S = 10.0


class Sender:
    """Publishes; a pipeline returns when the server has answered for all of it."""

    def __init__(self, plan: PublishPlan) -> None:
        self._topic = plan.link.topic
        self._client: Any = redis.Redis(unix_socket_path=plan.link.address)

    async def open(self) -> None:
        """Connects."""
        self._client.ping()

    async def send(self, frames: list[bytes]) -> None:
        """Publishes one pipeline."""
        pipeline = self._client.pipeline(transaction=False)
        for frame in frames:
            pipeline.publish(self._topic, frame)
        pipeline.execute()

    async def settle(self) -> None:
        """Does nothing: every pipeline was answered."""

    async def close(self) -> None:
        """Disconnects."""
        self._client.close()


class Receiver:
    """Subscribes; a thread feeds each tally."""

    def __init__(self, plan: SubscribePlan, tallies: list[Tally]) -> None:
        self._topic = plan.link.topic
        self._tallies = tallies
        self._client: Any = redis.Redis(unix_socket_path=plan.link.address)
        self._opened = [threading.Event() for _ in tallies]
        self._is_closing = False
        self.reconnects = 0

    async def open(self) -> None:
        """Starts the threads and waits for their subscriptions."""
        for tally, opened in zip(self._tallies, self._opened, strict=True):
            threading.Thread(target=self._listen, args=(tally, opened), daemon=True).start()
        for opened in self._opened:
            await asyncio.to_thread(opened.wait, OPEN_TIMEOUT_S)

    async def close(self) -> None:
        """Lets the threads end with the process."""
        self._is_closing = True

    def _listen(self, tally: Tally, opened: threading.Event) -> None:
        """Counts until the process ends; the client connects and subscribes again by itself."""
        take = tally.take
        with self._client.pubsub() as subscription:
            subscription.subscribe(self._topic)
            for message in subscription.listen():
                if message["type"] == "message":
                    take(message["data"])
                elif opened.is_set():
                    self.reconnects += 1
                else:
                    opened.set()
