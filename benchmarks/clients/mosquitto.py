"""paho-mqtt: quality of service 0, a network thread a client, no bound on what is queued.

A client of MQTT gets an event once, however many subscriptions match, so each is a client.
"""

import asyncio
import threading
from importlib import import_module
from typing import Any

from benchmarks.bus_plan import PublishPlan, SubscribePlan
from benchmarks.bus_stamp import Tally

__all__ = ["Receiver", "Sender"]

mqtt: Any = import_module("paho.mqtt.client")
"""Of the peers' interpreter; ours has it not."""

OPEN_TIMEOUT_S = 10.0
INFLIGHT_MESSAGES = 65_535


class Sender:
    """Publishes; when flat out, each batch is waited for until it was written to the socket."""

    def __init__(self, plan: PublishPlan) -> None:
        self._plan = plan
        self._client = _client()
        self._last: Any = None

    async def open(self) -> None:
        """Connects."""
        connected = threading.Event()
        self._client.on_connect = lambda *_rest: connected.set()
        self._client.connect(self._plan.link.address)
        self._client.loop_start()
        await asyncio.to_thread(connected.wait, OPEN_TIMEOUT_S)

    async def send(self, frames: list[bytes]) -> None:
        """Publishes."""
        publish, topic = self._client.publish, self._plan.link.topic
        for frame in frames:
            self._last = publish(topic, frame, 0)
        if not self._plan.rate:
            self._last.wait_for_publish()

    async def settle(self) -> None:
        """Waits until the last event was written to the socket."""
        self._last.wait_for_publish()

    async def close(self) -> None:
        """Disconnects."""
        self._client.disconnect()
        self._client.loop_stop()


class Receiver:
    """Subscribes; the network thread of each client feeds its tally."""

    def __init__(self, plan: SubscribePlan, tallies: list[Tally]) -> None:
        self._plan = plan
        self._pairs = [(_client(), tally) for tally in tallies]
        self.reconnects = 0

    async def open(self) -> None:
        """Connects and subscribes."""
        for client, tally in self._pairs:
            subscribed = threading.Event()
            client.on_message = _callback(tally)
            client.on_connect = self._subscribe
            client.on_subscribe = lambda *_rest, done=subscribed: done.set()
            client.connect(self._plan.link.address)
            client.on_disconnect = self._lost
            client.loop_start()
            await asyncio.to_thread(subscribed.wait, OPEN_TIMEOUT_S)

    async def close(self) -> None:
        """Disconnects."""
        for client, _tally in self._pairs:
            client.on_disconnect = None
            client.disconnect()
            client.loop_stop()

    def _subscribe(self, client: Any, *_rest: Any) -> None:
        client.subscribe(self._plan.link.topic, 0)

    def _lost(self, *_rest: Any) -> None:
        self.reconnects += 1


def _client() -> Any:
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport="unix")
    client.max_inflight_messages_set(INFLIGHT_MESSAGES)
    client.max_queued_messages_set(0)
    return client


def _callback(tally: Tally) -> Any:
    take = tally.take

    def callback(_client: Any, _state: Any, message: Any) -> None:
        take(message.payload)

    return callback
