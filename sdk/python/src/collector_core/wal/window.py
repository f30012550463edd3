"""Records read from a file piece by piece, in bounded memory, wherever they are intact."""

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from collector_core.wal.record import HEADER_BYTES, RECORD_MAGIC, Damage, Record, parse_record

__all__ = ["FileWindow", "Found", "RecordDamagedError"]

WINDOW_BYTES = 512 << 10
SECTOR_BYTES = 4 << 10


class RecordDamagedError(Exception):
    """There is no record where one should be."""

    def __init__(self, offset: int, damage: Damage) -> None:
        super().__init__(f"no record at offset {offset}")
        self.offset = offset
        self.damage = damage


class Found(NamedTuple):
    """A record and where it is; the bytes are valid until the next one is read."""

    offset: int
    record: Record
    buffer: bytes
    position: int

    def split(self) -> tuple[bytes, bytes]:
        """Returns envelope and block."""
        head = self.position + HEADER_BYTES
        block = head + self.record.head_bytes
        end = self.position + self.record.size_bytes
        return self.buffer[head:block], self.buffer[block:end]

    def whole(self) -> bytes:
        """Returns the record as it is in the file."""
        return self.buffer[self.position : self.position + self.record.size_bytes]


class FileWindow:
    """A part of a file, moved along as it is read; with ``pread``, so that others may read too.

    Args:
        descriptor: of the file; stays the caller's.
        end: where reading stops.
        salt: of the segment's records; None takes any.
    """

    def __init__(self, descriptor: int, end: int, salt: int | None) -> None:
        self._descriptor = descriptor
        self._end = end
        self._salt = salt
        self._buffer = b""
        self._buffer_at = 0

    def read(self, offset: int) -> Found | Damage:
        """Reads the record at an offset."""
        needed_bytes = HEADER_BYTES
        while True:
            position = self._reach(offset, needed_bytes)
            left_bytes = self._end - offset
            found = parse_record(self._buffer, position, left_bytes, self._salt)
            if isinstance(found, Record):
                return Found(offset, found, self._buffer, position)
            if found.needed_bytes <= needed_bytes:
                return found
            needed_bytes = found.needed_bytes

    def iter_records(self, offset: int) -> Iterator[Found]:
        """Yields the records from an offset to the end.

        Raises:
            RecordDamagedError: something else comes.
        """
        while offset < self._end:
            found = self.read(offset)
            if isinstance(found, Damage):
                raise RecordDamagedError(offset, found)
            yield found
            offset += found.record.size_bytes

    def iter_intact(self, offset: int) -> Iterator[Found]:
        """Yields the intact records from an offset to the end, whatever is between them."""
        while (at := self._find_magic(offset)) is not None:
            found = self.read(at)
            if isinstance(found, Found):
                yield found
                offset = at + found.record.size_bytes
            else:
                offset = at + 1

    def _find_magic(self, offset: int) -> int | None:
        while offset + HEADER_BYTES <= self._end:
            position = self._reach(offset, HEADER_BYTES)
            if not self._buffer:
                return None  # the file is shorter than it was said to be
            at = self._buffer.find(RECORD_MAGIC, position)
            if at >= 0:
                return self._buffer_at + at
            buffer_end = self._buffer_at + len(self._buffer)
            offset = max(offset + 1, buffer_end - len(RECORD_MAGIC) + 1)
        return None

    def _reach(self, offset: int, size_bytes: int) -> int:
        """Has so many bytes in the buffer if the file has them; returns where they begin."""
        position = offset - self._buffer_at
        wanted_bytes = min(size_bytes, self._end - offset)
        if position < 0 or len(self._buffer) - position < wanted_bytes:
            ahead_bytes = min(max(size_bytes, WINDOW_BYTES), self._end - offset)
            self._buffer = _read_fully(self._descriptor, ahead_bytes, offset)
            self._buffer_at = offset
            position = 0
        return position


def _read_fully(descriptor: int, size_bytes: int, offset: int) -> bytes:
    chunks: list[bytes] = []
    while size_bytes > 0 and (chunk := _read_some(descriptor, size_bytes, offset)):
        chunks.append(chunk)
        size_bytes -= len(chunk)
        offset += len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _read_some(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Reads on past bad sectors: they read as zeros, and their records fail their checksums."""
    try:
        return os.pread(descriptor, size_bytes, offset)
    except OSError as err:
        if err.errno != errno.EIO:
            raise
    sector_bytes = min(size_bytes, SECTOR_BYTES - offset % SECTOR_BYTES)
    try:
        return os.pread(descriptor, sector_bytes, offset)
    except OSError as err:
        if err.errno != errno.EIO:
            raise
    return bytes(sector_bytes)
