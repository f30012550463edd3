"""Members of a consumer group share the work: one of them gets each message, and none is lost."""

from typing import Any

import pytest

from daemoneye_eventbus.errors import InvalidSubscriptionError, NoSubscriberError
from daemoneye_eventbus.mailbox import Acknowledgement, Batch, DropReason, OverflowPolicy
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.selection import Selection

A, B = "control.task.a", "control.task.b"
ACKS = Acknowledgement(30.0, 1_000)


def member(desk: Any, *patterns: str, **terms: Any) -> Any:
    return desk.subscribe(*(patterns or ("control.#",)), consumer_group="workers", **terms)


async def test_each_message_goes_to_one_member_and_to_whoever_observes(desk: Any) -> None:
    members, observer = [member(desk) for _ in range(3)], desk.subscribe("control.#")
    other = desk.subscribe("control.#", consumer_group="others")
    for number in range(1, 31):
        assert await desk.publish(A, number) == 3
    taken = [await desk.numbers(one) for one in members]
    assert sorted(number for numbers in taken for number in numbers) == list(range(1, 31))
    assert await desk.numbers(observer) == await desk.numbers(other) == list(range(1, 31))


async def test_other_kind_of_identity_takes_no_share_of_a_group(desk: Any) -> None:
    worker = member(desk, identity="collector/one")
    stranger = member(desk, identity="operator/local")
    for number in range(1, 6):
        assert await desk.publish(A, number) == 2
    assert await desk.numbers(worker) == await desk.numbers(stranger) == [1, 2, 3, 4, 5]


async def test_hundred_tasks_are_shared_by_two_members(desk: Any) -> None:
    members = [member(desk), member(desk)]
    for number in range(1, 101):
        await desk.publish(A, number)
    counts = [one.mailbox.counters().offered for one in members]
    assert sum(counts) == 100
    assert all(5 < count < 95 for count in counts)


async def test_member_that_is_behind_gets_less(desk: Any) -> None:
    idle, busy = member(desk), member(desk)
    for number in range(1, 41):
        await desk.publish(A, number)
        await desk.numbers(idle)
    assert idle.mailbox.counters().delivered > 30
    assert busy.mailbox.counters().pending < 5


async def test_message_goes_to_a_member_that_lets_it_through(desk: Any) -> None:
    alerts = member(desk, selection=Selection(message_types=frozenset({5})))
    urgent = desk.subscribe(floors=(("control.#", 9),), consumer_group="workers")
    for number in range(1, 6):
        await desk.publish(A, number, message_type=5)
        await desk.publish(A, 10 + number, priority=9)
    await desk.publish(A, 99)
    assert await desk.numbers(alerts) == [1, 2, 3, 4, 5]
    assert await desk.numbers(urgent) == [11, 12, 13, 14, 15]
    counters = [one.mailbox.counters() for one in (alerts, urgent)]
    assert sum(one.filtered for one in counters) == 1
    assert sum(one.offered for one in counters) == 11


async def test_ordered_group_keeps_each_source_at_one_member(desk: Any) -> None:
    members = [member(desk, is_ordered=True) for _ in range(3)]
    sources = [f"source{one}" for one in range(20)]
    for number in range(1, 6):
        for source in sources:
            await desk.publish(A, number, source_id=source)
    seen: dict[str, list[int]] = {}
    for one in members:
        delivery = await desk.next(one)
        assert isinstance(delivery, Batch)
        by_source = {group.envelope.source_id for group in delivery.groups}
        assert not by_source & seen.keys()
        for group in delivery.groups:
            seen.setdefault(group.envelope.source_id, []).append(group.envelope.first_sequence)
    assert seen == {source: [1, 2, 3, 4, 5] for source in sources}


async def test_ordered_group_moves_only_the_sources_of_who_left(desk: Any) -> None:
    members = [member(desk, is_ordered=True) for _ in range(3)]
    sources = [f"source{one}" for one in range(30)]

    async def assign() -> dict[str, str]:
        owners = {}
        for source in sources:
            before = [one.mailbox.counters().offered for one in members]
            await desk.publish(A, 1, source_id=source)
            after = [one.mailbox.counters().offered for one in members]
            owners[source] = next(
                one.id for one, b, a in zip(members, before, after, strict=True) if a > b
            )
        return owners

    before = await assign()
    for one in members:
        await desk.numbers(one)
    gone = members[0].id
    desk.broker.leave(members[0])
    after = await assign()
    assert {source for source in sources if before[source] != after[source]} == {
        source for source in sources if before[source] == gone
    }


