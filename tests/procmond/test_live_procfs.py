"""The real process file system of this host."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemoneye_procmond.enumeration import ProcessQuery, enumerate_processes
from daemoneye_procmond.event import EventKind, ProcessEvent
from daemoneye_procmond.procfs import ProcFs
from daemoneye_procmond.record import ProcessRecord
from daemoneye_procmond.scanner import Scanner
from daemoneye_procmond.tracker import Tracker

# Waits for a line on stdin before it becomes another program, so that a test decides when.
EXEC_ON_INPUT = "import os, sys; sys.stdin.readline(); os.execv('/bin/sleep', ['sleep', '60'])"
DEADLINE_S = 10.0

Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    children: list[subprocess.Popen[bytes]] = []

    def start(*argv: str) -> "subprocess.Popen[bytes]":
        child = subprocess.Popen(argv, stdin=subprocess.PIPE)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


class Watch:
    """Scans until an event of a child shows up."""

    def __init__(self) -> None:
        self._scanner = Scanner(ProcFs(), Tracker())
        self.seen: list[ProcessEvent] = []
        self.scan()

    def scan(self) -> tuple[ProcessEvent, ...]:
        events = self._scanner.scan().events
        self.seen += events
        return events

    def until(self, pid: int, kind: EventKind) -> ProcessEvent:
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            for event in self.scan():
                if event.record.pid == pid and event.kind is kind:
                    return event
        pytest.fail(f"no {kind} of {pid}")

    def kinds_of(self, pid: int) -> list[str]:
        return [event.kind.value for event in self.seen if event.record.pid == pid]


def read_self() -> ProcessRecord:
    procfs = ProcFs()
    stat = procfs.read_stat(os.getpid())
    assert stat is not None
    record = procfs.read_record(stat)
    assert record is not None
    return record


def test_record_of_this_process_agrees_with_what_it_knows_of_itself() -> None:
    record = read_self()
    assert (record.pid, record.ppid) == (os.getpid(), os.getppid())
    assert (record.uid, record.euid) == (os.getuid(), os.geteuid())
    assert (record.gid, record.egid) == (os.getgid(), os.getegid())
    assert (record.session_id, record.process_group_id) == (os.getsid(0), os.getpgrp())
    assert record.exe == str(Path("/proc/self/exe").readlink())
    assert record.cwd == str(Path.cwd())
    assert record.memory_bytes > 1024 * 1024
    assert record.fd_count is not None
    assert record.fd_count >= 3
    assert record.missing_fields == ()
    assert abs(record.start_time_ns - time.time_ns()) < 24 * 3600 * 10**9


def test_scanner_follows_a_real_child_from_start_to_stop(spawn: Spawn) -> None:
    watch = Watch()
    child = spawn(sys.executable, "-c", EXEC_ON_INPUT)
    started = watch.until(child.pid, EventKind.START)
    assert started.parent is not None
    assert started.parent.pid == os.getpid()
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.flush()
    executed = watch.until(child.pid, EventKind.EXEC)
    previous = executed.previous
    if executed.record.argv is None:  # met in the middle of the exec
        executed = watch.until(child.pid, EventKind.MODIFIED)
    assert (executed.record.name, executed.record.argv) == ("sleep", ("sleep", "60"))
    assert previous is not None
    assert previous.argv == started.record.argv
    child.send_signal(signal.SIGSTOP)
    assert watch.until(child.pid, EventKind.SUSPEND).record.state == "T"
    child.send_signal(signal.SIGCONT)
    watch.until(child.pid, EventKind.RESUME)
    child.terminate()
    stopped = watch.until(child.pid, EventKind.STOP)
    assert (stopped.record.name, stopped.exit_code) == ("sleep", -signal.SIGTERM)
    child.wait()
    watch.scan()
    kinds = [kind for kind in watch.kinds_of(child.pid) if kind != "modified"]
    assert kinds == ["start", "exec", "suspend", "resume", "stop"]


def test_scanner_notices_that_a_running_executable_is_deleted(spawn: Spawn, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    child = spawn(str(program), "60")
    watch = Watch()
    program.unlink()
    event = watch.until(child.pid, EventKind.MODIFIED)
    assert event.changed_fields == ("exe_deleted",)
    assert (event.record.exe, event.record.exe_deleted) == (str(program), True)


def test_enumeration_finds_a_real_child_with_hostile_arguments(
    spawn: Spawn, tmp_path: Path
) -> None:
    program = tmp_path / os.fsdecode(b"a) Z (\xff\n")
    shutil.copy("/bin/sleep", program)
    child = spawn(str(program), "60")
    query = ProcessQuery(pids=(child.pid,), executable_pattern=f"{tmp_path}/*")
    (record,) = enumerate_processes(ProcFs(), query)
    assert record.name == "a) Z (\\xff\\x0a"
    assert record.exe == f"{tmp_path}/a) Z (\\xff\\x0a"
    assert record.argv == (record.exe, "60")


def test_enumeration_tells_a_program_that_exists_in_memory_only(spawn: Spawn) -> None:
    descriptor = os.memfd_create("payload", 0)
    try:
        os.write(descriptor, Path("/bin/sleep").read_bytes())
        child = spawn(f"/proc/{os.getpid()}/fd/{descriptor}", "60")
    finally:
        os.close(descriptor)
    (record,) = enumerate_processes(ProcFs(), ProcessQuery(pids=(child.pid,)))
    assert (record.exe, record.exe_memfd, record.exe_deleted) == ("/memfd:payload", True, True)


def test_enumeration_refuses_the_id_of_a_thread() -> None:
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        query = ProcessQuery(pids=(thread.native_id,))
        assert list(enumerate_processes(ProcFs(), query)) == []
    finally:
        gate.set()
        thread.join()
