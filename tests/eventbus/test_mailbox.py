"""A mailbox keeps order, both bounds and its counters, and tells each loss where it happened."""

import asyncio
from collections.abc import Iterable

import pytest

from daemoneye_eventbus.errors import InvalidSubscriptionError, MailboxBusyError
from daemoneye_eventbus.mailbox import (
    Batch,
    Closed,
    CloseReason,
    Delivery,
    DropReason,
    Gap,
    Mailbox,
    MailboxLimits,
    OverflowPolicy,
)

OLDEST = OverflowPolicy.DROP_OLDEST
NEWEST = OverflowPolicy.DROP_NEWEST
DISCONNECT = OverflowPolicy.DISCONNECT
PLENTY = 1_000_000


def mailbox_of(
    max_messages: int = 3, max_bytes: int = 100, policy: OverflowPolicy = OLDEST
) -> Mailbox:
    return Mailbox(MailboxLimits(max_messages, max_bytes, policy))


def put(mailbox: Mailbox, frames: Iterable[bytes]) -> None:
    for frame in frames:
        mailbox.put_nowait(frame)


def put_together(mailbox: Mailbox, frames: list[bytes]) -> None:
    mailbox.put_many_nowait(frames, sum(map(len, frames)))


async def take_all(mailbox: Mailbox) -> list[Delivery]:
    """Take until the mailbox has ended; it must have been closed."""
    taken: list[Delivery] = []
    while not isinstance(delivery := await mailbox.take(PLENTY, PLENTY), Closed):
        taken.append(delivery)
    return [*taken, delivery]


def oldest_gap(first: int, last: int, size_bytes: int) -> Gap:
    return Gap(first, last, size_bytes, DropReason.DROPPED_OLDEST)


def newest_gap(first: int, last: int, size_bytes: int) -> Gap:
    return Gap(first, last, size_bytes, DropReason.DROPPED_NEWEST)


async def test_take_returns_everything_queued_as_one_batch_in_order() -> None:
    mailbox = mailbox_of()
    put(mailbox, [b"a", b"bb", b"c"])
    assert await mailbox.take(PLENTY, PLENTY) == Batch([b"a", b"bb", b"c"], 0, 4)


async def test_take_stops_at_the_message_limit_and_continues_after_it() -> None:
    mailbox = mailbox_of()
    put(mailbox, [b"a", b"b", b"c"])
    assert await mailbox.take(2, PLENTY) == Batch([b"a", b"b"], 0, 2)
    assert await mailbox.take(2, PLENTY) == Batch([b"c"], 2, 1)


async def test_take_stops_at_the_byte_limit_and_continues_after_it() -> None:
    mailbox = mailbox_of()
    put(mailbox, [b"aa", b"bb", b"cc"])
    assert await mailbox.take(PLENTY, 4) == Batch([b"aa", b"bb"], 0, 4)
    assert await mailbox.take(PLENTY, 2) == Batch([b"cc"], 2, 2)


async def test_take_returns_one_message_even_when_it_exceeds_the_byte_limit() -> None:
    mailbox = mailbox_of()
    put(mailbox, [b"large", b"b"])
    assert await mailbox.take(PLENTY, 1) == Batch([b"large"], 0, 5)


async def test_take_waits_for_the_first_message() -> None:
    mailbox = mailbox_of()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(mailbox.take(PLENTY, PLENTY))
        await asyncio.sleep(0)
        assert not waiting.done()
        mailbox.put_nowait(b"a")
    assert waiting.result() == Batch([b"a"], 0, 1)


async def test_second_consumer_is_refused_and_the_first_still_served() -> None:
    mailbox = mailbox_of()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(mailbox.take(PLENTY, PLENTY))
        await asyncio.sleep(0)
        with pytest.raises(MailboxBusyError):
            await mailbox.take(PLENTY, PLENTY)
        mailbox.put_nowait(b"a")
    assert waiting.result() == Batch([b"a"], 0, 1)


async def test_cancelled_take_loses_nothing() -> None:
    mailbox = mailbox_of()
    waiting = asyncio.ensure_future(mailbox.take(PLENTY, PLENTY))
    await asyncio.sleep(0)
    mailbox.put_nowait(b"a")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await mailbox.take(PLENTY, PLENTY) == Batch([b"a"], 0, 1)


async def test_drop_oldest_tells_the_gap_before_what_is_left() -> None:
    mailbox = mailbox_of()
    put(mailbox, [b"a", b"bb", b"c", b"d", b"e"])
    assert await mailbox.take(PLENTY, PLENTY) == oldest_gap(0, 1, 3)
    assert await mailbox.take(PLENTY, PLENTY) == Batch([b"c", b"d", b"e"], 2, 3)


async def test_drop_newest_tells_the_gap_after_what_was_kept_and_before_what_follows() -> None:
    mailbox = mailbox_of(policy=NEWEST)
    put(mailbox, [b"a", b"b", b"c", b"lost", b"gone"])
    assert await mailbox.take(1, PLENTY) == Batch([b"a"], 0, 1)
    mailbox.put_nowait(b"f")
    assert await mailbox.take(PLENTY, PLENTY) == Batch([b"b", b"c"], 1, 2)
    assert await mailbox.take(PLENTY, PLENTY) == newest_gap(3, 4, 8)
    assert await mailbox.take(PLENTY, PLENTY) == Batch([b"f"], 5, 1)


