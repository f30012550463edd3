import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from collector_core.outbox import AnswerOrderError, Outbox

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 10
MAX_MESSAGES = 6
MAX_BYTES = 40


async def attempt(coroutine):
    """Runs a coroutine that may have to wait; returns whether it did not, and its result."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0)
    if task.done():
        return True, task.result()
    task.cancel()
    await asyncio.wait([task])
    return False, None


class OutboxMachine(RuleBasedStateMachine):
    """Compares an outbox with plain lists of what was put, taken and answered."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.outbox = Outbox(MAX_MESSAGES, MAX_BYTES)
        self.next_number = 0
        self.pending = []
        self.in_flight = []
        self.answered = []
        self.counts = {"published": 0, "refused": 0}

    def attempt(self, coroutine):
        return self.loop.run_until_complete(attempt(coroutine))

    def frame(self, size_bytes):
        self.next_number += 1
        return f"{self.next_number:04d}".encode().ljust(size_bytes, b".")

    @rule(size_bytes=st.integers(4, 30))
    def put(self, size_bytes):
        frame = self.frame(size_bytes)
        used = sum(map(len, self.pending))
        has_room = not self.pending or (
            len(self.pending) < MAX_MESSAGES and used + size_bytes <= MAX_BYTES
        )
        accepted, _ = self.attempt(self.outbox.put(frame))
        assert accepted == has_room
        if accepted:
            self.pending.append(frame)

    @rule(max_messages=st.integers(1, 4), max_bytes=st.integers(1, 60))
    def take(self, max_messages, max_bytes):
        waiting = self.pending[sum(len(batch.frames) for batch in self.in_flight) :]
        taken, batch = self.attempt(self.outbox.take(max_messages, max_bytes))
        assert taken == bool(waiting)
        if taken:
            assert batch.frames == waiting[: len(batch.frames)]
            assert 1 <= len(batch.frames) <= max_messages
            assert batch.size_bytes == sum(map(len, batch.frames))
            assert batch.size_bytes <= max_bytes or len(batch.frames) == 1
            assert not self.in_flight or batch.batch_id > self.in_flight[-1].batch_id
            self.in_flight.append(batch)

    @precondition(lambda self: self.in_flight)
    @rule(reason=st.sampled_from([None, "TOPIC_INVALID"]))
    def settle(self, reason):
        batch = self.in_flight.pop(0)
        assert self.outbox.settle(batch.batch_id, reason) == len(batch.frames)
        self.answered += batch.frames
        del self.pending[: len(batch.frames)]
        self.counts["refused" if reason else "published"] += len(batch.frames)

    @rule()
    def settle_another(self):
        wrong = self.in_flight[-1].batch_id if len(self.in_flight) > 1 else 10**9
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
        assert outbox.pending_bytes == sum(map(len, self.pending))
        assert outbox.in_flight_count == len(self.in_flight)
        assert outbox.accepted_count == (
            outbox.published_count + outbox.refused_count.total() + outbox.pending_count
        )

    @invariant()
    def bounds_hold(self):
        assert self.outbox.pending_count <= MAX_MESSAGES
        assert self.outbox.pending_bytes <= MAX_BYTES

    @invariant()
    def order_is_that_of_the_puts(self):
        order = self.answered + self.pending
        assert order == sorted(order)

    def teardown(self):
        self.outbox.rewind()
        rest = []
        while self.outbox.pending_count > len(rest):
            _, batch = self.attempt(self.outbox.take(100, 10_000))
            rest += batch.frames
        self.loop.close()
        assert rest == self.pending


OutboxMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestOutboxMachine = OutboxMachine.TestCase


async def test_put_waits_at_the_bound_and_goes_on():
    outbox = Outbox(2, 1_000)
    await outbox.put(b"1")
    await outbox.put(b"2")
    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        third = group.create_task(outbox.put(b"3"))
        batch = await outbox.take(1, 1_000)
        assert not third.done()
        assert outbox.accepted_count == 2
        outbox.settle(batch.batch_id)
        await third
    assert (outbox.accepted_count, outbox.pending_count) == (3, 2)


async def test_put_waits_at_the_bound_in_bytes():
    outbox = Outbox(100, 10)
    await outbox.put(b"x" * 8)
    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        second = group.create_task(outbox.put(b"y" * 3))
        batch = await outbox.take(1, 1_000)
        assert not second.done()
        outbox.settle(batch.batch_id, "TOPIC_INVALID")
        await second
    assert outbox.refused_count == {"TOPIC_INVALID": 1}


async def test_put_that_is_cancelled_while_it_waits_leaves_nothing():
    outbox = Outbox(1, 1_000)
    await outbox.put(b"1")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await outbox.put(b"2")
    assert (outbox.accepted_count, outbox.pending_bytes) == (1, 1)


async def test_many_putters_and_one_taker_lose_nothing():
    outbox = Outbox(5, 1_000)
    got = []

    async def put_some(name):
        for number in range(40):
            await outbox.put(f"{name}{number:03d}".encode())

    async def take_all():
        while len(got) < 120:
            batch = await outbox.take(3, 1_000)
            got.extend(batch.frames)
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


async def test_frame_larger_than_a_batch_goes_out_alone():
    outbox = Outbox(10, 1_000)
    for frame in (b"a", b"b" * 500, b"c"):
        await outbox.put(frame)
    sizes = [len((await outbox.take(10, 100)).frames) for _ in range(3)]
    assert sizes == [1, 1, 1]


async def test_wait_empty_returns_when_the_last_batch_is_answered():
    outbox = Outbox(10, 1_000)
    async with asyncio.timeout(GUARD_S):
        await outbox.wait_empty()
        await outbox.put(b"1")
        async with asyncio.TaskGroup() as group:
            waiter = group.create_task(outbox.wait_empty())
            batch = await outbox.take(1, 1_000)
            assert not waiter.done()
            outbox.settle(batch.batch_id)
            await waiter


async def test_few_frames_wait_for_the_answer_to_the_batch_in_flight() -> None:
    outbox = Outbox(max_messages=100, max_bytes=10_000)
    await outbox.put(b"first")
    first = await outbox.take(10, 1_000, hold_messages=3)
    await outbox.put(b"second")
    held = asyncio.ensure_future(outbox.take(10, 1_000, hold_messages=3))
    await asyncio.sleep(0)
    assert not held.done()
    outbox.settle(first.batch_id)
    assert (await held).frames == [b"second"]


async def test_enough_frames_do_not_wait_for_an_answer() -> None:
    outbox = Outbox(max_messages=100, max_bytes=10_000)
    await outbox.put(b"first")
    await outbox.take(10, 1_000, hold_messages=3)
    for frame in (b"a", b"b", b"c"):
        await outbox.put(frame)
    assert (await outbox.take(10, 1_000, hold_messages=3)).frames == [b"a", b"b", b"c"]
