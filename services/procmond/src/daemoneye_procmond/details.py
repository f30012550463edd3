"""The parts of a process that need more than its stat line.

Invariant: each part is read on its own; one that is refused is listed as missing and the others are
still read. A process found dead on the way ends the reading with ``VanishedError``.
"""

import errno
from dataclasses import dataclass, field
from typing import Any

from daemoneye_procmond.account import AccountNames
from daemoneye_procmond.cgroup import find_container_id, select_cgroup_path
from daemoneye_procmond.escape import (
    ARGV_LIMIT_BYTES,
    ARGV_LIMIT_COUNT,
    PATH_LIMIT_BYTES,
    escape_argv,
    escape_text,
)
from daemoneye_procmond.reader import DESCRIPTOR_LIMIT_COUNT, ProcReader
from daemoneye_procmond.statline import StatLine

__all__ = ["DetailReader", "Details", "VanishedError", "is_denial"]

# Room for the separators, so that a read which is full to the brim was cut for certain.
_CMDLINE_READ_BYTES = ARGV_LIMIT_BYTES + ARGV_LIMIT_COUNT + 8
_STATUS_LIMIT_BYTES = 16 * 1024
_CGROUP_LIMIT_BYTES = 16 * 1024
_LOGIN_UID_LIMIT_BYTES = 32
_NO_LOGIN_UID = 4294967295
_DELETED_MARK = b" (deleted)"
_MEMFD_PREFIX = b"/memfd:"
_ARGV_FIELDS = ("argv", "cmdline")
_EXE_FIELDS = ("exe", "exe_deleted", "exe_memfd")
_STATUS_FIELDS = ("uid", "euid", "gid", "egid", "user_name")
_CGROUP_FIELDS = ("cgroup", "container_id")
_ALL_FIELDS = (
    *(*_EXE_FIELDS, *_ARGV_FIELDS, "cwd"),
    *(*_STATUS_FIELDS, "login_uid", "fd_count", *_CGROUP_FIELDS),
)


class VanishedError(Exception):
    """The process is gone, or its pid belongs to another one or to a thread."""


def is_denial(err: OSError) -> bool:
    """True when the kernel refused for want of privilege."""
    return err.errno in (errno.EACCES, errno.EPERM)


@dataclass(slots=True)
class Details:
    """Fields of a record as far as they could be read."""

    values: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    is_denied: bool = False

    @classmethod
    def none(cls) -> "Details":
        """Nothing could be read."""
        return cls(missing=list(_ALL_FIELDS))

    def miss(self, columns: tuple[str, ...], err: OSError) -> None:
        """Notes that ``columns`` could not be read."""
        if err.errno == errno.ESRCH:
            raise VanishedError from err
        self.missing += columns
        self.is_denied = self.is_denied or is_denial(err)

    def drop_unformed_argv(self) -> None:
        """Takes empty arguments back where an exec has not laid them down yet.

        The executable is only readable where the addresses of the image are; so the image is known
        to be unfinished. Where both are hidden, the process may really have no arguments.
        """
        if self.values.get("exe") is not None:
            del self.values["argv"]
            self.missing += _ARGV_FIELDS

    def put_text(self, column: str, raw: bytes) -> None:
        """Sets a column to a path or other single text."""
        self.values[column], is_cut = escape_text(raw, PATH_LIMIT_BYTES)
        if is_cut:
            self.truncated.append(column)


