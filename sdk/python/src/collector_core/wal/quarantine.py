"""Where damaged files go, so that a person may look at them: bounded, and never deleted unseen."""

import logging
from pathlib import Path

from collector_core.wal.files import FILE_MODE, keep_copy, sync_directory

__all__ = ["Quarantine"]

log = logging.getLogger("daemoneye.wal")

MAX_FILES = 16
MAX_BYTES = 64 << 20
FOLDER = "quarantine"


class Quarantine:
    """The quarantine folder of a log.

    Args:
        directory: of the log.
    """

    def __init__(self, directory: Path) -> None:
        self._folder = directory / FOLDER

    def keep_file(self, path: Path, stamp_ns: int) -> Path:
        """Keeps a file which another one is about to replace; the file stays where it is."""
        kept = self._name(path.name, stamp_ns)
        keep_copy(path, kept)
        if not kept.is_symlink():
            kept.chmod(FILE_MODE)
        log.error("a damaged file of the log of events was kept as %s", kept)
        self.trim()
        return kept

    def trim(self) -> None:
        """Deletes the oldest files beyond the bounds; the newest one always stays."""
        if not self._folder.is_dir():
            return
        files = sorted(self._folder.iterdir(), key=_age_key)
        sizes = [path.lstat().st_size for path in files]
        while len(files) > 1 and (len(files) > MAX_FILES or sum(sizes) > MAX_BYTES):
            oldest, size_bytes = files.pop(0), sizes.pop(0)
            log.warning("quarantine of the log is full: %s (%d bytes) goes", oldest, size_bytes)
            oldest.unlink()

    def _name(self, name: str, stamp_ns: int) -> Path:
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700)
            sync_directory(self._folder.parent)
        kept = self._folder / f"{stamp_ns:020d}-{name}"
        while kept.exists():
            stamp_ns += 1
            kept = self._folder / f"{stamp_ns:020d}-{name}"
        return kept


def _age_key(path: Path) -> str:
    return path.name
