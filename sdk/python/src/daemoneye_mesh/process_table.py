"""The columns of a process: the vocabulary that a process collector fills and the agent queries.

Invariant: one list for everybody. A collector describes its table from it, the agent stores and
offers exactly these columns.
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["PROCESS_COLUMNS", "Column", "ColumnType", "columns"]


class ColumnType(StrEnum):
    """SQLite storage class of a column."""

    INTEGER = "INTEGER"
    REAL = "REAL"
    TEXT = "TEXT"


@dataclass(frozen=True, slots=True)
class Column:
    """One queryable column."""

    name: str
    type: ColumnType
    description: str


def columns(*rows: tuple[str, str, str]) -> tuple[Column, ...]:
    """Returns columns from rows of name, type and description."""
    return tuple(Column(name, ColumnType(kind), text) for name, kind, text in rows)


PROCESS_COLUMNS = columns(
    ("pid", "INTEGER", "process id"),
    ("ppid", "INTEGER", "parent process id; NULL when it could not be read"),
    ("boot_id", "TEXT", "boot of the host; (boot_id, pid, start_ticks) identifies a process"),
    ("start_ticks", "INTEGER", "start time in clock ticks since boot"),
    ("start_time_ns", "INTEGER", "start time in nanoseconds since the Unix epoch"),
    ("name", "TEXT", "command name of the kernel (comm), at most 15 bytes"),
    ("exe", "TEXT", "executable path, without the ' (deleted)' mark; NULL when unreadable"),
    ("cmdline", "TEXT", "arguments, quoted as a shell would and joined by a space"),
    ("argv", "TEXT", "arguments as a JSON array of strings"),
    ("cwd", "TEXT", "working directory"),
    ("uid", "INTEGER", "real user id"),
    ("euid", "INTEGER", "effective user id"),
    ("gid", "INTEGER", "real group id"),
    ("egid", "INTEGER", "effective group id"),
    ("login_uid", "INTEGER", "user id of the login session; NULL when there is none"),
    ("user_name", "TEXT", "name of the real user id on the host"),
    ("session_id", "INTEGER", "session id"),
    ("process_group_id", "INTEGER", "process group id"),
    ("tty", "TEXT", "controlling terminal, such as pts/0"),
    ("state", "TEXT", "one letter of proc(5): R, S, D, Z, T, t, I, X"),
    ("thread_count", "INTEGER", "number of threads"),
    ("fd_count", "INTEGER", "number of open descriptors; NULL when unreadable"),
    ("cpu_time_ms", "INTEGER", "user and system CPU time in milliseconds"),
    ("memory_bytes", "INTEGER", "resident memory in bytes"),
    ("cgroup", "TEXT", "path in the unified cgroup hierarchy"),
    ("container_id", "TEXT", "container id taken from the cgroup path"),
    ("exe_deleted", "INTEGER", "1 when the executable is no longer on disk"),
    ("exe_memfd", "INTEGER", "1 when the executable exists in memory only (memfd)"),
    ("kernel_thread", "INTEGER", "1 for a kernel thread"),
    ("missing_fields", "TEXT", "columns that could not be read, joined by a comma"),
)
