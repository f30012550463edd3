import asyncio
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from collector_core.hashing import (
    AllowedRoots,
    FileChangedError,
    FileHash,
    FileHasher,
    FileTooLargeError,
    FileUnavailableError,
    HashClock,
    HashError,
    HashErrorKind,
    HashSettings,
    HashState,
    InvalidPathError,
    PathNotAllowedError,
    Pending,
)
from collector_core.hashing.settings import CHUNK_BYTES

HOUR_NS = 3_600_000_000_000
WAIT_S = 10.0

# Files of a test are new; to most tests here they look an hour old.
LATER = HashClock(wall_ns=lambda: time.time_ns() + HOUR_NS)

# To a clock that is far behind, every file is from the future, so nothing is sure about it.
EARLY = HashClock(wall_ns=lambda: 0)

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


class Brake:
    """Holds workers before each chunk until it is released, and notes the offsets."""

    def __init__(self):
        self.offsets = []
        self.released = threading.Event()

    def __call__(self, offset):
        self.offsets.append(offset)
        assert self.released.wait(WAIT_S)

    @property
    def readings(self):
        return self.offsets.count(0)


@pytest.fixture
def brake():
    held = Brake()
    yield held
    held.released.set()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def target(root):
    """A file of two chunks and a bit."""
    (root / "target").write_bytes(os.urandom(2 * CHUNK_BYTES + 5))
    return root / "target"


@pytest.fixture
async def new_hasher(root):
    """Makes hashers beneath ``root``; closes them and checks that no thread is left."""
    made = []
    roots = AllowedRoots.open([root])

    def make(on_chunk=None, clock=LATER, roots=roots, **settings):
        hasher = FileHasher(HashSettings(**settings), roots, clock=clock, on_chunk=on_chunk)
        made.append((hasher, on_chunk))
        return hasher

    yield make
    for hasher, on_chunk in made:
        if isinstance(on_chunk, Brake):
            on_chunk.released.set()
        await hasher.close()
    roots.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("hash-")]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def open_descriptors():
    return {one.name for one in Path("/proc/self/fd").iterdir()}


async def test_file_is_hashed_by_path_and_by_descriptor(new_hasher, target):
    hasher = new_hasher()
    assert (await hasher.hash_path(target)).sha256 == sha256(target)
    assert (await hasher.hash_path(str(target))).size_bytes == 2 * CHUNK_BYTES + 5
    with target.open("rb") as file:
        assert (await hasher.hash_fd(file.fileno())).sha256 == sha256(target)
    assert hasher.counters.bytes_read == 2 * CHUNK_BYTES + 5


@pytest.fixture
def own_program():
    """The program that runs this, opened through /proc."""
    with Path("/proc/self/exe").open("rb") as file:
        yield file


async def test_running_program_is_hashed_through_proc(new_hasher, own_program):
    hasher = new_hasher(roots=None)
    found = await hasher.hash_fd(own_program.fileno(), hint="/proc/self/exe")
    assert found.sha256 == hashlib.sha256(own_program.read()).hexdigest()


async def test_second_call_is_answered_from_the_cache(new_hasher, target):
    hasher = new_hasher()
    first = await hasher.hash_path(target)
    assert await hasher.hash_path(target) is first
    os.link(target, other := target.with_name("other"))
    changed = await hasher.hash_path(other)  # a link changes ctime, so this is another version
    assert await hasher.hash_path(target) is changed
    assert (hasher.counters.hashed, hasher.counters.cache_hits) == (2, 2)


async def test_rewrite_that_restores_size_and_mtime_is_noticed_by_ctime(
    new_hasher, target, eventually
):
    hasher = new_hasher()
    before = target.stat()
    first = await hasher.hash_path(target)

    def rewrite():
        with target.open("r+b") as file:
            file.write(b"evil")
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
        return target.stat().st_ctime_ns != before.st_ctime_ns

    await eventually(rewrite, "a new change time")
    assert target.stat().st_mtime_ns == before.st_mtime_ns
    assert target.stat().st_size == before.st_size
    second = await hasher.hash_path(target)
    assert second.sha256 == sha256(target) != first.sha256


async def test_cache_forgets_the_least_recently_used(new_hasher, root):
    hasher = new_hasher(cache_entries=2)
    for name in "abc":
        (root / name).write_text(name)
    for name in "abacacb":  # b gives way to c; then b is read again
        await hasher.hash_path(root / name)
    assert hasher.counters.hashed == 4


async def test_cache_of_no_entries_remembers_nothing(new_hasher, target):
    hasher = new_hasher(cache_entries=0)
    for _ in range(2):
        await hasher.hash_path(target)
    assert hasher.counters.hashed == 2


async def test_young_file_is_hashed_but_not_remembered(new_hasher, target):
    hasher = new_hasher(clock=EARLY)
    found = await hasher.hash_path(target)
    assert not found.is_stable
    await hasher.hash_path(target)
    assert (hasher.counters.hashed, hasher.counters.cache_hits) == (2, 0)


