import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from collector_core.hashing import (
    FileChangedError,
    FileTooLargeError,
    FileUnavailableError,
    FuzzyState,
    HashError,
    HashErrorKind,
    HashSettings,
    HashState,
    hash_descriptor,
)
from collector_core.hashing import errors as errors_module
from collector_core.hashing import fuzzy as fuzzy_module
from collector_core.hashing.fuzzy import compute_fuzzy, load_fuzzy
from collector_core.hashing.message import (
    to_error_kind,
    to_failed_result,
    to_hash_result,
    to_hash_results,
)
from collector_core.hashing.reading import RACY_NS, OpenGate, Reading
from collector_core.hashing.settings import CHUNK_BYTES
from daemoneye.common.v1 import analysis_pb2
from daemoneye_mesh.errors import DaemoneyeError, InvalidConfigError

HOUR_NS = 3_600_000_000_000


class Hook(OpenGate):
    """Does something before the chunk at ``offset`` is read."""

    def __init__(self, offset, action):
        self.offset, self.action = offset, action

    def admit(self, offset, size_bytes):
        if offset == self.offset:
            self.action()


def read(path, settings=None, gate=None, wall_ns=time.time_ns):
    reading = Reading(settings or HashSettings(), gate or OpenGate(), wall_ns)
    with Path(path).open("rb") as file:
        return reading.digest(file.fileno(), reading.look(file.fileno()))


@pytest.fixture
def target(tmp_path):
    """A file of three chunks and a bit."""
    path = tmp_path / "target"
    path.write_bytes(os.urandom(3 * CHUNK_BYTES + 5))
    return path


@pytest.mark.parametrize("name", ["/bin/sh", "/usr/bin/env", sys.executable])
def test_digests_of_real_programs_are_those_of_sha256sum(name):
    told = subprocess.run(["sha256sum", name], capture_output=True, text=True, check=True).stdout
    found = read(name)
    assert found.sha256 == told.split()[0]
    assert found.blake3 == blake3(Path(name).read_bytes()).hexdigest()
    assert found.size_bytes == Path(name).stat().st_size
    assert found.state is HashState.READY


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_digests_are_right_around_the_chunk_size(tmp_path, size):
    (tmp_path / "f").write_bytes(content := os.urandom(size))
    found = read(tmp_path / "f")
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.blake3 == blake3(content).hexdigest()
    assert found.size_bytes == size


def test_descriptor_of_a_caller_is_hashed_whole_wherever_it_stands(target):
    with target.open("rb", buffering=0) as file:
        file.seek(100)
        assert hash_descriptor(file.fileno()).sha256 == read(target).sha256
        assert file.tell() == 100


def test_descriptor_without_permission_to_read_is_unavailable(target):
    for flags in (os.O_PATH, os.O_WRONLY):
        descriptor = os.open(target, flags)
        try:
            with pytest.raises(FileUnavailableError):
                hash_descriptor(descriptor)
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("path", ["/", "/dev/null"])
def test_what_is_no_regular_file_is_unavailable(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(FileUnavailableError):
            hash_descriptor(descriptor)
    finally:
        os.close(descriptor)


def test_file_of_the_kernel_that_claims_to_be_empty_has_no_digest():
    with Path("/proc/self/status").open("rb") as file:
        assert stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        with pytest.raises(FileChangedError):
            hash_descriptor(file.fileno())


def test_too_large_file_is_refused_before_anything_is_read(target):
    def fail():
        pytest.fail("it was read")

    settings = HashSettings(max_file_bytes=3 * CHUNK_BYTES)
    with pytest.raises(FileTooLargeError):
        read(target, settings, Hook(0, fail))
    assert read(target, HashSettings(max_file_bytes=3 * CHUNK_BYTES + 5))


def overwrite(path, offset, content):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def grow_without_times(path):
    times = path.stat()
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: overwrite(path, 0, b"read already"), id="write_behind"),
        pytest.param(lambda path: overwrite(path, 2 * CHUNK_BYTES, b"to come"), id="write_ahead"),
        pytest.param(lambda path: os.truncate(path, CHUNK_BYTES), id="shrink"),
        pytest.param(lambda path: os.truncate(path, 9 * CHUNK_BYTES), id="grow"),
        pytest.param(grow_without_times, id="grow_and_reset_mtime"),
        pytest.param(lambda path: path.chmod(0o600), id="change_mode"),
    ],
)
def test_change_in_the_middle_of_reading_is_noticed(target, change):
    os.utime(target, (0, 0))
    with pytest.raises(FileChangedError) as caught:
        read(target, gate=Hook(CHUNK_BYTES, lambda: change(target)))
    assert caught.value.kind is HashErrorKind.UNAVAILABLE


