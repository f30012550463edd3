"""Every option of a subscription is asked for, or refused."""

from dataclasses import fields
from typing import Any

import pytest

from collector_core.bus import Duplicates, Guarantee, Overflow, SubscriptionOptions
from collector_core.bus.subscribe_request import to_open_request
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_pb2
from daemoneye_mesh.errors import InvalidRequestError
from daemoneye_mesh.topic import InvalidPatternError

EVERYTHING = SubscriptionOptions(
    patterns=["events.#", ("alerts.+.x", 200), "control.a"],
    subscriber_id="me",
    guarantee=Guarantee.AT_LEAST_ONCE,
    durable_for_s=60,
    max_retained_messages=1,
    max_retained_bytes=2,
    policy=Overflow.BLOCK,
    block_timeout_s=0.5,
    max_queue_messages=3,
    max_queue_bytes=4,
    ack_timeout_s=1.5,
    max_unacknowledged=5,
    credit=6,
    history_s=7.0,
    history_messages=8,
    consumer_group="g",
    duplicates=Duplicates.MERGE,
    ordered=True,
    message_types=[0, 5],
    event_types={2},
    correlation_ids=["a"],
    correlation_patterns=["b*"],
    correlation_tags={"c": "d"},
    any_correlation_tags={"e": "f"},
    workflow_stages=["g"],
    parent_correlation_ids=["h"],
    root_correlation_ids=["i"],
    min_sequence_number=0,
    max_sequence_number=9,
    give_up_after_s=1.0,
    resubscribe_when_slow=False,
)


def test_everything_is_asked_for() -> None:
    opening = to_open_request(EVERYTHING, 7.0, 6).open
    config, qos = opening.config, opening.config.qos_settings
    patterns = [(one.pattern, one.wildcard_enabled, one.priority) for one in config.topic_patterns]
    assert patterns == [
        ("events.#", True, 0),
        ("alerts.+.x", True, 200),
        ("control.a", False, 0),
    ]
    assert (config.subscriber_id, config.consumer_group) == ("me", "g")
    assert (list(config.message_type_filters), list(config.event_type_filters)) == ([0, 5], [2])
    assert qos == subscription_pb2.QosSettings(
        delivery_guarantee=subscription_pb2.DELIVERY_GUARANTEE_AT_LEAST_ONCE,
        max_queue_depth=3,
        ordered_delivery=True,
        duplicate_handling=subscription_pb2.DUPLICATE_HANDLING_MERGE_DUPLICATES,
        retention_policy=subscription_pb2.RetentionPolicy(
            retention_duration_ms=60_000, max_retained_messages=1, max_retained_size_bytes=2
        ),
    )
    assert config.correlation_filter == subscription_pb2.CorrelationFilter(
        correlation_ids=["a"],
        correlation_patterns=["b*"],
        correlation_tags={"c": "d"},
        any_correlation_tags={"e": "f"},
        workflow_stages=["g"],
        parent_correlation_ids=["h"],
        root_correlation_ids=["i"],
        min_sequence_number=0,
        max_sequence_number=9,
    )
    assert (opening.overflow_policy, opening.block_timeout_ms) == (pb.OVERFLOW_POLICY_BLOCK, 500)
    assert (opening.max_queue_bytes, opening.initial_credit) == (4, 6)
    assert (opening.ack_timeout_ms, opening.max_unacknowledged_messages) == (1_500, 5)
    assert (opening.history.max_age_ms, opening.history.max_messages) == (7_000, 8)


def test_nothing_is_asked_for_that_was_not_said() -> None:
    opening = to_open_request(SubscriptionOptions(["events.#"]), None, None).open
    assert not opening.HasField("history")
    assert not opening.HasField("initial_credit")
    assert not opening.config.HasField("correlation_filter")
    assert not opening.config.qos_settings.HasField("retention_policy")


def test_all_history_is_something_else_than_none() -> None:
    opening = to_open_request(SubscriptionOptions(["events.#"], history_s=0.0), 0.0, 0).open
    assert opening.HasField("history")
    assert opening.HasField("initial_credit")


def test_update_takes_patterns_and_filters_and_nothing_else() -> None:
    plain = SubscriptionOptions(["events.#"], subscriber_id="you")
    updated = plain.with_selection(EVERYTHING)
    changed = {
        one.name
        for one in fields(SubscriptionOptions)
        if getattr(updated, one.name) != getattr(plain, one.name)
    }
    assert changed == {
        "patterns",
        "message_types",
        "event_types",
        "correlation_ids",
        "correlation_patterns",
        "correlation_tags",
        "any_correlation_tags",
        "workflow_stages",
        "parent_correlation_ids",
        "root_correlation_ids",
        "min_sequence_number",
        "max_sequence_number",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patterns": "events.#"}, "must be a list"),
        ({"patterns": [("events.#", 256)]}, "0 to 255"),
        ({"durable_for_s": 1.0}, "subscriber_id"),
        ({"max_retained_messages": 1}, "durable_for_s"),
        ({"max_retained_bytes": 1}, "durable_for_s"),
        ({"ack_timeout_s": 1.0}, "guarantee with acknowledgements"),
        ({"max_unacknowledged": 1}, "guarantee with acknowledgements"),
        ({"block_timeout_s": 1.0}, "BLOCK"),
        ({"history_messages": 1}, "history_s"),
    ],
)
def test_option_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        SubscriptionOptions(**{"patterns": ["events.#"], **options})


def test_malformed_pattern_is_refused_at_once() -> None:
    with pytest.raises(InvalidPatternError):
        SubscriptionOptions(["events..x"])
