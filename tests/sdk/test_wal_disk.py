"""A log whose disk is full, read-only or broken, and one that several threads use at once."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from collector_core.bus import EnvelopeKey
from collector_core.bus.outbox_group import OutboxGroup
from collector_core.bus.wire import iter_frames
from collector_core.wal import (
    EventLog,
    LogUnusableError,
    LogUnwritableError,
    SyncPolicy,
    WalLimits,
    writer,
)
from daemoneye_mesh.errors import ErrorReason

LIMITS = WalLimits(max_bytes=1 << 20, segment_bytes=8 << 10)
BOTH = pytest.mark.parametrize("sync", list(SyncPolicy))


class Disk:
    """Stands in for the system calls of the end of a log, and fails when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = 0
        self.fails: set[str] = set()
        self.keeps_bytes = 0
        real_write, real_sync, real_cut = writer.write_at, os.fdatasync, os.ftruncate

        def write(descriptor: int, parts: list[bytes], offset: int) -> int:
            if "write" in self.fails:
                real_write(descriptor, [b"".join(parts)[: self.keeps_bytes]], offset)
            self._check("write")
            return real_write(descriptor, parts, offset)

        def sync(descriptor: int) -> None:
            self._check("sync")
            real_sync(descriptor)

        def cut(descriptor: int, size_bytes: int) -> None:
            self._check("cut")
            real_cut(descriptor, size_bytes)

        monkeypatch.setattr(writer, "write_at", write)
        monkeypatch.setattr(os, "fdatasync", sync)
        monkeypatch.setattr(os, "ftruncate", cut)

    def fail(self, *calls: str, error: int = errno.ENOSPC) -> None:
        self.fails, self.error = set(calls), error

    def mend(self) -> None:
        self.fails = set()

    def _check(self, call: str) -> None:
        if call in self.fails:
            raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def opened() -> Iterator[list[EventLog]]:
    logs: list[EventLog] = []
    yield logs
    for log in logs:
        log.close()


def group_of(epoch: int, first: int, count: int) -> OutboxGroup:
    key = EnvelopeKey(topic="events.process.start", source_id="procmond", epoch=epoch)
    group = OutboxGroup(key, first)
    for sequence in range(first, first + count):
        group.append_frame(f"event {sequence} ".encode().ljust(100, b"."))
    return group


def append(log: EventLog, count: int = 5) -> None:
    log.append([group_of(log.epoch, log.last_sequence + 1, count)])


def read(log: EventLog, epoch: int | None = None) -> list[int]:
    found: list[int] = []
    for group in log.read(epoch or log.epoch, 1, 10**9, 1 << 30):
        for sequence, frame in enumerate(iter_frames(group.block), group.first_sequence):
            assert frame.startswith(f"event {sequence} ".encode())
            found.append(sequence)
    return found


@BOTH
@pytest.mark.parametrize("calls", [("write",), ("write", "cut"), ("write", "cut", "sync")])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_nothing_is_appended_by_a_failed_write(
    directory: Path,
    disk: Disk,
    opened: list[EventLog],
    sync: SyncPolicy,
    calls: tuple[str, ...],
    error: int,
) -> None:
    log = EventLog.open(directory, LIMITS, sync=sync, boot_id="boot")
    opened.append(log)
    append(log)
    disk.keeps_bytes = 100
    disk.fail(*calls, error=error)
    for _ in range(2):
        with pytest.raises(LogUnwritableError) as raised:
            append(log)
        assert raised.value.reason is ErrorReason.LOG_UNWRITABLE
        assert raised.value.retryable
        assert log.last_sequence == 5
        assert read(log) == [1, 2, 3, 4, 5]
    disk.mend()
    append(log)
    assert read(log) == list(range(1, 11))
    log.close()
    again = EventLog.open(directory, LIMITS, boot_id="boot")
    opened.append(again)
    assert read(again, log.epoch) == list(range(1, 11))


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("calls", [("sync",), ("sync", "cut")])
def test_records_of_a_failed_sync_are_written_again_elsewhere(
    directory: Path, disk: Disk, opened: list[EventLog], before: int, calls: tuple[str, ...]
) -> None:
    log = EventLog.open(directory, LIMITS, boot_id="boot")
    opened.append(log)
    if before:
        append(log, before)
    disk.fail(*calls, error=errno.EIO)
    with pytest.raises(LogUnwritableError):
        append(log)
    assert log.last_sequence == before
    disk.mend()
    append(log)
    assert len(list(directory.glob("*.wal"))) == (2 if before else 1)
    assert read(log) == list(range(1, before + 6))
    log.close()
    again = EventLog.open(directory, LIMITS, boot_id="boot")
    opened.append(again)
    assert read(again, log.epoch) == list(range(1, before + 6))


