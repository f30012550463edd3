"""With acknowledgements nothing is done before it is acknowledged, and what is not comes again."""

import asyncio
from contextlib import suppress

import pytest
from tests.eventbus.mailbox_words import Texts, group_of, is_waiting, take, text_of

from daemoneye_eventbus.errors import InvalidSubscriptionError, NoSubscriberError
from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.mailbox import (
    Acknowledgement,
    CloseReason,
    DropReason,
    Mailbox,
    MailboxLimits,
    OverflowPolicy,
    Retention,
)
from daemoneye_eventbus.receipt import Receipt

OLDEST = OverflowPolicy.DROP_OLDEST
NEWEST = OverflowPolicy.DROP_NEWEST
DISCONNECT = OverflowPolicy.DISCONNECT
BLOCK = OverflowPolicy.BLOCK


class Setting:
    """A mailbox that acknowledges, on a clock that the test sets."""

    def __init__(
        self, max_messages: int = 6, window: int = 100, policy: OverflowPolicy = OLDEST
    ) -> None:
        self.now_s = 0.0
        limits = MailboxLimits(max_messages, 1_000, policy, 1.0, Acknowledgement(10.0, window))
        self.mailbox = Mailbox(limits, Retention(3, 1_000), lambda: self.now_s)

    def put(self, *texts: str, receipt: Receipt | None = None) -> None:
        for text in texts:
            self.mailbox.put(group_of(text, receipt))

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.mailbox.expire(self.now_s)


async def test_delivered_counts_what_is_acknowledged_up_to_the_position() -> None:
    setting = Setting()
    setting.put("a b c", "d")
    await take(setting.mailbox)
    assert setting.mailbox.counters().delivered == 0
    assert setting.mailbox.acknowledge(1) == 2
    counters = setting.mailbox.counters()
    assert (counters.delivered, counters.pending, counters.unacknowledged) == (2, 2, 2)
    assert setting.mailbox.acknowledge(3) == 2
    assert setting.mailbox.counters().pending_bytes == 0


async def test_old_acknowledgement_does_nothing() -> None:
    setting = Setting()
    setting.put("a b c")
    await take(setting.mailbox)
    assert [setting.mailbox.acknowledge(position) for position in (1, 0, 1, 2, 2)] == [
        2,
        0,
        0,
        1,
        0,
    ]


async def test_acknowledgement_beyond_what_was_handed_over_is_refused() -> None:
    setting = Setting()
    setting.put("a", "b")
    await take(setting.mailbox, max_messages=1)
    with pytest.raises(InvalidSubscriptionError, match="position 1 was not handed over"):
        setting.mailbox.acknowledge(1)


async def test_acknowledgement_is_refused_where_deliveries_are_not_acknowledged() -> None:
    mailbox = Mailbox(MailboxLimits(3, 100))
    mailbox.put(group_of("a"))
    await take(mailbox)
    with pytest.raises(InvalidSubscriptionError, match="at most once"):
        mailbox.acknowledge(0)


async def test_overdue_deliveries_come_again_in_order_and_before_what_is_new() -> None:
    setting = Setting()
    setting.put("a b", "c")
    await take(setting.mailbox)
    setting.put("d")
    setting.pass_time(9.9)
    assert await take(setting.mailbox) == "3: d"
    setting.pass_time(0.1)
    setting.put("e")
    assert await take(setting.mailbox) == "again 0: a b|c|d"
    assert await take(setting.mailbox) == "4: e"
    assert setting.mailbox.counters().redelivered == 4


async def test_only_what_is_not_acknowledged_comes_again() -> None:
    setting = Setting()
    setting.put("a b c")
    await take(setting.mailbox)
    setting.mailbox.acknowledge(1)
    setting.pass_time(10)
    assert await take(setting.mailbox) == "again 2: c"


async def test_redelivery_waits_for_its_own_timeout() -> None:
    setting = Setting()
    setting.put("a")
    await take(setting.mailbox)
    setting.pass_time(10)
    assert await take(setting.mailbox) == "again 0: a"
    setting.pass_time(9.9)
    assert await is_waiting(setting.mailbox)


async def test_gap_between_deliveries_is_told_again_with_them() -> None:
    setting = Setting(max_messages=2, policy=NEWEST)
    setting.put("a b", "c")
    assert await take(setting.mailbox, max_messages=1) == "0: a"
    assert await take(setting.mailbox) == "1: b"
    assert await take(setting.mailbox) == "dropped_newest 2-2 of 1"
    setting.mailbox.acknowledge(0)
    setting.put("d")
    await take(setting.mailbox)
    setting.pass_time(10)
    assert await take(setting.mailbox) == "again 1: b"
    assert await take(setting.mailbox) == "dropped_newest 2-2 of 1"
    assert await take(setting.mailbox) == "again 3: d"


async def test_late_acknowledgement_counts_for_what_waits_to_come_again() -> None:
    setting = Setting()
    setting.put("a b c d")
    await take(setting.mailbox)
    setting.pass_time(10)
    assert setting.mailbox.acknowledge(1) == 2
    assert (await take(setting.mailbox)).replace("|", " ") == "again 2: c d"
    assert setting.mailbox.acknowledge(2) == 1
    assert setting.mailbox.counters().unacknowledged == 1


async def test_window_of_unacknowledged_messages_holds_delivery_up() -> None:
    setting = Setting(window=2)
    setting.put("a b c")
    assert await take(setting.mailbox) == "0: a b"
    assert await is_waiting(setting.mailbox)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(take(setting.mailbox))
        await asyncio.sleep(0)
        setting.mailbox.acknowledge(0)
    assert waiting.result() == "2: c"


