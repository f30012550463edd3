"""The broker delivers to everybody entitled, in order and within its bounds, and keeps its books."""

import gc
import weakref
from typing import Any

import pytest

from daemoneye_eventbus.errors import (
    BrokerDrainingError,
    InvalidSubscriptionError,
    SubscriptionLimitError,
    UnacknowledgedTopicError,
)
from daemoneye_eventbus.mailbox import (
    Acknowledgement,
    Batch,
    Closed,
    CloseReason,
    DropReason,
    Gap,
    OverflowPolicy,
    Retention,
)
from daemoneye_eventbus.quota import QuotaError, QuotaLimits, Usage
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.selection import Selection
from daemoneye_eventbus.subscription import Durability
from daemoneye_eventbus.tally import OTHER, TallyTable
from daemoneye_mesh.errors import Code, ErrorReason
from daemoneye_mesh.topic import InvalidPatternError, InvalidTopicError

A, B, C = "events.a", "events.b", "control.c"


async def test_group_reaches_each_subscription_of_its_topic(desk: Any) -> None:
    everything, events = desk.subscribe("control.#", "events.#"), desk.subscribe("events.#")
    only_b = desk.subscribe(B)
    batch = [desk.group(A, 1, 2), desk.group(C, 3), desk.group(B, 4), desk.group(A, 5)]
    assert await desk.broker.publish("p", batch) == 5 + 4 + 1
    assert await desk.numbers(everything) == [1, 2, 3, 4, 5]
    assert await desk.numbers(events) == [1, 2, 4, 5]
    assert await desk.numbers(only_b) == [4]


async def test_message_matched_by_several_patterns_comes_once(desk: Any) -> None:
    subscription = desk.subscribe("events.#", "events.+", A)
    assert await desk.publish(A, 1) == 1
    assert await desk.numbers(subscription) == [1]


async def test_stalled_subscriber_keeps_nothing_from_another(desk: Any) -> None:
    stalled, live = desk.subscribe("events.#", max_messages=1), desk.subscribe("events.#")
    for number in range(1, 6):
        await desk.publish(A, number)
        assert await desk.numbers(live) == [number]
    assert await desk.next(stalled) == Gap(0, 3, 40, DropReason.DROPPED_OLDEST)
    assert await desk.numbers(stalled) == [5]


async def test_disconnected_subscriber_is_offered_nothing_more(desk: Any) -> None:
    slow = desk.subscribe("events.#", max_messages=1, policy=OverflowPolicy.DISCONNECT)
    await desk.publish(A, 1, 2)
    assert await desk.publish(A, 3) == 0
    assert await desk.numbers(slow) == [1]
    assert await desk.next(slow) == Gap(1, 1, 10, DropReason.DROPPED_NEWEST)
    assert await desk.next(slow) == Closed(CloseReason.SLOW_CONSUMER)
    assert desk.broker.totals().subscriptions == 1
    desk.broker.leave(slow)
    assert desk.broker.totals().subscriptions == 0


async def test_priority_floor_of_the_most_lenient_pattern_counts(desk: Any) -> None:
    subscription = desk.subscribe(floors=(("events.#", 9), (A, 5)))
    await desk.publish(A, 1, priority=4)
    await desk.publish(A, 2, priority=5)
    await desk.publish(B, 3, priority=8)
    await desk.publish(B, 4, priority=9)
    assert await desk.numbers(subscription) == [2, 4]
    assert subscription.mailbox.counters().filtered == 2


async def test_priority_does_not_change_the_order(desk: Any) -> None:
    subscription = desk.subscribe("events.#")
    for number, priority in enumerate([0, 255, 7], 1):
        await desk.publish(A, number, priority=priority)
    assert await desk.numbers(subscription) == [1, 2, 3]


async def test_selection_holds_back_and_counts_as_filtered(desk: Any) -> None:
    alerts = desk.subscribe("events.#", selection=Selection(message_types=frozenset({5})))
    await desk.publish(A, 1, 2, 3)
    await desk.publish(A, 4, message_type=5)
    assert await desk.numbers(alerts) == [4]
    counters = alerts.mailbox.counters()
    assert (counters.offered, counters.filtered, counters.delivered) == (4, 3, 1)


