"""A durable subscription outlives its stream: it misses nothing within its bounds, and says what."""

from typing import Any

import pytest

from daemoneye_eventbus.errors import InvalidSubscriptionError, NoSubscriberError
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
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.subscription import DuplicateHandling, Durability, HistoryTerms
from daemoneye_mesh.topic import InvalidPatternError

A = "events.a"
ACKS = Acknowledgement(30.0, 1_000)
KEEP = Durability(60.0, Retention(1_000, 100_000))
TERMS = {"label": "recorder", "durability": KEEP, "acknowledgement": ACKS}


async def test_what_was_not_acknowledged_comes_again_at_the_same_positions(desk: Any) -> None:
    first = desk.subscribe("events.#", **TERMS)
    await desk.publish(A, 1, 2, 3)
    await desk.next(first)
    first.mailbox.acknowledge(0)
    desk.broker.leave(first)
    await desk.publish(A, 4)
    opening = desk.open("events.#", **TERMS)
    assert (opening.subscription, opening.is_resumed) == (first, True)
    assert first.mailbox.next_position == 1
    again, new = await desk.next(first), await desk.next(first)
    assert isinstance(again, Batch)
    assert isinstance(new, Batch)
    assert (again.first_position, again.count, again.is_redelivered) == (1, 2, True)
    assert (new.first_position, new.count, new.is_redelivered) == (3, 1, False)
    first.mailbox.acknowledge(3)
    counters = first.mailbox.counters()
    assert (counters.delivered, counters.pending, counters.redelivered) == (4, 0, 2)


async def test_durable_subscription_without_acknowledgements_gets_what_came_meanwhile(
    desk: Any,
) -> None:
    terms = {**TERMS, "acknowledgement": None}
    first = desk.subscribe("events.#", **terms)
    await desk.publish(A, 1, 2)
    assert await desk.numbers(first, 1) == [1]
    desk.broker.leave(first)
    await desk.publish(A, 3)
    desk.open("events.#", **terms)
    delivery = await desk.next(first)
    assert isinstance(delivery, Batch)
    assert (delivery.first_position, delivery.count, delivery.is_redelivered) == (1, 2, False)


@pytest.mark.parametrize(
    ("bounds", "lost"), [(Retention(2, 100_000), 3), (Retention(1_000, 25), 3), (KEEP.bounds, 0)]
)
async def test_what_goes_past_the_retention_is_told_as_a_gap(
    desk: Any, bounds: Retention, lost: int
) -> None:
    terms = {**TERMS, "durability": Durability(60.0, bounds)}
    first = desk.subscribe("events.#", **terms)
    desk.broker.leave(first)
    for number in range(1, 6):
        await desk.publish(A, number)
    desk.open("events.#", **terms)
    if lost:
        assert await desk.next(first) == Gap(0, lost - 1, 10 * lost, DropReason.RETENTION)
    assert await desk.numbers(first) == list(range(lost + 1, 6))


async def test_bounds_of_the_retention_end_with_the_absence(desk: Any) -> None:
    terms = {**TERMS, "durability": Durability(60.0, Retention(1, 10))}
    first = desk.subscribe("events.#", **terms)
    desk.broker.leave(first)
    desk.open("events.#", **terms)
    await desk.publish(A, 1, 2, 3)
    assert await desk.numbers(first) == [1, 2, 3]


async def test_nobody_coming_back_in_time_ends_the_subscription(desk: Any) -> None:
    first = desk.subscribe("events.#", **TERMS)
    desk.broker.leave(first)
    await desk.publish(A, 1)
    desk.clock.pass_by(59.9)
    desk.broker.sweep()
    assert desk.broker.totals().subscriptions == 1
    desk.clock.pass_by(0.1)
    desk.broker.sweep()
    totals = desk.broker.totals()
    assert totals.subscriptions == 0
    assert dict(totals.flow.dropped) == {DropReason.CLOSED: 1}
    opening = desk.open("events.#", **TERMS)
    assert not opening.is_resumed
    assert opening.subscription.id != first.id


async def test_coming_back_starts_the_time_anew(desk: Any) -> None:
    first = desk.subscribe("events.#", **TERMS)
    for _ in range(3):
        desk.broker.leave(first)
        desk.clock.pass_by(59.0)
        desk.broker.sweep()
        assert desk.open("events.#", **TERMS).is_resumed


async def test_newer_stream_takes_the_subscription_over(desk: Any) -> None:
    first = desk.subscribe("events.#", **TERMS)
    old = first.mailbox
    await desk.publish(A, 1, 2)
    await desk.next(first, 1)
    assert desk.open("events.#", **TERMS).is_resumed
    assert await old.take(10, 1_000) == Closed(CloseReason.SUPERSEDED)
    assert await desk.numbers(first, 1) == [1]
    assert await desk.numbers(first) == [2]
    assert desk.broker.totals().subscriptions == 1