async def test_unacknowledged_messages_count_against_the_bounds_and_are_never_dropped() -> None:
    setting = Setting(max_messages=3)
    setting.put("a b")
    await take(setting.mailbox)
    setting.put("c", "d", "e f")
    assert setting.mailbox.counters().pending == 3
    assert await take(setting.mailbox) == "dropped_oldest 2-4 of 3"
    assert await take(setting.mailbox) == "5: f"
    setting.put("g")
    assert await take(setting.mailbox) == "dropped_oldest 6-6 of 1"
    assert setting.mailbox.acknowledge(6) == 3


async def test_cutting_a_group_repeats_no_more_envelopes_than_the_bound_allows() -> None:
    limits = MailboxLimits(100, 150, acknowledgement=Acknowledgement(10.0, 100))
    mailbox = Mailbox(limits)
    envelope = Envelope(topic="a", source_id="a", count=40)
    mailbox.put(Group(envelope, Texts(["a"] * 40, envelope_bytes=20)))
    taken: list[str] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            while True:
                taken.append(await take(mailbox, max_messages=1))
    assert 1 < len(taken) < 40
    assert mailbox.counters().pending_bytes <= 150 + 20
    mailbox.acknowledge(len(taken) - 1)
    assert await take(mailbox, max_messages=1) == f"{len(taken)}: a"


async def test_receipt_is_settled_by_acknowledgements_and_by_what_is_told_as_a_gap() -> None:
    setting, receipt = Setting(max_messages=3), Receipt()
    setting.put("a b c d", receipt=receipt)
    await take(setting.mailbox)
    await take(setting.mailbox)
    assert not receipt.is_settled
    setting.mailbox.acknowledge(2)
    assert not receipt.is_settled
    setting.mailbox.acknowledge(3)
    await receipt.wait()


async def test_receipt_fails_when_the_subscription_ends_before_the_acknowledgement() -> None:
    setting, receipt = Setting(), Receipt()
    setting.put("a", receipt=receipt)
    await take(setting.mailbox)
    setting.mailbox.close(CloseReason.EXPIRED)
    with pytest.raises(NoSubscriberError):
        await receipt.wait()
    assert setting.mailbox.counters().dropped == {DropReason.CLOSED: 1}


async def test_receipt_of_a_replaced_message_waits_for_the_one_in_its_place() -> None:
    setting, receipt = Setting(), Receipt()
    setting.put("a", receipt=receipt)
    assert setting.mailbox.replace(0, group_of("b"))
    assert not receipt.is_settled
    await take(setting.mailbox)
    setting.mailbox.acknowledge(0)
    assert receipt.is_settled


async def test_receipt_that_follows_waits_for_the_message_at_the_position() -> None:
    setting, receipt, follower = Setting(), Receipt(), Receipt()
    setting.put("a b", receipt=receipt)
    await take(setting.mailbox)
    setting.mailbox.acknowledge(0)
    setting.mailbox.follow(1, follower)
    setting.mailbox.follow(1, follower)
    assert not follower.is_settled
    setting.mailbox.acknowledge(1)
    await receipt.wait()
    await follower.wait()


async def test_draining_leaves_time_to_acknowledge_until_the_end_is_taken() -> None:
    setting = Setting()
    setting.put("a b")
    setting.mailbox.close(CloseReason.DRAINING, drain=True)
    assert await take(setting.mailbox) == "0: a b"
    assert setting.mailbox.acknowledge(0) == 1
    assert await take(setting.mailbox) == "end draining"
    counters = setting.mailbox.counters()
    assert (counters.delivered, counters.dropped) == (1, {DropReason.CLOSED: 1})
    assert setting.mailbox.acknowledge(1) == 0


async def test_detached_mailbox_keeps_what_the_retention_allows_and_starts_with_the_oldest() -> (
    None
):
    setting = Setting()
    setting.put("a b c")
    await take(setting.mailbox)
    setting.mailbox.acknowledge(0)
    setting.mailbox.detach()
    setting.put("d", "e")
    assert await is_waiting(setting.mailbox)
    setting.mailbox.attach()
    assert setting.mailbox.next_position == 1
    assert await take(setting.mailbox) == "retention 1-1 of 1"
    assert await take(setting.mailbox) == "again 2: c"
    assert await take(setting.mailbox) == "3: d|e"


async def test_gap_that_was_not_acknowledged_is_told_again_after_a_return() -> None:
    setting = Setting(max_messages=1)
    setting.put("a", "b")
    assert await take(setting.mailbox) == "dropped_oldest 0-0 of 1"
    setting.mailbox.detach()
    setting.mailbox.attach()
    assert await take(setting.mailbox) == "dropped_oldest 0-0 of 1"


async def test_withdrawn_messages_come_in_order_and_their_receipts_still_wait() -> None:
    setting, receipt = Setting(), Receipt()
    setting.put("a b", "c", receipt=receipt)
    await take(setting.mailbox)
    setting.put("d")
    setting.mailbox.acknowledge(0)
    groups = setting.mailbox.withdraw()
    assert text_of(groups) == "b|c|d"
    assert not receipt.is_settled
    assert setting.mailbox.counters().dropped == {DropReason.MOVED: 3}
    assert await take(setting.mailbox) == "end unsubscribed"
    for group in groups:
        if group.receipt is not None:
            group.receipt.settle(group.count)
    await receipt.wait()


async def test_successor_goes_on_where_its_mailbox_stood_and_ends_that_one() -> None:
    setting = Setting()
    setting.put("a b")
    await take(setting.mailbox, max_messages=1)
    heir = setting.mailbox.succeed()
    assert await take(setting.mailbox) == "end superseded"
    assert await take(heir) == "again 0: a"
    assert await take(heir) == "1: b"
    assert heir.acknowledge(1) == 2
