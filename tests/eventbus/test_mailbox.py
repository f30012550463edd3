"""A mailbox keeps order, both bounds and its counters, and tells each loss where it happened."""

import asyncio

import pytest
from tests.eventbus.mailbox_words import Texts, group_of, take, take_all, text_of

from daemoneye_eventbus.errors import InvalidSubscriptionError, MailboxBusyError
from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.mailbox import (
    Acknowledgement,
    Batch,
    CloseReason,
    DropReason,
    Mailbox,
    MailboxLimits,
    OverflowPolicy,
    Retention,
)

OLDEST = OverflowPolicy.DROP_OLDEST
NEWEST = OverflowPolicy.DROP_NEWEST
DISCONNECT = OverflowPolicy.DISCONNECT
BLOCK = OverflowPolicy.BLOCK


def mailbox_of(
    max_messages: int = 3, max_bytes: int = 100, policy: OverflowPolicy = OLDEST
) -> Mailbox:
    return Mailbox(MailboxLimits(max_messages, max_bytes, policy))


def put(mailbox: Mailbox, *texts: str) -> None:
    for text in texts:
        mailbox.put(group_of(text))


async def drain(mailbox: Mailbox) -> list[str]:
    mailbox.close(CloseReason.DRAINING, drain=True)
    return await take_all(mailbox)


async def test_take_returns_everything_queued_as_one_batch_in_order() -> None:
    mailbox = mailbox_of()
    put(mailbox, "a bb", "c")
    batch = await mailbox.take(10, 100)
    assert isinstance(batch, Batch)
    assert text_of(batch.groups) == "a bb|c"
    assert (batch.first_position, batch.last_position, batch.count) == (0, 2, 3)
    assert batch.size_bytes == 4
    assert not batch.is_redelivered


async def test_take_stops_at_the_message_limit_and_continues_after_it() -> None:
    mailbox = mailbox_of()
    put(mailbox, "a", "b", "c")
    assert await take(mailbox, max_messages=2) == "0: a|b"
    assert await take(mailbox, max_messages=2) == "2: c"


async def test_take_stops_at_the_byte_limit_and_continues_after_it() -> None:
    mailbox = mailbox_of()
    put(mailbox, "aa", "bb", "cc")
    assert await take(mailbox, max_bytes=4) == "0: aa|bb"
    assert await take(mailbox, max_bytes=2) == "2: cc"


async def test_take_cuts_a_group_larger_than_the_message_limit() -> None:
    mailbox = mailbox_of(max_messages=5)
    put(mailbox, "a b c d e")
    assert await take(mailbox, max_messages=2) == "0: a b"
    assert await take(mailbox, max_messages=2) == "2: c d"
    assert await take(mailbox, max_messages=2) == "4: e"


async def test_take_cuts_a_group_larger_than_the_byte_limit_down_to_one_message() -> None:
    mailbox = mailbox_of(max_messages=5)
    put(mailbox, "aaa bbb ccc ddd")
    assert await take(mailbox, max_bytes=7) == "0: aaa bbb"
    assert await take(mailbox, max_bytes=1) == "2: ccc"


async def test_take_leaves_a_group_whole_that_does_not_fit_behind_another() -> None:
    mailbox = mailbox_of()
    put(mailbox, "a", "b c")
    assert await take(mailbox, max_messages=2) == "0: a"
    assert await take(mailbox, max_messages=2) == "1: b c"


async def test_taking_one_by_one_cuts_a_large_group_into_halves_first() -> None:
    """So the messages copied are a small multiple of those there are, not their square."""
    copied = 0

    class Counted(Texts):
        def split(self, count: int) -> tuple["Texts", "Texts"]:
            nonlocal copied
            copied += len(self.items)
            head, tail = super().split(count)
            return Counted(head.items), Counted(tail.items)

    mailbox = mailbox_of(max_messages=1_000, max_bytes=10_000)
    mailbox.put(Group(Envelope(topic="a", source_id="a", count=1_000), Counted(["a"] * 1_000)))
    for position in range(1_000):
        assert await take(mailbox, max_messages=1) == f"{position}: a"
    assert copied < 20 * 1_000


async def test_put_returns_the_position_of_its_first_message() -> None:
    mailbox = mailbox_of(max_messages=10)
    positions = [mailbox.put(group_of(text)) for text in ("a b", "c", "d e f")]
    assert positions == [0, 2, 3]
    assert mailbox.next_position == 0
    await take(mailbox)
    assert mailbox.next_position == 6


