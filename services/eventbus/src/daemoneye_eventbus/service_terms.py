"""Reads what a subscriber asks for into the broker's terms.

Invariant: every setting of ``OpenSubscription`` is honoured or refused (MUST-SUB-01).
"""

from collections.abc import Collection
from dataclasses import dataclass

from daemoneye.eventbus.v1 import eventbus_pb2, subscription_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_eventbus.broker import BrokerLimits
from daemoneye_eventbus.errors import (
    InvalidSubscriptionError,
    UnsupportedSettingError,
    require_within,
)
from daemoneye_eventbus.mailbox import (
    Acknowledgement,
    MailboxLimits,
    OverflowPolicy,
    Retention,
)
from daemoneye_eventbus.selection import CorrelationCriteria, Selection
from daemoneye_eventbus.subscription import (
    DuplicateHandling,
    Durability,
    HistoryTerms,
    SubscriptionTerms,
)
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.errors import ErrorReason
from daemoneye_mesh.identity import Caller
from daemoneye_mesh.topic import (
    MULTI_WILDCARD,
    SINGLE_WILDCARD,
    InvalidPatternError,
    validate_pattern,
)

__all__ = ["TermsReader"]

MAX_LABEL_BYTES = 128
MAX_GROUP_CHARACTERS = 64
MAX_PATTERN_LABELS = 64
MAX_FLOOR = 255
MAX_FILTER_TYPES = 64
MAX_CREDIT = 2**31 - 1

DEFAULT_BLOCK_MS, MAX_BLOCK_MS = 1_000, 5_000
DEFAULT_ACK_MS, MIN_ACK_MS, MAX_ACK_MS = 30_000, 100, 3_600_000
MAX_RETENTION_MS = 3_600_000

_GROUP_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_POLICIES = {
    pb.OVERFLOW_POLICY_UNSPECIFIED: OverflowPolicy.DROP_OLDEST,
    pb.OVERFLOW_POLICY_DROP_OLDEST: OverflowPolicy.DROP_OLDEST,
    pb.OVERFLOW_POLICY_DROP_NEWEST: OverflowPolicy.DROP_NEWEST,
    pb.OVERFLOW_POLICY_DISCONNECT: OverflowPolicy.DISCONNECT,
    pb.OVERFLOW_POLICY_BLOCK: OverflowPolicy.BLOCK,
}
_DUPLICATES = {
    subscription_pb2.DUPLICATE_HANDLING_ALLOW_DUPLICATES: DuplicateHandling.ALLOW,
    subscription_pb2.DUPLICATE_HANDLING_DROP_DUPLICATES: DuplicateHandling.DROP,
    subscription_pb2.DUPLICATE_HANDLING_MERGE_DUPLICATES: DuplicateHandling.MERGE,
}
_GUARANTEES = frozenset(subscription_pb2.DeliveryGuarantee.values())
_EXACTLY_ONCE = subscription_pb2.DELIVERY_GUARANTEE_EXACTLY_ONCE
_AT_MOST_ONCE = subscription_pb2.DELIVERY_GUARANTEE_AT_MOST_ONCE


