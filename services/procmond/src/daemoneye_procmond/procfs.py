"""Processes as the process file system shows them, read so that no process can stop or fool the reader.

Invariant: a record's parts belong to one process and one program image: the stat line is read again,
through the same directory descriptor, after everything else. What vanishes meanwhile is ``None``; what
is refused is a missing field; neither is ever an exception.
"""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

from daemoneye_procmond.account import AccountNames
from daemoneye_procmond.details import DetailReader, Details, VanishedError, is_denial
from daemoneye_procmond.errors import ProcFsUnavailableError
from daemoneye_procmond.escape import PATH_LIMIT_BYTES, escape_text
from daemoneye_procmond.reader import STAT_LIMIT_BYTES, ProcReader
from daemoneye_procmond.record import ProcessReading, ProcessRecord
from daemoneye_procmond.statline import ExecSignature, StatLine, parse_stat
from daemoneye_procmond.terminal import name_terminal

__all__ = ["ProcFs", "UnreadableError"]

_GONE = (errno.ENOENT, errno.ESRCH)
_ATTEMPTS = 3
_GLOBAL_STAT_LIMIT_BYTES = 16 * 1024 * 1024


class UnreadableError(Exception):
    """A process is there, but what was asked cannot be read; it must not be taken for gone."""

    def __init__(self, pid: int, *, is_denied: bool) -> None:
        super().__init__(f"process {pid} cannot be read")
        self.pid = pid
        self.is_denied = is_denied
        """For want of privilege."""


