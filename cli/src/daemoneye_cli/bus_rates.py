"""What the bus does per second, from the counters of two moments.

Pure: the broker's counters only rise within one of its lives, so a difference over the time between two
samples is a rate, and there is none across a restart of the broker.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from daemoneye.eventbus.v1 import eventbus_service_pb2
from daemoneye_cli.bus_flow import Flow, read_flow
from daemoneye_cli.bus_stats import (
    MAX_LISTED_TOPICS,
    Sample,
    Stats,
    Subscription,
    fill_of,
    state_of,
)

__all__ = ["Frame", "SubscriptionRates", "TopicRates", "compare"]

TopicStats = eventbus_service_pb2.TopicStats


@dataclass(frozen=True, slots=True)
class TopicRates:
    """One topic; a rate is None as long as there is no earlier sample to compare with."""

    topic: TopicStats
    published_per_s: float | None
    bytes_per_s: float | None

    def document(self) -> dict[str, Any]:
        """Returns it as JSON types."""
        return {
            "topic": self.topic.topic,
            "published_per_s": self.published_per_s,
            "bytes_per_s": self.bytes_per_s,
            "published_count": self.topic.published_count,
            "published_bytes": self.topic.published_bytes,
            "offered_count": self.topic.offered_count,
            "unrouted_count": self.topic.unrouted_count,
        }


@dataclass(frozen=True, slots=True)
class SubscriptionRates:
    """One subscription."""

    subscription: Subscription
    flow: Flow
    fill: float
    """How full its queue is, 0 to 1, in messages or bytes, whichever is fuller."""
    delivered_per_s: float | None
    dropped_per_s: float | None

    @property
    def slowness(self) -> tuple[float, float, int]:
        """Sorts the one that needs attention first."""
        return self.dropped_per_s or 0.0, self.fill, self.flow.pending

    def document(self) -> dict[str, Any]:
        """Returns it as JSON types."""
        return {
            "subscription_id": self.subscription.subscription_id,
            "subscriber_id": self.subscription.subscriber_id,
            "identity": self.subscription.identity,
            "state": state_of(self.subscription),
            "max_queue_messages": self.subscription.max_queue_messages,
            "max_queue_bytes": self.subscription.max_queue_bytes,
            "fill": round(self.fill, 4),
            "delivered_per_s": self.delivered_per_s,
            "dropped_per_s": self.dropped_per_s,
            **self.flow.document(),
        }


@dataclass(frozen=True, slots=True)
class Frame:
    """What ``bus top`` shows at once."""

    stats: Stats
    elapsed_s: float | None
    """Time that the rates are over; None without rates."""
    flow: Flow
    published_per_s: float | None
    bytes_per_s: float | None
    unrouted_per_s: float | None
    refused_per_s: float | None
    topics: tuple[TopicRates, ...]
    """Busiest first."""
    subscriptions: tuple[SubscriptionRates, ...]
    """The one that needs attention first."""

    @property
    def is_balanced(self) -> bool:
        """Whether every message of every subscription, and of all together, is accounted for."""
        flows = (self.flow, *(one.flow for one in self.subscriptions))
        return all(flow.unaccounted == 0 for flow in flows)

    def document(self, limit: int) -> dict[str, Any]:
        """Returns it as JSON types, with at most ``limit`` topics and subscriptions."""
        return {
            "broker_epoch": self.stats.broker_epoch,
            "elapsed_s": None if self.elapsed_s is None else round(self.elapsed_s, 6),
            "published_per_s": self.published_per_s,
            "bytes_per_s": self.bytes_per_s,
            "unrouted_per_s": self.unrouted_per_s,
            "refused_per_s": self.refused_per_s,
            "published_count": self.stats.published_count,
            "published_bytes": self.stats.published_bytes,
            "unrouted_count": self.stats.unrouted_count,
            "retained_count": self.stats.retained_count,
            "retained_bytes": self.stats.retained_bytes,
            "refused_count": dict(sorted(self.stats.refused_count.items())),
            "subscription_count": self.stats.subscription_count,
            "is_balanced": self.is_balanced,
            **self.flow.document(),
            "topics": [one.document() for one in self.topics[:limit]],
            "subscriptions": [one.document() for one in self.subscriptions[:limit]],
        }


def compare(now: Sample, before: Sample | None) -> Frame:
    """Returns what happened between two samples; without rates when they do not belong together."""
    if before is not None and before.stats.broker_epoch != now.stats.broker_epoch:
        before = None
    pace = _Pace(now.taken_s - before.taken_s if before is not None else 0.0)
    stats, earlier = now.stats, before.stats if before is not None else Stats()
    topics = (_topic(one, _topics_of(earlier), pace) for one in stats.topics)
    known = {one.subscription_id: one for one in (before.subscriptions if before else ())}
    subscriptions = (_subscription(one, known, pace) for one in now.subscriptions)
    return Frame(
        stats=stats,
        elapsed_s=pace.elapsed_s or None,
        flow=read_flow(stats.flow),
        published_per_s=pace.rate(stats.published_count, earlier.published_count),
        bytes_per_s=pace.rate(stats.published_bytes, earlier.published_bytes),
        unrouted_per_s=pace.rate(stats.unrouted_count, earlier.unrouted_count),
        refused_per_s=pace.rate(_refused(stats), _refused(earlier)),
        topics=tuple(sorted(topics, key=_busiest_first)),
        subscriptions=tuple(sorted(subscriptions, key=lambda one: one.slowness, reverse=True)),
    )


@dataclass(frozen=True, slots=True)
class _Pace:
    """Makes rates of differences."""

    elapsed_s: float
    """0 when there is nothing to compare with."""

    def rate(self, now: int, before: int) -> float | None:
        if self.elapsed_s <= 0 or now < before:
            return None
        return round((now - before) / self.elapsed_s, 1)


def _topic(topic: TopicStats, earlier: Mapping[str, TopicStats], pace: _Pace) -> TopicRates:
    before = earlier.get(topic.topic)
    if before is None and len(earlier) >= MAX_LISTED_TOPICS:
        return TopicRates(topic, None, None)  # it may have been past the end of the list before
    before = before or TopicStats()
    return TopicRates(
        topic,
        pace.rate(topic.published_count, before.published_count),
        pace.rate(topic.published_bytes, before.published_bytes),
    )


def _subscription(
    subscription: Subscription, earlier: Mapping[str, Subscription], pace: _Pace
) -> SubscriptionRates:
    flow = read_flow(subscription.flow)
    # A new one began at zero after the earlier sample, so its rates are its counters.
    before = read_flow(earlier.get(subscription.subscription_id, Subscription()).flow)
    return SubscriptionRates(
        subscription,
        flow,
        fill_of(subscription),
        pace.rate(flow.delivered, before.delivered),
        pace.rate(flow.dropped_count, before.dropped_count),
    )


def _topics_of(stats: Stats) -> dict[str, TopicStats]:
    return {one.topic: one for one in stats.topics}


def _busiest_first(one: TopicRates) -> tuple[float, int, str]:
    return -(one.published_per_s or 0.0), -one.topic.published_count, one.topic.topic


def _refused(stats: Stats) -> int:
    return sum(stats.refused_count.values())
