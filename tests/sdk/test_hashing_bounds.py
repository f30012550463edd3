import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core.hashing import (
    AllowedRoots,
    FileHasher,
    HashCapacityError,
    HashClock,
    HashErrorKind,
    HashSettings,
    HashTimeoutError,
    Pending,
)
from collector_core.hashing import jobs as jobs_module
from collector_core.hashing.beneath import open_beneath
from collector_core.hashing.budget import ReadBudget
from collector_core.hashing.gate import ReadingCancelled, WorkerGate
from collector_core.hashing.settings import CHUNK_BYTES
from collector_core.hashing.worker import WorkerThreads

WAIT_S = 10.0
MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


class Time:
    """A clock that goes on only where somebody waits."""

    def __init__(self):
        self.now_s = 1000.0
        self.waited = []
        self.lock = threading.Lock()

    def wait(self, cancel, timeout_s):
        with self.lock:
            self.waited.append(timeout_s)
            self.now_s += timeout_s
        return cancel.is_set()

    @property
    def clock(self):
        return HashClock(monotonic_s=lambda: self.now_s, wait=self.wait)


class Brake:
    """Holds workers before each chunk until it is released."""

    def __init__(self):
        self.offsets = []
        self.released = threading.Event()

    def __call__(self, offset):
        self.offsets.append(offset)
        assert self.released.wait(WAIT_S)


@pytest.fixture
def brake():
    held = Brake()
    yield held
    held.released.set()


@pytest.fixture
def fake_time():
    return Time()


@pytest.fixture
async def new_hasher(tmp_path, brake):
    made = []
    roots = AllowedRoots.open([tmp_path])

    def make(on_chunk=None, clock=None, **settings):
        made.append(FileHasher(HashSettings(**settings), roots, clock=clock, on_chunk=on_chunk))
        return made[-1]

    yield make
    brake.released.set()
    for hasher in made:
        await hasher.close()
    roots.close()


@pytest.fixture
def new_file(tmp_path):
    def make(name, size_bytes=1):
        (tmp_path / name).write_bytes(os.urandom(size_bytes))
        return tmp_path / name

    return make


