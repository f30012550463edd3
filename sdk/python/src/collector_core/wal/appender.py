"""How records get to the end of a log, and what happens when the disk does not take them.

Invariants: a call that raises has appended nothing; after a failed sync nothing of that segment since
the last good one is believed, it is written again into a new segment. Callers take turns.
"""

import contextlib
import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from collector_core.bus.outbox_group import OutboxGroup
from collector_core.wal.catalog import Catalog, Written
from collector_core.wal.clock import LogClock
from collector_core.wal.errors import unwritable
from collector_core.wal.limits import SyncPolicy
from collector_core.wal.record import encode_record
from collector_core.wal.segment import SegmentHeader
from collector_core.wal.writer import SegmentWriter

__all__ = ["Appender"]

log = logging.getLogger("daemoneye.wal")


class Appender:
    """The end of a log.

    Args:
        directory: of the log.
        catalog: told what is written.
        boot_id: for the headers of segments.
        sync: the policy.
        clock: of the log.
    """

    def __init__(
        self, directory: Path, catalog: Catalog, *, boot_id: str, sync: SyncPolicy, clock: LogClock
    ) -> None:
        self._directory = directory
        self._catalog = catalog
        self._boot_id = boot_id
        self._sync = sync
        self._clock = clock
        self._writer: SegmentWriter | None = None
        self._unsure: SegmentWriter | None = None
        """A segment with records that have to be written again."""

    def go_on(self, writer: SegmentWriter) -> None:
        """Appends to a segment from now on."""
        self._writer = writer
        self._catalog.add_active(writer.segment)

    def begin(self) -> SegmentWriter:
        """Begins a segment and appends to it from now on.

        Raises:
            LogUnwritableError: it cannot be created; appending goes on as before.
        """
        self.sync()
        with self._refusing():
            header = self._header(self._catalog.last_sequence + 1)
            writer = SegmentWriter.create(self._directory, header)
        writer.segment.newest_ns = self._clock.age_ns()
        self._leave()
        self.go_on(writer)
        return writer

    def is_idle(self, segment_bytes: int) -> bool:
        """Whether the open segment is more than a quarter full and nothing in it is held."""
        writer = self._writer
        return writer is not None and self._catalog.is_idle(writer.segment, segment_bytes // 4)

    def append(self, groups: Sequence[OutboxGroup], segment_bytes: int) -> bool:
        """Appends groups; returns whether a segment began with them.

        Args:
            groups: go on where the log ends.
            segment_bytes: after which a segment is full.

        Raises:
            LogUnwritableError: nothing was appended.
        """
        writer = self._writer
        begun = writer is None or self._is_full(writer, groups, segment_bytes)
        if writer is None or begun:
            writer = self.begin()
        parts: list[bytes | bytearray] = []
        written: list[Written] = []
        segment, offset = writer.segment, writer.segment.size_bytes
        now_ns = self._clock.unix_ns()
        for group in groups:
            record = encode_record(group, segment.header.salt, now_ns)
            last = group.first_sequence + group.count - 1
            written.append(Written(group.first_sequence, last, now_ns, offset))
            offset += len(record[0]) + len(record[1])
            parts += record
        with self._refusing():
            self._write(writer, parts)
        self._catalog.add_written(segment, written, offset, self._clock.age_ns())
        if self._sync is SyncPolicy.COMMIT:
            writer.note_synced()
        return begun

    def _is_full(
        self, writer: SegmentWriter, groups: Sequence[OutboxGroup], segment_bytes: int
    ) -> bool:
        if writer.segment.is_empty:
            return False
        size_bytes = writer.segment.size_bytes + sum(group.size_bytes for group in groups)
        return size_bytes > segment_bytes or self.is_idle(segment_bytes)

    def sync(self) -> None:
        """Has everything on disk that was appended.

        Raises:
            LogUnwritableError: it is not; the same call may be repeated.
        """
        with self._refusing():
            self._mend()
            writer = self._writer
            if writer is None or writer.is_synced:
                return
            try:
                writer.sync()
            except OSError:
                self._seal(writer)
                raise
            writer.note_synced()

    def close(self) -> None:
        """Closes what is open."""
        self._leave()
        if self._unsure is not None:
            self._unsure.close()
            self._unsure = None

    def _write(self, writer: SegmentWriter, parts: Sequence[bytes | bytearray]) -> None:
        """Has the parts behind the last good record, or nothing."""
        try:
            writer.write(parts)
        except OSError:
            if not self._cut(writer):
                self._seal(writer)
            raise
        if self._sync is not SyncPolicy.COMMIT:
            return
        try:
            writer.sync()
        except OSError:
            self._cut(writer)
            self._seal(writer)
            raise

    def _cut(self, writer: SegmentWriter) -> bool:
        try:
            writer.cut(writer.segment.size_bytes)
        except OSError:
            return False
        return True

    def _seal(self, writer: SegmentWriter) -> None:
        """Appends nothing more to a segment; what of it may not be on disk is written again."""
        log.warning("%s is sealed after a failed write or sync", writer.segment.path)
        self._writer = None
        if writer.is_synced:
            writer.close()
        else:
            self._unsure = writer

    def _mend(self) -> None:
        """Writes again what a failed sync has left in doubt."""
        if (unsure := self._unsure) is None:
            return
        first_sequence = unsure.synced_sequence + 1
        header = replace(self._header(first_sequence), salt=unsure.segment.header.salt)
        writer = SegmentWriter.create(self._directory, header, unsure.unsynced())
        writer.segment.newest_ns = unsure.segment.newest_ns
        self._catalog.move_records(
            unsure.segment, unsure.synced_bytes, unsure.synced_sequence, writer.segment
        )
        self._cut(unsure)  # should it fail, the new segment still comes first for readers
        unsure.close()
        self._unsure, self._writer = None, writer

    def _header(self, first_sequence: int) -> SegmentHeader:
        return SegmentHeader(
            epoch=self._catalog.epoch,
            first_sequence=first_sequence,
            acknowledged_sequence=min(self._catalog.acknowledged(), first_sequence - 1),
            salt=secrets.randbits(63) + 1,
            created_ns=self._clock.unix_ns(),
            boot_id=self._boot_id,
        )

    def _leave(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise unwritable(self._directory, err) from err
