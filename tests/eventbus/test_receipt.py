"""A receipt is settled when everybody has acknowledged, and never before all of it was offered."""

import asyncio
from typing import Any

import pytest

from daemoneye_eventbus.errors import NoSubscriberError
from daemoneye_eventbus.mailbox import Acknowledgement, OverflowPolicy
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.subscription import DuplicateHandling

A = "events.a"
ACKS = Acknowledgement(30.0, 1_000)


async def is_waiting(receipt: Receipt) -> bool:
    waiting = asyncio.ensure_future(receipt.wait())
    await asyncio.sleep(0)
    is_done = waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert is_done == receipt.is_settled
    return not is_done


async def test_receipt_that_expects_nothing_is_settled() -> None:
    assert not await is_waiting(Receipt())


async def test_receipt_waits_for_all_it_expects() -> None:
    receipt = Receipt()
    receipt.expect(2)
    receipt.expect(3)
    receipt.settle(4)
    assert await is_waiting(receipt)
    receipt.settle(1)
    assert not await is_waiting(receipt)


async def test_receipt_stays_open_while_its_batch_is_offered() -> None:
    receipt = Receipt()
    with receipt.offering():
        receipt.expect(1)
        receipt.settle(1)
        assert await is_waiting(receipt)
        receipt.expect(1)
    assert await is_waiting(receipt)
    receipt.settle(1)
    assert not await is_waiting(receipt)


async def test_failed_receipt_says_that_nobody_is_there() -> None:
    receipt = Receipt()
    receipt.expect(2)
    receipt.fail()
    receipt.settle(2)
    with pytest.raises(NoSubscriberError):
        await receipt.wait()


async def test_failed_receipt_nobody_waits_for_is_no_error() -> None:
    receipt = Receipt()
    receipt.fail()
    receipt.fail()
    assert receipt.is_settled


async def test_giving_up_waiting_leaves_the_receipt_to_others() -> None:
    receipt = Receipt()
    receipt.expect(1)
    assert await is_waiting(receipt)
    receipt.settle(1)
    await receipt.wait()


async def test_pair_is_settled_and_failed_together() -> None:
    first, second, third = Receipt(), Receipt(), Receipt()
    both = first.beside(second)
    assert first.beside(None) is first
    assert both.includes(first)
    assert both.includes(second)
    assert not both.includes(third)
    assert third.beside(both).includes(second)
    both.expect(2)
    both.settle(1)
    assert await is_waiting(first)
    second.settle(1)
    assert await is_waiting(first)
    assert not await is_waiting(second)
    both.fail()
    with pytest.raises(NoSubscriberError):
        await first.wait()


async def test_batch_is_not_settled_by_what_the_first_subscription_dropped(desk: Any) -> None:
    full = {"max_messages": 1, "policy": OverflowPolicy.DROP_NEWEST, "acknowledgement": ACKS}
    crowded = desk.subscribe("events.#", **full)
    await desk.publish(A, 1)
    recorder = desk.subscribe("events.#", acknowledgement=ACKS)
    receipt = Receipt()
    await desk.publish(A, 2, receipt=receipt)
    assert crowded.mailbox.counters().pending == 1
    assert await is_waiting(receipt)
    await desk.numbers(recorder)
    recorder.mailbox.acknowledge(0)
    assert not await is_waiting(receipt)


async def test_batch_is_not_settled_while_part_of_it_waits_for_room(desk: Any) -> None:
    recorder = desk.subscribe(
        "events.#", max_messages=2, policy=OverflowPolicy.BLOCK, acknowledgement=ACKS
    )
    receipt = Receipt()
    batch = [desk.group(A, 1, 2), desk.group(A, 3, 4)]
    publishing = asyncio.ensure_future(desk.broker.publish("p", batch, receipt))
    await asyncio.sleep(0)
    assert await desk.numbers(recorder) == [1, 2]
    recorder.mailbox.acknowledge(1)
    assert await publishing == 4
    assert await is_waiting(receipt)
    assert await desk.numbers(recorder) == [3, 4]
    recorder.mailbox.acknowledge(3)
    assert not await is_waiting(receipt)


async def test_batch_fails_when_who_acknowledges_leaves_while_it_waits_for_room(desk: Any) -> None:
    recorder = desk.subscribe("events.#", acknowledgement=ACKS)
    blocking = desk.subscribe("events.#", max_messages=1, policy=OverflowPolicy.BLOCK)
    receipt = Receipt()
    batch = [desk.group(A, 1), desk.group(A, 2)]
    publishing = asyncio.ensure_future(desk.broker.publish("p", batch, receipt))
    await asyncio.sleep(0)
    await desk.numbers(recorder)
    recorder.mailbox.acknowledge(0)
    desk.broker.leave(recorder)
    assert await desk.numbers(blocking) == [1]
    await publishing
    with pytest.raises(NoSubscriberError):
        await receipt.wait()


@pytest.mark.parametrize("duplicates", [DuplicateHandling.DROP, DuplicateHandling.MERGE])
async def test_repeat_waits_for_the_first_copy(desk: Any, duplicates: DuplicateHandling) -> None:
    recorder = desk.subscribe("events.#", acknowledgement=ACKS, duplicates=duplicates)
    first, repeat, later = Receipt(), Receipt(), Receipt()
    await desk.publish(A, 1, 2, 3, receipt=first)
    await desk.numbers(recorder, 2)
    await desk.publish(A, 1, 2, 3, receipt=repeat)
    await desk.publish(A, 3, 4, receipt=later)
    while await desk.numbers(recorder):
        pass
    told = []
    for position in range(4):
        recorder.mailbox.acknowledge(position)
        told.append([await is_waiting(one) for one in (first, repeat, later)])
    assert told == [[True] * 3, [True] * 3, [False, False, True], [False] * 3]


async def test_repeat_of_what_is_acknowledged_is_settled_at_once(desk: Any) -> None:
    recorder = desk.subscribe("events.#", acknowledgement=ACKS, duplicates=DuplicateHandling.DROP)
    await desk.publish(A, 1, 2, receipt=Receipt())
    await desk.numbers(recorder)
    recorder.mailbox.acknowledge(1)
    repeat = Receipt()
    await desk.publish(A, 1, 2, receipt=repeat)
    assert not await is_waiting(repeat)
