"""The segment that is appended to, as an open file.

Invariant: what is behind ``segment.size_bytes`` in the file was never said to be written.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from collector_core.wal.files import create_file, write_at
from collector_core.wal.segment import (
    SEGMENT_HEADER_BYTES,
    Segment,
    SegmentHeader,
    encode_header,
    segment_name,
)
from collector_core.wal.window import FileWindow

__all__ = ["SegmentWriter"]


class SegmentWriter:
    """Appends to one segment.

    Args:
        descriptor: of its file, open for both; becomes the writer's.
        segment: what it holds, all of it on disk.
    """

    def __init__(self, descriptor: int, segment: Segment) -> None:
        self._descriptor = descriptor
        self.segment = segment
        self.synced_bytes = segment.size_bytes
        """Where that ends which is on disk for certain."""
        self.synced_sequence = segment.last_sequence
        """The last that is on disk for certain."""

    @classmethod
    def create(
        cls, directory: Path, header: SegmentHeader, content: bytes = b""
    ) -> "SegmentWriter":
        """Begins a segment, with the records that another one could not keep.

        Raises:
            OSError: there is no new segment.
        """
        path = directory / segment_name(header.epoch, header.first_sequence)
        descriptor = create_file(path, encode_header(header) + content)
        segment = Segment(path, header)
        end = SEGMENT_HEADER_BYTES + len(content)
        for found in FileWindow(descriptor, end, header.salt).iter_records(SEGMENT_HEADER_BYTES):
            segment.note(found.record, found.offset)
        return cls(descriptor, segment)

    @classmethod
    def open(cls, segment: Segment) -> "SegmentWriter":
        """Goes on with a segment of an earlier life.

        Raises:
            OSError: it cannot be written.
        """
        descriptor = os.open(segment.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor, segment)

    @property
    def is_synced(self) -> bool:
        """Whether everything that was appended is on disk."""
        return self.synced_bytes == self.segment.size_bytes

    def write(self, parts: Sequence[bytes | bytearray]) -> int:
        """Writes behind the last good record; returns where that ends.

        Raises:
            OSError: some of it may be in the file.
        """
        return write_at(self._descriptor, parts, self.segment.size_bytes)

    def sync(self) -> None:
        """Has everything in the file on disk; say so with ``note_synced``.

        Raises:
            OSError: nobody knows what of it is; see ``unsynced``.
        """
        os.fdatasync(self._descriptor)

    def note_synced(self) -> None:
        """Says that everything in the segment is on disk."""
        self.synced_bytes = self.segment.size_bytes
        self.synced_sequence = self.segment.last_sequence

    def cut(self, size_bytes: int) -> None:
        """Cuts off what is behind an offset.

        Raises:
            OSError: it is still there.
        """
        os.ftruncate(self._descriptor, size_bytes)

    def unsynced(self) -> bytes:
        """Returns the records of which nobody knows whether they are on disk.

        Raises:
            OSError: they cannot be read.
        """
        size_bytes = self.segment.size_bytes - self.synced_bytes
        return os.pread(self._descriptor, size_bytes, self.synced_bytes)

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # what close could say, a sync has said before
            os.close(self._descriptor)