async def test_names_of_one_identity_are_nothing_to_another(desk: Any) -> None:
    desk.broker.leave(desk.subscribe("events.#", identity="operator/a", **TERMS))
    assert not desk.open("events.#", identity="operator/b", **TERMS).is_resumed
    other = {**TERMS, "label": "other"}
    assert not desk.open("events.#", identity="operator/a", **other).is_resumed
    assert desk.open("events.#", identity="operator/a", **TERMS).is_resumed


@pytest.mark.parametrize(
    "changed",
    [
        {"max_messages": 999},
        {"max_bytes": 99_999},
        {"policy": OverflowPolicy.DROP_NEWEST},
        {"acknowledgement": None},
        {"acknowledgement": Acknowledgement(1.0, 1_000)},
        {"initial_credit": 1},
        {"durability": Durability(61.0, KEEP.bounds)},
        {"durability": Durability(60.0, Retention(1, 1))},
        {"duplicates": DuplicateHandling.DROP},
        {"is_ordered": True},
    ],
)
async def test_coming_back_with_other_terms_is_refused_and_changes_nothing(
    desk: Any, changed: dict[str, Any]
) -> None:
    first = desk.subscribe("events.#", **TERMS)
    await desk.publish(A, 1)
    desk.broker.leave(first)
    with pytest.raises(InvalidSubscriptionError, match="ask for the same"):
        desk.open("control.#", **{**TERMS, **changed})
    await desk.publish(A, 2)
    assert not first.is_attached
    assert desk.open("events.#", **TERMS).is_resumed
    assert await desk.numbers(first) == [1, 2]


async def test_coming_back_with_other_patterns_updates_them(desk: Any) -> None:
    first = desk.subscribe("events.#", **TERMS)
    desk.broker.leave(first)
    await desk.publish(A, 1)
    assert desk.open("control.#", **TERMS).is_resumed
    await desk.publish(A, 2)
    await desk.publish("control.c", 3)
    assert await desk.numbers(first) == [1, 3]


async def test_coming_back_with_a_bad_pattern_is_refused_and_the_subscription_waits_on(
    desk: Any,
) -> None:
    first = desk.subscribe("events.#", **TERMS)
    desk.broker.leave(first)
    with pytest.raises(InvalidPatternError):
        desk.open("events.*", **TERMS)
    desk.clock.pass_by(60.0)
    desk.broker.sweep()
    assert desk.broker.totals().subscriptions == 0


async def test_coming_back_gets_nothing_of_the_history_again(desk: Any) -> None:
    await desk.publish(A, 1)
    terms = {**TERMS, "history": HistoryTerms()}
    first = desk.subscribe("events.#", **terms)
    assert await desk.numbers(first) == [1]
    first.mailbox.acknowledge(0)
    desk.broker.leave(first)
    await desk.publish(A, 2)
    opening = desk.open("events.#", **terms)
    assert (opening.is_resumed, opening.is_history_complete) == (True, True)
    assert await desk.numbers(first) == [2]


async def test_unsubscribing_ends_it_for_good(desk: Any) -> None:
    first = desk.subscribe("events.#", **TERMS)
    desk.broker.end(first)
    assert not desk.open("events.#", **TERMS).is_resumed


async def test_disconnected_durable_subscription_ends_for_good(desk: Any) -> None:
    terms = {**TERMS, "max_messages": 1, "policy": OverflowPolicy.DISCONNECT}
    first = desk.subscribe("events.#", **terms)
    await desk.publish(A, 1, 2)
    desk.broker.leave(first)
    assert not desk.open("events.#", **terms).is_resumed


async def test_draining_ends_those_that_are_away(desk: Any) -> None:
    away = desk.subscribe("events.#", **TERMS)
    desk.broker.leave(away)
    await desk.publish(A, 1)
    desk.broker.drain()
    totals = desk.broker.totals()
    assert (totals.subscriptions, dict(totals.flow.dropped)) == (0, {DropReason.CLOSED: 1})


async def test_publisher_waits_for_the_return_of_who_is_to_acknowledge(desk: Any) -> None:
    first = desk.subscribe("events.#", **TERMS)
    desk.broker.leave(first)
    receipt = Receipt()
    await desk.publish(A, 1, receipt=receipt)
    assert not receipt.is_settled
    desk.open("events.#", **TERMS)
    await desk.numbers(first)
    first.mailbox.acknowledge(0)
    await receipt.wait()


async def test_publisher_is_told_when_who_is_to_acknowledge_does_not_return(desk: Any) -> None:
    desk.broker.leave(desk.subscribe("events.#", **TERMS))
    receipt = Receipt()
    await desk.publish(A, 1, receipt=receipt)
    desk.clock.pass_by(60.0)
    desk.broker.sweep()
    with pytest.raises(NoSubscriberError):
        await receipt.wait()


async def test_repeat_is_told_across_an_absence(desk: Any) -> None:
    terms = {**TERMS, "duplicates": DuplicateHandling.DROP}
    first = desk.subscribe("events.#", **terms)
    await desk.publish(A, 1, 2)
    desk.broker.leave(first)
    await desk.publish(A, 2, 3, first_sequence=2)
    desk.open("events.#", **terms)
    assert await desk.numbers(first) == [1, 2, 3]
