import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from collector_core.bus import (
    AnswerOrderError,
    EnvelopeKey,
    MessageTooLargeError,
    Outbox,
    OutboxMessage,
    PublishLimits,
)
from collector_core.bus.outbox_group import GROUP_BYTES, GROUP_MESSAGES
from collector_core.bus.wire import MAX_PREFIX_BYTES, iter_frames

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 10
MAX_MESSAGES = 12
MAX_BYTES = 1_500
LARGE_BYTES = 120
KEYS = [EnvelopeKey(topic=f"events.process.{name}", source_id="u", epoch=1) for name in "ab"]
KEY = KEYS[0]


def message(frame=b"x", sequence=0, key=KEY):
    return OutboxMessage(key, sequence, frame)


def frames_of(batch):
    """The messages of a batch, each with its key and sequence."""
    return [
        (group.key, group.first_sequence and group.first_sequence + index, frame)
        for group in batch.groups
        for index, frame in enumerate(iter_frames(group.block))
    ]


async def attempt(coroutine):
    """Runs a coroutine that may have to wait; returns whether it did not."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.wait([task])
    return False


class OutboxMachine(RuleBasedStateMachine):
    """Compares an outbox with plain lists of what was put, taken and answered."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.outbox = Outbox(MAX_MESSAGES, MAX_BYTES)
        self.last = 0
        self.sequence = 0
        self.pending = []
        self.in_flight = []
        self.answered = []
        self.counts = {"published": 0, "refused": 0}

    def frame(self, size_bytes):
        self.last += 1
        return f"{self.last:04d}".encode().ljust(size_bytes, b".")

    def number(self, is_numbered, count=1):
        if not is_numbered:
            return 0
        self.sequence += count
        return self.sequence - count + 1

    @rule(
        size_bytes=st.integers(4, LARGE_BYTES), key=st.sampled_from(KEYS), is_numbered=st.booleans()
    )
    def put(self, size_bytes, key, is_numbered):
        one = message(self.frame(size_bytes), self.sequence + 1 if is_numbered else 0, key)
        if self.outbox.put_nowait(one):
            self.number(is_numbered)
            self.pending.append((key, one.sequence, one.frame))
        else:
            needed_bytes = size_bytes + key.size_bytes + MAX_PREFIX_BYTES
            is_large = self.outbox.pending_bytes + needed_bytes > MAX_BYTES
            assert self.pending
            assert is_large or len(self.pending) == MAX_MESSAGES

    @rule(
        sizes=st.lists(st.integers(4, 30), max_size=MAX_MESSAGES + 3),
        key=st.sampled_from(KEYS),
        is_numbered=st.booleans(),
    )
    def put_many(self, sizes, key, is_numbered):
        frames = [self.frame(size_bytes) for size_bytes in sizes]
        first = self.sequence + 1 if is_numbered else 0
        before = self.outbox.accepted_count
        is_done = self.loop.run_until_complete(attempt(self.outbox.put_many(frames, key, first)))
        accepted = self.outbox.accepted_count - before
        assert is_done == (accepted == len(frames))
        self.number(is_numbered, accepted)
        self.pending += [
            (key, first and first + index, frame) for index, frame in enumerate(frames[:accepted])
        ]

    @rule(max_messages=st.integers(1, 6), max_bytes=st.integers(1, 900))
    def take(self, max_messages, max_bytes):
        waiting = self.pending[sum(batch.count for batch in self.in_flight) :]
        batch = self.outbox.take(max_messages, max_bytes)
        assert (batch is not None) == bool(waiting)
        if batch is not None:
            taken = frames_of(batch)
            assert taken == waiting[: batch.count]
            assert 1 <= batch.count <= max_messages
            assert batch.size_bytes <= max_bytes or batch.count == 1
            assert batch.size_bytes >= sum(len(frame) for *_, frame in taken)
            assert not self.in_flight or batch.batch_id > self.in_flight[-1].batch_id
            self.in_flight.append(batch)

    def answer(self, count, *, refused=0):
        self.answered += self.pending[:count]
        del self.pending[:count]
        self.counts["published"] += count - refused
        self.counts["refused"] += refused

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), reason=st.sampled_from([None, "TOPIC_INVALID"]))
    def settle(self, data, reason):
        index = data.draw(st.integers(0, len(self.in_flight) - 1))
        answered, self.in_flight = self.in_flight[: index + 1], self.in_flight[index + 1 :]
        last = answered[-1]
        assert self.outbox.settle(last.batch_id, reason) == last.count
        total = sum(batch.count for batch in answered)
        self.answer(total, refused=last.count if reason else 0)

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data())
    def settle_before(self, data):
        index = data.draw(st.integers(0, len(self.in_flight) - 1))
        self.outbox.settle_before(self.in_flight[index].batch_id)
        self.answer(sum(batch.count for batch in self.in_flight[:index]))
        del self.in_flight[:index]

    @rule()
    def settle_another(self):
        for wrong in (0, 10**9):
            with pytest.raises(AnswerOrderError):
                self.outbox.settle(wrong)

    @rule()
    def rewind(self):
        self.outbox.rewind()
        self.in_flight.clear()

    @invariant()
    def nothing_is_lost_or_counted_twice(self):
        outbox = self.outbox
        assert outbox.published_count == self.counts["published"]
        assert outbox.refused_count.total() == self.counts["refused"]
        assert outbox.pending_count == len(self.pending)
        assert outbox.pending_bytes >= sum(len(frame) for *_, frame in self.pending)
        assert bool(outbox.pending_bytes) == bool(self.pending)
        assert outbox.in_flight_count == len(self.in_flight)
        taken = sum(batch.count for batch in self.in_flight)
        assert outbox.waiting_count == len(self.pending) - taken
        assert outbox.accepted_count == (
            outbox.published_count + outbox.refused_count.total() + outbox.pending_count
        )

    @invariant()
    def bounds_hold(self):
        assert self.outbox.pending_count <= MAX_MESSAGES
        assert sum(len(frame) for *_, frame in self.pending) <= MAX_BYTES

    @invariant()
    def order_is_that_of_the_puts(self):
        order = [frame[:4] for *_, frame in self.answered + self.pending]
        assert order == sorted(order)

    def teardown(self):
        self.outbox.rewind()
        rest = []
        while (batch := self.outbox.take(100, 10_000)) is not None:
            rest += frames_of(batch)
        self.loop.close()
        assert rest == self.pending


OutboxMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestOutboxMachine = OutboxMachine.TestCase


async def test_put_waits_at_the_bound_and_goes_on():
    outbox = Outbox(2, 10_000)
    await outbox.put(message(b"1"))
    await outbox.put(message(b"2"))
    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        third = group.create_task(outbox.put(message(b"3")))
        await asyncio.sleep(0)
        assert not third.done()
        outbox.settle(outbox.take(1, 10_000).batch_id)
        await third
    assert (outbox.accepted_count, outbox.pending_count) == (3, 2)


async def test_put_waits_at_the_bound_in_bytes():
    outbox = Outbox(100, 1_000)
    await outbox.put(message(b"x" * 800))
    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        second = group.create_task(outbox.put(message(b"y" * 300)))
        await asyncio.sleep(0)
        assert not second.done()
        outbox.settle(outbox.take(1, 10_000).batch_id, "TOPIC_INVALID")
        await second
    assert outbox.refused_count == {"TOPIC_INVALID": 1}


async def test_put_that_is_cancelled_while_it_waits_leaves_nothing():
    outbox = Outbox(1, 1_000)
    await outbox.put(message())
    before = outbox.pending_bytes
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await outbox.put(message())
    assert (outbox.accepted_count, outbox.pending_bytes) == (1, before)


async def test_many_putters_and_one_taker_lose_nothing():
    outbox = Outbox(5, 10_000)
    got = []

    async def put_some(name):
        for number in range(40):
            await outbox.put(message(f"{name}{number:03d}".encode()))

    async def take_all():
        while len(got) < 120:
            await outbox.wait_waiting(1)
            batch = outbox.take(3, 10_000)
            got.extend(frame for *_, frame in frames_of(batch))
            outbox.settle(batch.batch_id)

    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        for name in "abc":
            group.create_task(put_some(name))
        group.create_task(take_all())
        await outbox.wait_empty()
    for name in "abc":
        assert [one for one in got if one[:1] == name.encode()] == [
            f"{name}{number:03d}".encode() for number in range(40)
        ]


async def test_put_many_waits_for_room_and_keeps_the_sequences():
    outbox = Outbox(7, 100_000)
    frames = [f"{number:02d}".encode() for number in range(30)]
    got = []
    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        putting = group.create_task(outbox.put_many(frames, KEY, first_sequence=100))
        while len(got) < 30:
            await outbox.wait_waiting(1)
            batch = outbox.take(3, 100_000)
            got += frames_of(batch)
            outbox.settle(batch.batch_id)
        await putting
    assert got == [(KEY, 100 + index, frame) for index, frame in enumerate(frames)]


async def test_messages_of_one_kind_go_out_as_one_group():
    outbox = Outbox(10_000, 32 << 20)
    for sequence in range(1, 1_001):
        outbox.put_nowait(message(b"x" * 100, sequence))
    (group,) = outbox.take(2_000, 256 << 10).groups
    assert (group.count, group.first_sequence) == (1_000, 1)


