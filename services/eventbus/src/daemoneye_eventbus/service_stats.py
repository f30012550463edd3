"""The counters of the broker as messages."""

from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import identity_stats_pb2, subscription_pb2
from daemoneye_eventbus.broker import Broker
from daemoneye_eventbus.flow import Flow
from daemoneye_eventbus.mailbox import MailboxCounters, OverflowPolicy
from daemoneye_eventbus.refusals import RefusalLog
from daemoneye_eventbus.subscription import DuplicateHandling, Subscription, SubscriptionTerms
from daemoneye_eventbus.tally import Tally

__all__ = ["encode_stats", "encode_subscriptions", "to_timestamp"]

MAX_LISTED = 256

_POLICIES = {
    OverflowPolicy.DROP_OLDEST: pb.OVERFLOW_POLICY_DROP_OLDEST,
    OverflowPolicy.DROP_NEWEST: pb.OVERFLOW_POLICY_DROP_NEWEST,
    OverflowPolicy.DISCONNECT: pb.OVERFLOW_POLICY_DISCONNECT,
    OverflowPolicy.BLOCK: pb.OVERFLOW_POLICY_BLOCK,
}
_DUPLICATES = {
    DuplicateHandling.ALLOW: subscription_pb2.DUPLICATE_HANDLING_ALLOW_DUPLICATES,
    DuplicateHandling.DROP: subscription_pb2.DUPLICATE_HANDLING_DROP_DUPLICATES,
    DuplicateHandling.MERGE: subscription_pb2.DUPLICATE_HANDLING_MERGE_DUPLICATES,
}


def encode_stats(
    broker: Broker, refusals: RefusalLog, epoch: str, started_at: Timestamp
) -> pb.GetBusStatsResponse:
    """Returns the counters since the start."""
    totals = broker.totals()
    return pb.GetBusStatsResponse(
        broker_epoch=epoch,
        started_at=started_at,
        published_count=totals.accepted,
        published_bytes=totals.accepted_bytes,
        refused_count={str(name): count for name, count in refusals.by_reason().items()},
        flow=_flow(totals.flow),
        topics=_topics(broker.topic_tallies()),
        subscription_count=totals.subscriptions,
        identities=_identities(broker, refusals),
        unrouted_count=totals.unrouted,
        retained_count=totals.retained,
        retained_bytes=totals.retained_bytes,
    )


def encode_subscriptions(broker: Broker) -> pb.ListSubscriptionsResponse:
    """Returns the subscriptions, oldest first."""
    return pb.ListSubscriptionsResponse(
        subscriptions=[_subscription(one) for one in broker.subscriptions()]
    )


def to_timestamp(epoch_ns: int) -> Timestamp:
    """Returns nanoseconds since the Unix epoch as a message."""
    stamp = Timestamp()
    stamp.FromNanoseconds(epoch_ns)
    return stamp


def _subscription(subscription: Subscription) -> pb.SubscriptionInfo:
    terms, mailbox = subscription.terms, subscription.mailbox
    return pb.SubscriptionInfo(
        subscription_id=subscription.id,
        subscriber_id=subscription.label,
        identity=subscription.identity,
        patterns=[pattern for pattern, _floor in terms.patterns],
        flow=_flow(mailbox.counters()),
        opened_at=to_timestamp(subscription.opened_at_ns),
        config=_config(subscription, terms),
        overflow_policy=_POLICIES[terms.limits.policy],
        max_queue_messages=terms.limits.max_messages,
        max_queue_bytes=terms.limits.max_bytes,
        is_attached=subscription.is_attached,
        is_paused=mailbox.is_paused,
    )


