"""Opens the event store's file: private, ours alone to write, set aside when it is corrupt.

Invariant: a file that cannot be read as a database is renamed, never deleted and never overwritten,
and the caller learns the new name. One process at a time writes: a lock file beside the database
guards it, because the store keeps counters in memory that a second writer would contradict.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import apsw

from daemoneye_agent.event import NS_PER_SECOND
from daemoneye_agent.migration import MIGRATIONS, check_version
from daemoneye_mesh.errors import ErrorReason, PreconditionError, UnavailableError

__all__ = [
    "StoreFailedError",
    "StoreFileError",
    "open_reader",
    "open_writer",
    "size_bytes_of",
    "translate_errors",
]

_BUSY_TIMEOUT_MS = 5_000
_CACHE_KIB = 8_192
_CHECKPOINT_PAGES = 4_000
_WAL_KEEP_BYTES = 64 * 1024 * 1024
_FULL_CHECK_BYTES = 64 * 1024 * 1024
"""Up to this size the whole file is checked when it is opened (well under a second)."""

_MAGIC = b"SQLite format 3\0"
_CORRUPT = (apsw.NotADBError, apsw.CorruptError)


class StoreFileError(PreconditionError):
    """The file or its directory cannot hold an event store."""

    default_reason = ErrorReason.FILE_UNUSABLE


class StoreFailedError(UnavailableError):
    """The database refused to read or write, as with a full disk."""

    default_reason = ErrorReason.STORE_FAILED


_CAUSES: tuple[tuple[type[apsw.Error], str], ...] = (
    (apsw.FullError, "the disk is full; free space on its file system"),
    (apsw.ReadOnlyError, "it is read-only; check the mount and the owner"),
    (apsw.IOError, "the disk reported an error; check the kernel log"),
    (apsw.BusyError, "another process holds its lock; stop the other program"),
    (apsw.CorruptError, "it is corrupt; restart the agent, which sets the file aside"),
)


@contextmanager
def translate_errors(path: str) -> Iterator[None]:
    """Turns SQLite's errors into ours, whose text may reach a peer.

    Raises:
        StoreFailedError: in place of any apsw error.
    """
    try:
        yield
    except apsw.BindingsError:
        raise  # a row of the wrong width: the caller's matter, not the disk's
    except apsw.Error as err:
        causes = (text for kind, text in _CAUSES if isinstance(err, kind))
        cause = next(causes, "the database refused; see the agent's log")
        raise StoreFailedError(f"event store {path}: {cause}", path=path, cause=cause) from err


def open_writer(path: Path, now_ns: int) -> tuple[apsw.Connection, Path | None, int]:
    """Opens the database for writing, as a new one when it is absent or corrupt.

    Returns:
        The connection, the name a corrupt file was given or None, and the descriptor of the lock,
        to be closed after the connection.

    Raises:
        StoreFileError: wrong owner or mode, not a regular file, or another writer has it.
        StoreVersionError: the file is newer than this program, or not an event store.
    """
    try:
        _prepare_directory(path.parent)
        lock_fd = _lock(path)
    except OSError as err:
        raise _unusable(path, f"{os.strerror(err.errno or 0).lower()}") from err
    try:
        _prepare_file(path)
        try:
            return _connect(path), None, lock_fd
        except _CORRUPT:
            aside = _set_aside(path, now_ns)
            _prepare_file(path)
            return _connect(path), aside, lock_fd
    except OSError as err:
        os.close(lock_fd)
        raise _unusable(path, f"{os.strerror(err.errno or 0).lower()}") from err
    except BaseException:
        os.close(lock_fd)
        raise


def open_reader(path: Path) -> apsw.Connection:
    """Opens a connection that can only read. It may live in another thread than the writer.

    Raises:
        StoreFailedError: the file is not there or cannot be read.
    """
    with translate_errors(str(path)):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        connection.pragma("query_only", True)
        connection.pragma("trusted_schema", False)
        return connection


def _connect(path: Path) -> apsw.Connection:
    _check_header(path)
    connection = apsw.Connection(str(path))
    try:
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        _check(connection, path)
        check_version(connection, len(MIGRATIONS))
        _configure(connection)
    except BaseException:
        connection.close(True)
        raise
    return connection


def _check_header(path: Path) -> None:
    """Refuses what is no database before SQLite opens it, which would delete its journal."""
    with path.open("rb") as file:
        header = file.read(len(_MAGIC))
    if header not in (b"", _MAGIC):
        raise apsw.NotADBError("no header of a database")


def _configure(connection: apsw.Connection) -> None:
    """Sets what the store needs; the first that may write, so that a refused file is untouched."""
    if not connection.pragma("page_count"):
        connection.pragma("auto_vacuum", 2)  # incremental; can be chosen for an empty file only
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", 1)  # NORMAL: a power cut loses commits, never the file
    connection.pragma("cache_size", -_CACHE_KIB)
    connection.pragma("wal_autocheckpoint", _CHECKPOINT_PAGES)
    connection.pragma("journal_size_limit", _WAL_KEEP_BYTES)
    connection.pragma("trusted_schema", False)


def _check(connection: apsw.Connection, path: Path) -> None:
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
    if path.stat().st_size <= _FULL_CHECK_BYTES:
        verdict = connection.execute("PRAGMA quick_check(1)").get
        if verdict != "ok":
            raise apsw.CorruptError(verdict)


def _prepare_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = directory.stat().st_mode
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StoreFileError(
            f"directory {directory} can be written to by others; run chmod go-w on it",
            path=directory,
        )


def _lock(path: Path) -> int:
    lock_path = path.with_name(path.name + ".lock")
    lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        raise _unusable(path, "another agent has it open; stop that one first") from None
    return lock_fd


def _prepare_file(path: Path) -> None:
    """Makes the file with its mode before SQLite can make it with a wider one."""
    file_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        status = os.fstat(file_fd)
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(path, "not a regular file; give the event store another path")
        if status.st_uid != os.geteuid():
            raise _unusable(path, "it belongs to another user; run chown or choose another path")
        os.fchmod(file_fd, 0o600)
    finally:
        os.close(file_fd)


def _set_aside(path: Path, now_ns: int) -> Path:
    stamp = datetime.fromtimestamp(now_ns // NS_PER_SECOND, UTC).strftime("%Y%m%dT%H%M%SZ")
    aside = path.with_name(f"{path.name}.corrupt-{stamp}")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.corrupt-{stamp}-{number}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):  # a journal must stay with its own database
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.rename(aside.with_name(aside.name + suffix))
    return aside


def _unusable(path: Path, cause: str) -> StoreFileError:
    return StoreFileError(f"event store {path} cannot be used: {cause}", path=path, cause=cause)


def size_bytes_of(path: Path) -> int:
    """The size of a store on disk, its write-ahead log included."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
