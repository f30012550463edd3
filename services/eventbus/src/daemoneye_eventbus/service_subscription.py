"""Reads what a subscriber asks for, and writes what it is told.

Invariant: every setting of ``OpenSubscription`` is honoured or refused (MUST-SUB-01); positions on
the wire count from 1, those of a mailbox from 0.
"""

from typing import NoReturn

from google.protobuf.message import Message

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2, subscription_pb2
from daemoneye_eventbus.broker import Broker, BrokerLimits, Subscription
from daemoneye_eventbus.errors import (
    BrokerDrainingError,
    InvalidSubscriptionError,
    SlowConsumerError,
    UnsupportedSettingError,
)
from daemoneye_eventbus.mailbox import (
    Batch,
    Closed,
    CloseReason,
    DropReason,
    Gap,
    Mailbox,
    MailboxLimits,
    OverflowPolicy,
)
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.errors import ErrorReason, InternalError
from daemoneye_mesh.identity import Caller
from daemoneye_mesh.topic import (
    MULTI_WILDCARD,
    SINGLE_WILDCARD,
    InvalidPatternError,
    validate_pattern,
)

__all__ = ["encode_delivery", "encode_opened", "open_subscription", "raise_end"]

MAX_LABEL_BYTES = 128
MAX_PATTERN_LABELS = 64
MAX_PATTERN_PRIORITY = 255

_POLICIES = {
    pb.OVERFLOW_POLICY_UNSPECIFIED: OverflowPolicy.DROP_OLDEST,
    pb.OVERFLOW_POLICY_DROP_OLDEST: OverflowPolicy.DROP_OLDEST,
    pb.OVERFLOW_POLICY_DROP_NEWEST: OverflowPolicy.DROP_NEWEST,
    pb.OVERFLOW_POLICY_DISCONNECT: OverflowPolicy.DISCONNECT,
}
_GAP_REASONS = {
    DropReason.DROPPED_OLDEST: pb.GAP_REASON_DROPPED_OLDEST,
    DropReason.DROPPED_NEWEST: pb.GAP_REASON_DROPPED_NEWEST,
    DropReason.CLOSED: pb.GAP_REASON_UNSPECIFIED,
}


def open_subscription(
    broker: Broker, request: pb.OpenSubscription, caller: Caller, access: AccessTable
) -> Subscription:
    """Opens what is asked for, once everything in it is known to be allowed and honoured.

    Raises:
        InvalidSubscriptionError: a setting is out of range or an enum value unknown.
        InvalidPatternError: a pattern breaks the grammar.
        PermissionDeniedError: the access table does not grant a pattern.
        UnsupportedSettingError: a setting which this broker does not honour.
        OverloadedError: too many subscriptions are open.
        BrokerDrainingError: the broker is shutting down.
    """
    config = request.config
    _check_label(config.subscriber_id)
    _check_filters(config)
    patterns = [_read_pattern(pattern) for pattern in config.topic_patterns]
    for pattern in patterns:
        access.require_subscribe(caller, pattern)
    limits = _read_limits(request, broker.limits)
    return broker.subscribe(caller.identity.name, patterns, limits, config.subscriber_id)


def encode_opened(subscription: Subscription, broker_epoch: str) -> pb.SubscribeResponse:
    """Returns the first response of a subscription."""
    limits = subscription.mailbox.limits
    opened = pb.SubscriptionOpened(
        subscription_id=subscription.id,
        max_queue_messages=limits.max_messages,
        max_queue_bytes=limits.max_bytes,
        broker_epoch=broker_epoch,
    )
    return pb.SubscribeResponse(opened=opened)


def encode_delivery(delivery: Batch | Gap) -> Message:
    """Returns the response for a delivery; batches as the twin message of opaque frames."""
    if isinstance(delivery, Gap):
        gap = pb.GapMarker(
            dropped_count=delivery.count,
            dropped_bytes=delivery.size_bytes,
            reason=_GAP_REASONS[delivery.reason],
            position=delivery.last_position + 1,
        )
        return pb.SubscribeResponse(gap=gap)
    position = delivery.first_position + len(delivery.frames)
    batch = frame_pb2.MessageBatchFrames(messages=delivery.frames, position=position)
    return frame_pb2.SubscribeFrames(batch=batch)


