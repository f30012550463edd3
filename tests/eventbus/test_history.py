"""Who comes late gets what is retained: in order, once, and is told when it is not all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.mailbox import Acknowledgement, DropReason, Gap
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.retention import OVERHEAD_BYTES, RetentionLimits, RetentionRing
from daemoneye_eventbus.selection import Selection
from daemoneye_eventbus.subscription import HistoryTerms

A, B = "events.a", "events.b"
EVERYTHING = HistoryTerms()
ACKS = Acknowledgement(30.0, 100)


async def test_what_is_retained_comes_before_what_is_newer(desk: Any) -> None:
    await desk.publish(A, 1, 2)
    await desk.publish(A, 3)
    opening = desk.open("events.#", history=EVERYTHING)
    await desk.publish(A, 4)
    assert await desk.numbers(opening.subscription) == [1, 2, 3, 4]
    assert opening.is_history_complete


async def test_nothing_of_the_past_comes_unasked(desk: Any) -> None:
    await desk.publish(A, 1)
    opening = desk.open("events.#")
    assert await desk.numbers(opening.subscription) == []
    assert opening.is_history_complete


@pytest.mark.parametrize(("count", "expected"), [(1, [6]), (2, [5, 6]), (4, [3, 4, 5, 6])])
async def test_history_is_bounded_to_the_latest_messages(
    desk: Any, count: int, expected: list[int]
) -> None:
    await desk.publish(A, 1, 2, 3)
    await desk.publish(A, 4, 5, 6)
    opening = desk.open("events.#", history=HistoryTerms(max_messages=count))
    assert await desk.numbers(opening.subscription) == expected
    assert opening.is_history_complete


async def test_history_is_bounded_to_an_age(desk: Any) -> None:
    for number in (1, 2, 3):
        await desk.publish(A, number)
        desk.clock.pass_by(10.0)
    opening = desk.open("events.#", history=HistoryTerms(max_age_s=20.0))
    assert await desk.numbers(opening.subscription) == [2, 3]
    assert opening.is_history_complete


async def test_history_holds_what_passes_the_subscription_alone(desk: Any) -> None:
    await desk.publish(A, 1, priority=9)
    await desk.publish(A, 2)
    await desk.publish(B, 3, priority=9)
    await desk.publish(A, 4, priority=9, message_type=5)
    terms = {"selection": Selection(message_types=frozenset({0})), "history": EVERYTHING}
    subscription = desk.subscribe(floors=((A, 9),), **terms)
    assert await desk.numbers(subscription) == [1]
    assert subscription.mailbox.counters().offered == 1


async def test_bound_of_a_history_counts_what_passes(desk: Any) -> None:
    for number in (1, 2, 3):
        await desk.publish(A, number)
        await desk.publish(B, 10 * number)
    subscription = desk.subscribe(A, history=HistoryTerms(max_messages=2))
    assert await desk.numbers(subscription) == [2, 3]


@pytest.mark.parametrize(
    "limits",
    [
        RetentionLimits(max_messages=3),
        RetentionLimits(max_bytes=3 * (10 + OVERHEAD_BYTES)),
        RetentionLimits(max_age_s=25.0),
    ],
)
async def test_what_is_retained_is_bounded_and_what_is_missing_is_told(
    make_desk: Any, limits: RetentionLimits
) -> None:
    desk = make_desk(retention=limits)
    for number in range(1, 6):
        await desk.publish(A, number)
        desk.clock.pass_by(10.0 if number < 5 else 5.0)
    desk.broker.sweep()
    opening = desk.open("events.#", history=EVERYTHING)
    assert await desk.numbers(opening.subscription) == [3, 4, 5]
    assert not opening.is_history_complete
    assert not desk.open("events.#", history=HistoryTerms(100.0)).is_history_complete
    assert desk.open("events.#", history=HistoryTerms(30.0)).is_history_complete
    assert desk.open("events.#", history=HistoryTerms(max_messages=3)).is_history_complete
    assert not desk.open("events.#", history=HistoryTerms(max_messages=4)).is_history_complete
    assert desk.broker.totals().retained == 3


@pytest.mark.parametrize(
    "limits",
    [
        RetentionLimits(max_messages=0),
        RetentionLimits(max_bytes=0),
        RetentionLimits(max_age_s=0.0),
        RetentionLimits(max_messages=1),
        RetentionLimits(max_bytes=19 + OVERHEAD_BYTES),
    ],
)
async def test_broker_that_cannot_keep_it_says_so(make_desk: Any, limits: RetentionLimits) -> None:
    desk = make_desk(retention=limits)
    assert desk.open("events.#", history=EVERYTHING).is_history_complete
    await desk.publish(A, 1, 2)
    opening = desk.open("events.#", history=EVERYTHING)
    assert await desk.numbers(opening.subscription) == []
    assert not opening.is_history_complete
    assert (desk.broker.totals().retained, desk.broker.totals().retained_bytes) == (0, 0)


async def test_message_that_expired_is_no_part_of_the_history(desk: Any) -> None:
    await desk.publish(A, 1, ttl_ms=9_000)
    await desk.publish(A, 2, ttl_ms=15_000)
    desk.clock.pass_by(9.0)
    subscription = desk.subscribe("events.#", history=EVERYTHING)
    desk.clock.pass_by(5.999)
    desk.broker.sweep()
    assert subscription.mailbox.counters().pending == 1
    desk.clock.pass_by(0.001)
    assert await desk.next(subscription) == Gap(0, 0, 10, DropReason.EXPIRED)


async def test_history_larger_than_the_queue_is_told_as_a_gap(desk: Any) -> None:
    await desk.publish(A, 1, 2, 3, 4, 5)
    subscription = desk.subscribe("events.#", history=EVERYTHING, max_messages=2)
    assert await desk.next(subscription) == Gap(0, 2, 30, DropReason.DROPPED_OLDEST)
    assert await desk.numbers(subscription) == [4, 5]


async def test_history_owes_nobody_an_acknowledgement(desk: Any) -> None:
    recorder = desk.subscribe("events.#", acknowledgement=ACKS)
    receipt = Receipt()
    await desk.publish(A, 1, receipt=receipt)
    late = desk.subscribe("events.#", history=EVERYTHING, acknowledgement=ACKS)
    await desk.numbers(recorder)
    recorder.mailbox.acknowledge(0)
    await receipt.wait()
    assert await desk.numbers(late) == [1]


class Sized:
    """Ten bytes a message."""

    def __init__(self, count: int) -> None:
        self.size_bytes = 10 * count

    def split(self, count: int) -> "tuple[Sized, Sized]":
        return Sized(count), Sized(self.size_bytes // 10 - count)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 8)),
        st.tuples(st.just("pass"), st.integers(0, 12)),
    ),
    max_size=40,
)


@given(steps, st.integers(0, 12), st.integers(0, 150), st.sampled_from([0.0, 10.0]))
def test_ring_holds_the_latest_and_knows_what_it_forgot(
    steps: list[tuple[str, int]], max_messages: int, max_bytes: int, max_age_s: float
) -> None:
    ring = RetentionRing(RetentionLimits(max_messages, max_bytes, max_age_s))
    now_s, appended = 0.0, []
    for step, number in steps:
        if step == "pass":
            now_s += number
        else:
            envelope = Envelope(topic=A, source_id="p", count=number)
            group = Group(envelope, Sized(number))
            appended.append((now_s, group))
            ring.append(group, now_s)
        ring.trim(now_s)
        kept = [one.envelope for one in ring.latest_first(float("-inf"), now_s)][::-1]
        assert kept == [group.envelope for _, group in appended[len(appended) - len(kept) :]]
        assert ring.message_count == sum(one.count for one in kept) <= max_messages
        assert ring.size_bytes == 10 * ring.message_count <= max_bytes
        forgotten = appended[: len(appended) - len(kept)]
        for since_s in (float("-inf"), now_s - 5.0, now_s):
            is_whole = all(accepted_s < since_s for accepted_s, _ in forgotten)
            assert ring.reaches_back_to(since_s) == is_whole