@pytest.mark.parametrize("terms", [{"acknowledgement": ACKS}, {"is_ordered": True}])
async def test_member_with_another_guarantee_or_order_is_refused(
    desk: Any, terms: dict[str, Any]
) -> None:
    first = member(desk)
    with pytest.raises(InvalidSubscriptionError, match="consumer group workers"):
        member(desk, **terms)
    assert desk.broker.totals().subscriptions == 1
    desk.broker.leave(first)
    assert member(desk, **terms)


async def test_leaving_member_hands_on_what_it_had_not_acknowledged(desk: Any) -> None:
    leaving = member(desk, acknowledgement=ACKS)
    await desk.broker.publish("p", [desk.group(A, 1, 2, 3), desk.group(A, 4, 5)])
    assert await desk.numbers(leaving, 3) == [1, 2, 3]
    leaving.mailbox.acknowledge(1)
    staying = member(desk, acknowledgement=ACKS)
    desk.broker.leave(leaving)
    assert await desk.numbers(staying) == [3, 4, 5]
    flow = desk.broker.totals().flow
    assert (flow.offered, flow.delivered, dict(flow.dropped)) == (8, 2, {DropReason.MOVED: 3})
    assert flow.pending == 3


async def test_leaving_member_hands_on_what_it_had_not_been_handed(desk: Any) -> None:
    leaving = member(desk)
    await desk.publish(A, 1, 2, 3)
    assert await desk.numbers(leaving, 1) == [1]
    staying = member(desk)
    desk.broker.leave(leaving)
    assert await desk.numbers(staying) == [2, 3]


async def test_last_member_takes_what_is_left_with_it(desk: Any) -> None:
    leaving = member(desk, acknowledgement=ACKS)
    await desk.publish(A, 1, 2)
    desk.broker.leave(leaving)
    assert dict(desk.broker.totals().flow.dropped) == {DropReason.CLOSED: 2}


async def test_what_nobody_else_lets_through_is_not_acknowledged_by_moving_it(desk: Any) -> None:
    leaving = member(desk, acknowledgement=ACKS)
    receipt = Receipt()
    await desk.publish(A, 1, receipt=receipt)
    member(desk, B, acknowledgement=ACKS)
    member(desk, acknowledgement=ACKS, selection=Selection(message_types=frozenset({5})))
    desk.broker.leave(leaving)
    with pytest.raises(NoSubscriberError):
        await receipt.wait()
    flow = desk.broker.totals().flow
    assert (flow.offered, dict(flow.dropped)) == (1, {DropReason.CLOSED: 1})


async def test_publisher_waits_for_whoever_got_what_was_handed_on(desk: Any) -> None:
    leaving = member(desk, acknowledgement=ACKS)
    receipt = Receipt()
    await desk.publish(A, 1, 2, receipt=receipt)
    await desk.numbers(leaving)
    leaving.mailbox.acknowledge(0)
    staying = member(desk, acknowledgement=ACKS)
    desk.broker.leave(leaving)
    assert not receipt.is_settled
    assert await desk.numbers(staying) == [2]
    staying.mailbox.acknowledge(0)
    await receipt.wait()


async def test_what_is_handed_on_within_a_group_that_does_not_acknowledge_owes_nobody(
    desk: Any,
) -> None:
    leaving, recorder = member(desk), desk.subscribe("control.#", acknowledgement=ACKS)
    receipt = Receipt()
    await desk.publish(A, 1, 2, receipt=receipt)
    staying = member(desk)
    desk.broker.leave(leaving)
    assert await desk.numbers(staying) == [1, 2]
    assert not receipt.is_settled
    await desk.numbers(recorder)
    recorder.mailbox.acknowledge(1)
    await receipt.wait()


async def test_nothing_is_handed_on_to_a_member_that_is_at_its_end(desk: Any) -> None:
    over = member(desk, max_messages=1, policy=OverflowPolicy.DISCONNECT)
    await desk.publish(A, 1, 2)
    assert await desk.numbers(over) == [1]
    leaving = member(desk)
    await desk.publish(A, 3)
    staying = member(desk)
    await desk.publish(A, 4)
    desk.broker.leave(leaving)
    assert await desk.numbers(staying) == [4, 3]


async def test_members_of_one_identity_and_of_others_are_alike(desk: Any) -> None:
    members = [member(desk, identity=f"operator/{one}") for one in "aab"]
    for number in range(1, 4):
        await desk.publish(A, number)
    assert [one.mailbox.counters().offered for one in members] == [1, 1, 1]
