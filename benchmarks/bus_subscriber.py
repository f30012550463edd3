"""The subscribing process of the bus benchmark: ``python -m benchmarks.bus_subscriber PLAN``.

PLAN is a SubscribePlan as JSON. It prints ``open`` once the subscription stands, reads one JSON line
with what was offered, and prints a SubscribeReport when all of that has arrived or been announced as
dropped, or when nothing has come for a while.
"""

import asyncio
import json
import sys
import time
from bisect import bisect_left
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report import percentile
from collector_core.subscriber import BusSubscriber, Delivery, Gap, Opened
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.process import stop_with_parent
from daemoneye_mesh.token import FileTokenSource

__all__ = ["Offer", "Receiver", "SubscribePlan", "SubscribeReport"]

SILENCE_S = 5.0
"""Nothing for so long after all was offered: what is missing will not come."""
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class SubscribePlan:
    """What to receive."""

    subscriber_id: str
    pattern: str
    socket: str
    token_file: str
    measure_latency: bool = False
    skip_count: int = 0
    """Events at the beginning that are left out of the latencies: warm-up."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What was published, and the time between which the rate is taken."""

    offered: int
    begun_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class SubscribeReport:
    """What arrived."""

    delivered: int
    """Different events."""
    announced: int
    """Events that gap markers say were dropped."""
    missing: int
    """Events that the numbers say are missing."""
    duplicates: int
    gap_markers: int
    connections: int
    delivered_per_s: float
    """Between the two times of the offer."""
    latency_p50_s: float = 0.0
    latency_p99_s: float = 0.0
    latency_max_s: float = 0.0


class Receiver:
    """Counts what comes; it knows one publisher, whose events are numbered from 1."""

    def __init__(self, plan: SubscribePlan) -> None:
        self._plan = plan
        self._last = 0
        self._missing = 0
        self._duplicates = 0
        self._gap_markers = 0
        self._connections = 0
        self._latencies: list[float] = []
        self._times_ns: list[int] = []
        self._counts: list[int] = []
        self.delivered = 0
        self.announced = 0
        self.last_item_s = time.monotonic()

    def take(self, item: Opened | Delivery | Gap) -> None:
        """Counts one item of the subscription."""
        now_ns = time.monotonic_ns()
        self.last_item_s = now_ns / 1e9
        match item:
            case Opened():
                self._connections += 1
            case Gap(dropped_count=count):
                self._gap_markers += 1
                self.announced += count
            case Delivery(messages=messages):
                for message in messages:
                    self._count(message.metadata.source_sequence)
                if self._plan.measure_latency:
                    self._latencies += (self._latency_s(one, now_ns) for one in messages)
                self._times_ns.append(now_ns)
                self._counts.append(self.delivered)

    def report(self, offer: Offer) -> SubscribeReport:
        """What has come of an offer."""
        seen = SubscribeReport(
            delivered=self.delivered,
            announced=self.announced,
            missing=self._missing + max(0, offer.offered - self._last),
            duplicates=self._duplicates,
            gap_markers=self._gap_markers,
            connections=self._connections,
            delivered_per_s=self._rate(offer.begun_ns, offer.ended_ns),
        )
        steady = self._latencies[self._plan.skip_count :]
        if not steady:
            return seen
        p50_s, p99_s, max_s = (percentile(steady, share) for share in (0.5, 0.99, 1.0))
        latency = {"latency_p50_s": p50_s, "latency_p99_s": p99_s, "latency_max_s": max_s}
        return SubscribeReport(**{**asdict(seen), **latency})

    def _count(self, sequence: int) -> None:
        if sequence <= self._last:
            self._duplicates += 1
            return
        self._missing += sequence - self._last - 1
        self._last = sequence
        self.delivered += 1

    @staticmethod
    def _latency_s(message: eventbus_pb2.EventBusMessage, now_ns: int) -> float:
        return (now_ns - message.metadata.timestamp) / 1e9

    def _rate(self, begun_ns: int, ended_ns: int) -> float:
        first = bisect_left(self._times_ns, begun_ns)
        last = bisect_left(self._times_ns, ended_ns) - 1
        if last <= first:
            return 0.0
        span_s = (self._times_ns[last] - self._times_ns[first]) / 1e9
        return (self._counts[last] - self._counts[first]) / span_s


async def receive(plan: SubscribePlan) -> SubscribeReport:
    """Carries the plan out."""
    channel = open_channel(Path(plan.socket), FileTokenSource(Path(plan.token_file)).token)
    subscriber = BusSubscriber(channel, plan.subscriber_id, [plan.pattern])
    receiver = Receiver(plan)
    try:
        async with asyncio.TaskGroup() as group:
            taking = group.create_task(_take_all(subscriber, receiver), name="taking")
            offer = Offer(**json.loads(await asyncio.to_thread(sys.stdin.readline)))
            receiver.last_item_s = time.monotonic()
            while not _is_done(receiver, offer):  # noqa: ASYNC110 - silence is no event
                await asyncio.sleep(POLL_S)
            taking.cancel()
    finally:
        await channel.close()
    return receiver.report(offer)


async def _take_all(subscriber: BusSubscriber, receiver: Receiver) -> None:
    async with aclosing(subscriber.items()) as items:
        async for item in items:
            receiver.take(item)
            if isinstance(item, Opened):
                print("open", flush=True)


def _is_done(receiver: Receiver, offer: Offer) -> bool:
    if receiver.delivered + receiver.announced >= offer.offered:
        return True
    return time.monotonic() - receiver.last_item_s > SILENCE_S


if __name__ == "__main__":
    stop_with_parent()
    print(json.dumps(asdict(asyncio.run(receive(SubscribePlan(**json.loads(sys.argv[1])))))))
