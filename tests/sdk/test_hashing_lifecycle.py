import asyncio
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from collector_core.hashing import (
    AllowedRoots,
    BinaryHashAnalyzer,
    FileHasher,
    FileUnavailableError,
    FuzzyState,
    HashClock,
    HashError,
    HashErrorKind,
    HashFailedError,
    HashingPausedError,
    HashingStoppedError,
    HashSettings,
    HashState,
    Pending,
)
from collector_core.hashing import fuzzy as fuzzy_module
from collector_core.hashing.fuzzy import load_fuzzy
from collector_core.hashing.settings import CHUNK_BYTES

HOUR_NS = 3_600_000_000_000
WAIT_S = 10.0

# Files of a test are new; to most tests here they look an hour old.
LATER = HashClock(wall_ns=lambda: time.time_ns() + HOUR_NS)

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


async def test_paused_hasher_answers_from_memory_and_reads_nothing(new_hasher, target, root, brake):
    hasher = new_hasher(brake)
    brake.released.set()
    found = await hasher.hash_path(target)
    (root / "other").write_text("x")
    hasher.pause()
    assert hasher.is_paused
    assert hasher.request(target) is found
    assert hasher.request(root / "other") == Pending(HashState.PAUSED)
    assert hasher.lookup((root / "other").stat()) is None
    with pytest.raises(HashingPausedError):
        await hasher.hash_path(target)
    with (root / "other").open("rb") as file, pytest.raises(HashingPausedError):
        await hasher.hash_fd(file.fileno())
    hasher.resume()
    assert (await hasher.hash_path(root / "other")).sha256 == sha256(root / "other")


async def test_pause_lets_readings_end_refuses_waiters_and_keeps_the_background(
    new_hasher, root, brake, eventually
):
    hasher = new_hasher(brake, workers=1)
    for name in "abc":
        (root / name).write_text(name)
    running = asyncio.ensure_future(hasher.hash_path(root / "a"))
    await eventually(lambda: brake.readings)
    waiting = asyncio.ensure_future(hasher.hash_path(root / "b"))
    await eventually(lambda: hasher.counters.waiting == 1)
    hasher.request(root / "c")
    hasher.pause()
    with pytest.raises(HashingPausedError):
        await waiting
    brake.released.set()
    assert (await running).sha256 == sha256(root / "a")
    assert hasher.request(root / "c") == Pending(HashState.PAUSED)
    assert (hasher.counters.running, hasher.counters.waiting) == (0, 1)
    hasher.resume()
    await eventually(lambda: hasher.counters.hashed == 2)


async def test_request_that_fell_to_a_pause_may_be_repeated(new_hasher, root, brake, eventually):
    hasher = new_hasher(brake, workers=1)
    for name in "ab":
        (root / name).write_text(name)
    hasher.request(root / "a")
    hasher.request(root / "b")
    waiter = asyncio.ensure_future(hasher.hash_path(root / "b"))
    await eventually(lambda: hasher.counters.coalesced)
    hasher.pause()
    with pytest.raises(HashingPausedError):
        await waiter
    hasher.resume()
    assert hasher.request(root / "b") == Pending()


async def test_closing_answers_everybody(new_hasher, root, brake, eventually):
    hasher = new_hasher(brake, workers=1)
    for name in "abc":
        (root / name).write_text(name)
    tasks = [asyncio.ensure_future(hasher.hash_path(root / name)) for name in "ab"]
    await eventually(lambda: brake.readings and hasher.counters.waiting == 1)
    with (root / "c").open("rb") as file:
        hasher.request_fd(file.fileno())
    brake.released.set()
    await hasher.close()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in errors] == [HashingStoppedError] * 2
    for call in (hasher.hash_path(root / "a"), hasher.hash_fd(0)):
        with pytest.raises(HashingStoppedError):
            await call
    with pytest.raises(HashingStoppedError):
        hasher.request(root / "a")
    hasher.resume()
    await hasher.close()


async def test_nothing_is_left_open(new_hasher, target, root):
    async with new_hasher() as hasher:
        before = open_descriptors()
        with target.open("rb") as file:
            await hasher.hash_fd(file.fileno())
        await hasher.hash_path(target)
        (root / "o").write_text("x")
        hasher.request(root / "o")
        with pytest.raises(FileUnavailableError):
            await hasher.hash_path(root)
    assert open_descriptors() == before


async def test_fuzzy_state_is_said(new_hasher, monkeypatch):
    assert new_hasher().fuzzy_state is FuzzyState.NOT_WANTED

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(fuzzy_module.importlib, "import_module", missing)
    load_fuzzy.cache_clear()
    try:
        assert new_hasher(wants_fuzzy=True).fuzzy_state is FuzzyState.NO_LIBRARY
    finally:
        load_fuzzy.cache_clear()


async def test_analyzer_gives_digests_or_a_closed_kind(new_hasher, target):
    analyze = BinaryHashAnalyzer(new_hasher())
    assert (await analyze(str(target))).sha256 == sha256(target)
    with pytest.raises(HashError) as caught:
        await analyze("/etc/shadow")
    assert caught.value.kind is HashErrorKind.PATH_NOT_ALLOWED


async def test_analyzer_hides_a_defect(new_hasher, target, caplog):
    def fail(offset):
        raise ZeroDivisionError("secret")

    hasher = new_hasher(fail)
    for call in (BinaryHashAnalyzer(hasher)(str(target)), hasher.hash_path(target)):
        with pytest.raises(HashFailedError) as caught:
            await call
        assert caught.value.kind is HashErrorKind.INTERNAL
        assert "secret" not in str(caught.value)
    assert "ZeroDivisionError" in caplog.text


async def test_analyzer_hides_a_defect_of_the_hasher_itself(new_hasher, caplog):
    with pytest.raises(HashFailedError):
        await BinaryHashAnalyzer(new_hasher())(7)
    assert "TypeError" in caplog.text
