"""Every setting of a subscription is honoured or refused, at both sides of each bound."""

from collections.abc import Callable
from typing import Any

import pytest

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_control_pb2
from daemoneye.eventbus.v1 import subscription_pb2 as sub
from daemoneye_eventbus.broker import BrokerLimits
from daemoneye_eventbus.mailbox import Acknowledgement, OverflowPolicy, Retention
from daemoneye_eventbus.selection import CorrelationCriteria
from daemoneye_eventbus.service_terms import TermsReader
from daemoneye_eventbus.subscription import (
    DuplicateHandling,
    Durability,
    HistoryTerms,
    SubscriptionTerms,
)
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.errors import Code, DaemoneyeError, ErrorReason
from daemoneye_mesh.identity import Identity, IdentityKind, Principal

Opening = Callable[..., pb.SubscribeRequest]

INVALID = (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)
BAD_ENUM = (Code.INVALID_ARGUMENT, ErrorReason.ENUM_UNKNOWN)
BAD_PATTERN = (Code.INVALID_ARGUMENT, ErrorReason.PATTERN_INVALID)
DENIED = (Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED)
NOT_OFFERED = (Code.UNIMPLEMENTED, ErrorReason.FEATURE_UNSUPPORTED)

AT_LEAST_ONCE, EXACTLY_ONCE = 1, 2
DROP, MERGE = 1, 2
BLOCK = pb.OVERFLOW_POLICY_BLOCK
ACKS = {"delivery_guarantee": AT_LEAST_ONCE}
LIMITS = BrokerLimits(default_mailbox_messages=500, max_mailbox_messages=1_000)


def reader_for(kind: IdentityKind, own_id: str) -> TermsReader:
    caller = Principal(Identity("mesh", kind, own_id))
    return TermsReader(caller, AccessTable.load(), LIMITS)


@pytest.fixture
def agent() -> TermsReader:
    return reader_for(IdentityKind.AGENT, "agent")


def keep(days_ms: int, **bounds: int) -> sub.RetentionPolicy:
    return sub.RetentionPolicy(retention_duration_ms=days_ms, **bounds)


def pattern_of(pattern: str, **fields: Any) -> list[sub.TopicPattern]:
    return [sub.TopicPattern(pattern=pattern, **{"wildcard_enabled": True, **fields})]


def filter_of(**fields: Any) -> dict[str, sub.CorrelationFilter]:
    return {"correlation_filter": sub.CorrelationFilter(**fields)}


def many(count: int) -> list[str]:
    return [str(one) for one in range(count)]


def tags(count: int, key_bytes: int = 0, value: str = "") -> dict[str, str]:
    return {str(one).zfill(key_bytes): value for one in range(count)}


LABEL = {"subscriber_id": "screen"}


