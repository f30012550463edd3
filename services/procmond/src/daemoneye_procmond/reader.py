"""The system calls behind ``ProcFs``, and nothing else.

Invariant: no parsing and no decision here; every error leaves as the OSError the kernel gave. Files of
one process are opened relative to a descriptor of its directory, which never refers to another process
even when the pid is used again. Nothing outside of procfs is touched: a path which a process chose may
lie on a file system that never answers.
"""

import os
from itertools import islice
from pathlib import Path

__all__ = ["DESCRIPTOR_LIMIT_COUNT", "STAT_LIMIT_BYTES", "ProcReader"]

DESCRIPTOR_LIMIT_COUNT = 65_536
STAT_LIMIT_BYTES = 4096


class ProcReader:
    """Reads below one mount point of the process file system.

    Args:
        root: where procfs is mounted.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._has_descriptor_size = _reports_descriptor_count(root)

    def list_pids(self) -> list[int]:
        """All process ids, ascending."""
        with os.scandir(self._root) as entries:
            names = [entry.name for entry in entries]
        return sorted({int(name) for name in names if name.isascii() and name.isdigit()})

    def read_stat(self, pid: int) -> bytes:
        """The stat line of a process by its pid; the hot path of a scan."""
        descriptor = os.open(f"{self._root}/{pid}/stat", os.O_RDONLY)
        try:
            return os.read(descriptor, STAT_LIMIT_BYTES)
        finally:
            os.close(descriptor)

    def read_global(self, name: str, limit_bytes: int) -> bytes:
        """A file below the root, at most ``limit_bytes`` of it."""
        return _drain(os.open(f"{self._root}/{name}", os.O_RDONLY), limit_bytes)

    def open_process(self, pid: int) -> int:
        """A descriptor of the process's directory; the caller closes it."""
        return os.open(f"{self._root}/{pid}", os.O_PATH | os.O_DIRECTORY)

    def read(self, directory: int, name: str, limit_bytes: int) -> bytes:
        """A file of the process, at most ``limit_bytes`` of it."""
        return _drain(os.open(name, os.O_RDONLY, dir_fd=directory), limit_bytes)

    def read_link(self, directory: int, name: str) -> bytes:
        """The target of a link of the process."""
        return os.readlink(name.encode(), dir_fd=directory)

    def list_threads(self, directory: int) -> list[str]:
        """Ids of the process's threads, at most as many as descriptors are counted."""
        return _list_bounded(directory, "task")

    def count_descriptors(self, directory: int, name: str) -> int:
        """How many descriptors are open; not more than ``DESCRIPTOR_LIMIT_COUNT`` on old kernels."""
        if self._has_descriptor_size:
            # Kernels before 5.18 need a listing; so does a process that just reads 0.
            size = os.stat(name, dir_fd=directory).st_size
            if size > 0:
                return size
        return len(_list_bounded(directory, name))


def _drain(descriptor: int, limit_bytes: int) -> bytes:
    try:
        content = os.read(descriptor, limit_bytes)
        while content and len(content) < limit_bytes:
            chunk = os.read(descriptor, limit_bytes - len(content))
            if not chunk:
                break
            content += chunk
        return content
    finally:
        os.close(descriptor)


def _list_bounded(directory: int, name: str) -> list[str]:
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    try:
        with os.scandir(descriptor) as entries:
            return [entry.name for entry in islice(entries, DESCRIPTOR_LIMIT_COUNT)]
    finally:
        os.close(descriptor)


def _reports_descriptor_count(root: str) -> bool:
    """Whether the size of an fd directory is the number of descriptors, as newer kernels have it."""
    directory = Path(root, "self", "fd")
    try:
        listed = sum(1 for _entry in directory.iterdir())
        size = directory.stat().st_size
    except OSError:
        return False
    return 0 < listed - 1 <= size <= listed
