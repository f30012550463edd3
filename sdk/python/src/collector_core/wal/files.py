"""The steps by which files of a log come, change and go, each one whole or not at all.

Invariant: a name points to a complete file, and the directory is on disk before a step returns.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "FILE_MODE",
    "create_file",
    "is_temporary",
    "keep_copy",
    "replace_file",
    "sync_directory",
    "temporary_path",
    "write_at",
]

FILE_MODE = 0o600
IOV_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def write_at(descriptor: int, parts: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
    """Writes all parts one after the other; returns where they end.

    Raises:
        OSError: some of it may have been written.
    """
    for start in range(0, len(parts), IOV_MAX):
        offset = _write_vector(descriptor, list(parts[start : start + IOV_MAX]), offset)
    return offset


def create_file(path: Path, content: bytes) -> int:
    """Puts a file under a name, in the place of another if there is one; returns it open.

    Raises:
        OSError: the name is as it was.
    """
    temporary = temporary_path(path)
    descriptor = os.open(temporary, _NEW, FILE_MODE)
    try:
        os.fchmod(descriptor, FILE_MODE)
        write_at(descriptor, [content], 0)
        os.fsync(descriptor)
        temporary.rename(path)
        sync_directory(path.parent)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):  # after the rename there is nothing left
            temporary.unlink()
        raise
    return descriptor


def replace_file(temporary: Path, path: Path) -> None:
    """Lets a complete file take the place of another."""
    temporary.rename(path)
    sync_directory(path.parent)


def keep_copy(path: Path, kept: Path) -> None:
    """Gives a file a second name, or copies it where files have only one."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(path, kept, follow_symlinks=False)
        kept.chmod(FILE_MODE)
    sync_directory(kept.parent)


def sync_directory(path: Path) -> None:
    """Has the names in a directory on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path) -> Path:
    """Returns a name in the same directory under which a file may grow."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a name is one of ours for a file that was never complete."""
    return name.startswith(".") and name.endswith(".tmp")


def _write_vector(descriptor: int, parts: list[bytes | bytearray | memoryview], offset: int) -> int:
    left_bytes = sum(map(len, parts))
    while left_bytes:
        written = os.pwritev(descriptor, parts, offset)
        offset += written
        left_bytes -= written
        if left_bytes:
            parts = _drop(parts, written)
    return offset


def _drop(
    parts: list[bytes | bytearray | memoryview], size_bytes: int
) -> list[bytes | bytearray | memoryview]:
    """Returns what is left of the parts after so many bytes."""
    for index, part in enumerate(parts):
        if size_bytes < len(part):
            return [memoryview(part)[size_bytes:], *parts[index + 1 :]]
        size_bytes -= len(part)
    return []