@pytest.mark.parametrize(
    ("fields", "read", "expected"),
    [
        ({}, lambda terms: terms.patterns, (("events.#", 0),)),
        (
            {"topic_patterns": pattern_of("alerts.#", priority=255, metadata=tags(64))},
            lambda terms: terms.patterns,
            (("alerts.#", 255),),
        ),
        (
            {"topic_patterns": pattern_of("events.a", wildcard_enabled=False)},
            lambda terms: terms.patterns,
            (("events.a", 0),),
        ),
        (
            {"topic_patterns": [one for name in many(64) for one in pattern_of(f"events.{name}")]},
            lambda terms: len(terms.patterns),
            64,
        ),
        ({"subscriber_id": "x" * 128}, lambda terms: terms.label, "x" * 128),
        (
            {"message_type_filters": [0, 7]},
            lambda terms: terms.selection.message_types,
            frozenset({0, 7}),
        ),
        (
            {"message_type_filters": [1] * 64},
            lambda terms: terms.selection.message_types,
            frozenset({1}),
        ),
        (
            {"event_type_filters": [0, 5]},
            lambda terms: terms.selection.event_types,
            frozenset({0, 5}),
        ),
        (filter_of(), lambda terms: terms.selection.correlation, None),
        (
            filter_of(
                correlation_ids=many(64),
                correlation_patterns=[*many(15), "*" * 256],
                parent_correlation_ids=["p"],
                root_correlation_ids=["r"],
                workflow_stages=["s"],
                correlation_tags={"k": "v"},
                any_correlation_tags=tags(64, 128, "v" * 1024),
                min_sequence_number=0,
                max_sequence_number=0,
            ),
            lambda terms: terms.selection.correlation,
            CorrelationCriteria(
                ids=frozenset(many(64)),
                patterns=(*many(15), "*" * 256),
                parent_ids=frozenset({"p"}),
                root_ids=frozenset({"r"}),
                stages=frozenset({"s"}),
                required_tags={"k": "v"},
                any_tags=tags(64, 128, "v" * 1024),
                min_sequence=0,
                max_sequence=0,
            ),
        ),
        ({}, lambda terms: terms.limits.max_messages, 500),
        ({"max_queue_depth": 1}, lambda terms: terms.limits.max_messages, 1),
        ({}, lambda terms: terms.limits.max_bytes, 16 << 20),
        ({"max_queue_bytes": 1 << 20}, lambda terms: terms.limits.max_bytes, 1 << 20),
        ({}, lambda terms: terms.limits.policy, OverflowPolicy.DROP_OLDEST),
        ({"overflow_policy": 1}, lambda terms: terms.limits.policy, OverflowPolicy.DROP_OLDEST),
        ({"overflow_policy": 2}, lambda terms: terms.limits.policy, OverflowPolicy.DROP_NEWEST),
        ({"overflow_policy": 3}, lambda terms: terms.limits.policy, OverflowPolicy.DISCONNECT),
        ({"overflow_policy": BLOCK}, lambda terms: terms.limits.policy, OverflowPolicy.BLOCK),
        ({"overflow_policy": BLOCK}, lambda terms: terms.limits.block_timeout_s, 1.0),
        (
            {"overflow_policy": BLOCK, "block_timeout_ms": 1},
            lambda terms: terms.limits.block_timeout_s,
            0.001,
        ),
        (
            {"overflow_policy": BLOCK, "block_timeout_ms": 5_000},
            lambda terms: terms.limits.block_timeout_s,
            5.0,
        ),
        ({}, lambda terms: terms.limits.acknowledgement, None),
        (ACKS, lambda terms: terms.limits.acknowledgement, Acknowledgement(30.0, 500)),
        (
            {**ACKS, "ack_timeout_ms": 100, "max_unacknowledged_messages": 1},
            lambda terms: terms.limits.acknowledgement,
            Acknowledgement(0.1, 1),
        ),
        (
            {
                **ACKS,
                "max_queue_depth": 7,
                "ack_timeout_ms": 3_600_000,
                "max_unacknowledged_messages": 7,
            },
            lambda terms: terms.limits.acknowledgement,
            Acknowledgement(3_600.0, 7),
        ),
        ({}, lambda terms: terms.duplicates, DuplicateHandling.ALLOW),
        ({"duplicate_handling": DROP}, lambda terms: terms.duplicates, DuplicateHandling.DROP),
        ({"duplicate_handling": MERGE}, lambda terms: terms.duplicates, DuplicateHandling.MERGE),
        (ACKS, lambda terms: terms.duplicates, DuplicateHandling.ALLOW),
        (
            {"delivery_guarantee": EXACTLY_ONCE},
            lambda terms: (terms.acknowledges, terms.duplicates),
            (True, DuplicateHandling.DROP),
        ),
        (
            {"delivery_guarantee": EXACTLY_ONCE, "duplicate_handling": MERGE},
            lambda terms: terms.duplicates,
            DuplicateHandling.MERGE,
        ),
        ({}, lambda terms: terms.limits.initial_credit, None),
        ({"initial_credit": 0}, lambda terms: terms.limits.initial_credit, 0),
        ({"initial_credit": 2**31 - 1}, lambda terms: terms.limits.initial_credit, 2**31 - 1),
        ({}, lambda terms: terms.history, None),
        (
            {"history": subscription_control_pb2.History()},
            lambda terms: terms.history,
            HistoryTerms(0.0, 0),
        ),
        (
            {"history": subscription_control_pb2.History(max_age_ms=1_500, max_messages=9)},
            lambda terms: terms.history,
            HistoryTerms(1.5, 9),
        ),
        ({}, lambda terms: terms.durability, None),
        (
            {**LABEL, "retention_policy": keep(1)},
            lambda terms: terms.durability,
            Durability(0.001, Retention(1_000, 16 << 20)),
        ),
        (
            {
                **LABEL,
                "retention_policy": keep(
                    3_600_000, max_retained_messages=1, max_retained_size_bytes=1
                ),
            },
            lambda terms: terms.durability,
            Durability(3_600.0, Retention(1, 1)),
        ),
        (
            {
                **LABEL,
                "retention_policy": keep(
                    5, max_retained_messages=1_000, max_retained_size_bytes=16 << 20
                ),
            },
            lambda terms: terms.durability,
            Durability(0.005, Retention(1_000, 16 << 20)),
        ),
        ({"consumer_group": "a" * 64}, lambda terms: terms.consumer_group, "a" * 64),
        ({"consumer_group": "a-z_0"}, lambda terms: terms.consumer_group, "a-z_0"),
        ({}, lambda terms: terms.is_ordered, False),
        ({"ordered_delivery": True}, lambda terms: terms.is_ordered, True),
    ],
)
def test_setting_is_read_as_it_was_asked_for(
    agent: TermsReader,
    opening_of: Opening,
    fields: dict[str, Any],
    read: Callable[[SubscriptionTerms], object],
    expected: object,
) -> None:
    assert read(agent.read(opening_of("events.#", **fields).open)) == expected


