"""A process file system made of ordinary files, a reader that can be told to fail, and factories."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemoneye_procmond.procfs import ProcFs
from daemoneye_procmond.reader import ProcReader
from daemoneye_procmond.record import ProcessReading, ProcessRecord
from daemoneye_procmond.statline import StatLine

BOOT_ID = "6f0e54a1-0000-4000-8000-000000000001"
BOOT_TIME_S = 1_700_000_000


class FakeProc:
    """Writes process directories below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys/kernel/random").mkdir(parents=True)
        (root / "sys/kernel/random/boot_id").write_text(f"{BOOT_ID}\n")
        (root / "stat").write_text(f"cpu  1 2 3\nintr 5 5\nbtime {BOOT_TIME_S}\nprocesses 9\n")
        self.add(1, comm=b"init", ppid=0, start_ticks=1)

    def add(self, pid: int, **changes: Any) -> None:
        """Adds a process, or replaces the one with this pid."""
        shape: dict[str, Any] = {
            "comm": b"sh",
            "cmdline": b"sh\0-c\0true\0",
            "exe": b"/usr/bin/sh",
            "cwd": b"/srv",
            "uids": (1000, 1001),
            "gids": (100, 101),
            "loginuid": b"1000",
            "cgroup": b"0::/user.slice\n",
            "fd_count": 3,
            "thread_group": pid,
            **changes,
        }
        self.remove(pid)
        directory = self.root / str(pid)
        (directory / "fd").mkdir(parents=True)
        for number in range(shape["fd_count"]):
            (directory / "fd" / str(number)).touch()
        (directory / "status").write_bytes(status_text(shape))
        (directory / "cmdline").write_bytes(shape["cmdline"])
        (directory / "loginuid").write_bytes(shape["loginuid"])
        (directory / "cgroup").write_bytes(shape["cgroup"])
        for name in ("exe", "cwd"):
            if shape[name] is not None:
                (directory / name).symlink_to(os.fsdecode(shape[name]))
        self.set_stat(pid, **shape)

    def set_stat(self, pid: int, **changes: Any) -> None:
        """Rewrites the stat line alone."""
        (self.root / str(pid) / "stat").write_bytes(stat_text(pid, **changes))

    def remove(self, pid: int) -> None:
        """Ends a process."""
        shutil.rmtree(self.root / str(pid), ignore_errors=True)


class FailingReader(ProcReader):
    """Reads like the real one, but raises an errno for the names in ``failures``.

    A function in ``before`` is called once, right before the name is read.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.failures: dict[str, int] = {}
        self.before: dict[str, Callable[[], None]] = {}
        self.names_read: list[str] = []

    def fail(self, *names: str, code: int = errno.EACCES) -> None:
        """Makes reading these names fail from now on."""
        self.failures.update(dict.fromkeys(names, code))

    def _check(self, name: str) -> None:
        self.names_read.append(name)
        action = self.before.pop(name, None)
        if action is not None:
            action()
        if name in self.failures:
            raise OSError(self.failures[name], os.strerror(self.failures[name]))

    def list_pids(self) -> list[int]:
        self._check("/")
        return super().list_pids()

    def read_stat(self, pid: int) -> bytes:
        self._check(f"{pid}/stat")
        return super().read_stat(pid)

    def open_process(self, pid: int) -> int:
        self._check(f"{pid}")
        return super().open_process(pid)

    def read(self, directory: int, name: str, limit_bytes: int) -> bytes:
        self._check(name)
        return super().read(directory, name, limit_bytes)

    def read_link(self, directory: int, name: str) -> bytes:
        self._check(name)
        return super().read_link(directory, name)

    def count_descriptors(self, directory: int, name: str) -> int:
        self._check(name)
        return super().count_descriptors(directory, name)


def status_text(shape: dict[str, Any]) -> bytes:
    (uid, euid), (gid, egid) = shape["uids"], shape["gids"]
    name: bytes = shape["comm"].replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    ids = (
        f"\nTgid:\t{shape['thread_group']}"
        f"\nUid:\t{uid}\t{euid}\t{euid}\t{euid}\nGid:\t{gid}\t{egid}\t{egid}\t{egid}\n"
    )
    return b"Name:\t" + name + ids.encode()


def stat_text(pid: int, **changes: Any) -> bytes:
    values: dict[int, int] = {
        4: changes.get("ppid", 1),
        5: changes.get("process_group_id", pid),
        6: changes.get("session_id", pid),
        7: changes.get("tty_nr", 0),
        8: -1,
        9: changes.get("flags", 0x400000),
        14: changes.get("utime", 30),
        15: changes.get("stime", 12),
        20: changes.get("thread_count", 1),
        22: changes.get("start_ticks", 5000),
        24: changes.get("rss_pages", 250),
        26: changes.get("start_code", 0x5500),
        28: changes.get("start_stack", 0x7FF0),
        50: changes.get("env_start", 0x7FF8),
        52: changes.get("wait_status", 0),
    }
    state = changes.get("state", "S")
    tail = " ".join(str(values.get(number, 0)) for number in range(4, 53))
    return b"%d (%b) %b %b\n" % (pid, changes.get("comm", b"sh"), state.encode(), tail.encode())


@pytest.fixture
def proc_tree(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


@pytest.fixture
def reader(proc_tree: FakeProc) -> FailingReader:
    return FailingReader(str(proc_tree.root))


@pytest.fixture
def procfs(proc_tree: FakeProc, reader: FailingReader) -> ProcFs:
    return ProcFs(proc_tree.root, reader=reader, clock_ns=lambda: 42_000_000)


@pytest.fixture(scope="session")
def make_stat() -> Callable[..., StatLine]:
    def make(pid: int, start_ticks: int = 1000, **changes: Any) -> StatLine:
        line = StatLine(
            pid=pid,
            comm=b"sh",
            state="S",
            ppid=1,
            process_group_id=pid,
            session_id=pid,
            tty_nr=0,
            flags=0,
            cpu_ticks=0,
            thread_count=1,
            start_ticks=start_ticks,
            rss_pages=1,
            start_code=0x5500,
            start_stack=0x7FF0,
            env_start=0x7FF8,
            wait_status=0,
        )
        return line._replace(**changes)

    return make


@pytest.fixture(scope="session")
def make_reading() -> Callable[..., ProcessReading]:
    def make(
        stat: StatLine,
        *,
        is_denied: bool = False,
        is_vanished: bool = False,
        is_forming: bool = False,
        **changes: Any,
    ) -> ProcessReading:
        values: dict[str, Any] = {
            "boot_id": BOOT_ID,
            "pid": stat.pid,
            "start_ticks": stat.start_ticks,
            "start_time_ns": stat.start_ticks * 10**7,
            "name": stat.comm.decode(),
            "ppid": stat.ppid,
            "session_id": stat.session_id,
            "process_group_id": stat.process_group_id,
            "tty": None,
            "state": stat.state,
            "thread_count": stat.thread_count,
            "cpu_time_ms": 0,
            "memory_bytes": 4096,
            "kernel_thread": stat.is_kernel_thread,
            "collected_at_ms": 0,
            "exe": "/usr/bin/sh",
            "exe_deleted": False,
            "exe_memfd": False,
            "argv": ("sh",),
            "uid": 1000,
            "euid": 1000,
            "gid": 100,
            "egid": 100,
            **changes,
        }
        return ProcessReading(stat, ProcessRecord(**values), is_denied, is_vanished, is_forming)

    return make
