"""Writes the counters of the broker as messages."""

from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_eventbus.broker import Broker, BrokerTotals, Subscription
from daemoneye_eventbus.mailbox import MailboxCounters
from daemoneye_eventbus.tally import Tally

__all__ = ["encode_stats", "encode_subscriptions", "to_timestamp"]

MAX_LISTED_TOPICS = 256


def encode_stats(broker: Broker, epoch: str, started_at: Timestamp) -> pb.GetBusStatsResponse:
    """Returns the counters since the start."""
    totals = broker.totals()
    return pb.GetBusStatsResponse(
        broker_epoch=epoch,
        started_at=started_at,
        published_count=totals.accepted,
        published_bytes=totals.accepted_bytes,
        refused_count={str(reason): count for reason, count in totals.refused.items()},
        flow=_flow(totals),
        topics=_topics(broker.topic_tallies()),
        subscription_count=totals.subscriptions,
    )


def encode_subscriptions(broker: Broker) -> pb.ListSubscriptionsResponse:
    """Returns the open subscriptions, oldest first."""
    return pb.ListSubscriptionsResponse(
        subscriptions=[_subscription(one) for one in broker.subscriptions()]
    )


def to_timestamp(epoch_ns: int) -> Timestamp:
    """Returns nanoseconds since the Unix epoch as a message."""
    stamp = Timestamp()
    stamp.FromNanoseconds(epoch_ns)
    return stamp


def _subscription(subscription: Subscription) -> pb.SubscriptionInfo:
    return pb.SubscriptionInfo(
        subscription_id=subscription.id,
        subscriber_id=subscription.label,
        identity=subscription.identity,
        patterns=subscription.patterns,
        flow=_flow(subscription.mailbox.counters()),
        opened_at=to_timestamp(subscription.opened_at_ns),
    )


def _flow(counters: MailboxCounters | BrokerTotals) -> pb.FlowCounters:
    return pb.FlowCounters(
        offered_count=counters.offered,
        delivered_count=counters.delivered,
        dropped_count={str(reason): count for reason, count in counters.dropped.items()},
        pending_count=counters.pending,
        pending_bytes=counters.pending_bytes,
    )


def _topics(tallies: Mapping[str, Tally]) -> list[pb.TopicStats]:
    busiest = sorted(tallies.items(), key=lambda item: item[1].messages, reverse=True)
    return [
        pb.TopicStats(topic=topic, published_count=tally.messages, published_bytes=tally.size_bytes)
        for topic, tally in busiest[:MAX_LISTED_TOPICS]
    ]