REFUSED = [
    ({"topic_patterns": pattern_of("events.*")}, BAD_PATTERN),
    ({"topic_patterns": pattern_of("events.#.a")}, BAD_PATTERN),
    ({"topic_patterns": pattern_of("a.b.c.d.e.f")}, BAD_PATTERN),
    ({"topic_patterns": pattern_of("events.#", wildcard_enabled=False)}, BAD_PATTERN),
    ({"topic_patterns": pattern_of("events.+", wildcard_enabled=False)}, BAD_PATTERN),
    ({"topic_patterns": pattern_of("events.#", priority=256)}, INVALID),
    ({"topic_patterns": pattern_of("events.#", metadata=tags(65))}, INVALID),
    (
        {"topic_patterns": [one for name in many(65) for one in pattern_of(f"events.{name}")]},
        INVALID,
    ),
    ({"message_type_filters": [8]}, BAD_ENUM),
    ({"message_type_filters": [-1]}, BAD_ENUM),
    ({"message_type_filters": [0] * 65}, INVALID),
    ({"event_type_filters": [6]}, BAD_ENUM),
    ({"event_type_filters": [0] * 65}, INVALID),
    (filter_of(correlation_ids=many(65)), INVALID),
    (filter_of(correlation_ids=["x" * 257]), INVALID),
    (filter_of(correlation_patterns=many(17)), INVALID),
    (filter_of(correlation_patterns=["x" * 257]), INVALID),
    (filter_of(parent_correlation_ids=many(65)), INVALID),
    (filter_of(root_correlation_ids=many(65)), INVALID),
    (filter_of(workflow_stages=many(65)), INVALID),
    (filter_of(correlation_tags=tags(65)), INVALID),
    (filter_of(any_correlation_tags=tags(65)), INVALID),
    (filter_of(any_correlation_tags=tags(1, 129)), INVALID),
    (filter_of(min_sequence_number=2, max_sequence_number=1), INVALID),
]
REFUSED_AT_OPENING = [
    ({"subscriber_id": "x" * 129}, INVALID),
    ({"subscriber_id": "é" * 65}, INVALID),
    ({"subscriber_id": "a\nb"}, INVALID),
    ({"delivery_guarantee": 3}, BAD_ENUM),
    ({"duplicate_handling": 3}, BAD_ENUM),
    ({"overflow_policy": 5}, BAD_ENUM),
    ({"block_timeout_ms": 1}, INVALID),
    ({"overflow_policy": BLOCK, "block_timeout_ms": 5_001}, INVALID),
    ({"ack_timeout_ms": 100}, INVALID),
    ({"max_unacknowledged_messages": 1}, INVALID),
    ({**ACKS, "ack_timeout_ms": 99}, INVALID),
    ({**ACKS, "ack_timeout_ms": 3_600_001}, INVALID),
    ({**ACKS, "max_unacknowledged_messages": 501}, INVALID),
    ({"initial_credit": 2**31}, INVALID),
    ({"retention_policy": keep(1)}, INVALID),
    ({**LABEL, "retention_policy": keep(0)}, INVALID),
    ({**LABEL, "retention_policy": keep(3_600_001)}, INVALID),
    ({**LABEL, "retention_policy": keep(1, max_retained_messages=0)}, INVALID),
    ({**LABEL, "retention_policy": keep(1, max_retained_messages=1_001)}, INVALID),
    ({**LABEL, "retention_policy": keep(1, max_retained_size_bytes=0)}, INVALID),
    ({**LABEL, "retention_policy": keep(1, max_retained_size_bytes=(16 << 20) + 1)}, INVALID),
    ({"consumer_group": "a" * 65}, INVALID),
    ({"consumer_group": "A"}, INVALID),
    ({"consumer_group": "a.b"}, INVALID),
    ({**LABEL, "consumer_group": "a", "retention_policy": keep(1)}, NOT_OFFERED),
]