async def test_filtered_messages_are_counted_and_take_no_position() -> None:
    mailbox = mailbox_of()
    mailbox.filter_out(5)
    assert mailbox.put(group_of("a")) == 0
    counters = mailbox.counters()
    assert (counters.offered, counters.filtered, counters.pending) == (6, 5, 1)


async def test_take_waits_for_the_first_message() -> None:
    mailbox = mailbox_of()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(take(mailbox))
        await asyncio.sleep(0)
        assert not waiting.done()
        put(mailbox, "a")
    assert waiting.result() == "0: a"


async def test_second_consumer_is_refused_and_the_first_still_served() -> None:
    mailbox = mailbox_of()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(take(mailbox))
        await asyncio.sleep(0)
        with pytest.raises(MailboxBusyError):
            await mailbox.take(1, 1)
        put(mailbox, "a")
    assert waiting.result() == "0: a"


async def test_cancelled_take_loses_nothing() -> None:
    mailbox = mailbox_of()
    waiting = asyncio.ensure_future(take(mailbox))
    await asyncio.sleep(0)
    put(mailbox, "a")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await take(mailbox) == "0: a"


async def test_drop_oldest_tells_the_gap_before_what_is_left() -> None:
    mailbox = mailbox_of()
    put(mailbox, "a", "bb", "c", "d", "e")
    assert await take(mailbox) == "dropped_oldest 0-1 of 3"
    assert await take(mailbox) == "2: c|d|e"


async def test_drop_oldest_drops_no_more_of_a_group_than_needed() -> None:
    mailbox = mailbox_of(max_messages=4)
    put(mailbox, "a b c d", "e")
    assert await take(mailbox) == "dropped_oldest 0-0 of 1"
    assert (await take(mailbox)).replace("|", " ") == "1: b c d e"


async def test_drop_oldest_keeps_the_end_of_a_group_larger_than_the_mailbox() -> None:
    mailbox = mailbox_of(max_messages=2)
    put(mailbox, "a b c d e")
    assert await take(mailbox) == "dropped_oldest 0-2 of 3"
    assert await take(mailbox) == "3: d e"


async def test_drop_oldest_drops_large_groups_whole_when_they_are_a_small_part_of_the_queue() -> (
    None
):
    mailbox = mailbox_of(max_messages=6_400, max_bytes=100_000)
    group = " ".join(["a"] * 100)
    put(mailbox, *[group] * 64, "b")
    assert await take(mailbox) == "dropped_oldest 0-99 of 100"


async def test_drop_newest_tells_the_gap_after_what_was_kept_and_before_what_follows() -> None:
    mailbox = mailbox_of(policy=NEWEST)
    put(mailbox, "a", "b", "c lost gone")
    assert await take(mailbox, max_messages=1) == "0: a"
    put(mailbox, "f")
    assert await take(mailbox) == "1: b|c"
    assert await take(mailbox) == "dropped_newest 3-4 of 8"
    assert await take(mailbox) == "5: f"


async def test_drop_newest_keeps_a_later_group_that_fits_the_bytes() -> None:
    mailbox = mailbox_of(max_messages=10, max_bytes=4, policy=NEWEST)
    put(mailbox, "aaa", "bb", "c")
    taken = await drain(mailbox)
    assert taken == ["0: aaa", "dropped_newest 1-1 of 2", "2: c", "end draining"]


async def test_disconnect_delivers_what_was_queued_then_the_gap_then_the_end() -> None:
    mailbox = mailbox_of(policy=DISCONNECT)
    put(mailbox, "a b c d e", "f")
    assert mailbox.close_reason is CloseReason.SLOW_CONSUMER
    assert await take_all(mailbox) == ["0: a b c", "dropped_newest 3-4 of 2", "end slow_consumer"]
    assert mailbox.counters().dropped == {DropReason.DROPPED_NEWEST: 2, DropReason.CLOSED: 1}


async def test_disconnect_does_not_wait_for_a_consumer_that_takes_nothing() -> None:
    mailbox = mailbox_of(policy=DISCONNECT)
    mailbox.pause()
    put(mailbox, "a b c", "d")
    assert await take_all(mailbox) == ["end slow_consumer"]
    assert mailbox.counters().dropped == {DropReason.DROPPED_NEWEST: 1, DropReason.CLOSED: 3}