def raise_end(mailbox: Mailbox, end: Closed) -> NoReturn:
    """Raises the status with which a subscription ends that its subscriber did not end.

    Raises:
        SlowConsumerError: its queue overflowed under the policy ``disconnect``.
        BrokerDrainingError: the broker is shutting down.
        InternalError: somebody unsubscribed it while its stream was open.
    """
    match end.reason:
        case CloseReason.SLOW_CONSUMER:
            raise SlowConsumerError(mailbox.limits.max_messages, mailbox.limits.max_bytes)
        case CloseReason.DRAINING:
            raise BrokerDrainingError
        case CloseReason.UNSUBSCRIBED | CloseReason.REFUSED:
            raise InternalError("the subscription ended unexpectedly; subscribe again")


def _read_pattern(asked: subscription_pb2.TopicPattern) -> str:
    segments = validate_pattern(asked.pattern)
    has_wildcard = SINGLE_WILDCARD in segments or MULTI_WILDCARD in segments
    if has_wildcard and not asked.wildcard_enabled:
        raise InvalidPatternError(
            asked.pattern,
            "it has a wildcard although wildcard_enabled is false",
            "set wildcard_enabled or name one topic",
        )
    if asked.priority > MAX_PATTERN_PRIORITY:
        raise _out_of_range("priority of a pattern", asked.priority, MAX_PATTERN_PRIORITY)
    if asked.priority:
        raise UnsupportedSettingError("priority of a pattern", "leave it 0")
    if len(asked.metadata) > MAX_PATTERN_LABELS:
        raise _out_of_range("metadata of a pattern", len(asked.metadata), MAX_PATTERN_LABELS)
    return asked.pattern


def _read_limits(request: pb.OpenSubscription, limits: BrokerLimits) -> MailboxLimits:
    qos = request.config.qos_settings
    _check_qos(qos)
    policy = _POLICIES.get(request.overflow_policy)
    if policy is None:
        raise _unknown_enum("overflow_policy", request.overflow_policy)
    return MailboxLimits(
        max_messages=qos.max_queue_depth or limits.default_mailbox_messages,
        max_bytes=request.max_queue_bytes or limits.max_mailbox_bytes,
        policy=policy,
    )


def _check_label(label: str) -> None:
    size_bytes = len(label.encode())
    if size_bytes > MAX_LABEL_BYTES:
        raise _out_of_range("size of subscriber_id", size_bytes, MAX_LABEL_BYTES)
    if not label.isprintable():
        raise InvalidSubscriptionError(
            "subscriber_id has a control character; use a name that can be shown"
        )


def _check_filters(config: subscription_pb2.SubscriptionConfig) -> None:
    if config.message_type_filters:
        raise UnsupportedSettingError("message_type_filters", "filter by topic")
    if config.event_type_filters:
        raise UnsupportedSettingError("event_type_filters", "filter by topic")
    # An empty filter lets everything through, which needs nothing of us.
    if config.correlation_filter.ByteSize():
        raise UnsupportedSettingError("correlation_filter", "filter by topic")


def _check_qos(qos: subscription_pb2.QosSettings) -> None:
    if qos.delivery_guarantee not in subscription_pb2.DeliveryGuarantee.values():
        raise _unknown_enum("delivery_guarantee", qos.delivery_guarantee)
    if qos.duplicate_handling not in subscription_pb2.DuplicateHandling.values():
        raise _unknown_enum("duplicate_handling", qos.duplicate_handling)
    if qos.delivery_guarantee != subscription_pb2.DELIVERY_GUARANTEE_AT_MOST_ONCE:
        raise UnsupportedSettingError(
            "this delivery_guarantee", "take AT_MOST_ONCE and replay what a gap says is missing"
        )
    if qos.duplicate_handling != subscription_pb2.DUPLICATE_HANDLING_ALLOW_DUPLICATES:
        raise UnsupportedSettingError(
            "this duplicate_handling",
            "take ALLOW_DUPLICATES and tell repeats by source, epoch and sequence",
        )
    if qos.HasField("retention_policy"):
        raise UnsupportedSettingError("retention_policy", "leave it out")


def _out_of_range(what: str, value: int, maximum: int) -> InvalidSubscriptionError:
    return InvalidSubscriptionError(
        f"{what} is {value}; use at most {maximum}", setting=what, value=value, maximum=maximum
    )


def _unknown_enum(what: str, value: int) -> InvalidSubscriptionError:
    return InvalidSubscriptionError(
        f"{what} {value} is unknown; use a value of the contract",
        reason=ErrorReason.ENUM_UNKNOWN,
        setting=what,
        value=value,
    )
