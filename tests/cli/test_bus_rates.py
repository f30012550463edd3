"""Rates from two samples of the broker's counters, and whether a flow adds up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_cli.bus_flow import describe_counts, read_flow
from daemoneye_cli.bus_rates import compare
from daemoneye_cli.bus_stats import MAX_LISTED_TOPICS, Sample

COUNT = st.integers(0, 2**40)


def sample(taken_s, *, epoch="e", topics=None, subscriptions=(), **fields):
    stats = pb.GetBusStatsResponse(broker_epoch=epoch, **fields)
    for name, count in (topics or {}).items():
        stats.topics.add(topic=name, published_count=count, published_bytes=count * 10)
    return Sample(taken_s, stats, tuple(subscriptions))


def subscription(number, delivered=0, dropped=0, pending=0, size=0):
    flow = pb.FlowCounters(
        offered_count=delivered + dropped + pending,
        delivered_count=delivered,
        dropped_count={"dropped_oldest": dropped},
        pending_count=pending,
        pending_bytes=size,
    )
    return pb.SubscriptionInfo(
        subscription_id=number, flow=flow, max_queue_messages=100, max_queue_bytes=1000
    )


def test_rates_are_over_the_time_between_two_samples():
    before = sample(10.0, published_count=100, published_bytes=1_000, unrouted_count=5)
    now = sample(14.0, published_count=500, published_bytes=9_000, unrouted_count=7)
    frame = compare(now, before)
    assert frame.elapsed_s == 4.0
    assert (frame.published_per_s, frame.bytes_per_s, frame.unrouted_per_s) == (100, 2_000, 0.5)


def test_first_sample_has_no_rates():
    frame = compare(sample(10.0, published_count=100, topics={"a": 1}), None)
    assert (frame.elapsed_s, frame.published_per_s, frame.refused_per_s) == (None, None, None)
    assert frame.topics[0].published_per_s is None


def test_restart_of_the_broker_begins_anew():
    before = sample(1.0, epoch="one", published_count=10)
    frame = compare(sample(2.0, epoch="two", published_count=500), before)
    assert (frame.elapsed_s, frame.published_per_s) == (None, None)


def test_topics_stand_busiest_first_by_rate_and_then_by_count():
    before = sample(0.0, topics={"old": 1_000, "older": 2_000, "fast": 10})
    frame = compare(sample(2.0, topics={"old": 1_000, "older": 2_000, "fast": 30}), before)
    assert [one.topic.topic for one in frame.topics] == ["fast", "older", "old"]
    assert frame.topics[0].published_per_s == 10


def test_topic_that_is_new_counts_from_zero_unless_the_list_was_full():
    before = sample(0.0, topics={"a": 1})
    (new, _) = compare(sample(1.0, topics={"a": 1, "b": 5}), before).topics
    assert (new.topic.topic, new.published_per_s) == ("b", 5)
    full = {f"t{number}": 1 for number in range(MAX_LISTED_TOPICS)}
    frame = compare(sample(1.0, topics={**full, "b": 5}), sample(0.0, topics=full))
    assert {one.topic.topic: one.published_per_s for one in frame.topics}["b"] is None


def test_subscribers_that_need_attention_stand_first():
    before = sample(0.0, subscriptions=[subscription("1"), subscription("2"), subscription("3")])
    now = sample(
        1.0,
        subscriptions=[
            subscription("1", delivered=50),
            subscription("2", pending=90),
            subscription("3", dropped=1),
            subscription("4", size=950),
        ],
    )
    frame = compare(now, before)
    assert [one.subscription.subscription_id for one in frame.subscriptions] == ["3", "4", "2", "1"]
    assert [one.fill for one in frame.subscriptions] == [0, 0.95, 0.9, 0]
    assert frame.subscriptions[3].delivered_per_s == 50


def test_frame_is_balanced_only_when_every_flow_is():
    flow = {"flow": pb.FlowCounters(offered_count=1, delivered_count=1)}
    assert compare(sample(0.0, **flow, subscriptions=[subscription("1", delivered=1)]), None)
    crooked = subscription("1", delivered=1)
    crooked.flow.offered_count += 1
    assert not compare(sample(0.0, subscriptions=[crooked]), None).is_balanced
    assert not compare(sample(0.0, flow=pb.FlowCounters(offered_count=1)), None).is_balanced


@given(COUNT, COUNT, COUNT, COUNT, st.integers(-5, 5))
def test_flow_adds_up_exactly_when_its_parts_do(delivered, filtered, dropped, pending, error):
    flow = read_flow(
        pb.FlowCounters(
            offered_count=max(delivered + filtered + dropped + pending + error, 0),
            delivered_count=delivered,
            filtered_count=filtered,
            dropped_count={"expired": dropped // 2, "closed": dropped - dropped // 2},
            pending_count=pending,
        )
    )
    expected = flow.offered - delivered - filtered - dropped - pending
    assert flow.unaccounted == expected
    assert flow.document()["adds_up"] is (expected == 0)
    assert ("≠" in flow.equation) is (expected != 0)


@pytest.mark.parametrize(
    ("counts", "text"),
    [({}, ""), ({"a": 0}, ""), ({"b": 1, "a": 1, "c": 2_000}, "c 2,000, a 1, b 1")],
)
def test_counts_are_told_largest_first(counts, text):
    assert describe_counts(counts) == text