class DetailReader:
    """Reads what a stat line does not say.

    Args:
        reader: the system calls.
        accounts: names of user ids.
    """

    def __init__(self, reader: ProcReader, accounts: AccountNames) -> None:
        self._reader = reader
        self._accounts = accounts

    def read(self, directory: int, stat: StatLine) -> Details:
        """All details of the process whose directory is open.

        Raises:
            VanishedError: it has ended.
        """
        details = Details()
        prefix = self._living_prefix(directory, stat)
        self._read_status(directory, stat, details)
        self._read_login_uid(directory, prefix, details)
        self._read_cgroup(directory, prefix, details)
        if stat.is_exited:
            details.values["argv"] = ()
            return details
        if stat.is_kernel_thread:
            details.values["argv"] = ()
        else:
            self._read_exe(directory, prefix, details)
            self._read_argv(directory, prefix, details)
        self._read_cwd(directory, prefix, details)
        self._read_fd_count(directory, prefix, details)
        return details

    def resolve_exe(self, directory: int, name: str = "exe") -> tuple[bytes, bool]:
        """The executable's path and whether it is deleted, as the kernel marks it.

        A file that is really called "x (deleted)" reads as deleted: to tell them apart one would
        have to touch the file.

        Raises:
            OSError: the link cannot be read.
        """
        raw = self._reader.read_link(directory, name)
        return raw.removesuffix(_DELETED_MARK), raw.endswith(_DELETED_MARK)

    def _living_prefix(self, directory: int, stat: StatLine) -> str:
        """Where to look when the first thread has exited alone and shows nothing any more."""
        if stat.state != "Z" or stat.is_exited:
            return ""
        try:
            threads = self._reader.list_threads(directory)
        except OSError:
            return ""
        others = [thread for thread in threads if thread != str(stat.pid)]
        return f"task/{others[0]}/" if others else ""

    def _read_status(self, directory: int, stat: StatLine, details: Details) -> None:
        try:
            raw = self._reader.read(directory, "status", _STATUS_LIMIT_BYTES)
            uids, gids = _numbers(raw, b"Uid"), _numbers(raw, b"Gid")
            if len(uids) < 2 or len(gids) < 2:
                raise OSError(errno.EBADMSG, "status has no ids")
        except OSError as err:
            details.miss(_STATUS_FIELDS, err)
            return
        thread_group = _numbers(raw, b"Tgid")
        if thread_group and thread_group[0] != stat.pid:
            raise VanishedError  # the id of a thread, which is no process
        details.values.update(uid=uids[0], euid=uids[1], gid=gids[0], egid=gids[1])
        details.values["user_name"] = self._accounts.name_of(uids[0])

    def _read_login_uid(self, directory: int, prefix: str, details: Details) -> None:
        try:
            raw = self._reader.read(directory, f"{prefix}loginuid", _LOGIN_UID_LIMIT_BYTES)
        except FileNotFoundError:
            return  # a kernel without audit has no login ids
        except OSError as err:
            details.miss(("login_uid",), err)
            return
        if not raw.strip().isdigit():
            details.missing.append("login_uid")
        elif (login_uid := int(raw)) != _NO_LOGIN_UID:
            details.values["login_uid"] = login_uid

    def _read_cgroup(self, directory: int, prefix: str, details: Details) -> None:
        try:
            raw = self._reader.read(directory, f"{prefix}cgroup", _CGROUP_LIMIT_BYTES)
        except FileNotFoundError:
            return  # a kernel without control groups
        except OSError as err:
            details.miss(_CGROUP_FIELDS, err)
            return
        path = select_cgroup_path(raw)
        if path is not None:
            details.put_text("cgroup", path)
        details.values["container_id"] = find_container_id(raw)

    def _read_exe(self, directory: int, prefix: str, details: Details) -> None:
        try:
            path, is_deleted = self.resolve_exe(directory, f"{prefix}exe")
        except OSError as err:
            details.miss(_EXE_FIELDS, err)
            return
        details.put_text("exe", path)
        details.values["exe_deleted"] = is_deleted
        details.values["exe_memfd"] = is_deleted and path.startswith(_MEMFD_PREFIX)

    def _read_argv(self, directory: int, prefix: str, details: Details) -> None:
        try:
            raw = self._reader.read(directory, f"{prefix}cmdline", _CMDLINE_READ_BYTES)
        except OSError as err:
            details.miss(_ARGV_FIELDS, err)
            return
        details.values["argv"], is_cut = escape_argv(raw)
        if is_cut or len(raw) >= _CMDLINE_READ_BYTES:
            details.truncated += _ARGV_FIELDS

    def _read_cwd(self, directory: int, prefix: str, details: Details) -> None:
        try:
            raw = self._reader.read_link(directory, f"{prefix}cwd")
        except OSError as err:
            details.miss(("cwd",), err)
            return
        details.put_text("cwd", raw)

    def _read_fd_count(self, directory: int, prefix: str, details: Details) -> None:
        try:
            count = self._reader.count_descriptors(directory, f"{prefix}fd")
        except OSError as err:
            details.miss(("fd_count",), err)
            return
        details.values["fd_count"] = count
        if count == DESCRIPTOR_LIMIT_COUNT:
            details.truncated.append("fd_count")


def _numbers(status: bytes, key: bytes) -> list[int]:
    # The first line is the name, in which the kernel escapes newlines: no process can forge a key.
    begin = status.find(b"\n" + key + b":")
    if begin < 0:
        return []
    end = status.find(b"\n", begin + 1)
    words = status[begin + len(key) + 2 : end if end >= 0 else None].split()
    return [int(word) for word in words if word.isdigit()]