def test_growth_past_the_cap_is_noticed_and_not_read(target):
    settings = HashSettings(max_file_bytes=4 * CHUNK_BYTES)
    seen = []

    class Growing(OpenGate):
        def admit(self, offset, size_bytes):
            seen.append(offset + size_bytes)
            os.truncate(target, 64 * CHUNK_BYTES)

    with pytest.raises(FileChangedError):
        read(target, settings, Growing())
    assert max(seen) == 3 * CHUNK_BYTES + 5


def test_file_replaced_by_rename_is_still_the_one_that_was_opened(target, tmp_path):
    expected = read(target).sha256
    (tmp_path / "new").write_bytes(b"new")
    held = target.open("rb")

    with held:
        (tmp_path / "new").rename(target)
        assert hash_descriptor(held.fileno()).sha256 == expected


@pytest.mark.parametrize(
    ("age_ns", "is_stable"),
    [(RACY_NS + 1, True), (HOUR_NS, True), (RACY_NS, False), (0, False), (-HOUR_NS, False)],
)
def test_file_is_stable_only_once_its_times_are_old(target, age_ns, is_stable):
    now_ns = target.stat().st_ctime_ns + age_ns
    os.utime(target, (0, 0))
    now_ns = max(now_ns, target.stat().st_ctime_ns + age_ns)
    assert read(target, wall_ns=lambda: now_ns).is_stable is is_stable