@pytest.fixture
def open_files(new_file):
    """Descriptors of three files."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(new_file(name).open("rb")).fileno() for name in "abc"]


def open_descriptors():
    return {one.name for one in Path("/proc/self/fd").iterdir()}


@given(st.lists(st.tuples(st.integers(0, MIB), st.floats(0, 3)), max_size=40))
def test_budget_never_grants_more_than_rate_and_burst(steps):
    rate, fake = 3 * MIB, Time()
    budget = ReadBudget(rate, fake.clock.monotonic_s)
    granted, free_s = 0, fake.now_s
    for size_bytes, pause_s in steps:
        granted += size_bytes
        free_s = max(free_s, fake.now_s + budget.reserve(size_bytes))
        assert granted <= rate * (free_s - 1000.0) + CHUNK_BYTES + 1
        fake.now_s += pause_s


def test_budget_goes_into_debt_and_gives_refunds(fake_time):
    budget = ReadBudget(MIB, fake_time.clock.monotonic_s)
    assert budget.reserve(MIB) == 0
    assert budget.reserve(MIB) == 1
    assert budget.reserve(MIB) == 2
    budget.refund(MIB)
    assert budget.reserve(0) == 1
    fake_time.now_s += 100
    assert budget.reserve(2 * MIB) == 1  # what was not used is not saved up


def test_no_budget_never_waits(fake_time):
    budget = ReadBudget(None, fake_time.clock.monotonic_s)
    assert [budget.reserve(1 << 40) for _ in range(3)] == [0, 0, 0]


async def test_rate_holds_for_all_workers_together(new_hasher, new_file, fake_time):
    hasher = new_hasher(clock=fake_time.clock, bytes_per_s=MIB, workers=2)
    files = [new_file(name, 4 * MIB) for name in "abc"]
    await asyncio.gather(*map(hasher.hash_path, files))
    assert sum(fake_time.waited) >= 11  # twelve, and one was free
    assert hasher.counters.bytes_read == 12 * MIB


async def test_small_file_is_charged_its_size_only(new_hasher, new_file, fake_time):
    hasher = new_hasher(clock=fake_time.clock, bytes_per_s=MIB)
    for number in range(10):
        await hasher.hash_path(new_file(f"f{number}", 1000))
    assert not fake_time.waited


async def test_waiting_for_the_rate_does_not_count_as_reading(new_hasher, new_file, fake_time):
    hasher = new_hasher(clock=fake_time.clock, bytes_per_s=MIB, timeout_s=2)
    assert (await hasher.hash_path(new_file("f", 9 * MIB))).size_bytes == 9 * MIB


async def test_waiting_for_the_rate_counts_if_asked(new_hasher, new_file, fake_time):
    hasher = new_hasher(clock=fake_time.clock, bytes_per_s=MIB, timeout_s=2, is_wait_timed=True)
    with pytest.raises(HashTimeoutError):
        await hasher.hash_path(new_file("f", 9 * MIB))
    assert sum(fake_time.waited) == pytest.approx(2)
    assert hasher.counters.bytes_read <= 3 * MIB
    assert hasher.counters.failures == {HashErrorKind.TIMEOUT: 1}


async def test_slow_reading_times_out_at_the_next_chunk(new_hasher, new_file, fake_time):
    offsets = []

    def slow(offset):
        offsets.append(offset)
        fake_time.now_s += 3

    hasher = new_hasher(slow, clock=fake_time.clock)
    with pytest.raises(HashTimeoutError):
        await hasher.hash_path(new_file("f", 9 * MIB))
    assert offsets == [0, MIB, 2 * MIB, 3 * MIB]
    assert hasher.counters.bytes_read == 3 * MIB


def test_cancelled_gate_refunds_what_it_does_not_read(fake_time):
    settings = HashSettings(bytes_per_s=MIB)
    budget = ReadBudget(MIB, fake_time.clock.monotonic_s)
    gates = []

    def cancel_while_waiting(cancel, timeout_s):
        gates[0].cancel()
        return cancel.wait(0)

    clock = HashClock(monotonic_s=fake_time.clock.monotonic_s, wait=cancel_while_waiting)
    gates.append(WorkerGate(settings, budget, clock))
    gates[0].start()
    gates[0].admit(0, MIB)
    with pytest.raises(ReadingCancelled):
        gates[0].admit(MIB, MIB)
    assert gates[0].bytes_read == MIB
    assert budget.reserve(0) == 0
    with pytest.raises(ReadingCancelled):
        gates[0].check()


async def test_cancelled_caller_ends_the_waiting_for_the_rate_at_once(
    new_hasher, new_file, eventually
):
    hasher = new_hasher(bytes_per_s=1)  # the second chunk would take twelve days
    caller = asyncio.ensure_future(hasher.hash_path(new_file("f", 2 * MIB)))
    await eventually(lambda: hasher.counters.running)
    caller.cancel()
    await asyncio.wait([caller])
    await eventually(lambda: not hasher.counters.running)


async def test_no_more_files_wait_than_allowed(new_hasher, new_file, brake, eventually):
    hasher = new_hasher(brake, workers=1, max_pending=2)
    files = [new_file(name) for name in "abcd"]
    tasks = [asyncio.ensure_future(hasher.hash_path(files[0]))]
    await eventually(lambda: hasher.counters.running == 1)
    tasks += [asyncio.ensure_future(hasher.hash_path(file)) for file in files[1:3]]
    await eventually(lambda: hasher.counters.waiting == 2)
    with pytest.raises(HashCapacityError):
        await hasher.hash_path(files[3])
    with pytest.raises(HashCapacityError):
        hasher.request(files[3])
    assert hasher.counters.failures == {HashErrorKind.RESOURCE_EXHAUSTED: 2}
    brake.released.set()
    await asyncio.gather(*tasks)
    await hasher.hash_path(files[3])


async def test_background_leaves_places_to_callers_and_gives_way(
    tmp_path, new_file, brake, eventually
):
    opened = []

    def note(directory, components):
        opened.append(components[-1])
        return open_beneath(directory, components)

    files = [new_file(name) for name in "abcdef"]
    settings = HashSettings(workers=1, max_pending=4)
    with AllowedRoots.open([tmp_path], opener=note) as roots:
        async with FileHasher(settings, roots, on_chunk=brake) as hasher:
            assert [hasher.request(file) for file in files[:4]] == [Pending()] * 4
            with pytest.raises(HashCapacityError):
                hasher.request(files[4])
            callers = [asyncio.ensure_future(hasher.hash_path(files[4]))]
            await eventually(lambda: brake.offsets and hasher.counters.waiting == 4)
            callers.append(asyncio.ensure_future(hasher.hash_path(files[3])))
            await eventually(lambda: hasher.counters.coalesced)
            opened.clear()
            brake.released.set()
            await asyncio.gather(*callers)
            await eventually(lambda: hasher.counters.hashed == 5)
    assert opened == [b"e", b"d", b"b", b"c"]


async def test_no_more_descriptors_are_held_than_allowed(new_hasher, open_files, brake, eventually):
    hasher = new_hasher(brake, workers=1, max_descriptors=2)
    assert [hasher.request_fd(file) for file in open_files[:2]] == [Pending()] * 2
    held = open_descriptors()
    with pytest.raises(HashCapacityError):
        hasher.request_fd(open_files[2])
    assert open_descriptors() == held
    brake.released.set()
    await eventually(lambda: hasher.counters.hashed == 2)
    assert hasher.request_fd(open_files[2]) == Pending()
    await eventually(lambda: hasher.counters.hashed == 3)


async def test_line_of_paths_holds_no_descriptors(new_hasher, new_file, brake, eventually):
    hasher = new_hasher(brake, workers=1)
    hasher.request(new_file("first"))
    await eventually(lambda: brake.offsets)
    before = len(open_descriptors())
    for number in range(20):
        hasher.request(new_file(f"f{number}"))
    assert len(open_descriptors()) == before
    assert hasher.counters.waiting == 20
    brake.released.set()
    await eventually(lambda: hasher.counters.hashed == 21)


async def test_worker_that_hangs_is_not_waited_for(
    new_hasher, open_files, brake, eventually, monkeypatch, caplog
):
    monkeypatch.setattr(jobs_module, "STUCK_AFTER_S", 0.05)
    hasher = new_hasher(brake, workers=1, timeout_s=0.05)
    first, second, third = open_files
    caller = asyncio.ensure_future(hasher.hash_fd(first))
    await eventually(lambda: hasher.counters.running)
    waiting = asyncio.ensure_future(hasher.hash_fd(second))
    with pytest.raises(HashTimeoutError):
        await caller
    with pytest.raises(HashCapacityError):  # no worker is left that could ever take it
        await waiting
    assert hasher.counters.stuck == 1
    assert "hangs" in caplog.text
    with pytest.raises(HashCapacityError):
        hasher.request_fd(third)
    brake.released.set()
    await eventually(lambda: not hasher.counters.stuck)
    assert hasher.request_fd(third) == Pending()


async def test_closing_leaves_a_hanging_worker_behind(
    new_hasher, new_file, brake, eventually, monkeypatch, caplog
):
    monkeypatch.setattr(jobs_module, "STOP_S", 0.05)
    hasher = new_hasher(brake)
    hasher.request(new_file("a"))
    await eventually(lambda: brake.offsets)
    await hasher.close()
    assert "left behind" in caplog.text
    left = [one for one in threading.enumerate() if one.name.startswith("hash-read")]
    assert all(one.daemon for one in left)
    brake.released.set()
    await eventually(lambda: not any(one.is_alive() for one in left))


async def test_open_that_hangs_times_out(tmp_path, new_file):
    released = threading.Event()

    def hang(directory, components):
        assert released.wait(WAIT_S)
        raise FileNotFoundError

    roots = AllowedRoots.open([tmp_path], opener=hang)
    hasher = FileHasher(HashSettings(timeout_s=0.2, max_pending=2), roots)
    path = new_file("a")
    for _ in range(3):
        with pytest.raises(HashTimeoutError):
            await hasher.hash_path(path)
    with pytest.raises(HashCapacityError):  # calls behind a hanging one do not pile up
        await hasher.hash_path(path)
    released.set()
    await hasher.close()
    roots.close()


async def test_threads_give_results_and_errors_in_order():
    threads = WorkerThreads(1, "hash-test")
    names = []

    def fail():
        raise ValueError("x")

    def note(name):
        names.append(name)
        return threading.current_thread().name

    go_on = threading.Event()
    first = threads.submit(lambda: go_on.wait(WAIT_S) and note("first"))
    failing = threads.submit(fail)
    cancelled = threads.submit(lambda: note("cancelled"))
    last = threads.submit(lambda: note("last"))
    cancelled.cancel()
    go_on.set()
    assert await first == "hash-test-0"
    with pytest.raises(ValueError, match="x"):
        await failing
    await last
    assert names == ["first", "last"]
    assert await threads.stop(WAIT_S) == 0


async def test_threads_start_with_the_first_call():
    threads = WorkerThreads(2, "hash-lazy")
    assert not [one for one in threading.enumerate() if one.name.startswith("hash-lazy")]
    assert await threads.submit(time.monotonic) > 0
    assert await threads.stop(WAIT_S) == 0
    assert not [one for one in threading.enumerate() if one.name.startswith("hash-lazy")]


def test_thread_whose_loop_is_gone_ends_quietly():
    threads, started, release = WorkerThreads(1, "hash-gone"), threading.Event(), threading.Event()

    def call():
        started.set()
        assert release.wait(WAIT_S)

    async def main():
        threads.submit(call)
        assert started.wait(WAIT_S)

    asyncio.run(main())
    (left,) = [one for one in threading.enumerate() if one.name == "hash-gone-0"]
    release.set()

    left.join(WAIT_S)
    assert not left.is_alive()
