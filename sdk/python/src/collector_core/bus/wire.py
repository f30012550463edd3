"""Groups and batches written as protobuf by hand, because this is where a publisher's time goes.

Invariant: the bytes are what protobuf would read as the same ``GroupFrame`` and
``PublishStreamFrames`` (tests hold it to that). A message costs two appends to a buffer here; through
protobuf's own objects it is copied four times.
"""

from collections.abc import Iterable, Iterator, Sequence, Set

__all__ = [
    "KNOWN_PREFIXES",
    "MAX_GROUP_OVERHEAD_BYTES",
    "MAX_PREFIX_BYTES",
    "PREFIXES",
    "encode_frames",
    "encode_group_parts",
    "encode_publish_request",
    "frame_prefix",
    "iter_frames",
]

# Tags of group.proto, frame.proto and eventbus_service.proto: field number << 3 | wire type.
_BLOCK_MESSAGES = b"\x0a"
_GROUP_ENVELOPE = b"\x0a"
_GROUP_BLOCK = b"\x12"
_ENVELOPE_FIRST_SEQUENCE = b"\x40"
_ENVELOPE_COUNT = b"\x48"
_REQUEST_BATCH_ID = b"\x08"
_REQUEST_GROUPS = b"\x1a"
_REQUEST_ASSURANCE = b"\x20"

MAX_GROUP_OVERHEAD_BYTES = 40
"""Most bytes of a group beside the head of its envelope and its block."""

MAX_PREFIX_BYTES = 5
"""Most that a block spends on one message beside the message."""

KNOWN_PREFIXES = 4_096
"""Messages below this size have their prefix ready in ``PREFIXES``."""


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


PREFIXES = tuple(_BLOCK_MESSAGES + _varint(size_bytes) for size_bytes in range(KNOWN_PREFIXES))
"""What stands before a message in a block, by its size."""


def frame_prefix(size_bytes: int) -> bytes:
    """Returns what stands before a message of this size in a block."""
    if size_bytes < KNOWN_PREFIXES:
        return PREFIXES[size_bytes]
    return _BLOCK_MESSAGES + _varint(size_bytes)


def encode_frames(frames: Sequence[bytes], sizes: Set[int] | None = None) -> bytes:
    """Returns an encoded ``MessageBlock``; fast where all messages have one size.

    Args:
        frames: the messages.
        sizes: all sizes that they have, if that is known.
    """
    sizes = sizes or set(map(len, frames))
    if len(sizes) == 1:
        prefix = frame_prefix(next(iter(sizes)))
        return prefix + prefix.join(frames)
    return b"".join(part for frame in frames for part in (frame_prefix(len(frame)), frame))


def iter_frames(block: bytes | bytearray) -> Iterator[bytes]:
    """Yields the messages of a block that was written here."""
    position, end = 0, len(block)
    while position < end:
        size_bytes = shift = 0
        while True:
            position += 1
            size_bytes |= (block[position] & 0x7F) << shift
            if block[position] < 0x80:
                break
            shift += 7
        position += 1
        yield bytes(block[position : position + size_bytes])
        position += size_bytes


def encode_group_parts(
    head: bytes, first_sequence: int, count: int, block: bytes | bytearray
) -> tuple[int, list[bytes | bytearray]]:
    """Returns the size of a group and the parts that it is the concatenation of.

    Args:
        head: encoded ``GroupEnvelope`` without ``first_sequence`` and ``count``.
        first_sequence: of the first message; 0 without a sequence.
        count: of messages.
        block: encoded ``MessageBlock``.
    """
    sequence = _ENVELOPE_FIRST_SEQUENCE + _varint(first_sequence) if first_sequence else b""
    envelope = b"".join((head, sequence, _ENVELOPE_COUNT, _varint(count)))
    before = b"".join(
        (_GROUP_ENVELOPE, _varint(len(envelope)), envelope, _GROUP_BLOCK, _varint(len(block)))
    )
    return len(before) + len(block), [before, block]


def encode_publish_request(
    batch_id: int,
    groups: Iterable[tuple[int, list[bytes | bytearray]]],
    assurance: int,
) -> bytes:
    """Returns an encoded ``PublishStreamRequest``.

    Args:
        batch_id: number of the batch.
        groups: size and parts of each group.
        assurance: number of the ``PublishAssurance``.
    """
    parts: list[bytes | bytearray] = [_REQUEST_BATCH_ID, _varint(batch_id)]
    for size_bytes, group in groups:
        parts += (_REQUEST_GROUPS, _varint(size_bytes), *group)
    parts += (_REQUEST_ASSURANCE, _varint(assurance))
    return b"".join(parts)