def _config(
    subscription: Subscription, terms: SubscriptionTerms
) -> subscription_pb2.SubscriptionConfig:
    """What was granted, in the words of whoever asked for it."""
    config = subscription_pb2.SubscriptionConfig(
        subscriber_id=subscription.label,
        topic_patterns=[
            subscription_pb2.TopicPattern(
                pattern=pattern, priority=floor, wildcard_enabled="+" in pattern or "#" in pattern
            )
            for pattern, floor in terms.patterns
        ],
        message_type_filters=sorted(terms.selection.message_types),  # type: ignore[arg-type]
        event_type_filters=sorted(terms.selection.event_types),  # type: ignore[arg-type]
        consumer_group=terms.consumer_group,
    )
    _fill_filter(config, terms)
    _fill_qos(config.qos_settings, terms)
    return config


def _fill_filter(config: subscription_pb2.SubscriptionConfig, terms: SubscriptionTerms) -> None:
    criteria = terms.selection.correlation
    if criteria is None:
        return
    config.correlation_filter.CopyFrom(
        subscription_pb2.CorrelationFilter(
            correlation_ids=sorted(criteria.ids),
            correlation_patterns=criteria.patterns,
            correlation_tags=criteria.required_tags,
            workflow_stages=sorted(criteria.stages),
            parent_correlation_ids=sorted(criteria.parent_ids),
            root_correlation_ids=sorted(criteria.root_ids),
            any_correlation_tags=criteria.any_tags,
            min_sequence_number=criteria.min_sequence,
            max_sequence_number=criteria.max_sequence,
        )
    )


def _fill_qos(qos: subscription_pb2.QosSettings, terms: SubscriptionTerms) -> None:
    qos.max_queue_depth = terms.limits.max_messages
    qos.ordered_delivery = terms.is_ordered
    qos.duplicate_handling = _DUPLICATES[terms.duplicates]
    if terms.acknowledges:
        qos.delivery_guarantee = subscription_pb2.DELIVERY_GUARANTEE_AT_LEAST_ONCE
    if terms.durability is not None:
        bounds = terms.durability.bounds
        qos.retention_policy.retention_duration_ms = round(terms.durability.duration_s * 1_000)
        qos.retention_policy.max_retained_messages = bounds.max_messages
        qos.retention_policy.max_retained_size_bytes = bounds.max_bytes


def _flow(counters: MailboxCounters | Flow) -> pb.FlowCounters:
    return pb.FlowCounters(
        offered_count=counters.offered,
        delivered_count=counters.delivered,
        dropped_count={str(reason): count for reason, count in counters.dropped.items()},
        pending_count=counters.pending,
        pending_bytes=counters.pending_bytes,
        filtered_count=counters.filtered,
        unacknowledged_count=counters.unacknowledged,
        redelivered_count=counters.redelivered,
    )


def _topics(tallies: Mapping[str, Tally]) -> list[pb.TopicStats]:
    return [
        pb.TopicStats(
            topic=topic,
            published_count=tally.messages,
            published_bytes=tally.size_bytes,
            offered_count=tally.offered,
            unrouted_count=tally.unrouted,
        )
        for topic, tally in _busiest(tallies)
    ]


def _identities(broker: Broker, refusals: RefusalLog) -> list[identity_stats_pb2.IdentityStats]:
    tallies, usages = broker.publisher_tallies(), broker.quota.usages()
    refused = refusals.by_identity()
    for name in (*usages, *refused):
        tallies.setdefault(name, Tally())
    listed = []
    for name, tally in _busiest(tallies):
        usage = usages.get(name)
        listed.append(
            identity_stats_pb2.IdentityStats(
                identity=name,
                published_count=tally.messages,
                published_bytes=tally.size_bytes,
                offered_count=tally.offered,
                refused_count={str(one): n for one, n in refused.get(name, {}).items()},
                stream_count=usage.streams if usage else 0,
                subscription_count=usage.subscriptions if usage else 0,
                granted_queue_bytes=usage.queue_bytes if usage else 0,
            )
        )
    return listed


def _busiest(tallies: Mapping[str, Tally]) -> list[tuple[str, Tally]]:
    ranked = sorted(tallies.items(), key=lambda item: item[1].messages, reverse=True)
    return ranked[:MAX_LISTED]