@pytest.mark.parametrize(("fields", "expected"), REFUSED + REFUSED_AT_OPENING)
def test_setting_that_cannot_be_honoured_is_refused(
    agent: TermsReader,
    opening_of: Opening,
    fields: dict[str, Any],
    expected: tuple[Code, ErrorReason],
) -> None:
    with pytest.raises(DaemoneyeError) as caught:
        agent.read(opening_of("events.#", **fields).open)
    assert (caught.value.code, caught.value.reason) == expected


@pytest.mark.parametrize(("fields", "expected"), REFUSED)
def test_update_is_held_to_the_same_bounds(
    agent: TermsReader,
    opening_of: Opening,
    fields: dict[str, Any],
    expected: tuple[Code, ErrorReason],
) -> None:
    present = agent.read(opening_of("events.#").open)
    with pytest.raises(DaemoneyeError) as caught:
        agent.read_update(opening_of("events.#", **fields).open.config, present)
    assert (caught.value.code, caught.value.reason) == expected


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (IdentityKind.COLLECTOR, {"topic_patterns": pattern_of("events.#")}),
        (IdentityKind.COLLECTOR, {"topic_patterns": pattern_of("control.#")}),
        (
            IdentityKind.COLLECTOR,
            {"topic_patterns": pattern_of("control.collector.instance.netmond.#")},
        ),
        (IdentityKind.BROKER, {"topic_patterns": pattern_of("control.#")}),
        (IdentityKind.OPERATOR, {"overflow_policy": BLOCK}),
        (
            IdentityKind.COLLECTOR,
            {"topic_patterns": pattern_of("control.shutdown.#"), "overflow_policy": BLOCK},
        ),
    ],
)
def test_what_the_access_table_does_not_grant_is_refused(
    opening_of: Opening, kind: IdentityKind, fields: dict[str, Any]
) -> None:
    with pytest.raises(DaemoneyeError) as caught:
        reader_for(kind, "procmond").read(opening_of("events.#", **fields).open)
    assert (caught.value.code, caught.value.reason) == DENIED


def test_update_reads_patterns_and_filters_and_keeps_the_limits(
    agent: TermsReader, opening_of: Opening
) -> None:
    present = agent.read(opening_of("events.#", max_queue_depth=9, **LABEL).open)
    update = opening_of("alerts.#", message_type_filters=[5], **LABEL).open.config
    terms = agent.read_update(update, present)
    assert terms.patterns == (("alerts.#", 0),)
    assert terms.selection.message_types == {5}
    assert terms.limits == present.limits


@pytest.mark.parametrize(
    "fields", [{"subscriber_id": "other"}, {"consumer_group": "b"}, {"ordered_delivery": False}]
)
def test_update_of_anything_else_is_refused(
    agent: TermsReader, opening_of: Opening, fields: dict[str, Any]
) -> None:
    present = agent.read(opening_of("events.#", consumer_group="a", **LABEL).open)
    with pytest.raises(DaemoneyeError, match="cannot change") as caught:
        agent.read_update(opening_of("events.#", **fields).open.config, present)
    assert (caught.value.code, caught.value.reason) == INVALID
