"""The agent in the loop of a test: registry, and its half of delivery for every collector.

Events come to it through the fake bus. It stores each once, acknowledges what it has when asked to or
by itself, asks for what is missing, and calls what collectors serve.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import grpc.aio

from collector_core.testing.changes import DEFAULT_TIMEOUT_S, Changes
from collector_core.testing.delivery import DeliveryRecord, SequenceRange
from collector_core.testing.peer import CollectorPeer
from collector_core.testing.seen_event import SeenEvent
from collector_core.testing.service_registry import FakeRegistry, IssueToken
from daemoneye.agent.v1 import registry_service_pb2
from daemoneye.eventbus.v1 import collection_gap_pb2, eventbus_pb2
from daemoneye_mesh.errors import DaemoneyeError

__all__ = ["FakeAgent"]

ACKNOWLEDGE_RETRY_S = 0.1
REPLAY_RETRY_S = 1.0
"""What was asked for and does not come is asked for again after this long."""

log = logging.getLogger("daemoneye.testing.agent")

OpenChannel = Callable[[str], grpc.aio.Channel]


class FakeAgent(FakeRegistry):
    """The agent, as far as collectors can tell.

    Args:
        issue: issues tokens.
        changes: is told of everything that arrives.
        open_channel: opens a channel to a collector, with tokens of the agent.
    """

    def __init__(self, issue: IssueToken, changes: Changes, open_channel: OpenChannel) -> None:
        super().__init__(issue, changes)
        self.auto_acknowledge = False
        """Whether what has arrived is acknowledged by itself."""
        self.events: list[SeenEvent] = []
        """What has arrived of all collectors, each event once."""
        self.other_messages: list[eventbus_pb2.EventBusMessage] = []
        """Messages that hold no event, such as heartbeats on the bus."""
        self._open_channel = open_channel
        self._records: dict[str, DeliveryRecord] = {}
        self._peers: dict[str, tuple[CollectorPeer, grpc.aio.Channel]] = {}
        self._stored = asyncio.Event()

    def collector(self, collector_id: str) -> CollectorPeer:
        """Returns a collector: what it serves, and what of its events has arrived."""
        if collector_id not in self._peers:
            channel = self._open_channel(collector_id)
            peer = CollectorPeer(collector_id, channel, self._record(collector_id))
            self._peers[collector_id] = (peer, channel)
        return self._peers[collector_id][0]

    def events_on(self, topic_pattern: str) -> list[SeenEvent]:
        """Returns the events whose topic matches a pattern."""
        return [event for event in self.events if event.is_on(topic_pattern)]

    def gaps(self) -> list[collection_gap_pb2.CollectionGapData]:
        """The times in which collectors say that they did not see everything."""
        kind = collection_gap_pb2.CollectionGapData
        return [event.data for event in self.events if isinstance(event.data, kind)]

    def missing(self) -> dict[str, list[SequenceRange]]:
        """What was given out and has not arrived, by collector; empty when nothing is missing."""
        holes = {one: record.missing() for one, record in self._records.items()}
        return {one: ranges for one, ranges in holes.items() if ranges}

    async def acknowledge(self) -> None:
        """Acknowledges everything that has arrived without a hole."""
        for collector_id in sorted(self._records):
            await self.collector(collector_id).acknowledge()

    async def replay(self) -> None:
        """Asks every collector for what is missing; settles what cannot be had any more."""
        for collector_id in sorted(self.missing()):
            await self.collector(collector_id).replay()

    async def catch_up(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Asks for what is missing until nothing is, as the real agent does.

        Raises:
            ConditionTimeoutError: something does not come.
        """
        asked: dict[tuple[str, SequenceRange], float] = {}

        async def ask() -> bool:
            for collector_id, ranges in self.missing().items():
                for one in ranges:
                    if not _was_asked(asked, collector_id, one):
                        asked[collector_id, one] = time.monotonic()
                        await self.collector(collector_id).replay(one.epoch, one.first, one.last)
            return not self.missing()

        await self._changes.until(ask, "nothing is missing", timeout_s)

    def store(self, message: eventbus_pb2.EventBusMessage) -> None:
        """Takes a message from the bus."""
        event = SeenEvent.of(message)
        if event is None:
            self.other_messages.append(message)
        elif self._record(event.source_id).store(event):
            self.events.append(event)
            self._stored.set()

    def note(self, heartbeat: registry_service_pb2.HeartbeatRequest) -> None:
        """Takes from a heartbeat how far the log of a collector goes."""
        self._record(heartbeat.collector_id).learn(heartbeat.log_positions)

    async def run(self) -> None:
        """Acknowledges what arrives while ``auto_acknowledge`` is set; until cancelled."""
        while True:
            await self._stored.wait()
            self._stored.clear()
            if self.auto_acknowledge and not await self._try_acknowledge():
                self._stored.set()
                await asyncio.sleep(ACKNOWLEDGE_RETRY_S)

    async def close(self) -> None:
        """Closes the channels to collectors."""
        peers, self._peers = self._peers, {}
        for _, channel in peers.values():
            await channel.close()

    def describe(self) -> Sequence[str]:
        """Lines about what has arrived, for errors."""
        lines = [
            f"registrations: {len(self.registrations)}, heartbeats: {self.heartbeat_count},"
            f" departures: {len(self.departures)}"
        ]
        for collector_id, record in sorted(self._records.items()):
            lease = "registered" if self.is_registered(collector_id) else "not registered"
            lines.append(
                f"{collector_id}: {lease}, {len(record.events)} events stored,"
                f" {record.repeat_count} repeats, missing: {record.missing()}"
            )
        return lines

    def _record(self, collector_id: str) -> DeliveryRecord:
        return self._records.setdefault(collector_id, DeliveryRecord())

    async def _try_acknowledge(self) -> bool:
        try:
            await self.acknowledge()
        except (
            DaemoneyeError
        ) as error:  # it is away, or keeps no log: asked again with its next event
            log.debug("not acknowledged: %s", error.message)
            return not error.retryable
        return True


def _was_asked(
    asked: dict[tuple[str, SequenceRange], float], collector_id: str, wanted: SequenceRange
) -> bool:
    since_s = time.monotonic() - REPLAY_RETRY_S
    return any(
        asked_s > since_s and who == collector_id and one.contains(wanted)
        for (who, one), asked_s in asked.items()
    )
