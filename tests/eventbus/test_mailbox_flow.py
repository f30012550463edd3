"""A subscriber steers its mailbox: pause, credit, flush, expiry, repeats; publishers wait for room."""

import asyncio

import pytest
from tests.eventbus.mailbox_words import group_of, is_waiting, take

from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_eventbus.mailbox import (
    CloseReason,
    Mailbox,
    MailboxLimits,
    Notice,
    OverflowPolicy,
    Retention,
)

OLDEST = OverflowPolicy.DROP_OLDEST
NEWEST = OverflowPolicy.DROP_NEWEST
DISCONNECT = OverflowPolicy.DISCONNECT
BLOCK = OverflowPolicy.BLOCK


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def mailbox_of(
    max_messages: int = 6,
    policy: OverflowPolicy = OLDEST,
    credit: int | None = None,
    clock: Clock | None = None,
) -> Mailbox:
    limits = MailboxLimits(max_messages, 100, policy, initial_credit=credit)
    return Mailbox(limits, Retention(2, 100), clock or Clock())


async def test_paused_mailbox_delivers_nothing_until_it_is_resumed() -> None:
    mailbox = mailbox_of()
    mailbox.pause()
    mailbox.put(group_of("a"))
    assert mailbox.is_paused
    assert await is_waiting(mailbox)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(take(mailbox))
        await asyncio.sleep(0)
        mailbox.put(group_of("b"))
        await asyncio.sleep(0)
        assert not waiting.done()
        mailbox.resume()
    assert waiting.result() == "0: a|b"


async def test_credit_is_used_up_by_messages_and_granted_again() -> None:
    mailbox = mailbox_of(credit=2)
    mailbox.put(group_of("a b c d"))
    assert await take(mailbox) == "0: a b"
    assert await is_waiting(mailbox)
    mailbox.grant(1)
    mailbox.grant(4)
    assert await take(mailbox) == "2: c d"
    mailbox.put(group_of("e f g h"))
    assert await take(mailbox) == "4: e f g"


async def test_gap_needs_no_credit() -> None:
    mailbox = mailbox_of(max_messages=1, credit=0)
    mailbox.put(group_of("a"))
    mailbox.put(group_of("b"))
    assert await take(mailbox) == "dropped_oldest 0-0 of 1"
    assert await is_waiting(mailbox)


async def test_credit_is_refused_without_initial_credit_and_below_one() -> None:
    with pytest.raises(InvalidSubscriptionError, match="without initial_credit"):
        mailbox_of().grant(1)
    with pytest.raises(InvalidSubscriptionError, match="grant at least 1"):
        mailbox_of(credit=1).grant(0)


async def test_flush_drops_what_waits_and_tells_it_as_a_gap() -> None:
    mailbox = mailbox_of()
    mailbox.put(group_of("a b"))
    await take(mailbox)
    mailbox.put(group_of("c dd"))
    mailbox.put(group_of("e"))
    assert mailbox.flush() == 3
    assert mailbox.flush() == 0
    mailbox.put(group_of("f"))
    assert await take(mailbox) == "flushed 2-4 of 4"
    assert await take(mailbox) == "5: f"


async def test_message_that_waited_too_long_is_told_as_expired_at_its_place() -> None:
    clock = Clock()
    mailbox = mailbox_of(clock=clock)
    mailbox.put(group_of("a"))
    mailbox.put(group_of("b c", ttl_ms=1_000))
    mailbox.put(group_of("d", ttl_ms=2_000))
    clock.now_s = 1.0
    assert [await take(mailbox) for _ in range(3)] == ["0: a", "expired 1-2 of 2", "3: d"]


async def test_message_is_delivered_until_its_time_is_over() -> None:
    clock = Clock()
    mailbox = mailbox_of(clock=clock)
    mailbox.put(group_of("a b", ttl_ms=1_000))
    clock.now_s = 0.999
    assert await take(mailbox) == "0: a b"


async def test_sweep_drops_what_expired_at_the_front_and_wakes_the_consumer() -> None:
    clock = Clock()
    mailbox = mailbox_of(clock=clock, credit=0)
    mailbox.put(group_of("a", ttl_ms=1_000))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(take(mailbox))
        await asyncio.sleep(0)
        clock.now_s = 1.0
        mailbox.expire(clock.now_s)
    assert waiting.result() == "expired 0-0 of 1"
    assert mailbox.counters().pending_bytes == 0


async def test_withdrawn_message_has_the_time_that_is_left() -> None:
    clock = Clock()
    mailbox = mailbox_of(clock=clock)
    mailbox.put(group_of("a", ttl_ms=1_000))
    clock.now_s = 0.75
    assert [group.envelope.ttl_ms for group in mailbox.withdraw()] == [250]


async def test_repeat_takes_the_place_of_a_message_that_waits_even_inside_a_group() -> None:
    mailbox = mailbox_of()
    mailbox.put(group_of("a"))
    mailbox.put(group_of("b c d"))
    assert mailbox.replace(0, group_of("A"))
    assert mailbox.replace(2, group_of("CC"))
    assert await take(mailbox) == "0: A|b|CC|d"
    counters = mailbox.counters()
    assert (counters.offered, counters.delivered, counters.filtered) == (6, 4, 2)


