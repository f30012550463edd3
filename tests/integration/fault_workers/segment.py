"""Segments of a log, read and damaged by what docs/wal.md says of them and nothing else."""

import struct
from dataclasses import dataclass
from pathlib import Path

HEADER_BYTES = 96
RECORD_HEADER = struct.Struct("<4sBBHIIQQQIIQII")


@dataclass(frozen=True)
class Record:
    """Where one record is, and which events are in it."""

    path: Path
    offset: int
    size_bytes: int
    epoch: int
    first_sequence: int
    count: int

    @property
    def keys(self) -> set[tuple[int, int]]:
        """Epoch and sequence of its events."""
        return {(self.epoch, self.first_sequence + index) for index in range(self.count)}


def list_segments(directory: Path) -> list[Path]:
    """Returns the segments of a log, oldest first."""
    return sorted(directory.glob("*.wal"))


def read_records(path: Path) -> list[Record]:
    """Returns the records of a segment that is intact."""
    content = path.read_bytes()
    records, offset = [], HEADER_BYTES
    while offset + RECORD_HEADER.size <= len(content):
        fields = RECORD_HEADER.unpack_from(content, offset)
        size_bytes = RECORD_HEADER.size + fields[4] + fields[5]
        if offset + size_bytes > len(content):
            break  # it is being written
        records.append(Record(path, offset, size_bytes, fields[6], fields[7], fields[9]))
        offset += size_bytes
    return records


def read_log(directory: Path) -> list[Record]:
    """Returns the records of a whole log, oldest first."""
    return [record for path in list_segments(directory) for record in read_records(path)]


def flip_byte(path: Path, offset: int) -> None:
    """Changes one byte of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        was = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([was ^ 0xFF]))