@dataclass(frozen=True, slots=True)
class TermsReader:
    """Reads the requests of one subscriber.

    Args:
        caller: who subscribes.
        access: what it may.
        limits: the broker's bounds.
    """

    caller: Caller
    access: AccessTable
    limits: BrokerLimits

    def read(self, request: pb.OpenSubscription) -> SubscriptionTerms:
        """Returns the terms of a subscription to open.

        Raises:
            InvalidSubscriptionError: a setting is out of range or an enum value unknown.
            InvalidPatternError: a pattern breaks the grammar.
            PermissionDeniedError: the access table does not grant a pattern or the policy.
            UnsupportedSettingError: settings which this broker does not honour together.
        """
        config, qos = request.config, request.config.qos_settings
        _check_label(config.subscriber_id)
        _check_enum("delivery_guarantee", qos.delivery_guarantee, _GUARANTEES)
        terms = SubscriptionTerms(
            patterns=self._read_patterns(config),
            limits=self._read_limits(request),
            label=config.subscriber_id,
            selection=_read_selection(config),
            duplicates=_read_duplicates(qos),
            durability=self._read_durability(config),
            consumer_group=_read_group(config.consumer_group),
            is_ordered=qos.ordered_delivery,
            history=_read_history(request),
        )
        if terms.consumer_group and terms.durability:
            raise UnsupportedSettingError(
                "retention_policy for a member of a consumer_group",
                "leave it out: what a member leaves goes to the others; let publishers ask for"
                " PUBLISH_ASSURANCE_ACKNOWLEDGED",
            )
        return terms

    def read_update(
        self, config: subscription_pb2.SubscriptionConfig, present: SubscriptionTerms
    ) -> SubscriptionTerms:
        """Returns the present terms with the patterns and filters of an update.

        Raises:
            InvalidSubscriptionError: something else would change, or is out of range.
            InvalidPatternError: a pattern breaks the grammar.
            PermissionDeniedError: the access table does not grant a pattern.
        """
        for name, asked, is_so in (
            ("subscriber_id", config.subscriber_id, present.label),
            ("consumer_group", config.consumer_group, present.consumer_group),
        ):
            if asked not in ("", is_so):
                raise InvalidSubscriptionError(
                    f"{name} cannot change while the subscription is open; leave it out",
                    setting=name,
                )
        if config.HasField("qos_settings"):
            raise InvalidSubscriptionError(
                "qos_settings cannot change while the subscription is open; leave them out",
                setting="qos_settings",
            )
        return SubscriptionTerms(
            patterns=self._read_patterns(config),
            selection=_read_selection(config),
            limits=present.limits,
        )

    def _read_patterns(
        self, config: subscription_pb2.SubscriptionConfig
    ) -> tuple[tuple[str, int], ...]:
        if len(config.topic_patterns) > self.limits.max_patterns:
            raise _out_of_range(
                "number of patterns", len(config.topic_patterns), self.limits.max_patterns
            )
        patterns = tuple(_read_pattern(pattern) for pattern in config.topic_patterns)
        for pattern, _floor in patterns:
            self.access.require_subscribe(self.caller, pattern)
        return patterns

    def _read_limits(self, request: pb.OpenSubscription) -> MailboxLimits:
        qos = request.config.qos_settings
        policy = _POLICIES.get(request.overflow_policy)
        if policy is None:
            raise _unknown_enum("overflow_policy", request.overflow_policy)
        if policy is OverflowPolicy.BLOCK:
            self.access.require_block(self.caller)
        elif request.block_timeout_ms:
            raise _pointless("block_timeout_ms", "OVERFLOW_POLICY_BLOCK")
        max_messages = qos.max_queue_depth or self.limits.default_mailbox_messages
        block_ms = request.block_timeout_ms or DEFAULT_BLOCK_MS
        require_within("block_timeout_ms", block_ms, 1, MAX_BLOCK_MS)
        return MailboxLimits(
            max_messages=max_messages,
            max_bytes=request.max_queue_bytes or self.limits.max_mailbox_bytes,
            policy=policy,
            block_timeout_s=block_ms / 1_000,
            acknowledgement=_read_acknowledgement(request, max_messages),
            initial_credit=_read_credit(request),
        )

    def _read_durability(self, config: subscription_pb2.SubscriptionConfig) -> Durability | None:
        if not config.qos_settings.HasField("retention_policy"):
            return None
        asked = config.qos_settings.retention_policy
        if not config.subscriber_id:
            raise InvalidSubscriptionError(
                "a retention_policy needs a subscriber_id to come back to; name the subscriber",
                setting="subscriber_id",
            )
        require_within("retention_duration_ms", asked.retention_duration_ms, 1, MAX_RETENTION_MS)
        limits = self.limits
        has_count = asked.HasField("max_retained_messages")
        has_size = asked.HasField("max_retained_size_bytes")
        messages = asked.max_retained_messages if has_count else limits.max_mailbox_messages
        size_bytes = asked.max_retained_size_bytes if has_size else limits.max_mailbox_bytes
        require_within("max_retained_messages", messages, 1, limits.max_mailbox_messages)
        require_within("max_retained_size_bytes", size_bytes, 1, limits.max_mailbox_bytes)
        return Durability(asked.retention_duration_ms / 1_000, Retention(messages, size_bytes))


def _read_pattern(asked: subscription_pb2.TopicPattern) -> tuple[str, int]:
    segments = validate_pattern(asked.pattern)
    has_wildcard = SINGLE_WILDCARD in segments or MULTI_WILDCARD in segments
    if has_wildcard and not asked.wildcard_enabled:
        raise InvalidPatternError(
            asked.pattern,
            "it has a wildcard although wildcard_enabled is false",
            "set wildcard_enabled or name one topic",
        )
    if asked.priority > MAX_FLOOR:
        raise _out_of_range("priority of a pattern", asked.priority, MAX_FLOOR)
    if len(asked.metadata) > MAX_PATTERN_LABELS:
        raise _out_of_range("metadata of a pattern", len(asked.metadata), MAX_PATTERN_LABELS)
    return asked.pattern, asked.priority


