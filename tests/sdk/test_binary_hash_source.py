"""BINARY_HASH: of a path, and of exactly the process that was meant."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from collector_core import (
    AnalysisError,
    AnalysisErrorKind,
    AnalysisRequest,
    AnalysisTarget,
    SourceCaps,
)
from collector_core.binary_hash_source import BinaryHashSource
from collector_core.capability import Analyzes, Prepares, caps_of
from collector_core.hashing import AllowedRoots, FileHash, FileHasher, HashSettings
from collector_core.hashing.errors import (
    FileTooLargeError,
    FileUnavailableError,
    HashCapacityError,
    HashFailedError,
    HashTimeoutError,
    InvalidPathError,
    PathNotAllowedError,
)
from daemoneye.common.v1 import analysis_pb2

HASH = analysis_pb2.ANALYSIS_TYPE_BINARY_HASH
BOOT = "0cf5ba39-0f2e-4f5c-8ff8-7b3b0a6a2ad5"
FOUND = FileHash(sha256="ab", blake3="cd", size_bytes=3, mtime_ns=4, is_stable=True)

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


class FakeHasher:
    """Finds the same in every file, or fails."""

    def __init__(self):
        self.paths = []
        self.contents = []
        self.descriptors = []
        self.error = None

    async def hash_path(self, path):
        self.paths.append(path)
        return self._find()

    async def hash_fd(self, descriptor, hint=""):
        self.contents.append(os.pread(descriptor, 100, 0))
        self.descriptors.append(descriptor)
        return self._find()

    def _find(self):
        if self.error is not None:
            raise self.error
        return FOUND


@pytest.fixture
def hasher():
    return FakeHasher()


class FakeProc:
    """A directory that looks like /proc with one process in it."""

    def __init__(self, root):
        self.root = root
        self.image = root / "image"
        self.image.write_bytes(b"the image")
        boot = root / "sys/kernel/random"
        boot.mkdir(parents=True)
        (boot / "boot_id").write_text(BOOT + "\n")
        (root / "7").mkdir()
        self.start(1234)
        self.link(self.image)

    def start(self, ticks):
        # A name may look like anything.
        fields = " ".join(["S", *["0"] * 18, str(ticks), "0"])
        (self.root / "7/stat").write_text(f"7 (a) b (x) {fields}\n")

    def make(self, name):
        path = self.root / name
        path.touch()
        return path

    def link(self, path):
        link = self.root / "7/exe"
        link.unlink(missing_ok=True)
        link.symlink_to(path)


@pytest.fixture
def proc(tmp_path):
    return FakeProc(tmp_path)


@pytest.fixture
async def source(hasher, proc):
    source = BinaryHashSource(SourceCaps.PROCESS, proc.root)
    await source.prepare(SimpleNamespace(hasher=hasher))
    return source


def request_of(boot_id=BOOT, pid=7, start_ticks=1234, path=None):
    return AnalysisRequest("t1", HASH, AnalysisTarget(boot_id, pid, start_ticks, path))


def path_request(path):
    return AnalysisRequest("t1", HASH, AnalysisTarget(path=path))


def open_descriptors():
    return {one.name for one in Path("/proc/self/fd").iterdir()}


async def kind_of(source, request):
    with pytest.raises(AnalysisError) as caught:
        await source.analyze(request)
    return caught.value.kind.name


def test_it_has_the_domain_of_its_collector():
    source = BinaryHashSource(SourceCaps.PROCESS)
    assert isinstance(source, Analyzes)
    assert isinstance(source, Prepares)
    announced = caps_of([source])
    assert (announced.caps, announced.analyses) == (SourceCaps.PROCESS, {HASH})
    assert not caps_of([BinaryHashSource(SourceCaps(0))]).domains


async def test_a_path_is_hashed_by_the_hasher(source, hasher):
    found = await source.analyze(path_request("/usr/bin/x"))
    assert hasher.paths == ["/usr/bin/x"]
    assert [(one.algorithm, one.hash_value, one.file_path) for one in found.hashes] == [
        ("sha256", "ab", "/usr/bin/x"),
        ("blake3", "cd", "/usr/bin/x"),
    ]
    assert found.findings == {"size_bytes": "3", "is_stable": "true"}
    assert found.confidence == 1.0


async def test_the_image_of_a_process_is_hashed_through_a_descriptor(source, hasher, proc):
    found = await source.analyze(request_of())
    assert hasher.contents == [b"the image"]
    assert found.hashes[0].file_path == str(proc.image)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(hasher.descriptors[0])


async def test_the_image_that_runs_the_named_path_is_hashed(source, proc):
    found = await source.analyze(request_of(path=str(proc.image)))
    assert found.hashes[0].file_path == str(proc.image)


async def test_a_path_is_compared_as_collectors_write_it(source, proc):
    proc.link(proc.make(os.fsdecode(b"a\xff\x01b")))
    found = await source.analyze(request_of(path=f"{proc.root}/a\\xff\x01b"))
    assert found.hashes
    found = await source.analyze(request_of(path=f"{proc.root}/a\\xff\\x01b"))
    assert found.hashes


@pytest.mark.parametrize(
    "changes",
    [
        {"boot_id": "another"},
        {"start_ticks": 1235},
        {"pid": 8},
        {"path": "/usr/bin/other"},
    ],
    ids=["boot", "start", "pid", "path"],
)
async def test_another_process_is_not_hashed(source, hasher, changes):
    assert await kind_of(source, request_of(**changes)) == "UNAVAILABLE"
    assert not hasher.contents


async def test_a_pid_that_is_used_again_while_the_image_is_opened_is_noticed(
    source, hasher, proc, monkeypatch
):
    real_open = os.open

    def open_and_replace(path, *args, **kwargs):
        descriptor = real_open(path, *args, **kwargs)
        if path == "exe":
            proc.start(9999)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_replace)
    before = open_descriptors()
    assert await kind_of(source, request_of()) == "UNAVAILABLE"
    assert not hasher.contents
    assert open_descriptors() <= before


@pytest.mark.parametrize("line", [b"", b"7 (x) Z 1", b"7 (x) " + b"x " * 30])
async def test_a_process_that_has_ended_is_unavailable(source, proc, line):
    (proc.root / "7/stat").write_bytes(line)
    assert await kind_of(source, request_of()) == "UNAVAILABLE"


async def test_an_image_that_cannot_be_opened_is_unavailable(source, proc):
    proc.link(proc.root / "gone")
    assert await kind_of(source, request_of()) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileUnavailableError(), "UNAVAILABLE"),
        (FileTooLargeError(), "TOO_LARGE"),
        (HashTimeoutError(), "TIMEOUT"),
        (PathNotAllowedError(), "PATH_NOT_ALLOWED"),
        (HashCapacityError(), "RESOURCE_EXHAUSTED"),
        (InvalidPathError(), "INVALID_REQUEST"),
        (HashFailedError(), "INTERNAL"),
        (OSError(24, "too many open files"), "RESOURCE_EXHAUSTED"),
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
async def test_each_failure_has_its_kind(source, hasher, error, kind):
    hasher.error = error
    assert await kind_of(source, request_of()) == kind


async def test_nothing_to_look_at_makes_no_sense(source):
    request = AnalysisRequest("t1", HASH, AnalysisTarget())
    assert await kind_of(source, request) == AnalysisErrorKind.INVALID_REQUEST.name


async def test_a_source_that_is_not_prepared_is_unavailable():
    source = BinaryHashSource(SourceCaps.PROCESS)
    assert await kind_of(source, path_request("/x")) == "UNAVAILABLE"


async def test_a_caller_that_leaves_while_the_image_is_opened_leaks_nothing(
    source, hasher, monkeypatch, eventually
):
    real_open, entered, proceed = os.open, threading.Event(), threading.Event()
    opened = []

    def open_late(path, *args, **kwargs):
        if path == "exe":
            entered.set()
            proceed.wait(10)
            opened.append(real_open(path, *args, **kwargs))
            return opened[-1]
        return real_open(path, *args, **kwargs)

    def is_closed():
        try:
            os.fstat(opened[0])
        except OSError:
            return True
        return False

    monkeypatch.setattr(os, "open", open_late)
    async with asyncio.TaskGroup() as group:
        call = group.create_task(source.analyze(request_of()))
        await asyncio.to_thread(entered.wait, 10)
        call.cancel()
        await asyncio.wait({call})
        proceed.set()
        await eventually(lambda: opened and is_closed())
    assert not hasher.contents


@pytest.fixture
async def real_source(tmp_path):
    with AllowedRoots.open(["/usr/bin"], tolerate_missing=True) as roots:
        async with FileHasher(HashSettings(), roots) as hasher:
            source = BinaryHashSource(SourceCaps.PROCESS)
            await source.prepare(SimpleNamespace(hasher=hasher))
            yield source


def real_path(path):
    return Path(path).resolve()


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def sleeper(tmp_path):
    """A process, its digest, and the file it was started from, which is gone."""
    path = tmp_path / "sleeper"
    shutil.copy(real_path("/bin/sleep"), path)
    digest = sha256_of(path)
    process = subprocess.Popen([path, "60"])
    try:
        path.unlink()
        yield process, digest, path
    finally:
        process.kill()
        process.wait()


def target_of(process):
    line = Path(f"/proc/{process.pid}/stat").read_text()
    return {
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid": process.pid,
        "start_ticks": int(line.rpartition(")")[2].split()[19]),
    }


async def test_a_real_file_is_hashed_beneath_the_roots_only(real_source):
    path = real_path("/usr/bin/env")
    found = await real_source.analyze(path_request(str(path)))
    assert found.hashes[0].hash_value == sha256_of(path)
    assert await kind_of(real_source, path_request("/etc/hostname")) == "PATH_NOT_ALLOWED"
    assert await kind_of(real_source, path_request("/usr/bin/no-such-file")) == "UNAVAILABLE"


async def test_a_real_process_is_hashed_even_when_its_file_is_gone(real_source, sleeper):
    process, digest, path = sleeper
    target = target_of(process)
    found = await real_source.analyze(request_of(**target, path=str(path)))
    assert (found.hashes[0].hash_value, found.hashes[0].file_path) == (digest, str(path))
    process.kill()
    process.wait()
    assert await kind_of(real_source, request_of(**target)) == "UNAVAILABLE"