async def test_ten_callers_read_a_file_once(new_hasher, target, brake, eventually):
    hasher = new_hasher(brake)
    with target.open("rb") as file:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(hasher.hash_path(target)) for _ in range(5)]
            tasks += [group.create_task(hasher.hash_fd(file.fileno())) for _ in range(5)]
            await eventually(lambda: hasher.counters.coalesced == 9)
            brake.released.set()
    assert {task.result().sha256 for task in tasks} == {sha256(target)}
    assert brake.offsets == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert hasher.counters.hashed == 1


async def test_cancelled_caller_leaves_the_others_alone(new_hasher, target, brake, eventually):
    hasher = new_hasher(brake)
    first, second = (asyncio.ensure_future(hasher.hash_path(target)) for _ in range(2))
    await eventually(lambda: hasher.counters.coalesced == 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    brake.released.set()
    assert (await second).sha256 == sha256(target)
    assert (brake.readings, hasher.counters.cancelled) == (1, 0)


async def test_reading_stops_when_all_callers_are_cancelled(new_hasher, target, brake, eventually):
    hasher = new_hasher(brake)
    tasks = [asyncio.ensure_future(hasher.hash_path(target)) for _ in range(3)]
    await eventually(lambda: hasher.counters.coalesced == 2 and brake.readings)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    brake.released.set()
    await eventually(lambda: not hasher.counters.running)
    assert brake.offsets == [0]
    assert (hasher.counters.cancelled, hasher.counters.hashed) == (1, 0)
    assert not hasher.counters.failures


async def test_caller_after_a_cancelled_one_gets_a_reading_of_its_own(
    new_hasher, target, brake, eventually
):
    hasher = new_hasher(brake)
    first = asyncio.ensure_future(hasher.hash_path(target))
    await eventually(lambda: brake.readings)
    first.cancel()
    second = asyncio.ensure_future(hasher.hash_path(target))
    await eventually(lambda: brake.readings == 2)
    brake.released.set()
    assert (await second).sha256 == sha256(target)


async def test_failure_reaches_every_caller_as_an_error_of_its_own(
    new_hasher, target, brake, eventually
):
    hasher = new_hasher(brake)
    tasks = [asyncio.ensure_future(hasher.hash_path(target)) for _ in range(3)]
    await eventually(lambda: hasher.counters.coalesced == 2 and brake.readings)
    os.truncate(target, 10)
    brake.released.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [FileChangedError] * 3
    assert len(set(map(id, errors))) == 3
    assert hasher.counters.changed == 1
    assert hasher.counters.failures == {HashErrorKind.UNAVAILABLE: 3}


async def test_file_replaced_while_in_line_is_looked_at_again(
    new_hasher, target, root, brake, eventually
):
    hasher = new_hasher(brake, workers=1)
    (root / "first").write_text("x")
    first = asyncio.ensure_future(hasher.hash_path(root / "first"))
    await eventually(lambda: brake.readings)
    by_path = asyncio.ensure_future(hasher.hash_path(target))
    await eventually(lambda: hasher.counters.waiting == 1)
    with target.open("rb") as file:  # the caller of a descriptor wants the file it has open
        by_descriptor = asyncio.ensure_future(hasher.hash_fd(file.fileno()))
        await eventually(lambda: hasher.counters.coalesced == 1)
        old = sha256(target)
        (root / "new").write_text("new")
        (root / "new").rename(target)
        brake.released.set()
        assert (await by_path).sha256 == sha256(target)
        assert (await by_descriptor).sha256 == old
    await first


async def test_file_that_is_gone_by_its_turn_is_unavailable_but_to_who_has_it_open(
    new_hasher, target, root, brake, eventually
):
    hasher = new_hasher(brake, workers=1)
    (root / "first").write_text("x")
    first = asyncio.ensure_future(hasher.hash_path(root / "first"))
    await eventually(lambda: brake.readings)
    by_path = asyncio.ensure_future(hasher.hash_path(target))
    await eventually(lambda: hasher.counters.waiting == 1)
    with target.open("rb") as file:
        by_descriptor = asyncio.ensure_future(hasher.hash_fd(file.fileno()))
        await eventually(lambda: hasher.counters.coalesced == 1)
        expected = sha256(target)
        target.unlink()
        brake.released.set()
        with pytest.raises(FileUnavailableError):
            await by_path
        assert (await by_descriptor).sha256 == expected
    await first


async def test_request_says_pending_and_gives_the_value_later(
    new_hasher, target, brake, eventually
):
    hasher = new_hasher(brake)
    assert hasher.lookup(target.stat()) is None
    assert hasher.request(target) == Pending()
    assert hasher.request(target) == Pending(HashState.PENDING)
    assert hasher.lookup(target.stat()) == Pending()
    brake.released.set()
    await eventually(lambda: hasher.counters.hashed)
    found = hasher.request(target)
    assert isinstance(found, FileHash)
    assert found.sha256 == sha256(target)
    with target.open("rb") as file:
        assert hasher.lookup(file.fileno()) is found
        assert hasher.request_fd(file.fileno()) is found
    assert brake.readings == 1


async def test_request_for_a_descriptor_outlives_the_descriptor(new_hasher, target, eventually):
    hasher = new_hasher(roots=None)
    with target.open("rb") as file:
        assert hasher.request_fd(file.fileno(), hint="exe") == Pending()
    await eventually(lambda: hasher.counters.hashed)
    assert isinstance(hasher.lookup(target.stat()), FileHash)


async def test_requested_young_file_is_given_once_and_then_read_again(
    new_hasher, target, eventually
):
    hasher = new_hasher(clock=EARLY)
    assert hasher.request(target) == Pending()
    await eventually(lambda: hasher.counters.hashed == 1)
    found = hasher.request(target)
    assert isinstance(found, FileHash)
    assert not found.is_stable
    assert hasher.request(target) == Pending()


async def test_waiting_for_a_requested_file_joins_its_reading(
    new_hasher, target, brake, eventually
):
    hasher = new_hasher(brake)
    hasher.request(target)
    waiter = asyncio.ensure_future(hasher.hash_path(target))
    await eventually(lambda: hasher.counters.coalesced == 1)
    waiter.cancel()
    await asyncio.wait([waiter])
    brake.released.set()
    await eventually(lambda: hasher.counters.hashed == 1)  # it was asked for in the background, too
    assert brake.readings == 1


async def test_background_failure_is_told_again_for_a_while_and_then_tried_again(
    new_hasher, target, brake, eventually
):
    now = [1000.0]
    clock = HashClock(monotonic_s=lambda: now[0], wall_ns=LATER.wall_ns)
    hasher = new_hasher(brake, clock=clock)
    hasher.request(target)
    await eventually(lambda: brake.readings)
    now[0] += 11
    brake.released.set()
    await eventually(lambda: hasher.counters.failures)
    assert hasher.counters.failures == {HashErrorKind.TIMEOUT: 1}
    for _ in range(2):
        with pytest.raises(HashError) as caught:
            hasher.request(target)
        assert caught.value.kind is HashErrorKind.TIMEOUT
    now[0] += 61
    assert hasher.request(target) == Pending()
    await eventually(lambda: hasher.counters.hashed)


async def test_failure_is_forgotten_once_the_file_was_read_after_all(
    new_hasher, target, brake, eventually
):
    now = [1000.0]
    clock = HashClock(monotonic_s=lambda: now[0], wall_ns=EARLY.wall_ns)
    hasher = new_hasher(brake, clock=clock)
    hasher.request(target)
    waiter = asyncio.ensure_future(hasher.hash_path(target))
    await eventually(lambda: brake.readings and hasher.counters.coalesced)
    now[0] += 11
    brake.released.set()
    with pytest.raises(HashError):
        await waiter
    assert hasher.counters.failures == {HashErrorKind.TIMEOUT: 1}  # who waited was told
    with pytest.raises(HashError):
        hasher.request(target)
    await hasher.hash_path(target)
    assert hasher.request(target) == Pending()


async def test_requests_that_cannot_succeed_are_refused_at_once(new_hasher, root, target):
    hasher = new_hasher(max_file_bytes=CHUNK_BYTES)
    for path, error in (
        (target, FileTooLargeError),
        (root / "none", FileUnavailableError),
        (root, FileUnavailableError),
        ("/etc/passwd", PathNotAllowedError),
        ("x", InvalidPathError),
    ):
        with pytest.raises(error):
            hasher.request(path)
        with pytest.raises(error):
            await hasher.hash_path(path)
    assert hasher.counters.failures == {
        HashErrorKind.TOO_LARGE: 2,
        HashErrorKind.UNAVAILABLE: 4,
        HashErrorKind.PATH_NOT_ALLOWED: 2,
        HashErrorKind.INVALID_REQUEST: 2,
    }
    assert not hasher.counters.bytes_read


async def test_fifo_and_link_are_unavailable_without_waiting(new_hasher, root, target):
    os.mkfifo(root / "fifo")
    (root / "link").symlink_to(target)
    hasher = new_hasher()
    for name in ("fifo", "link"):
        with pytest.raises(FileUnavailableError):
            await hasher.hash_path(root / name)


async def test_without_roots_no_path_is_allowed(new_hasher, target):
    hasher = new_hasher(roots=None)
    with pytest.raises(PathNotAllowedError):
        await hasher.hash_path(target)
    with pytest.raises(InvalidPathError):
        await hasher.hash_path("..")


async def test_descriptor_that_is_not_open_is_an_invalid_request(new_hasher):
    hasher = new_hasher()
    for descriptor in (-1, 1 << 20):
        with pytest.raises(InvalidPathError):
            await hasher.hash_fd(descriptor)
        with pytest.raises(InvalidPathError):
            hasher.request_fd(descriptor)
        assert hasher.lookup(descriptor) is None
