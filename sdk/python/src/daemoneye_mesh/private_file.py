"""Small files whose mode and owner matter: keys, tokens and the trust bundle.

Invariants: a reader checks the file it has opened, never the path (a path can be swapped between
the check and the use), and follows no symbolic link; a writer never leaves half a file behind,
because the content reaches its name by one atomic step after it is on disk.

The calls block, for microseconds, on local files of a few kilobytes.
"""

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from daemoneye_mesh.errors import ErrorReason, PreconditionError, UnavailableError

__all__ = [
    "FileContent",
    "FileMissingError",
    "FileStamp",
    "FileUnusableError",
    "read_file",
    "stamp_of",
    "write_file",
]

MAX_FILE_BYTES = 64 * 1024
OTHERS_ANY = 0o077
OTHERS_WRITE = 0o022

FileStamp = tuple[int, int, int, int]
"""Inode, size, modification and change time: differs whenever the file was replaced or edited."""


class FileUnusableError(PreconditionError):
    """A file is there, but its owner, mode or content forbids using it."""

    default_reason = ErrorReason.FILE_UNUSABLE


class FileMissingError(UnavailableError):
    """A file which another process writes is not there, or not whole; it may be a moment later."""

    default_reason = ErrorReason.FILE_MISSING


@dataclass(frozen=True, slots=True, repr=False)
class FileContent:
    """What was read, and the stamp it had. Without a repr: the content may be a secret."""

    content: bytes
    stamp: FileStamp


def stamp_of(status: os.stat_result) -> FileStamp:
    """Returns what tells two versions of one path apart."""
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_file(path: Path, *, forbidden_mode: int, must_own: bool = False) -> FileContent:
    """Reads a small regular file after checking who else can get at it.

    Args:
        path: the file; a symbolic link is refused.
        forbidden_mode: permission bits of which none may be set.
        must_own: whether the file must belong to the effective user.

    Raises:
        FileNotFoundError: nothing is there; the caller knows what to advise.
        FileUnusableError: it is no regular file, too large, or open to others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise _unreadable(path, err) from None
    try:
        status = os.fstat(descriptor)
        _check_status(path, status, forbidden_mode, must_own)
        return FileContent(_read_all(path, descriptor), stamp_of(status))
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes, mode: int, *, replace: bool = True) -> None:
    """Puts content under a name in one step: temporary file, fsync, rename, fsync of the directory.

    Args:
        path: the final name; its directory must exist.
        content: the whole file.
        mode: exact permission bits, whatever the umask.
        replace: whether an existing file gives way.

    Raises:
        FileExistsError: the name is taken and ``replace`` is false.
        FileUnusableError: the file cannot be written there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _write_new(temporary, content, mode)
        if replace:
            temporary.rename(path)
        else:
            os.link(temporary, path)
        _sync_directory(path.parent)
    except FileExistsError:
        raise
    except OSError as err:
        raise _unwritable(path, err) from None
    finally:
        with contextlib.suppress(OSError):  # after a rename there is nothing left to remove
            temporary.unlink()


def _check_status(path: Path, status: os.stat_result, forbidden_mode: int, must_own: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FileUnusableError(f"{path} is no regular file; remove it", path=path)
    if must_own and status.st_uid != os.geteuid():
        raise FileUnusableError(
            f"{path} belongs to uid {status.st_uid}, not to us (uid {os.geteuid()}); "
            "remove it or correct its owner",
            path=path,
            owner_uid=status.st_uid,
            our_uid=os.geteuid(),
        )
    if status.st_mode & forbidden_mode:
        mode = f"{status.st_mode & 0o777:04o}"
        wanted = f"{status.st_mode & 0o777 & ~forbidden_mode:04o}"
        raise FileUnusableError(
            f"{path} has mode {mode} and is open to others; run chmod {wanted} on it",
            path=path,
            mode=mode,
            wanted_mode=wanted,
        )


def _read_all(path: Path, descriptor: int) -> bytes:
    chunks: list[bytes] = []
    size_bytes = 0
    while chunk := os.read(descriptor, MAX_FILE_BYTES):
        size_bytes += len(chunk)
        if size_bytes > MAX_FILE_BYTES:
            raise FileUnusableError(
                f"{path} is larger than {MAX_FILE_BYTES} bytes; remove it",
                path=path,
                limit_bytes=MAX_FILE_BYTES,
            )
        chunks.append(chunk)
    return b"".join(chunks)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreadable(path: Path, err: OSError) -> FileUnusableError:
    cause = os.strerror(err.errno or 0).lower()
    return FileUnusableError(
        f"{path} cannot be read ({cause}); check its owner and mode", path=path, cause=cause
    )


def _unwritable(path: Path, err: OSError) -> FileUnusableError:
    cause = os.strerror(err.errno or 0).lower()
    return FileUnusableError(
        f"{path} cannot be written ({cause}); check its directory", path=path, cause=cause
    )
