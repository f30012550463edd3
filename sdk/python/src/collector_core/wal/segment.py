"""A file of a log: its name, its header, and what is known about its records without reading them.

Invariant: the records of a segment ascend by sequence; ``size_bytes`` is where the last good one ends,
whatever lies behind it in the file.
"""

import re
import struct
from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from collector_core.wal.record import MAX_SEQUENCE, Record

__all__ = [
    "BOOT_ID_BYTES",
    "SEGMENT_HEADER_BYTES",
    "Segment",
    "SegmentHeader",
    "SegmentVersionError",
    "decode_header",
    "encode_header",
    "parse_name",
    "segment_name",
]

SEGMENT_MAGIC = b"\xdeEWAL\r\n\x1a"
SEGMENT_VERSION = 1
BOOT_ID_BYTES = 36
POINT_BYTES = 64 << 10
"""A segment is indexed about this often."""

_HEADER = struct.Struct("<8sHHIQQQQQ36s")
_CRC = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _HEADER.size + _CRC.size
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal", re.ASCII)


class SegmentVersionError(Exception):
    """The header is intact, and of a version that we do not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """What a segment says about itself.

    Args:
        epoch: of every record.
        first_sequence: the lowest that it may hold; the file is named after both.
        acknowledged_sequence: the watermark of the epoch when the segment began.
        salt: random; stands in every record, so that no event can hold a forged one.
        created_ns: Unix time.
        boot_id: of the boot in which it began, at most 36 bytes.
    """

    epoch: int
    first_sequence: int
    acknowledged_sequence: int
    salt: int
    created_ns: int
    boot_id: str


class Point(NamedTuple):
    """A place in a segment where reading may begin."""

    first_sequence: int
    offset: int
    appended_ns: int


@dataclass(slots=True)
class Segment:
    """A file as the log knows it."""

    path: Path
    header: SegmentHeader
    size_bytes: int = SEGMENT_HEADER_BYTES
    """Where its last good record ends."""
    last_sequence: int = 0
    """The highest that it holds; ``first_sequence`` - 1 when it is empty."""
    newest_ns: int = 0
    """When its last record was appended; when it was created if there is none."""
    points: list[Point] = field(default_factory=list)
    gaps: list[tuple[int, int]] = field(default_factory=list)
    """First and last of what is missing between its records."""

    def __post_init__(self) -> None:
        self.last_sequence = max(self.last_sequence, self.header.first_sequence - 1)
        self.newest_ns = self.newest_ns or self.header.created_ns

    @property
    def first_sequence(self) -> int:
        """The lowest that it may hold."""
        return self.header.first_sequence

    @property
    def header_name(self) -> str:
        """What its file is called, unless somebody renamed it."""
        return segment_name(self.header.epoch, self.header.first_sequence)

    @property
    def is_empty(self) -> bool:
        """Whether it has no record."""
        return self.last_sequence < self.header.first_sequence

    def note(self, record: Record, offset: int) -> None:
        """Takes the next record into account."""
        self.note_written(record.first_sequence, record.last_sequence, record.appended_ns, offset)
        self.size_bytes = offset + record.size_bytes
        self.newest_ns = max(self.newest_ns, record.appended_ns)

    def note_written(self, first: int, last: int, appended_ns: int, offset: int) -> None:
        """Takes a record at an offset into account; its size is the caller's."""
        if not self.points or offset - self.points[-1].offset >= POINT_BYTES:
            self.points.append(Point(first, offset, appended_ns))
        if first > self.last_sequence + 1:
            self.gaps.append((self.last_sequence + 1, first - 1))
        self.last_sequence = last

    def truncate(self, offset: int, last_sequence: int) -> None:
        """Forgets the records from an offset on."""
        self.size_bytes = offset
        self.last_sequence = last_sequence
        while self.points and self.points[-1].offset >= offset:
            self.points.pop()

    def point_before(self, sequence: int) -> Point:
        """Returns where to begin to find a sequence."""
        index = bisect_right(self.points, sequence, key=lambda point: point.first_sequence)
        if index:
            return self.points[index - 1]
        return Point(self.first_sequence, SEGMENT_HEADER_BYTES, self.header.created_ns)


def segment_name(epoch: int, first_sequence: int) -> str:
    """Returns the name of a segment; names sort as their segments follow each other."""
    return f"{epoch:016x}-{first_sequence:016x}.wal"


def parse_name(name: str) -> tuple[int, int] | None:
    """Returns epoch and first sequence; None for a file that is no segment."""
    if not (match := _NAME.fullmatch(name)):
        return None
    epoch, first_sequence = int(match[1], 16), int(match[2], 16)
    if not (0 < epoch < MAX_SEQUENCE and 0 < first_sequence < MAX_SEQUENCE):
        return None
    return epoch, first_sequence


def encode_header(header: SegmentHeader) -> bytes:
    """Returns the header as it stands at the beginning of the file."""
    fields = _HEADER.pack(
        *(SEGMENT_MAGIC, SEGMENT_VERSION, 0, SEGMENT_HEADER_BYTES),
        *(header.epoch, header.first_sequence, header.acknowledged_sequence, header.salt),
        *(header.created_ns, header.boot_id.encode()),
    )
    return fields + _CRC.pack(crc32(fields))


def decode_header(content: bytes) -> SegmentHeader | None:
    """Returns what the beginning of a file says; None when it is damaged.

    Raises:
        SegmentVersionError: it is intact and of another version.
    """
    if len(content) < SEGMENT_HEADER_BYTES:
        return None
    fields = _HEADER.unpack_from(content)
    (checksum,) = _CRC.unpack_from(content, _HEADER.size)
    if fields[0] != SEGMENT_MAGIC or checksum != crc32(content[: _HEADER.size]):
        return None
    if fields[1:4] != (SEGMENT_VERSION, 0, SEGMENT_HEADER_BYTES):
        raise SegmentVersionError
    epoch, first_sequence, acknowledged, salt, created_ns, boot_id = fields[4:]
    if not (0 < epoch < MAX_SEQUENCE and 0 < first_sequence < MAX_SEQUENCE):
        return None
    if acknowledged >= first_sequence:
        return None
    return SegmentHeader(
        epoch=epoch,
        first_sequence=first_sequence,
        acknowledged_sequence=acknowledged,
        salt=salt,
        created_ns=created_ns,
        boot_id=boot_id.rstrip(b"\0").decode(errors="replace"),
    )
