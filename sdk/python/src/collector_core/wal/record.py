"""One group of events as bytes of a log; docs/wal.md specifies them.

Invariant: nothing is taken from a record before both of its checksums were verified, and no length
is believed before the checksum of the header that says it was.
"""

import struct
from typing import NamedTuple
from zlib import crc32

from collector_core.bus.outbox_group import OutboxGroup

__all__ = [
    "HEADER_BYTES",
    "MAX_BODY_BYTES",
    "MAX_SEQUENCE",
    "RECORD_MAGIC",
    "Damage",
    "Record",
    "encode_record",
    "parse_record",
]

RECORD_MAGIC = b"\xdeEr\n"
RECORD_VERSION = 1
TYPE_GROUP = 1
MAX_BODY_BYTES = 2 << 20
"""Of envelope and block together; a reader allocates no more whatever a header says."""
MAX_SEQUENCE = 2**62
"""Of sequences and epochs: sums of them stay within 63 bits."""

_HEADER = struct.Struct("<4sBBHIIQQQIIQII")
_PREFIX = struct.Struct("<4sBBH")
_START = _PREFIX.pack(RECORD_MAGIC, RECORD_VERSION, TYPE_GROUP, 0)
_FIELDS = struct.Struct("<8sIIQQQIIQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size
_BODY_CRC_AT = HEADER_BYTES - 8
_HEADER_CRC_AT = HEADER_BYTES - 4


class Record(NamedTuple):
    """A verified record. ``body`` starts with ``head_bytes`` of envelope, the block follows."""

    first_sequence: int
    last_sequence: int
    event_count: int
    epoch: int
    salt: int
    head_bytes: int
    largest_bytes: int
    appended_ns: int
    size_bytes: int
    """Of the whole record, header included."""


class Damage(NamedTuple):
    """Why there is no record at an offset.

    Args:
        is_prefix: the bytes are the beginning of a record that the file has no more of.
        named: first and last sequence, when the header is intact.
        needed_bytes: what would have to be there to say more; 0 when nothing would help.
    """

    is_prefix: bool
    named: tuple[int, int] | None = None
    needed_bytes: int = 0


def encode_record(group: OutboxGroup, salt: int, appended_ns: int) -> list[bytes | bytearray]:
    """Returns the parts that a record is the concatenation of.

    Raises:
        ValueError: the group is empty, has no sequence or is beyond ``MAX_BODY_BYTES``.
    """
    key, block = group.key, group.block
    if not (group.count and group.first_sequence) or group.count > len(block):
        raise ValueError("a log takes groups that have messages and a sequence")
    if len(key.head) + len(block) > MAX_BODY_BYTES:
        raise ValueError(f"a group is larger than {MAX_BODY_BYTES} bytes")
    fields = _FIELDS.pack(
        *(_START, len(key.head), len(block), key.epoch, group.first_sequence, salt),
        *(group.count, group.largest_bytes, appended_ns),
    )
    body_crc = _CRC.pack(crc32(block, crc32(key.head, crc32(fields))))
    header = fields + body_crc
    return [b"".join((header, _CRC.pack(crc32(header)), key.head)), block]


def parse_record(
    buffer: bytes, position: int, left_bytes: int, salt: int | None
) -> Record | Damage:
    """Reads the record at a position.

    Args:
        buffer: bytes of the file; may end before the record does.
        position: where the record begins.
        left_bytes: from there to the end of the file.
        salt: of the segment; None takes any.
    """
    if left_bytes < HEADER_BYTES:
        return Damage(_is_start(buffer[position : position + left_bytes]))
    if len(buffer) - position < HEADER_BYTES:
        return Damage(False, needed_bytes=HEADER_BYTES)
    view = memoryview(buffer)
    fields = _HEADER.unpack_from(buffer, position)
    if fields[0] != RECORD_MAGIC or fields[-1] != crc32(view[position : position + _HEADER_CRC_AT]):
        return Damage(False)
    return _parse_body(view[position:], left_bytes, salt, fields)


def _parse_body(
    view: memoryview, left_bytes: int, salt: int | None, fields: tuple[int, ...]
) -> Record | Damage:
    _, version, kind, flags, head_bytes, block_bytes = fields[:6]
    epoch, first, found_salt, count, largest_bytes, appended_ns, body_crc, _ = fields[6:]
    size_bytes = HEADER_BYTES + head_bytes + block_bytes
    last = first + count - 1
    is_ours = (
        (version, kind, flags) == (RECORD_VERSION, TYPE_GROUP, 0)
        and size_bytes <= HEADER_BYTES + MAX_BODY_BYTES
        and 1 <= first <= last < MAX_SEQUENCE
        and 1 <= epoch < MAX_SEQUENCE
        and salt in (None, found_salt)
        and count <= block_bytes
    )
    if not is_ours:
        return Damage(False)
    if left_bytes < size_bytes:
        return Damage(True, (first, last))
    if len(view) < size_bytes:
        return Damage(False, (first, last), size_bytes)
    if crc32(view[HEADER_BYTES:size_bytes], crc32(view[:_BODY_CRC_AT])) != body_crc:
        return Damage(False, (first, last))
    return Record(
        *(first, last, count, epoch, found_salt, head_bytes),
        *(largest_bytes, appended_ns, size_bytes),
    )


def _is_start(rest: bytes) -> bool:
    """Whether bytes shorter than a header may be the start of one."""
    return _START.startswith(rest[: len(_START)])