async def test_repeat_is_held_back_when_its_message_was_handed_over_or_dropped() -> None:
    mailbox = mailbox_of(max_messages=2)
    mailbox.put(group_of("a"))
    await take(mailbox)
    mailbox.put(group_of("b c d"))
    assert not mailbox.replace(0, group_of("A"))
    assert not mailbox.replace(1, group_of("B"))
    assert not mailbox.replace(9, group_of("Z"))
    assert mailbox.replace(2, group_of("C"))
    assert mailbox.counters().filtered == 4


async def test_repeat_is_held_back_when_it_is_too_large_for_the_place() -> None:
    mailbox = mailbox_of()
    mailbox.put(group_of("a " + "b" * 90))
    assert not mailbox.replace(0, group_of("A" * 11))
    assert mailbox.replace(0, group_of("A" * 10))
    assert mailbox.counters().pending_bytes == 100


async def test_notice_comes_next_even_when_delivery_is_paused() -> None:
    mailbox = mailbox_of()
    mailbox.pause()
    mailbox.put(group_of("a"))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(take(mailbox))
        await asyncio.sleep(0)
        mailbox.post(Notice("paused"))
    assert waiting.result() == "notice paused"
    assert await is_waiting(mailbox)


async def test_attach_lifts_the_pause_and_gives_the_first_credit_again() -> None:
    mailbox = mailbox_of(credit=1)
    mailbox.put(group_of("a b"))
    await take(mailbox)
    mailbox.pause()
    mailbox.detach()
    assert not mailbox.is_attached
    mailbox.attach()
    assert await take(mailbox) == "1: b"


async def test_what_arrives_while_detached_makes_room_whatever_the_policy() -> None:
    mailbox = mailbox_of(policy=DISCONNECT)
    mailbox.detach()
    mailbox.put(group_of("a b c d"))
    assert mailbox.close_reason is None
    mailbox.attach()
    assert await take(mailbox) == "retention 0-1 of 2"
    assert await take(mailbox) == "2: c d"


async def test_block_drops_what_has_no_room_with_the_reason_deadline() -> None:
    mailbox = mailbox_of(max_messages=2, policy=BLOCK)
    mailbox.put(group_of("a b c"))
    assert not mailbox.has_room(1, 1)
    assert await take(mailbox) == "0: a b"
    assert await take(mailbox) == "deadline 2-2 of 1"


async def test_wait_for_room_ends_when_the_consumer_takes() -> None:
    mailbox = mailbox_of(max_messages=2, policy=BLOCK)
    mailbox.put(group_of("a b"))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(mailbox.wait_for_room(2, 2, 60))
        await asyncio.sleep(0)
        await take(mailbox, max_messages=1)
        await asyncio.sleep(0)
        assert not waiting.done()
        await take(mailbox)
    assert waiting.result()
    assert mailbox.is_blocking


async def test_wait_for_room_in_vain_stalls_the_mailbox_until_half_of_it_is_free() -> None:
    mailbox = mailbox_of(max_messages=4, policy=BLOCK)
    mailbox.put(group_of("a b c d"))
    assert mailbox.is_blocking
    assert not await mailbox.wait_for_room(1, 1, 0)
    assert not mailbox.is_blocking
    await take(mailbox, max_messages=1)
    assert not mailbox.is_blocking
    assert mailbox.has_room(1, 1)
    await take(mailbox, max_messages=1)
    assert mailbox.is_blocking


async def test_others_wait_no_longer_once_the_mailbox_is_stalled() -> None:
    mailbox = mailbox_of(max_messages=1, policy=BLOCK)
    mailbox.put(group_of("a"))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        other = tasks.create_task(mailbox.wait_for_room(1, 1, 60))
        await asyncio.sleep(0)
        assert not await mailbox.wait_for_room(1, 1, 0)
    assert not other.result()


async def test_wait_for_more_than_the_mailbox_holds_ends_when_it_is_empty() -> None:
    mailbox = mailbox_of(max_messages=2, policy=BLOCK)
    mailbox.put(group_of("a"))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(mailbox.wait_for_room(3, 3, 60))
        await asyncio.sleep(0)
        assert not waiting.done()
        await take(mailbox)
    assert not waiting.result()
    assert mailbox.is_blocking


@pytest.mark.parametrize("ending", ["close", "detach"])
async def test_nobody_waits_for_room_once_the_subscriber_is_gone(ending: str) -> None:
    mailbox = mailbox_of(max_messages=1, policy=BLOCK)
    mailbox.put(group_of("a"))
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(mailbox.wait_for_room(1, 1, 60))
        await asyncio.sleep(0)
        if ending == "close":
            mailbox.close(CloseReason.UNSUBSCRIBED)
        else:
            mailbox.detach()
    assert not waiting.result()
    assert not mailbox.is_blocking
