"""Ways in which the disk of a log may fail and be mended."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

DISK_BYTES = 8 << 20
FILE_BYTES = 96 << 10


class DiskFault(Protocol):
    """One kind of failure."""

    words: str
    """What a person must read about it."""
    confined: bool
    """Whether root must be made to obey modes."""

    def prepare(self, directory: Path) -> None:
        """Before the collector starts."""

    def begin(self, directory: Path, process: Any) -> None:
        """Nothing more can be written."""

    def end(self, directory: Path, process: Any) -> None:
        """It can again."""


class NoSpace:
    """The file system is full."""

    words = "no space left on device"
    confined = False

    def prepare(self, directory: Path) -> None:
        """The directory becomes a small disk of its own."""
        mount(directory, f"size={DISK_BYTES},mode=0700")

    def begin(self, directory: Path, process: Any) -> None:
        """Somebody else takes all the room."""
        with (directory / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                pass  # it is full now

    def end(self, directory: Path, process: Any) -> None:
        """And gives it back."""
        (directory / "filler").unlink()


class FileLimit:
    """No file may get larger (RLIMIT_FSIZE)."""

    words = "file too large"
    confined = False

    def prepare(self, directory: Path) -> None:
        """Nothing to do."""

    def begin(self, directory: Path, process: Any) -> None:
        """Lowers the limit of the process."""
        _limit(process.pid, FILE_BYTES)

    def end(self, directory: Path, process: Any) -> None:
        """Raises it again."""
        _limit(process.pid, resource.RLIM_INFINITY)


class ReadOnlyDirectory:
    """No file can be made in the directory."""

    words = "permission denied"
    confined = True

    def prepare(self, directory: Path) -> None:
        """Nothing to do."""

    def begin(self, directory: Path, process: Any) -> None:
        """Takes away the right to write."""
        directory.chmod(0o500)

    def end(self, directory: Path, process: Any) -> None:
        """Gives it back."""
        directory.chmod(0o700)


def mount(directory: Path, options: str) -> None:
    """Mounts a disk of its own; outside of CI a test that may not is skipped."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


@contextmanager
def unmounting(directory: Path) -> Iterator[None]:
    """Unmounts at the end whatever was mounted."""
    try:
        yield
    finally:
        if os.path.ismount(directory):
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def _limit(pid: int, size_bytes: int) -> None:
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


FAULTS: dict[str, Callable[[], DiskFault]] = {
    "no space": NoSpace,
    "file limit": FileLimit,
    "read-only directory": ReadOnlyDirectory,
}