@pytest.mark.parametrize("topic", ["events.*", "", "events..a", "Events.a"])
async def test_topic_that_breaks_the_grammar_refuses_the_whole_batch(desk: Any, topic: str) -> None:
    subscription = desk.subscribe("events.#")
    with pytest.raises(InvalidTopicError):
        await desk.broker.publish("p", [desk.group(A, 1), desk.group(topic, 2)])
    assert subscription.mailbox.counters().offered == 0
    assert desk.broker.totals().accepted == 0


async def test_batch_with_a_topic_nobody_acknowledges_is_refused_whole(desk: Any) -> None:
    subscription = desk.subscribe("events.a", acknowledgement=Acknowledgement(1.0, 10))
    watching = desk.subscribe("events.#")
    with pytest.raises(UnacknowledgedTopicError) as caught:
        await desk.broker.publish("p", [desk.group(A, 1), desk.group(B, 2)], Receipt())
    assert caught.value.metadata == {"topic": B}
    assert subscription.mailbox.counters().offered == watching.mailbox.counters().offered == 0


async def test_subscription_beyond_the_limit_is_refused_until_one_ends(make_desk: Any) -> None:
    desk = make_desk(max_subscriptions=2)
    first = desk.subscribe("events.#")
    desk.subscribe("events.#")
    with pytest.raises(SubscriptionLimitError) as caught:
        desk.subscribe("events.#")
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert caught.value.reason is ErrorReason.LIMIT_REACHED
    desk.broker.leave(first)
    assert desk.subscribe("events.#").id != first.id


@pytest.mark.parametrize(
    ("quota", "asked"),
    [
        (QuotaLimits(max_subscriptions=1), {}),
        (QuotaLimits(max_queue_bytes=199_999), {}),
        (QuotaLimits(max_queue_bytes=100_019), {"max_bytes": 20}),
    ],
)
async def test_identity_beyond_its_quota_is_refused_and_others_are_not(
    make_desk: Any, quota: QuotaLimits, asked: dict[str, int]
) -> None:
    desk = make_desk(quota=quota)
    first = desk.subscribe("events.#", identity="operator/a")
    with pytest.raises(QuotaError):
        desk.subscribe("events.#", identity="operator/a", **asked)
    assert desk.subscribe("events.#", identity="operator/b")
    desk.broker.leave(first)
    assert desk.subscribe("events.#", identity="operator/a", **asked)


@pytest.mark.parametrize(
    ("patterns", "terms", "error"),
    [
        ((), {"floors": ()}, InvalidSubscriptionError),
        (("events.a", "events.b", "events.c"), {}, InvalidSubscriptionError),
        (("events.*",), {}, InvalidPatternError),
        (("events.#",), {"max_messages": 101}, InvalidSubscriptionError),
        (("events.#",), {"max_bytes": 1_001}, InvalidSubscriptionError),
        (("events.#",), {"max_bytes": 9}, InvalidSubscriptionError),
    ],
)
async def test_subscription_the_broker_cannot_honour_is_refused_and_leaves_nothing(
    make_desk: Any, patterns: tuple[str, ...], terms: dict[str, Any], error: type[Exception]
) -> None:
    desk = make_desk(max_patterns=2, max_mailbox_messages=100, max_mailbox_bytes=1_000)
    with pytest.raises(error):
        desk.open(*patterns, **{"max_messages": 100, "max_bytes": 1_000, **terms})
    assert desk.broker.totals().subscriptions == 0
    assert desk.broker.quota.usage("agent/agent") == Usage()


async def test_update_gives_other_patterns_and_filters_from_here_on(desk: Any) -> None:
    opening = desk.open("events.a", label="screen")
    subscription = opening.subscription
    await desk.publish(A, 1)
    other = desk.open("events.b", identity="x").subscription.terms
    desk.broker.update(subscription, other)
    await desk.publish(A, 2)
    await desk.publish(B, 3)
    assert await desk.numbers(subscription) == [1, 3]
    assert subscription.label == "screen"


@pytest.mark.parametrize("patterns", [(), (("events.*", 0),), (("events.a", 0),) * 65])
async def test_update_that_cannot_be_done_changes_nothing(
    desk: Any, patterns: tuple[tuple[str, int], ...]
) -> None:
    subscription = desk.subscribe("events.a")
    terms = type(subscription.terms)(patterns=patterns, limits=subscription.terms.limits)
    with pytest.raises((InvalidSubscriptionError, InvalidPatternError)):
        desk.broker.update(subscription, terms)
    await desk.publish(A, 1)
    assert await desk.numbers(subscription) == [1]


