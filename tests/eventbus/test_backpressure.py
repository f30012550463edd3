"""Publishers wait for a subscription that asked for it: as long as declared, once for each stall."""

import asyncio
from typing import Any

import pytest

from daemoneye_eventbus.errors import BrokerDrainingError
from daemoneye_eventbus.mailbox import DropReason, Gap, OverflowPolicy, Retention
from daemoneye_eventbus.selection import Selection
from daemoneye_eventbus.subscription import Durability

A, B = "events.a", "events.b"
BLOCK = {"policy": OverflowPolicy.BLOCK, "block_timeout_s": 60.0}
SHORT = {"policy": OverflowPolicy.BLOCK, "block_timeout_s": 0.01}


async def begin(publishing: Any) -> "asyncio.Task[int]":
    """Lets a publisher go on until it waits."""
    task = asyncio.ensure_future(publishing)
    await settle()
    return task


async def settle() -> None:
    """Gives others turns."""
    for _ in range(5):
        await asyncio.sleep(0)


async def end(task: "asyncio.Task[int]") -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_publisher_waits_until_there_is_room(desk: Any) -> None:
    blocking = desk.subscribe("events.#", max_messages=3, **BLOCK)
    assert await desk.publish(A, 1, 2, 3) == 3
    waiting = await begin(desk.publish(A, 4, 5))
    assert not waiting.done()
    assert await desk.numbers(blocking, 1) == [1]
    await settle()
    assert not waiting.done()
    assert await desk.numbers(blocking, 1) == [2]
    assert await waiting == 2
    assert await desk.numbers(blocking) == [3, 4, 5]
    assert dict(blocking.mailbox.counters().dropped) == {}


async def test_batch_larger_than_the_queue_passes_group_by_group(desk: Any) -> None:
    blocking = desk.subscribe("events.#", max_messages=2, **BLOCK)
    groups = [desk.group(A, number, number + 1) for number in (1, 3, 5)]
    waiting = await begin(desk.broker.publish("p", groups))
    taken = []
    while len(taken) < 6:
        taken += await desk.numbers(blocking)
        await asyncio.sleep(0)
    assert taken == [1, 2, 3, 4, 5, 6]
    assert await waiting == 6


async def test_others_get_each_group_before_the_next_one_waits(desk: Any) -> None:
    desk.subscribe("events.#", max_messages=1, **BLOCK)
    watching = desk.subscribe("events.#")
    waiting = await begin(desk.broker.publish("p", [desk.group(A, 1), desk.group(A, 2)]))
    assert await desk.numbers(watching) == [1]
    assert not waiting.done()
    await end(waiting)


async def test_publisher_of_other_topics_does_not_wait(desk: Any) -> None:
    desk.subscribe(A, max_messages=1, **BLOCK)
    await desk.publish(A, 1)
    assert await desk.publish(B, 2) == 0


async def test_publisher_does_not_wait_for_what_is_filtered(desk: Any) -> None:
    blocking = desk.subscribe(
        "events.#", max_messages=1, selection=Selection(message_types=frozenset({5})), **BLOCK
    )
    await desk.publish(A, 1, message_type=5)
    assert await desk.publish(A, 2) == 1
    assert blocking.mailbox.counters().filtered == 1


async def test_deadline_drops_what_arrives_and_nobody_waits_again_before_half_is_free(
    desk: Any,
) -> None:
    blocking = desk.subscribe("events.#", max_messages=4, **SHORT)
    await desk.publish(A, 1, 2, 3, 4)
    await desk.publish(A, 5, 6)
    assert not blocking.mailbox.is_blocking
    await desk.publish(A, 7)
    assert dict(blocking.mailbox.counters().dropped) == {DropReason.DEADLINE: 3}
    assert await desk.numbers(blocking, 1) == [1]
    assert not blocking.mailbox.is_blocking
    assert await desk.numbers(blocking, 1) == [2]
    assert blocking.mailbox.is_blocking
    assert await desk.numbers(blocking) == [3, 4]
    assert await desk.next(blocking) == Gap(4, 6, 30, DropReason.DEADLINE)


async def test_publisher_waits_no_longer_for_who_leaves(desk: Any) -> None:
    blocking = desk.subscribe("events.#", max_messages=1, **BLOCK)
    watching = desk.subscribe("events.#")
    await desk.publish(A, 1)
    waiting = await begin(desk.publish(A, 2))
    assert not waiting.done()
    desk.broker.leave(blocking)
    assert await waiting == 1
    assert await desk.numbers(watching) == [1, 2]


async def test_publisher_that_waits_is_refused_when_the_broker_drains(desk: Any) -> None:
    desk.subscribe("events.#", max_messages=1, **BLOCK)
    await desk.publish(A, 1)
    waiting = await begin(desk.publish(A, 2))
    desk.broker.drain()
    with pytest.raises(BrokerDrainingError):  # else it would take for accepted what nobody got
        await waiting
    assert desk.broker.totals().accepted == 1


async def test_publisher_does_not_wait_for_who_is_away(desk: Any) -> None:
    keep = Durability(60.0, Retention(1, 10))
    terms = {"label": "x", "durability": keep, "max_messages": 1, **BLOCK}
    away = desk.subscribe("events.#", **terms)
    await desk.publish(A, 1)
    waiting = await begin(desk.publish(A, 2))
    assert not waiting.done()
    desk.broker.leave(away)
    assert await waiting == 1
    assert await desk.publish(A, 3) == 1
    desk.open("events.#", **terms)
    assert await desk.next(away) == Gap(0, 1, 20, DropReason.RETENTION)
    assert await desk.numbers(away) == [3]


async def test_publisher_that_waits_goes_on_when_another_stream_takes_over(desk: Any) -> None:
    keep = Durability(60.0, Retention(9, 90))
    terms = {"label": "x", "durability": keep, "max_messages": 1, **BLOCK}
    blocking = desk.subscribe("events.#", **terms)
    await desk.publish(A, 1)
    waiting = await begin(desk.publish(A, 2))
    desk.open("events.#", **terms)
    await settle()
    assert not waiting.done()
    assert await desk.numbers(blocking) == [1]
    assert await waiting == 1
    assert await desk.numbers(blocking) == [2]


async def test_two_publishers_that_wait_both_get_through(desk: Any) -> None:
    blocking = desk.subscribe("events.#", max_messages=1, **BLOCK)
    await desk.publish(A, 1)
    waiting = [await begin(desk.publish(A, number)) for number in (2, 3)]
    taken: list[int] = []
    while len(taken) < 3:
        taken += await desk.numbers(blocking)
        await asyncio.sleep(0)
    assert [await one for one in waiting] == [1, 1]
    assert taken[0] == 1
    assert set(taken[1:]) == {2, 3}
    assert dict(blocking.mailbox.counters().dropped) == {}