@pytest.mark.parametrize(
    "second",
    [
        message(b"2", 3),
        message(b"2", 0),
        message(b"2", 2, KEYS[1]),
        message(b"2", 2, EnvelopeKey(topic=KEY.topic, source_id="u", epoch=2)),
        message(b"2", 2, EnvelopeKey(topic=KEY.topic, source_id="u", epoch=1, message_id="m")),
    ],
)
async def test_message_of_another_kind_begins_a_group(second):
    outbox = Outbox(10, 10_000)
    outbox.put_nowait(message(b"1", 1))
    outbox.put_nowait(second)
    groups = outbox.take(10, 10_000).groups
    assert [group.count for group in groups] == [1, 1]
    assert groups[1].first_sequence == second.sequence


async def test_messages_with_an_id_of_their_own_never_share_a_group():
    key = EnvelopeKey(topic=KEY.topic, source_id="u", message_id="m")
    outbox = Outbox(10, 10_000)
    await outbox.put_many([b"1", b"2"], key)
    outbox.put_nowait(message(b"3", 0, key))
    assert [group.count for group in outbox.take(10, 10_000).groups] == [1, 1, 1]


async def test_groups_are_bounded():
    outbox = Outbox(100_000, 1 << 30)
    await outbox.put_many([b"x"] * (2 * GROUP_MESSAGES + 1), KEY)
    assert outbox.take(GROUP_MESSAGES, GROUP_BYTES).count == GROUP_MESSAGES
    outbox = Outbox(100_000, 1 << 30)
    await outbox.put_many([b"x" * 1_000] * 1_000, KEY)
    batch = outbox.take(GROUP_MESSAGES, GROUP_BYTES)
    assert GROUP_BYTES - 2_000 < batch.size_bytes <= GROUP_BYTES
    assert len(batch.groups) == 1


async def test_message_larger_than_a_batch_goes_out_alone():
    outbox = Outbox(10, 10_000)
    for frame in (b"a", b"b" * 500, b"c"):
        await outbox.put(message(frame))
    assert [outbox.take(10, 200).count for _ in range(3)] == [1, 1, 1]


async def test_message_larger_than_the_outbox_is_accepted_when_it_is_empty():
    outbox = Outbox(10, 100)
    async with asyncio.timeout(GUARD_S):
        await outbox.put_many([b"x" * 500], KEY)
    assert not outbox.put_nowait(message(b"y"))


async def test_message_beyond_the_limit_of_the_broker_is_refused_to_its_maker():
    outbox = Outbox(10, 10_000)
    outbox.apply_limits(PublishLimits(max_message_bytes=KEY.size_bytes + 5))
    assert outbox.put_nowait(message(b"x" * 5))
    for putting in (outbox.put(message(b"x" * 6)), outbox.put_many([b"", b"x" * 6], KEY)):
        with pytest.raises(MessageTooLargeError) as refused:
            await putting
        assert refused.value.metadata["limit_bytes"] == str(KEY.size_bytes + 5)
    assert outbox.accepted_count == 1


@pytest.mark.parametrize("first", [0, 50])
async def test_lower_limit_refuses_what_waits_and_keeps_the_rest_in_order(first, caplog):
    outbox = Outbox(10, 10_000)
    sizes = [1, 9, 2, 3, 8, 8, 4]
    await outbox.put_many([b"x" * size for size in sizes], KEY, first)
    outbox.apply_limits(PublishLimits(max_message_bytes=KEY.size_bytes + 7))
    assert outbox.refused_count == {"MESSAGE_TOO_LARGE": 3}
    assert (outbox.pending_count, outbox.waiting_count) == (4, 4)
    assert "3 events of events.process.a are larger" in caplog.text
    batch = outbox.take(10, 10_000)
    kept = [(first and first + index, size) for index, size in enumerate(sizes) if size <= 7]
    assert [(sequence, len(frame)) for _, sequence, frame in frames_of(batch)] == kept
    outbox.settle(batch.batch_id)
    assert (outbox.published_count, outbox.pending_bytes) == (4, 0)


async def test_wait_empty_returns_when_the_last_batch_is_answered():
    outbox = Outbox(10, 1_000)
    async with asyncio.timeout(GUARD_S):
        await outbox.wait_empty()
        await outbox.put(message())
        async with asyncio.TaskGroup() as group:
            waiter = group.create_task(outbox.wait_empty())
            batch = outbox.take(1, 1_000)
            await asyncio.sleep(0)
            assert not waiter.done()
            outbox.settle(batch.batch_id)
            await waiter


async def test_taker_that_wants_many_is_told_when_they_are_there():
    outbox = Outbox(100, 10_000)
    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        waiter = group.create_task(outbox.wait_waiting(3))
        for _ in range(2):
            outbox.put_nowait(message())
            await asyncio.sleep(0)
        assert not waiter.done()
        await outbox.put_many([b""], KEY)
        await waiter


async def test_taker_that_wants_many_is_told_when_few_large_ones_are_there():
    outbox = Outbox(100, 10 << 20)
    outbox.put_nowait(message(b"x" * GROUP_BYTES))
    async with asyncio.timeout(GUARD_S):
        await outbox.wait_waiting(50)
