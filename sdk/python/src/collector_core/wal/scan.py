"""A segment read from the disk: what it holds, and how to make a clean one of a damaged one.

Invariant: only bytes that were verified as records get into a clean segment, in the order of their
sequences, each sequence once.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from collector_core.wal.files import FILE_MODE, temporary_path, write_at
from collector_core.wal.record import Damage
from collector_core.wal.segment import (
    SEGMENT_HEADER_BYTES,
    Segment,
    SegmentHeader,
    decode_header,
    encode_header,
)
from collector_core.wal.window import FileWindow, Found, RecordDamagedError

__all__ = ["Scan", "salvage", "scan_file"]

COPY_BYTES = 1 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Scan:
    """What a file turned out to be.

    Args:
        segment: the file, as far as its records follow each other.
        is_damaged: something in it is no record, and it is not only the torn end.
        cut_bytes: of the torn end.
        named: highest sequence that an intact header of a damaged record names; 0 if none.
    """

    segment: Segment
    is_damaged: bool = False
    cut_bytes: int = 0
    named: int = 0


class _Entry(NamedTuple):
    first_sequence: int
    last_sequence: int
    offset: int


def scan_file(path: Path, identity: tuple[int, int]) -> Scan:
    """Reads a whole segment.

    Args:
        path: the file.
        identity: epoch and first sequence, by its name.

    Raises:
        SegmentVersionError: it was written by another version.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, _READ)
    try:
        header = decode_header(os.pread(descriptor, SEGMENT_HEADER_BYTES, 0))
        size_bytes = os.fstat(descriptor).st_size
        if header is None or (header.epoch, header.first_sequence) != identity:
            return Scan(Segment(path, header or _guess(identity)), is_damaged=True)
        return _scan(descriptor, size_bytes, Segment(path, header))
    finally:
        os.close(descriptor)


def _scan(descriptor: int, size_bytes: int, segment: Segment) -> Scan:
    header = segment.header
    window = FileWindow(descriptor, size_bytes, header.salt)
    try:
        for found in window.iter_records(SEGMENT_HEADER_BYTES):
            record = found.record
            if record.epoch != header.epoch or record.first_sequence <= segment.last_sequence:
                return Scan(segment, is_damaged=True)
            segment.note(record, found.offset)
    except RecordDamagedError as err:
        return _judge(window, segment, err, size_bytes)
    return Scan(segment)


def _judge(window: FileWindow, segment: Segment, err: RecordDamagedError, size_bytes: int) -> Scan:
    named = err.damage.named[1] if err.damage.named else 0
    is_torn = err.damage.is_prefix and not any(window.iter_intact(err.offset + 1))
    if is_torn:
        return Scan(segment, cut_bytes=size_bytes - err.offset)
    return Scan(segment, is_damaged=True, named=named)


def _guess(identity: tuple[int, int]) -> SegmentHeader:
    epoch, first_sequence = identity
    return SegmentHeader(
        epoch=epoch,
        first_sequence=first_sequence,
        acknowledged_sequence=0,
        salt=0,
        created_ns=0,
        boot_id="",
    )


def salvage(scanned: Segment) -> tuple[Path, Segment]:
    """Writes the intact records of a segment into a new file beside it.

    Args:
        scanned: path and header count; without a salt, that of most records is taken.

    Returns:
        The complete new file, under a temporary name, and what it holds.

    Raises:
        OSError: a file cannot be read or written; nothing has changed.
    """
    source = os.open(scanned.path, _READ)
    temporary = temporary_path(scanned.path)
    try:
        size_bytes = os.fstat(source).st_size
        salt = scanned.header.salt or _most_common_salt(source, size_bytes, scanned.header.epoch)
        window = FileWindow(source, size_bytes, salt)
        entries = _choose(window, scanned.header)
        segment = Segment(scanned.path, _mend_header(scanned.header, salt, window, entries))
        _write_entries(temporary, segment, window, entries)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(source)
    return temporary, segment


def _most_common_salt(source: int, size_bytes: int, epoch: int) -> int:
    salts: Counter[int] = Counter()
    for found in FileWindow(source, size_bytes, None).iter_intact(0):
        if found.record.epoch == epoch:
            salts[found.record.salt] += 1
    return salts.most_common(1)[0][0] if salts else 0


def _choose(window: FileWindow, header: SegmentHeader) -> list[_Entry]:
    entries = sorted(
        _Entry(found.record.first_sequence, found.record.last_sequence, found.offset)
        for found in window.iter_intact(0)
        if found.record.epoch == header.epoch
    )
    chosen: list[_Entry] = []
    last = header.first_sequence - 1
    for entry in entries:
        if entry.first_sequence > last:
            chosen.append(entry)
            last = entry.last_sequence
    return chosen


def _mend_header(
    header: SegmentHeader, salt: int, window: FileWindow, entries: Sequence[_Entry]
) -> SegmentHeader:
    if header.created_ns or not entries:
        return replace(header, salt=salt)
    first = window.read(entries[0].offset)
    created_ns = first.record.appended_ns if isinstance(first, Found) else 0
    return replace(header, salt=salt, created_ns=created_ns)


def _write_entries(
    temporary: Path, segment: Segment, window: FileWindow, entries: Sequence[_Entry]
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    target = os.open(temporary, flags, FILE_MODE)
    try:
        parts, offset = [encode_header(segment.header)], 0
        waiting_bytes = SEGMENT_HEADER_BYTES
        for entry in entries:
            found = window.read(entry.offset)
            if isinstance(found, Damage):
                continue  # the disk read it a moment ago, and now it does not
            segment.note(found.record, segment.size_bytes)
            parts.append(found.whole())
            waiting_bytes += found.record.size_bytes
            if waiting_bytes >= COPY_BYTES:
                offset, parts, waiting_bytes = write_at(target, parts, offset), [], 0
        write_at(target, parts, offset)
        os.fsync(target)
    finally:
        os.close(target)
