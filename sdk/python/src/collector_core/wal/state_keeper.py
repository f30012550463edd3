"""The state of a log on disk, and the files that may go once it is there.

Invariant: a segment is deleted after the state on disk says why it may be. There is one exception:
when the disk is too full for a new state, one segment that is acknowledged whole makes room for it.
"""

import contextlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from collector_core.wal.catalog import Catalog
from collector_core.wal.clock import LogClock
from collector_core.wal.files import FILE_MODE, sync_directory
from collector_core.wal.limits import SyncPolicy
from collector_core.wal.recovery import STATE_FILE
from collector_core.wal.segment import Segment
from collector_core.wal.state import LogState, encode_state
from daemoneye_mesh.private_file import FileUnusableError, write_file

__all__ = ["StateKeeper"]

log = logging.getLogger("daemoneye.wal")

WRITE_EVERY_NS = 1_000_000_000


class StateKeeper:
    """Writes the state.

    Args:
        directory: of the log.
        catalog: whose state it is.
        sync: policy of the log.
        boot_id: of this boot.
        clock: of the log.
    """

    def __init__(
        self,
        directory: Path,
        catalog: Catalog,
        *,
        sync: SyncPolicy,
        boot_id: str,
        clock: LogClock,
    ) -> None:
        self._path = directory / STATE_FILE
        self._catalog = catalog
        self._sync = sync
        self._boot_id = boot_id
        self._clock = clock
        self._lock = threading.Lock()
        self._written_at_ns: int | None = None
        self._is_failing = False

    def settle_if_due(self) -> None:
        """Writes what changed unless that was done a moment ago, and deletes what may go."""
        written_at_ns = self._written_at_ns
        if not self._catalog.is_dirty:
            return
        now_ns = self._clock.monotonic_ns()
        if written_at_ns is None or now_ns - written_at_ns >= WRITE_EVERY_NS:
            self.settle()

    def settle(self, *, is_clean: bool = False) -> bool:
        """Writes the state and deletes what may go; returns whether the state is on disk."""
        with self._lock:
            self._written_at_ns = self._clock.monotonic_ns()
            released, epochs, active = self._catalog.take_released()
            state = LogState(
                boot_id=self._boot_id,
                sync=self._sync,
                is_clean=is_clean,
                written_ns=self._clock.unix_ns(),
                active=active,
                epochs=epochs,
            )
            try:
                self._write(encode_state(state), released)
            except FileUnusableError as err:
                self._catalog.put_back(released)
                self._say_failing(err)
                return False
            self._is_failing = False
            self._delete(released)
            return True

    def _write(self, content: bytes, released: list[Segment]) -> None:
        try:
            write_file(self._path, content, FILE_MODE)
        except FileUnusableError:
            if not released:
                raise
            with contextlib.suppress(OSError):  # then there is no more room than before
                released[0].path.unlink(missing_ok=True)
                released.pop(0)
            write_file(self._path, content, FILE_MODE)

    def _delete(self, released: Sequence[Segment]) -> None:
        kept: list[Segment] = []
        for segment in released:
            try:
                segment.path.unlink(missing_ok=True)
            except OSError as err:
                log.warning("%s cannot be deleted: %s", segment.path, err)
                kept.append(segment)
        if kept:
            self._catalog.put_back(kept)
        if released:
            with contextlib.suppress(OSError):  # a file that comes back is released again
                sync_directory(self._path.parent)

    def _say_failing(self, err: FileUnusableError) -> None:
        if not self._is_failing:
            log.error("the state of the log is not written: %s", err.message)
        self._is_failing = True
