"""Options of a subscription as the messages that ask for them, and what the broker answers."""

import math

from collector_core.bus.items import Delivery, Gap, Opened
from collector_core.bus.options import Duplicates, Guarantee, Overflow, SubscriptionOptions
from collector_core.bus.received_group import ReceivedGroup
from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2, subscription_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_mesh.topic import MULTI_WILDCARD, SINGLE_WILDCARD

__all__ = ["to_delivery", "to_gap", "to_open_request", "to_opened", "to_selection"]

_GUARANTEES = {
    Guarantee.AT_MOST_ONCE: subscription_pb2.DELIVERY_GUARANTEE_AT_MOST_ONCE,
    Guarantee.AT_LEAST_ONCE: subscription_pb2.DELIVERY_GUARANTEE_AT_LEAST_ONCE,
    Guarantee.EXACTLY_ONCE: subscription_pb2.DELIVERY_GUARANTEE_EXACTLY_ONCE,
}
_POLICIES = {
    Overflow.DROP_OLDEST: pb.OVERFLOW_POLICY_DROP_OLDEST,
    Overflow.DROP_NEWEST: pb.OVERFLOW_POLICY_DROP_NEWEST,
    Overflow.DISCONNECT: pb.OVERFLOW_POLICY_DISCONNECT,
    Overflow.BLOCK: pb.OVERFLOW_POLICY_BLOCK,
}
_DUPLICATES = {
    Duplicates.ALLOW: subscription_pb2.DUPLICATE_HANDLING_ALLOW_DUPLICATES,
    Duplicates.DROP: subscription_pb2.DUPLICATE_HANDLING_DROP_DUPLICATES,
    Duplicates.MERGE: subscription_pb2.DUPLICATE_HANDLING_MERGE_DUPLICATES,
}


def to_open_request(
    options: SubscriptionOptions, history_s: float | None, credit: int | None
) -> pb.SubscribeRequest:
    """Returns the request that opens a subscription.

    Args:
        options: what is asked for, but for the two below.
        history_s: see the option; None on a reconnect that wants nothing of the past.
        credit: what is left of it.
    """
    config = to_selection(options)
    config.subscriber_id = options.subscriber_id
    config.consumer_group = options.consumer_group
    config.qos_settings.CopyFrom(_to_qos(options))
    opening = pb.OpenSubscription(
        config=config,
        overflow_policy=_POLICIES[options.policy],
        max_queue_bytes=options.max_queue_bytes,
        grouped=True,
        block_timeout_ms=_to_ms(options.block_timeout_s),
        ack_timeout_ms=_to_ms(options.ack_timeout_s),
        max_unacknowledged_messages=options.max_unacknowledged,
        initial_credit=credit,
    )
    if history_s is not None:
        opening.history.max_age_ms = _to_ms(history_s)
        opening.history.max_messages = options.history_messages
        opening.history.SetInParent()
    return pb.SubscribeRequest(open=opening)


def to_selection(options: SubscriptionOptions) -> subscription_pb2.SubscriptionConfig:
    """Returns the patterns and filters alone."""
    patterns = [
        subscription_pb2.TopicPattern(
            pattern=pattern,
            wildcard_enabled=SINGLE_WILDCARD in pattern or MULTI_WILDCARD in pattern,
            priority=floor,
        )
        for pattern, floor in options.floors
    ]
    config = subscription_pb2.SubscriptionConfig(
        topic_patterns=patterns,
        message_type_filters=map(eventbus_pb2.MessageType.ValueType, options.message_types),
        event_type_filters=map(eventbus_pb2.EventType.ValueType, options.event_types),
    )
    wanted = subscription_pb2.CorrelationFilter(
        correlation_ids=options.correlation_ids,
        correlation_patterns=options.correlation_patterns,
        correlation_tags=options.correlation_tags,
        workflow_stages=options.workflow_stages,
        parent_correlation_ids=options.parent_correlation_ids,
        root_correlation_ids=options.root_correlation_ids,
        any_correlation_tags=options.any_correlation_tags,
        min_sequence_number=options.min_sequence_number,
        max_sequence_number=options.max_sequence_number,
    )
    if wanted.ByteSize():
        config.correlation_filter.CopyFrom(wanted)
    return config


def to_opened(opened: pb.SubscriptionOpened, life: int) -> Opened:
    """Reads the first answer."""
    return Opened(
        broker_epoch=opened.broker_epoch,
        resumed=opened.resumed,
        history_complete=opened.history_complete,
        position=opened.position,
        subscription_id=opened.subscription_id,
        max_queue_messages=opened.max_queue_messages,
        max_queue_bytes=opened.max_queue_bytes,
        life=life,
    )


def to_delivery(batch: frame_pb2.MessageBatchFrames, life: int) -> Delivery:
    """Reads a batch, in groups or not."""
    groups = [ReceivedGroup.of_message(frame) for frame in batch.messages]
    groups += map(ReceivedGroup.decode, batch.groups)
    return Delivery(groups, batch.position, batch.redelivered, life)


def to_gap(gap: pb.GapMarker) -> Gap:
    """Reads a gap."""
    known = pb.GapReason.values()
    number = gap.reason if gap.reason in known else pb.GAP_REASON_UNSPECIFIED
    reason = pb.GapReason.Name(number).removeprefix("GAP_REASON_").lower()
    return Gap(gap.dropped_count, reason, gap.dropped_bytes, gap.position)


def _to_qos(options: SubscriptionOptions) -> subscription_pb2.QosSettings:
    qos = subscription_pb2.QosSettings(
        delivery_guarantee=_GUARANTEES[options.guarantee],
        max_queue_depth=options.max_queue_messages,
        ordered_delivery=options.ordered,
        duplicate_handling=_DUPLICATES[options.duplicates],
    )
    if options.durable_for_s is not None:
        policy = subscription_pb2.RetentionPolicy(
            retention_duration_ms=_to_ms(options.durable_for_s),
            max_retained_messages=options.max_retained_messages,
            max_retained_size_bytes=options.max_retained_bytes,
        )
        qos.retention_policy.CopyFrom(policy)
    return qos


def _to_ms(seconds: float) -> int:
    return math.ceil(seconds * 1_000)