async def test_update_after_the_end_is_refused_and_offers_nothing_to_what_has_ended(
    desk: Any,
) -> None:
    subscription = desk.subscribe("events.a")
    desk.broker.end(subscription)
    with pytest.raises(InvalidSubscriptionError, match="has ended"):
        desk.broker.update(subscription, subscription.terms)
    assert await desk.publish(A, 1) == 0


async def test_ending_twice_counts_once(desk: Any) -> None:
    subscription = desk.subscribe("events.a")
    await desk.publish(A, 1, 2)
    desk.broker.end(subscription)
    desk.broker.end(subscription)
    desk.broker.leave(subscription)
    flow = desk.broker.totals().flow
    assert (flow.offered, dict(flow.dropped)) == (2, {DropReason.CLOSED: 2})
    assert desk.broker.quota.usage("agent/agent") == Usage()


async def test_draining_delivers_what_is_queued_and_takes_nothing_new(desk: Any) -> None:
    subscription = desk.subscribe("events.#")
    await desk.publish(A, 1)
    desk.broker.drain()
    with pytest.raises(BrokerDrainingError) as caught:
        await desk.publish(A, 2)
    assert caught.value.reason is ErrorReason.DRAINING
    with pytest.raises(BrokerDrainingError):
        desk.subscribe("events.#")
    assert await desk.numbers(subscription) == [1]
    assert await desk.next(subscription) == Closed(CloseReason.DRAINING)


async def test_topics_and_publishers_beyond_the_bound_are_counted_together(make_desk: Any) -> None:
    desk = make_desk(max_counted_topics=2, max_counted_publishers=1)
    desk.subscribe(A)
    await desk.broker.publish("p", [desk.group(A, 1), desk.group(B, 2, 3), desk.group(C, 4)])
    await desk.broker.publish("q", [desk.group(A, 5), desk.group("alerts.d", 6)])
    topics = desk.broker.topic_tallies()
    assert {name: one.messages for name, one in topics.items()} == {A: 2, B: 2, OTHER: 2}
    assert (topics[A].offered, topics[A].unrouted) == (2, 0)
    assert (topics[OTHER].size_bytes, topics[OTHER].unrouted) == (20, 2)
    publishers = desk.broker.publisher_tallies()
    assert {name: one.messages for name, one in publishers.items()} == {"p": 4, OTHER: 2}
    totals = desk.broker.totals()
    assert (totals.accepted, totals.accepted_bytes, totals.unrouted) == (6, 60, 4)


def test_tally_snapshot_does_not_change_afterwards() -> None:
    table = TallyTable(1)
    table.of("a").add(1, 10, 0)
    snapshot = table.snapshot()
    table.of("a").add(1, 10, 0)
    assert snapshot["a"].messages == 1


async def test_subscriptions_are_listed_oldest_first(desk: Any) -> None:
    desk.subscribe("events.#", identity="collector/x", label="screen")
    desk.subscribe("control.#")
    first, second = desk.broker.subscriptions()
    assert (first.identity, first.label, first.opened_at_ns) == ("collector/x", "screen", 7)
    assert second.label == second.id != first.id


async def test_mailbox_of_a_subscription_goes_by_the_clock_of_the_broker(desk: Any) -> None:
    subscription = desk.subscribe("events.#")
    await desk.publish(A, 1, ttl_ms=1_000)
    await desk.publish(A, 2, ttl_ms=1_001)
    desk.clock.pass_by(1.0)
    desk.broker.sweep()
    assert await desk.next(subscription) == Gap(0, 0, 10, DropReason.EXPIRED)
    delivery = await desk.next(subscription)
    assert isinstance(delivery, Batch)
    assert delivery.first_position == 1


@pytest.mark.parametrize("policy", list(OverflowPolicy))
@pytest.mark.parametrize("durability", [None, Durability(1.0, Retention(10, 100))])
async def test_ended_subscription_is_nowhere_remembered(
    desk: Any, policy: OverflowPolicy, durability: Durability | None
) -> None:
    terms = {"label": "x", "consumer_group": "" if durability else "workers"}
    subscription = desk.subscribe("events.#", policy=policy, durability=durability, **terms)
    await desk.publish(A, 1)
    desk.broker.end(subscription)
    remembered = weakref.ref(subscription)
    del subscription
    gc.collect()
    assert remembered() is None
