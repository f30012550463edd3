"""What the collector knows about one process, and which process that is.

Invariant: a value that could not be read is None and its column stands in ``missing_fields``; None
without that mark means that the process has no such thing. Nothing is guessed.
"""

import shlex
from dataclasses import dataclass, replace
from typing import Any

from daemoneye_procmond.escape import escape_text
from daemoneye_procmond.statline import StatLine

__all__ = [
    "WATCHED_FIELDS",
    "ProcessIdentity",
    "ProcessReading",
    "ProcessRecord",
    "carry_over",
    "find_changes",
    "shorten",
    "text_size_bytes",
]

WATCHED_FIELDS = (
    "name",
    "exe",
    "exe_deleted",
    "uid",
    "euid",
    "gid",
    "egid",
    "login_uid",
    "session_id",
    "cgroup",
    "container_id",
)
"""The columns whose change makes a ``modified`` event."""

_LONG_TEXT_FIELDS = ("exe", "cwd", "cgroup")
# Columns that are known or unknown together with the column that is read.
_DERIVED_FROM = {"cmdline": "argv"}


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Which process it is; the pid alone is used again."""

    boot_id: str
    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process as it was read; the fields are the columns of the ``processes`` table."""

    boot_id: str
    pid: int
    start_ticks: int
    start_time_ns: int
    """Nanoseconds since the Unix epoch."""
    name: str
    ppid: int | None
    session_id: int | None
    process_group_id: int | None
    tty: str | None
    state: str
    thread_count: int
    cpu_time_ms: int
    memory_bytes: int
    kernel_thread: bool
    collected_at_ms: int
    """When it was read, milliseconds since the Unix epoch."""
    exe: str | None = None
    """Path without the kernel's " (deleted)" mark."""
    exe_deleted: bool | None = None
    exe_memfd: bool | None = None
    argv: tuple[str, ...] | None = None
    cwd: str | None = None
    uid: int | None = None
    euid: int | None = None
    gid: int | None = None
    egid: int | None = None
    login_uid: int | None = None
    user_name: str | None = None
    fd_count: int | None = None
    cgroup: str | None = None
    container_id: str | None = None
    missing_fields: tuple[str, ...] = ()
    """Columns that could not be read."""
    truncated_fields: tuple[str, ...] = ()
    """Columns of which only the beginning is here."""

    @property
    def identity(self) -> ProcessIdentity:
        """Which process this record describes."""
        return ProcessIdentity(self.boot_id, self.pid, self.start_ticks)

    @property
    def cmdline(self) -> str | None:
        """The arguments quoted as a shell would and joined by a space; None when unreadable."""
        return None if self.argv is None else shlex.join(self.argv)

    def is_whole(self, column: str) -> bool:
        """True when the column was read, and read to its end."""
        return column not in self.missing_fields and column not in self.truncated_fields


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """A record and the stat line which it agrees with."""

    stat: StatLine
    record: ProcessRecord
    is_denied: bool = False
    """Some field was refused for want of privilege."""
    is_vanished: bool = False
    """The process ended before more than its stat line could be read."""
    is_forming: bool = False
    """It was read in the middle of an exec: the new image has no arguments yet."""


def find_changes(old: ProcessRecord, new: ProcessRecord) -> tuple[str, ...]:
    """The watched columns that differ; one that either record lacks cannot be said to have changed."""
    return tuple(
        column
        for column in WATCHED_FIELDS
        if getattr(old, column) != getattr(new, column)
        and old.is_whole(column)
        and new.is_whole(column)
    )


def carry_over(old: ProcessRecord, new: ProcessRecord) -> ProcessRecord:
    """``new`` with what it could not read and ``old`` could, for one and the same program image.

    A process that makes itself undumpable hides its executable; what was seen before stays true.
    """
    known = [column for column in new.missing_fields if column not in old.missing_fields]
    if not known:
        return new
    sources = [_DERIVED_FROM.get(column, column) for column in known]
    values: dict[str, Any] = {column: getattr(old, column) for column in sources}
    cut = [column for column in known if column in old.truncated_fields]
    return replace(
        new,
        missing_fields=tuple(c for c in new.missing_fields if c not in known),
        truncated_fields=(*new.truncated_fields, *cut),
        **values,
    )


def text_size_bytes(record: ProcessRecord) -> int:
    """About how much memory the record's own texts take."""
    arguments = record.argv or ()
    texts = (record.exe, record.cwd, record.cgroup)
    return sum(map(len, arguments)) + 56 * len(arguments) + sum(len(t) for t in texts if t)


def shorten(record: ProcessRecord, limit_bytes: int) -> ProcessRecord:
    """The record with each long text cut to ``limit_bytes``, and marked so; same object if none is."""
    values: dict[str, Any] = {}
    for column in _LONG_TEXT_FIELDS:
        text = getattr(record, column)
        if text is not None and len(text.encode()) > limit_bytes:
            values[column] = escape_text(text.encode(), limit_bytes)[0]
    cut = list(values)
    arguments = _shorten_argv(record.argv or (), limit_bytes)
    if arguments is not None:
        values["argv"] = arguments
        cut += ["argv", "cmdline"]
    if not cut:
        return record
    marked = dict.fromkeys((*record.truncated_fields, *cut))
    return replace(record, truncated_fields=tuple(marked), **values)


def _shorten_argv(argv: tuple[str, ...], limit_bytes: int) -> tuple[str, ...] | None:
    kept: list[str] = []
    room = limit_bytes
    for argument in argv:
        # Each argument is an object of its own, so that many short ones are not for free either.
        room -= len(argument.encode()) + 8
        if room < 0:
            text = escape_text(argument.encode(), max(0, room + len(argument.encode())))[0]
            return (*kept, text) if text else tuple(kept)
        kept.append(argument)
    return None
