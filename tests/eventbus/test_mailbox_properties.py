"""Whatever is put, taken and closed in whatever order, no message is unaccounted for."""

from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.mailbox import (
    Batch,
    Closed,
    CloseReason,
    Gap,
    Mailbox,
    MailboxLimits,
    OverflowPolicy,
)

sizes = st.lists(st.integers(0, 12), max_size=8)
puts = st.tuples(st.just("put"), sizes)
takes = st.tuples(st.just("take"), st.integers(1, 6), st.integers(1, 30))
operations = st.lists(st.one_of(puts, puts, takes), max_size=40)
limits = st.builds(
    MailboxLimits, st.integers(1, 6), st.integers(1, 24), st.sampled_from(OverflowPolicy)
)


class Observer:
    """Drives a mailbox and replays, position by position, what its consumer is told."""

    def __init__(self, limits: MailboxLimits) -> None:
        self.mailbox = Mailbox(limits)
        self.offered: list[bytes] = []
        self.position = 0
        self.was_gap = False
        self.dropped = 0
        self.end: Closed | None = None

    def put(self, sizes: list[int]) -> None:
        start = len(self.offered)
        frames = [bytes([(start + step) % 256]) * size for step, size in enumerate(sizes)]
        if frames:
            self.mailbox.put_many_nowait(frames, sum(sizes))
        self.offered += frames

    async def take(self, max_messages: int, max_bytes: int) -> None:
        is_idle = not self.mailbox.counters().pending and self.mailbox.close_reason is None
        if is_idle and not self.has_gap():
            return
        match await self.mailbox.take(max_messages, max_bytes):
            case Batch() as batch:
                self.see_batch(batch, max_messages, max_bytes)
            case Gap() as gap:
                self.see_gap(gap)
            case Closed() as end:
                self.end = end

    def has_gap(self) -> bool:
        """Say whether something was dropped that the consumer has not been told."""
        return sum(self.mailbox.counters().dropped.values()) > self.dropped

    def see_batch(self, batch: Batch, max_messages: int, max_bytes: int) -> None:
        last = self.position + len(batch.frames)
        assert batch.first_position == self.position
        assert list(batch.frames) == self.offered[self.position : last]
        assert batch.size_bytes == sum(map(len, batch.frames))
        assert 1 <= len(batch.frames) <= max_messages
        assert batch.size_bytes <= max_bytes or len(batch.frames) == 1
        self.position, self.was_gap = last, False

    def see_gap(self, gap: Gap) -> None:
        # What was told as one gap may grow at its end afterwards; only then do two follow.
        lost = self.offered[gap.first_position : gap.last_position + 1]
        assert gap.first_position == self.position
        assert (gap.count, gap.size_bytes) == (len(lost), sum(map(len, lost)))
        self.position, self.was_gap = gap.last_position + 1, True
        self.dropped += gap.count

    def check(self) -> None:
        counters, limits = self.mailbox.counters(), self.mailbox.limits
        dropped = sum(counters.dropped.values())
        assert counters.offered == len(self.offered)
        assert counters.offered == counters.delivered + dropped + counters.pending
        assert counters.pending <= limits.max_messages
        assert counters.pending_bytes <= limits.max_bytes


async def run(observer: Observer, steps: list[tuple[object, ...]]) -> None:
    for step in steps:
        match step:
            case ("put", list() as sizes):
                observer.put(sizes)
            case ("take", int() as max_messages, int() as max_bytes):
                await observer.take(max_messages, max_bytes)
        observer.check()


async def drain(observer: Observer) -> None:
    observer.mailbox.close(CloseReason.DRAINING, drain=True)
    while observer.end is None:
        was_gap = observer.was_gap
        await observer.take(1_000, 1_000_000)
        assert not (was_gap and observer.was_gap and observer.end is None)
        observer.check()


@given(limits, operations)
async def test_every_message_is_delivered_or_told_as_lost_at_its_place(
    limits: MailboxLimits, steps: list[tuple[object, ...]]
) -> None:
    observer = Observer(limits)
    await run(observer, steps)
    is_disconnected = observer.mailbox.close_reason is not None
    observer.was_gap = False
    await drain(observer)
    assert is_disconnected or observer.position == len(observer.offered)
    assert observer.mailbox.counters().pending == 0


@given(limits, operations, operations)
async def test_counters_add_up_when_closed_in_the_middle_without_draining(
    limits: MailboxLimits,
    before: list[tuple[object, ...]],
    after: list[tuple[object, ...]],
) -> None:
    observer = Observer(limits)
    await run(observer, before)
    observer.mailbox.close(CloseReason.UNSUBSCRIBED)
    delivered = observer.mailbox.counters().delivered
    await run(observer, after)
    assert observer.mailbox.counters().delivered == delivered
    assert observer.mailbox.counters().pending == 0