def test_recent_modification_time_makes_a_file_unstable(target):
    later = target.stat().st_ctime_ns + HOUR_NS
    os.utime(target, ns=(0, later - RACY_NS // 2))
    assert not read(target, wall_ns=lambda: later).is_stable
    os.utime(target, ns=(0, later + HOUR_NS))  # set by hand; it must not be a way out of the cache
    assert read(target, wall_ns=lambda: later).is_stable


def library(function):
    return lambda name: SimpleNamespace(hash=function)


@pytest.fixture(autouse=True)
def forget_library():
    load_fuzzy.cache_clear()
    yield
    load_fuzzy.cache_clear()


def missing(name):
    raise ImportError(name)


def test_fuzzy_hash_is_left_out_unless_wanted(target):
    found = read(target)
    assert (found.fuzzy, found.fuzzy_state) == (None, FuzzyState.NOT_WANTED)


def test_missing_fuzzy_library_is_a_state_and_no_error(target, monkeypatch):
    monkeypatch.setattr(fuzzy_module.importlib, "import_module", missing)
    found = read(target, HashSettings(wants_fuzzy=True))
    assert (found.fuzzy, found.fuzzy_state) == (None, FuzzyState.NO_LIBRARY)
    assert found.sha256
    assert compute_fuzzy(None, b"x") == (None, FuzzyState.NO_LIBRARY)


def test_fuzzy_hash_is_of_the_whole_file(target, monkeypatch):
    function = library(lambda content: f"{len(content)}:{hashlib.sha256(content).hexdigest()}")
    monkeypatch.setattr(fuzzy_module.importlib, "import_module", function)
    found = read(target, HashSettings(wants_fuzzy=True, max_fuzzy_bytes=4 * CHUNK_BYTES))
    assert found.fuzzy == f"{found.size_bytes}:{found.sha256}"
    assert found.fuzzy_state is FuzzyState.READY


def test_large_file_gets_no_fuzzy_hash(target, monkeypatch):
    monkeypatch.setattr(fuzzy_module.importlib, "import_module", library(bytes.hex))
    found = read(target, HashSettings(wants_fuzzy=True, max_fuzzy_bytes=3 * CHUNK_BYTES))
    assert (found.fuzzy, found.fuzzy_state) == (None, FuzzyState.TOO_LARGE)


def test_failing_fuzzy_library_leaves_the_identity_alone(tmp_path, monkeypatch):
    def fail(content):
        raise RuntimeError("block size is too small")

    monkeypatch.setattr(fuzzy_module.importlib, "import_module", library(fail))
    (tmp_path / "f").write_bytes(b"x")
    found = read(tmp_path / "f", HashSettings(wants_fuzzy=True))
    assert (found.fuzzy, found.fuzzy_state) == (None, FuzzyState.FAILED)
    assert found.sha256 == hashlib.sha256(b"x").hexdigest()


def test_installed_library_gives_an_ssdeep_text(tmp_path):
    if load_fuzzy() is None:
        pytest.skip("no fuzzy hash library is installed")
    (tmp_path / "f").write_bytes(b"some text " * 500)
    found = read(tmp_path / "f", HashSettings(wants_fuzzy=True))
    assert found.fuzzy is not None
    assert found.fuzzy.count(":") == 2


def test_message_holds_one_result_for_each_digest(target):
    found = read(target)
    identity, other = to_hash_results(found, "/usr/bin/x")
    assert (identity.algorithm, identity.hash_value) == ("sha256", found.sha256)
    assert (other.algorithm, other.hash_value) == ("blake3", found.blake3)
    assert all(one.success and one.file_path == "/usr/bin/x" for one in (identity, other))
    assert to_hash_result(found, "/usr/bin/x", "blake3") == other
    assert to_hash_result(found, "/usr/bin/x", "ssdeep") is None


def test_message_of_a_failure_has_no_hash():
    failed = to_failed_result(FileUnavailableError(), "/usr/bin/x", "sha256")
    assert not failed.success
    assert not failed.hash_value
    assert failed.error_message == str(FileUnavailableError())


@pytest.mark.parametrize("kind", HashErrorKind)
def test_every_kind_has_its_value_on_the_wire(kind):
    number = to_error_kind(kind)
    assert analysis_pb2.AnalysisErrorKind.Name(number) == f"ANALYSIS_ERROR_KIND_{kind.name}"


def test_kinds_are_all_there_are_on_the_wire():
    assert len(HashErrorKind) == len(analysis_pb2.AnalysisErrorKind.values()) - 1


def all_errors(root=HashError):
    return [one for sub in root.__subclasses__() for one in (sub, *all_errors(sub))]


@pytest.mark.parametrize("error", all_errors())
def test_every_error_has_a_kind_a_code_and_can_be_raised_again(error):
    assert error.__name__ in errors_module.__all__
    first = error(size=5)
    second = first.again()
    assert first is not second
    assert (type(second), str(second), second.metadata) == (error, str(first), first.metadata)
    assert first.metadata == {"kind": str(error.kind), "size": "5"}
    assert (error is errors_module.HashFailedError) == (first.code == DaemoneyeError.code)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_file_bytes": 0},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"bytes_per_s": 0},
        {"cache_entries": -1},
        {"workers": 0},
        {"workers": 65},
        {"max_pending": 0},
        {"max_descriptors": 0},
        {"max_fuzzy_bytes": -1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(InvalidConfigError, match=name) as caught:
        HashSettings(**wrong)
    assert caught.value.metadata["setting"] == name


@given(st.binary(max_size=300))
def test_digests_are_those_of_the_content(content):
    descriptor = os.memfd_create("x")
    try:
        os.write(descriptor, content)
        found = hash_descriptor(descriptor)
    finally:
        os.close(descriptor)
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.size_bytes == len(content)
