"""Whatever happens to a mailbox in whatever order, no message is unaccounted for."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.mailbox import (
    Acknowledgement,
    Batch,
    Closed,
    CloseReason,
    DropReason,
    Gap,
    Mailbox,
    MailboxLimits,
    OverflowPolicy,
    Retention,
)
from daemoneye_eventbus.receipt import Receipt

Step = tuple[Any, ...]
TIMEOUT_S = 2.0
PLENTY = 1_000_000


class Numbers:
    """Content of numbered messages; each has its number and a size."""

    def __init__(self, items: list[tuple[int, int]]) -> None:
        self.items = items
        self.size_bytes = sum(size for _, size in items)

    def split(self, count: int) -> tuple["Numbers", "Numbers"]:
        assert 0 < count < len(self.items)
        return Numbers(self.items[:count]), Numbers(self.items[count:])


class CountingReceipt(Receipt):
    """A receipt that may be settled and expected again."""

    def __init__(self) -> None:
        super().__init__()
        self.open_count = 0

    def expect(self, count: int) -> None:
        self.open_count += count

    def settle(self, count: int) -> None:
        self.open_count -= count


def numbers_of(group: Group) -> list[int]:
    assert isinstance(group.content, Numbers)
    assert group.count == len(group.content.items)
    return [number for number, _ in group.content.items]


class Observer:
    """Drives a mailbox and follows, position by position, what its consumer is told."""

    def __init__(self, limits: MailboxLimits, retention: Retention | None) -> None:
        self.now_s = 100.0
        self.mailbox = Mailbox(limits, retention, lambda: self.now_s)
        self.acknowledges = limits.acknowledgement is not None
        self.receipt = CountingReceipt()
        self.numbers: list[int] = []  # of the message at each position
        self.sizes: list[int] = []
        self.serial = 0
        self.offered = 0
        self.cursor = 0
        self.handed_end = 0
        self.handed: set[int] = set()  # handed over, neither acknowledged nor lost
        self.done: set[int] = set()
        self.lost: set[int] = set()
        self.done_end = 0
        self.lost_untold = 0  # went back to wait, were dropped, and then acknowledged late
        self.end: Closed | None = None

    # -- operations

    def group_of(self, sizes: list[int], ttl_ms: int) -> Group:
        items = [(self.serial + step, size) for step, size in enumerate(sizes)]
        self.serial += len(sizes)
        envelope = Envelope(topic="events.a", source_id="a", count=len(sizes), ttl_ms=ttl_ms)
        return Group(envelope, Numbers(items), self.receipt)

    def put(self, sizes: list[int], ttl_ms: int) -> None:
        group = self.group_of(sizes, ttl_ms)
        is_open = self.mailbox.close_reason is None
        position = self.mailbox.put(group)
        assert position == len(self.numbers)
        self.offered += len(sizes)
        if is_open:
            self.numbers += numbers_of(group)
            self.sizes += sizes

    def replace(self, offset: int, size: int) -> None:
        position = min(self.cursor + offset, max(0, len(self.numbers) - 1))
        group = self.group_of([size], 0).with_receipt(None)
        self.offered += 1
        if self.mailbox.replace(position, group):
            assert position >= self.handed_end
            self.numbers[position], self.sizes[position] = numbers_of(group)[0], size

    def filter_out(self, count: int) -> None:
        self.offered += count
        self.mailbox.filter_out(count)

    async def take(self, max_messages: int, max_bytes: int) -> bool:
        try:
            async with asyncio.timeout(0):
                delivery = await self.mailbox.take(max_messages, max_bytes)
        except TimeoutError:
            return False
        match delivery:
            case Batch():
                self.see_batch(delivery, max_messages, max_bytes)
            case Gap():
                self.see_gap(delivery)
            case Closed():
                self.end = delivery
                self.handed.clear()
                self.cursor = self.mailbox.next_position
        return True

    def see_batch(self, batch: Batch, max_messages: int, max_bytes: int) -> None:
        positions = range(batch.first_position, batch.last_position + 1)
        assert batch.first_position == self.cursor
        told = [number for group in batch.groups for number in numbers_of(group)]
        assert told == [self.numbers[position] for position in positions]
        assert batch.size_bytes == sum(self.sizes[position] for position in positions)
        assert 1 <= batch.count <= max_messages
        assert batch.size_bytes <= max_bytes or batch.count == 1
        assert all((at < self.handed_end) is batch.is_redelivered for at in positions)
        assert self.lost.isdisjoint(positions)
        assert self.done.isdisjoint(positions)
        (self.handed if self.acknowledges else self.done).update(positions)
        self.cursor = batch.last_position + 1
        self.handed_end = max(self.handed_end, self.cursor)

    def see_gap(self, gap: Gap) -> None:
        positions = range(gap.first_position, gap.last_position + 1)
        assert gap.first_position == self.cursor
        assert gap.reason is not DropReason.CLOSED
        if not self.acknowledges:
            assert gap.size_bytes == sum(self.sizes[position] for position in positions)
            assert self.lost.isdisjoint(positions)
        assert self.done.isdisjoint(positions)
        self.handed.difference_update(positions)
        self.lost.update(positions)
        self.cursor = gap.last_position + 1
        self.handed_end = max(self.handed_end, self.cursor)

    def acknowledge(self, back: int) -> None:
        position = self.handed_end - 1 - back
        if not self.acknowledges or position < 0:
            with pytest.raises(InvalidSubscriptionError):
                self.mailbox.acknowledge(self.handed_end)
            return
        newly = {at for at in self.handed if at <= position}
        added = self.mailbox.acknowledge(position)
        surely = {at for at in newly if at < self.cursor}
        assert len(surely) <= added <= len(newly)
        self.lost_untold += len(newly) - added
        self.handed -= newly
        self.done |= newly
        self.done_end = max(self.done_end, position + 1)
        self.cursor = max(self.cursor, self.done_end)

    def follow_rewind(self) -> None:
        before, self.cursor = self.cursor, self.mailbox.next_position
        assert self.done_end <= self.cursor or self.cursor == before
        assert self.cursor <= before

    def expire(self, elapsed_s: float) -> None:
        self.now_s += elapsed_s
        self.mailbox.expire(self.now_s)
        self.follow_rewind()

    def detach(self) -> None:
        self.mailbox.detach()
        self.follow_rewind()
        assert self.mailbox.counters().unacknowledged == 0

    def succeed(self) -> None:
        if self.mailbox.close_reason is not None:
            return
        former, self.mailbox = self.mailbox, self.mailbox.succeed()
        self.follow_rewind()
        assert former.close_reason is not None
        assert former.counters().offered == 0

    def grant(self, count: int) -> None:
        if self.mailbox.limits.initial_credit is not None:
            self.mailbox.grant(count)

    # -- what always holds

    def check(self) -> None:
        counters, limits = self.mailbox.counters(), self.mailbox.limits
        dropped = sum(counters.dropped.values())
        assert counters.offered == self.offered
        assert self.offered == counters.delivered + counters.filtered + dropped + counters.pending
        assert counters.pending <= limits.max_messages
        assert counters.pending_bytes <= limits.max_bytes
        assert counters.unacknowledged == sum(at < self.cursor for at in self.handed)
        assert self.mailbox.next_position == self.cursor
        if self.acknowledges and self.mailbox.close_reason is None:
            assert self.receipt.open_count == counters.pending

    async def apply(self, step: Step) -> None:
        match step:
            case ("take", int() as max_messages, int() as max_bytes):
                await self.take(max_messages, max_bytes)
            case (("pause" | "resume" | "flush" | "attach") as name,):
                getattr(self.mailbox, name)()
            case (str() as name, *arguments):
                getattr(self, name)(*arguments)
        self.check()

    async def drain(self) -> None:
        """Take everything, acknowledging all of it, until the end is told."""
        self.mailbox.attach()
        self.mailbox.close(CloseReason.DRAINING, drain=True)
        while self.end is None:
            self.grant(PLENTY)
            if self.acknowledges and self.handed:
                self.acknowledge(0)
            assert await self.take(PLENTY, PLENTY)
            self.check()


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=8)
puts = st.tuples(st.just("put"), sizes, st.sampled_from([0, 0, 0, 1_500]))
takes = st.tuples(st.just("take"), st.integers(1, 6), st.integers(1, 30))
acks = st.tuples(st.just("acknowledge"), st.integers(0, 5))
others = st.one_of(
    st.tuples(st.just("replace"), st.integers(0, 9), st.integers(0, 12)),
    st.tuples(st.just("filter_out"), st.integers(0, 3)),
    st.tuples(st.just("expire"), st.sampled_from([0.5, 1.0, TIMEOUT_S])),
    st.tuples(st.just("grant"), st.integers(1, 9)),
    st.tuples(
        st.sampled_from(["pause", "resume", "resume", "flush", "detach", "attach", "succeed"])
    ),
)
operations = st.lists(st.one_of(puts, puts, takes, takes, acks, others), max_size=60)
limits = st.builds(
    MailboxLimits,
    max_messages=st.integers(1, 12),
    max_bytes=st.integers(1, 60),
    policy=st.sampled_from(OverflowPolicy),
    acknowledgement=st.none() | st.builds(Acknowledgement, st.just(TIMEOUT_S), st.integers(1, 9)),
    initial_credit=st.none() | st.integers(0, 9),
)
retentions = st.none() | st.builds(Retention, st.integers(1, 6), st.integers(1, 24))


@settings(max_examples=400)
@given(limits, retentions, operations)
async def test_every_message_is_delivered_or_told_as_lost_at_its_place(
    limits: MailboxLimits, retention: Retention | None, steps: list[Step]
) -> None:
    observer = Observer(limits, retention)
    for step in steps:
        await observer.apply(step)
    await observer.drain()
    counters = observer.mailbox.counters()
    closed = counters.dropped.get(DropReason.CLOSED, 0)
    dropped = sum(counters.dropped.values()) - closed
    assert counters.pending == 0
    assert counters.delivered == len(observer.done) - observer.lost_untold
    # Who is disconnected while it is paused, or without credit, is told the end and not the rest.
    assert dropped == len(observer.lost) + observer.lost_untold or closed
    assert observer.done | observer.lost == set(range(len(observer.numbers))) or closed


@given(limits, retentions, operations, operations)
async def test_counters_add_up_when_closed_in_the_middle_without_draining(
    limits: MailboxLimits, retention: Retention | None, before: list[Step], after: list[Step]
) -> None:
    observer = Observer(limits, retention)
    for step in before:
        await observer.apply(step)
    observer.mailbox.close(CloseReason.UNSUBSCRIBED)
    last = observer.mailbox.counters()
    assert (last.pending, last.pending_bytes, last.unacknowledged) == (0, 0, 0)
    for sizes in [step[1] for step in after if step[0] == "put"]:
        observer.put(sizes, 0)
        counters = observer.mailbox.counters()
        dropped = sum(counters.dropped.values())
        assert counters.offered == counters.delivered + counters.filtered + dropped
    assert observer.mailbox.counters().delivered == last.delivered


@given(limits, retentions, operations)
async def test_what_is_withdrawn_is_what_was_pending_in_order(
    limits: MailboxLimits, retention: Retention | None, steps: list[Step]
) -> None:
    observer = Observer(limits, retention)
    for step in steps:
        await observer.apply(step)
    before = observer.mailbox.counters()
    withdrawn = [n for group in observer.mailbox.withdraw() for n in numbers_of(group)]
    position_of = {number: position for position, number in enumerate(observer.numbers)}
    positions = [position_of[number] for number in withdrawn]
    after = observer.mailbox.counters()
    assert positions == sorted(set(positions))
    assert observer.done.isdisjoint(positions)
    assert len(positions) == before.pending == after.dropped.get(DropReason.MOVED, 0)
    assert (after.pending, after.pending_bytes) == (0, 0)
    if limits.acknowledgement is not None and DropReason.CLOSED not in after.dropped:
        assert observer.receipt.open_count == len(withdrawn)