class ProcFs:
    """Reads processes below a mount point of procfs; blocking, for one thread at a time.

    Args:
        root: the mount point.
        reader: the system calls; tests put a failing one here.
        accounts: names of user ids.
        clock_ns: wall clock in nanoseconds.

    Raises:
        ProcFsUnavailableError: boot id or boot time cannot be read.
    """

    def __init__(
        self,
        root: Path = Path("/proc"),
        *,
        reader: ProcReader | None = None,
        accounts: AccountNames | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._root = root
        self._reader = reader or ProcReader(str(root))
        self._details = DetailReader(self._reader, accounts or AccountNames())
        self._clock_ns = clock_ns
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._page_size_bytes = os.sysconf("SC_PAGESIZE")
        self.boot_id = self._read_boot_id()
        # Read once: the kernel recomputes it from the wall clock, and a start time must not move.
        self._boot_time_ns = self._read_boot_time_s() * 10**9

    def list_pids(self) -> list[int]:
        """All process ids, ascending and each once.

        Raises:
            ProcFsUnavailableError: the directory cannot be listed.
        """
        try:
            return self._reader.list_pids()
        except OSError as err:
            raise self._unavailable("") from err

    def read_stat(self, pid: int) -> StatLine | None:
        """The stat line of a process; None when it is gone.

        Raises:
            UnreadableError: it is there and cannot be read.
        """
        try:
            return parse_stat(self._reader.read_stat(pid))
        except OSError as err:
            if err.errno in _GONE:
                return None
            raise UnreadableError(pid, is_denied=is_denial(err)) from err
        except ValueError as err:
            raise UnreadableError(pid, is_denied=False) from err

    def read_record(self, stat: StatLine) -> ProcessRecord | None:
        """The full record of the process that ``stat`` was read from; None when it is gone."""
        reading = self.read(stat)
        return None if reading is None else reading.record

    def read(self, stat: StatLine) -> ProcessReading | None:
        """Like ``read_record``, with the stat line that the record agrees with."""
        try:
            directory = self._reader.open_process(stat.pid)
        except OSError as err:
            if err.errno in _GONE:
                return None
            return self._read_nothing(stat, is_denied=is_denial(err))
        try:
            return self._read_consistently(directory, stat)
        except VanishedError:
            return None
        finally:
            os.close(directory)

    def read_vanished(self, stat: StatLine) -> ProcessReading:
        """What is left to say of a process that ended right after its stat line was read."""
        return ProcessReading(stat, self._build(stat, Details.none()), is_vanished=True)

    def read_exe(self, pid: int) -> str | None:
        """The executable path alone; None when the process has none or is gone.

        Raises:
            UnreadableError: there may be one, but it cannot be read.
        """
        try:
            directory = self._reader.open_process(pid)
            try:
                path, _is_deleted = self._details.resolve_exe(directory)
            finally:
                os.close(directory)
        except OSError as err:
            if err.errno in _GONE:
                return None
            raise UnreadableError(pid, is_denied=is_denial(err)) from err
        return escape_text(path, PATH_LIMIT_BYTES)[0]

    def _read_consistently(self, directory: int, stat: StatLine) -> ProcessReading:
        before = stat
        for attempt in range(1, _ATTEMPTS + 1):
            details = self._details.read(directory, before)
            after = self._reread_stat(directory)
            if after is None:
                break
            if after.pid != stat.pid or after.start_ticks != stat.start_ticks:
                raise VanishedError
            if _image(after) == _image(before):
                is_forming = _is_forming(after, details)
                if not is_forming or attempt == _ATTEMPTS:
                    return self._finish(after, details, is_forming=is_forming)
            before = after
        # It execs faster than we read: half of one image and half of another would be a lie.
        return self._read_nothing(before, is_denied=False)

    def _finish(self, stat: StatLine, details: Details, *, is_forming: bool) -> ProcessReading:
        if is_forming:
            details.drop_unformed_argv()
        record = self._build(stat, details)
        return ProcessReading(stat, record, details.is_denied, is_forming=is_forming)

    def _reread_stat(self, directory: int) -> StatLine | None:
        try:
            return parse_stat(self._reader.read(directory, "stat", STAT_LIMIT_BYTES))
        except OSError as err:
            if err.errno in _GONE:
                raise VanishedError from err
            return None
        except ValueError:
            return None

    def _read_nothing(self, stat: StatLine, *, is_denied: bool) -> ProcessReading:
        return ProcessReading(stat, self._build(stat, Details.none()), is_denied)

    def _build(self, stat: StatLine, details: Details) -> ProcessRecord:
        # The kernel writes -1 for both once the last thread is on its way out.
        session_id = stat.session_id if stat.session_id >= 0 else None
        process_group_id = stat.process_group_id if stat.process_group_id >= 0 else None
        unknown = () if session_id is not None else ("session_id", "process_group_id")
        return ProcessRecord(
            boot_id=self.boot_id,
            pid=stat.pid,
            start_ticks=stat.start_ticks,
            start_time_ns=self._boot_time_ns + stat.start_ticks * 10**9 // self._ticks_per_s,
            name=escape_text(stat.comm)[0],
            ppid=stat.ppid,
            session_id=session_id,
            process_group_id=process_group_id,
            tty=name_terminal(stat.tty_nr),
            state=stat.state,
            thread_count=stat.thread_count,
            cpu_time_ms=stat.cpu_ticks * 1000 // self._ticks_per_s,
            memory_bytes=max(0, stat.rss_pages) * self._page_size_bytes,
            kernel_thread=stat.is_kernel_thread,
            collected_at_ms=self._clock_ns() // 10**6,
            missing_fields=(*details.missing, *unknown),
            truncated_fields=tuple(details.truncated),
            **details.values,
        )

    def _read_boot_id(self) -> str:
        name = "sys/kernel/random/boot_id"
        text = escape_text(self._read_global(name, 64).strip())[0]
        if not text:
            raise self._unavailable(name)
        return text

    def _read_boot_time_s(self) -> int:
        # The line stands behind one line per core and a long one of interrupt counters.
        for line in self._read_global("stat", _GLOBAL_STAT_LIMIT_BYTES).splitlines():
            name, _, value = line.partition(b" ")
            if name == b"btime" and value.strip().isdigit():
                return int(value)
        raise self._unavailable("stat")

    def _read_global(self, name: str, limit_bytes: int) -> bytes:
        try:
            return self._reader.read_global(name, limit_bytes)
        except OSError as err:
            raise self._unavailable(name) from err

    def _unavailable(self, name: str) -> ProcFsUnavailableError:
        path = str(self._root / name)
        return ProcFsUnavailableError(
            f"cannot read {path}; check that procfs is mounted and readable there", path=path
        )


def _is_forming(stat: StatLine, details: Details) -> bool:
    # On exec the kernel sets the name and the executable first, then the arguments, then the stack.
    has_image = not stat.is_kernel_thread and stat.state not in ("Z", "X", "x")
    return has_image and stat.signature is None and details.values.get("argv") == ()


def _image(stat: StatLine) -> tuple[ExecSignature | None, bytes, bool]:
    # The kernel renames its own workers all the time; that is no other program.
    comm = b"" if stat.is_kernel_thread else stat.comm
    return (stat.signature, comm, stat.is_exited)