@pytest.mark.parametrize("before", [0, 5])
def test_events_of_a_failed_interval_are_written_again(
    directory: Path, disk: Disk, opened: list[EventLog], before: int
) -> None:
    log = EventLog.open(directory, LIMITS, sync=SyncPolicy.INTERVAL, boot_id="boot")
    opened.append(log)
    if before:
        append(log, before)
        log.sync()
    append(log)
    disk.fail("sync", error=errno.EIO)
    with pytest.raises(LogUnwritableError):
        log.sync()
    assert read(log) == list(range(1, before + 6))
    disk.mend()
    log.sync()
    append(log)
    assert read(log) == list(range(1, before + 11))
    log.close()
    again = EventLog.open(directory, LIMITS, boot_id="boot")
    opened.append(again)
    assert not again.recovery.began_epoch
    assert read(again) == list(range(1, before + 11))


def test_close_that_cannot_sync_is_not_clean(
    directory: Path, disk: Disk, opened: list[EventLog]
) -> None:
    log = EventLog.open(directory, LIMITS, sync=SyncPolicy.INTERVAL, boot_id="boot")
    append(log)
    disk.fail("sync", error=errno.EIO)
    log.close()
    disk.mend()
    opened.append(EventLog.open(directory, LIMITS, boot_id="other"))
    assert not opened[0].recovery.was_clean
    assert opened[0].recovery.began_epoch