def _read_selection(config: subscription_pb2.SubscriptionConfig) -> Selection:
    message_types, event_types = config.message_type_filters, config.event_type_filters
    for name, numbers, known in (
        ("message_type_filters", message_types, eventbus_pb2.MessageType.values()),
        ("event_type_filters", event_types, eventbus_pb2.EventType.values()),
    ):
        if len(numbers) > MAX_FILTER_TYPES:
            raise _out_of_range(f"number of {name}", len(numbers), MAX_FILTER_TYPES)
        for number in numbers:
            _check_enum(name, number, known)
    correlation = None
    if config.HasField("correlation_filter") and config.correlation_filter.ByteSize():
        correlation = _read_criteria(config.correlation_filter)
    return Selection(frozenset(message_types), frozenset(event_types), correlation)


def _read_criteria(asked: subscription_pb2.CorrelationFilter) -> CorrelationCriteria:
    has_least = asked.HasField("min_sequence_number")
    has_most = asked.HasField("max_sequence_number")
    return CorrelationCriteria(
        ids=frozenset(asked.correlation_ids),
        patterns=tuple(asked.correlation_patterns),
        parent_ids=frozenset(asked.parent_correlation_ids),
        root_ids=frozenset(asked.root_correlation_ids),
        stages=frozenset(asked.workflow_stages),
        required_tags=dict(asked.correlation_tags),
        any_tags=dict(asked.any_correlation_tags),
        min_sequence=asked.min_sequence_number if has_least else None,
        max_sequence=asked.max_sequence_number if has_most else None,
    )


def _read_duplicates(qos: subscription_pb2.QosSettings) -> DuplicateHandling:
    handling = _DUPLICATES.get(qos.duplicate_handling)
    if handling is None:
        raise _unknown_enum("duplicate_handling", qos.duplicate_handling)
    if qos.delivery_guarantee == _EXACTLY_ONCE and handling is DuplicateHandling.ALLOW:
        return DuplicateHandling.DROP
    return handling


def _read_acknowledgement(
    request: pb.OpenSubscription, max_messages: int
) -> Acknowledgement | None:
    guarantee = request.config.qos_settings.delivery_guarantee
    asked_ms, asked_window = request.ack_timeout_ms, request.max_unacknowledged_messages
    if guarantee == _AT_MOST_ONCE:
        for name, value in (
            ("ack_timeout_ms", asked_ms),
            ("max_unacknowledged_messages", asked_window),
        ):
            if value:
                raise _pointless(name, "DELIVERY_GUARANTEE_AT_LEAST_ONCE")
        return None
    timeout_ms, window = asked_ms or DEFAULT_ACK_MS, asked_window or max_messages
    require_within("ack_timeout_ms", timeout_ms, MIN_ACK_MS, MAX_ACK_MS)
    require_within("max_unacknowledged_messages", window, 1, max_messages)
    return Acknowledgement(timeout_ms / 1_000, window)


def _read_credit(request: pb.OpenSubscription) -> int | None:
    if not request.HasField("initial_credit"):
        return None
    require_within("initial_credit", request.initial_credit, 0, MAX_CREDIT)
    return request.initial_credit


def _read_history(request: pb.OpenSubscription) -> HistoryTerms | None:
    if not request.HasField("history"):
        return None
    return HistoryTerms(request.history.max_age_ms / 1_000, request.history.max_messages)


def _read_group(name: str) -> str:
    if len(name) > MAX_GROUP_CHARACTERS or not _GROUP_CHARACTERS.issuperset(name):
        raise InvalidSubscriptionError(
            f"consumer_group {name[:MAX_GROUP_CHARACTERS]!a} is no name; use 1 to"
            f" {MAX_GROUP_CHARACTERS} of a-z, 0-9, '_' and '-'",
            setting="consumer_group",
        )
    return name


def _check_label(label: str) -> None:
    size_bytes = len(label.encode())
    if size_bytes > MAX_LABEL_BYTES:
        raise _out_of_range("size of subscriber_id", size_bytes, MAX_LABEL_BYTES)
    if not label.isprintable():
        raise InvalidSubscriptionError(
            "subscriber_id has a control character; use a name that can be shown"
        )


def _check_enum(name: str, number: int, known: Collection[int]) -> None:
    if number not in known:
        raise _unknown_enum(name, number)


def _pointless(name: str, needed: str) -> InvalidSubscriptionError:
    return InvalidSubscriptionError(
        f"{name} means nothing without {needed}; leave it out or ask for that", setting=name
    )


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