async def test_drop_newest_keeps_a_later_message_that_fits_the_bytes() -> None:
    mailbox = mailbox_of(max_messages=10, max_bytes=4, policy=NEWEST)
    put_together(mailbox, [b"aaa", b"bb", b"c"])
    mailbox.close(CloseReason.DRAINING, drain=True)
    assert await take_all(mailbox) == [
        Batch([b"aaa"], 0, 3),
        newest_gap(1, 1, 2),
        Batch([b"c"], 2, 1),
        Closed(CloseReason.DRAINING),
    ]


async def test_disconnect_delivers_what_was_queued_then_the_gap_then_the_end() -> None:
    mailbox = mailbox_of(policy=DISCONNECT)
    put_together(mailbox, [b"a", b"b", b"c", b"d", b"e"])
    mailbox.put_nowait(b"f")
    assert mailbox.close_reason is CloseReason.SLOW_CONSUMER
    assert await take_all(mailbox) == [
        Batch([b"a", b"b", b"c"], 0, 3),
        newest_gap(3, 3, 1),
        Closed(CloseReason.SLOW_CONSUMER),
    ]
    assert mailbox.counters().dropped == {DropReason.DROPPED_NEWEST: 1, DropReason.CLOSED: 2}


async def test_gaps_that_come_to_touch_are_told_as_one() -> None:
    """An oversized message leaves a gap inside the queue; dropping up to it joins both."""
    mailbox = mailbox_of(max_messages=3, max_bytes=10)
    put(mailbox, [b"a", b"b", b"x" * 11, b"c"])
    put_together(mailbox, [b"d", b"e"])
    mailbox.close(CloseReason.DRAINING, drain=True)
    assert await take_all(mailbox) == [
        oldest_gap(0, 2, 13),
        Batch([b"c", b"d", b"e"], 3, 3),
        Closed(CloseReason.DRAINING),
    ]


async def test_gaps_apart_from_each_other_are_told_apart() -> None:
    mailbox = mailbox_of(max_messages=3, max_bytes=10)
    put(mailbox, [b"a", b"b", b"x" * 11, b"c", b"d"])
    mailbox.close(CloseReason.DRAINING, drain=True)
    assert await take_all(mailbox) == [
        oldest_gap(0, 0, 1),
        Batch([b"b"], 1, 1),
        oldest_gap(2, 2, 11),
        Batch([b"c", b"d"], 3, 2),
        Closed(CloseReason.DRAINING),
    ]


async def test_batch_larger_than_the_mailbox_leaves_its_end_queued_under_drop_oldest() -> None:
    mailbox = mailbox_of(max_messages=2)
    put_together(mailbox, [b"a", b"b", b"c", b"d", b"e"])
    assert await mailbox.take(PLENTY, PLENTY) == oldest_gap(0, 2, 3)
    assert await mailbox.take(PLENTY, PLENTY) == Batch([b"d", b"e"], 3, 2)


@pytest.mark.parametrize("policy", list(OverflowPolicy))
async def test_exactly_full_mailbox_drops_nothing(policy: OverflowPolicy) -> None:
    mailbox = mailbox_of(max_messages=2, max_bytes=4, policy=policy)
    put_together(mailbox, [b"aa", b"bb"])
    assert mailbox.counters().dropped == {}
    assert await mailbox.take(PLENTY, PLENTY) == Batch([b"aa", b"bb"], 0, 4)


async def test_close_wakes_the_consumer() -> None:
    mailbox = mailbox_of()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(mailbox.take(PLENTY, PLENTY))
        await asyncio.sleep(0)
        mailbox.close(CloseReason.UNSUBSCRIBED)
    assert waiting.result() == Closed(CloseReason.UNSUBSCRIBED)


async def test_close_without_drain_drops_and_counts_what_is_queued() -> None:
    mailbox = mailbox_of()
    put(mailbox, [b"a", b"b", b"c", b"d"])
    mailbox.close(CloseReason.UNSUBSCRIBED)
    mailbox.put_nowait(b"late")
    assert await take_all(mailbox) == [Closed(CloseReason.UNSUBSCRIBED)]
    counters = mailbox.counters()
    assert counters.dropped == {DropReason.DROPPED_OLDEST: 1, DropReason.CLOSED: 4}
    assert (counters.offered, counters.pending, counters.pending_bytes) == (5, 0, 0)


async def test_first_close_reason_stands_and_the_end_is_told_every_time() -> None:
    mailbox = mailbox_of()
    mailbox.close(CloseReason.DRAINING, drain=True)
    mailbox.close(CloseReason.UNSUBSCRIBED)
    assert await mailbox.take(1, 1) == Closed(CloseReason.DRAINING)
    assert await mailbox.take(1, 1) == Closed(CloseReason.DRAINING)


@pytest.mark.parametrize(("max_messages", "max_bytes"), [(0, 1), (1, 0), (-1, 1)])
def test_limit_below_one_is_refused(max_messages: int, max_bytes: int) -> None:
    with pytest.raises(InvalidSubscriptionError, match="use at least 1"):
        MailboxLimits(max_messages, max_bytes)