async def test_gaps_that_come_to_touch_are_told_as_one() -> None:
    """An oversized message leaves a gap inside the queue; dropping up to it joins both."""
    mailbox = mailbox_of(max_messages=3, max_bytes=10)
    put(mailbox, "a", "b", "x" * 11, "c", "d", "e")
    assert await drain(mailbox) == ["dropped_oldest 0-2 of 13", "3: c|d|e", "end draining"]


async def test_gaps_apart_from_each_other_are_told_apart() -> None:
    mailbox = mailbox_of(max_messages=3, max_bytes=10)
    put(mailbox, "a", "b", "x" * 11, "c", "d")
    assert await drain(mailbox) == [
        "dropped_oldest 0-0 of 1",
        "1: b",
        "dropped_oldest 2-2 of 11",
        "3: c|d",
        "end draining",
    ]


@pytest.mark.parametrize("policy", list(OverflowPolicy))
async def test_exactly_full_mailbox_drops_nothing(policy: OverflowPolicy) -> None:
    mailbox = mailbox_of(max_messages=2, max_bytes=4, policy=policy)
    put(mailbox, "aa", "bb")
    assert mailbox.counters().dropped == {}
    assert await take(mailbox) == "0: aa|bb"


@pytest.mark.parametrize("policy", [OLDEST, NEWEST, BLOCK])
async def test_full_mailbox_drops_what_cannot_fit_of_a_long_group(policy: OverflowPolicy) -> None:
    """The average message does not fit: nobody looks for one that would."""
    mailbox = mailbox_of(max_messages=100, max_bytes=10, policy=policy)
    put(mailbox, " ".join(["x" * 11] * 20), "a")
    assert mailbox.counters().pending == 1
    assert sum(mailbox.counters().dropped.values()) == 20


async def test_short_group_keeps_the_messages_that_fit_however_large_the_others_are() -> None:
    mailbox = mailbox_of(max_messages=100, max_bytes=10, policy=NEWEST)
    put(mailbox, "a bb " + "x" * 90)
    assert (await take(mailbox)).replace("|", " ") == "0: a bb"
    assert await take(mailbox) == "dropped_newest 2-2 of 90"


async def test_close_wakes_the_consumer() -> None:
    mailbox = mailbox_of()
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(take(mailbox))
        await asyncio.sleep(0)
        mailbox.close(CloseReason.UNSUBSCRIBED)
    assert waiting.result() == "end unsubscribed"


async def test_close_without_drain_drops_and_counts_what_is_queued() -> None:
    mailbox = mailbox_of()
    put(mailbox, "a", "b", "c", "d")
    mailbox.close(CloseReason.UNSUBSCRIBED)
    put(mailbox, "late")
    assert await take_all(mailbox) == ["end unsubscribed"]
    counters = mailbox.counters()
    assert counters.dropped == {DropReason.DROPPED_OLDEST: 1, DropReason.CLOSED: 4}
    assert (counters.offered, counters.pending, counters.pending_bytes) == (5, 0, 0)


async def test_first_close_reason_stands_and_the_end_is_told_every_time() -> None:
    mailbox = mailbox_of()
    mailbox.close(CloseReason.DRAINING, drain=True)
    mailbox.close(CloseReason.UNSUBSCRIBED)
    assert [await take(mailbox), await take(mailbox)] == ["end draining"] * 2


@pytest.mark.parametrize(("max_messages", "max_bytes"), [(0, 1), (1, 0), (-1, 1)])
def test_limit_below_one_is_refused(max_messages: int, max_bytes: int) -> None:
    with pytest.raises(InvalidSubscriptionError, match="use at least 1"):
        MailboxLimits(max_messages, max_bytes)
    with pytest.raises(InvalidSubscriptionError, match="use at least 1"):
        Retention(max_messages, max_bytes)


def test_other_limits_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidSubscriptionError, match="block_timeout_s is 0"):
        MailboxLimits(1, 1, block_timeout_s=0)
    with pytest.raises(InvalidSubscriptionError, match="initial_credit is -1"):
        MailboxLimits(1, 1, initial_credit=-1)
    with pytest.raises(InvalidSubscriptionError, match="timeout_s is 0"):
        Acknowledgement(0, 1)
    with pytest.raises(InvalidSubscriptionError, match="max_unacknowledged is 0"):
        Acknowledgement(1, 0)