def test_state_that_cannot_be_written_keeps_files_until_it_can(
    directory: Path, opened: list[EventLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog.open(directory, LIMITS, boot_id="boot")
    opened.append(log)
    (directory / "state.json").unlink()
    (directory / "state.json").mkdir()  # nothing can be renamed over it
    for _ in range(40):
        append(log)
    assert log.acknowledge(log.epoch, 100) == 100
    assert read(log) == list(range(101, 201))
    (directory / "state.json").rmdir()
    log.close()
    opened.append(EventLog.open(directory, LIMITS, boot_id="boot"))
    assert opened[1].positions()[0].acknowledged_sequence == 100


FULL = """
import resource, sys
from pathlib import Path
sys.path[:0] = {path!r}
from collector_core.bus import EnvelopeKey
from collector_core.bus.outbox_group import OutboxGroup
from collector_core.wal import EventLog, LogUnwritableError, WalLimits
log = EventLog.open(Path(sys.argv[1]), WalLimits(), boot_id="boot")
key = EnvelopeKey(topic="events.process.start", source_id="procmond", epoch=log.epoch)
mode = sys.argv[2]
if mode == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
while log.last_sequence < 5_000:
    group = OutboxGroup(key, log.last_sequence + 1)
    for sequence in range(log.last_sequence + 1, log.last_sequence + 6):
        group.append_frame(f"event {{sequence}} ".encode().ljust(100, b"."))
    try:
        log.append([group])
    except LogUnwritableError as err:
        print("full", log.last_sequence, flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.RLIM_INFINITY))
        log.append([group])
    if mode != "full":
        print(log.epoch, log.last_sequence, flush=True)
log.close()
print("done", log.last_sequence, flush=True)
"""


def start(directory: Path, mode: str) -> "subprocess.Popen[bytes]":
    script = FULL.format(path=sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", script, str(directory), mode], stdout=subprocess.PIPE
    )


def test_file_size_limit_of_the_system_is_a_full_disk(
    directory: Path, opened: list[EventLog]
) -> None:
    with start(directory, "full") as child:
        assert child.stdout is not None
        lines = child.stdout.read().split(b"\n")
    assert lines[0].startswith(b"full ")
    assert lines[-2] == b"done 5000"
    opened.append(EventLog.open(directory, LIMITS, boot_id="boot"))
    assert opened[0].recovery.was_clean
    assert read(opened[0]) == list(range(1, 5_001))


@pytest.mark.integration
def test_log_has_everything_that_a_killed_process_said_it_appended(
    directory: Path, opened: list[EventLog]
) -> None:
    reported = 0
    for round_number in range(20):
        with start(directory, "kill") as child:
            assert child.stdout is not None
            for _ in range(1 + round_number * 3):
                line = child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            lines = [line, *child.stdout.read().split(b"\n")]
        words = [line.split() for line in lines if line.endswith((b"0", b"5", b"\n"))]
        reported = max(int(word[1]) for word in words if len(word) == 2 and word[0].isdigit())
        log = EventLog.open(directory, LIMITS, boot_id="boot")
        assert not log.recovery.losses
        assert log.last_sequence >= reported
        assert read(log) == list(range(1, log.last_sequence + 1))
        log.close()
    assert reported >= 20


def test_directory_that_cannot_be_used_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    open_to_others = tmp_path / "open"
    open_to_others.mkdir()
    open_to_others.chmod(0o777)
    for directory in (tmp_path / "file", tmp_path / "file" / "log", open_to_others, Path("log")):
        with pytest.raises(LogUnusableError) as raised:
            EventLog.open(directory, LIMITS, boot_id="boot")
        assert raised.value.reason is ErrorReason.FILE_UNUSABLE


READ_ONLY = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from collector_core.wal import EventLog, LogUnusableError, WalLimits
directory = Path(sys.argv[1])
if os.geteuid() == 0:
    os.seteuid(65_534)
try:
    EventLog.open(directory, WalLimits(), boot_id="boot")
except LogUnusableError as err:
    print(err.code.name, err.reason)
"""


def test_directory_of_somebody_else_is_refused(short_dir: Path) -> None:
    short_dir.chmod(0o755)
    directory = short_dir / "log"
    directory.mkdir(mode=0o555)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY.format(path=sys.path), str(directory)],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.split() == ["FAILED_PRECONDITION", "FILE_UNUSABLE"]


def test_boot_id_beyond_its_field_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match="boot id"):
        EventLog.open(directory, LIMITS, boot_id="x" * 37)
    EventLog.open(directory, LIMITS, boot_id="x" * 36).close()


class Traffic:
    """Three threads with one log."""

    def __init__(self, log: EventLog, total: int) -> None:
        self.log = log
        self.total = total
        self.seen: list[int] = []
        self.errors: list[BaseException] = []
        self.done = threading.Event()

    def run(self) -> None:
        bodies = (self.write, self.consume, self.look)
        threads = [threading.Thread(target=self.guard, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as err:  # a failed thread fails the test
            self.errors.append(err)
            self.done.set()

    def write(self) -> None:
        while self.log.last_sequence < self.total and not self.done.is_set():
            append(self.log, 10)
            if self.log.last_sequence % 100 == 0:
                self.log.sync()

    def consume(self) -> None:
        cursor = 1
        while cursor <= self.total and not self.done.is_set():
            for group in self.log.read(self.log.epoch, cursor, cursor + 500, 1 << 16):
                assert group.first_sequence == cursor
                self.seen.extend(range(group.first_sequence, group.next_sequence))
                cursor = group.next_sequence
            self.log.acknowledge(self.log.epoch, cursor - 1)
        self.done.set()

    def look(self) -> None:
        while not self.done.wait(0.001):
            (position,) = self.log.positions()
            assert position.first_sequence <= position.last_sequence + 1
            assert self.log.size_bytes > 0
            assert self.log.segment_count > 0
            self.log.enforce_limits()


@BOTH
def test_threads_read_and_acknowledge_while_one_appends(
    directory: Path, opened: list[EventLog], sync: SyncPolicy
) -> None:
    log = EventLog.open(directory, LIMITS, sync=sync, boot_id="boot")
    opened.append(log)
    traffic = Traffic(log, 2_000)
    traffic.run()
    assert not traffic.errors
    assert traffic.seen == list(range(1, 2_001))
    assert log.unacknowledged_count == 0
    assert log.lost_count == {}


def test_what_was_written_again_counts_when_both_are_on_disk(
    directory: Path, disk: Disk, opened: list[EventLog]
) -> None:
    log = EventLog.open(directory, LIMITS, boot_id="boot")
    append(log)
    disk.fail("sync", "cut", error=errno.EIO)
    key = EnvelopeKey(topic="events.process.start", source_id="procmond", epoch=log.epoch)
    refused = OutboxGroup(key, 6)
    refused.append_frame(b"refused")
    with pytest.raises(LogUnwritableError):
        log.append([refused])
    disk.mend()
    append(log)
    log.close()
    opened.append(EventLog.open(directory, LIMITS, boot_id="boot"))
    assert not opened[0].recovery.began_epoch
    assert read(opened[0]) == list(range(1, 11))
