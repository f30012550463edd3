"""The bytes of docs/wal.md: other SDKs write and read the same."""

import json
import re
from pathlib import Path
from zlib import crc32

import pytest

from collector_core.bus import EnvelopeKey
from collector_core.bus.outbox_group import OutboxGroup
from collector_core.wal import EventLog, LossReason, SyncPolicy, WalLimits
from collector_core.wal.loss import LogLoss
from collector_core.wal.record import MAX_BODY_BYTES, Damage, Record, encode_record, parse_record
from collector_core.wal.segment import (
    SegmentHeader,
    SegmentVersionError,
    decode_header,
    encode_header,
    parse_name,
    segment_name,
)
from collector_core.wal.state import EpochState, LogState, encode_state, read_state

DOCUMENT = Path(__file__).parents[2] / "docs" / "wal.md"
SALT = 0x0123456789ABCDEF
EPOCH = 10_000_000_000
HEADER = SegmentHeader(
    epoch=EPOCH,
    first_sequence=1,
    acknowledged_sequence=0,
    salt=SALT,
    created_ns=10_000_000_000,
    boot_id="boot-1",
)


def example_group() -> OutboxGroup:
    group = OutboxGroup(EnvelopeKey(topic="events.a", source_id="b", epoch=EPOCH), 1)
    group.append_frame(b"one")
    group.append_frame(b"three")
    return group


def example_bytes() -> bytes:
    return encode_header(HEADER) + b"".join(encode_record(example_group(), SALT, 10_000_000_001))


def documented_bytes() -> bytes:
    (block,) = re.findall(r"```text\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return bytes.fromhex(block)


def test_bytes_of_the_document_are_those_that_are_written() -> None:
    assert documented_bytes() == example_bytes()


def test_log_reads_the_bytes_of_the_document(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    directory.mkdir(mode=0o700)
    (directory / segment_name(EPOCH, 1)).write_bytes(documented_bytes())
    log = EventLog.open(directory, WalLimits(), boot_id="boot-2")
    (group,) = log.read(EPOCH, 1, 2, 100)
    log.close()
    assert group.block == example_group().block
    assert (group.count, group.largest_bytes, group.key.topic) == (2, 5, "events.a")


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = LogState(
        boot_id="boot-1",
        sync=SyncPolicy.INTERVAL,
        is_clean=True,
        written_ns=5,
        active=(EPOCH, 1),
        epochs=(
            EpochState(3, 9, 2, (LogLoss(3, 4, 6, LossReason.REFUSED, 77),)),
            EpochState(EPOCH, 2, 0, ()),
        ),
    )
    path = tmp_path / "state.json"
    path.write_bytes(encode_state(state))
    assert read_state(path) == state
    document = json.loads(path.read_text())
    checksum = document.pop("checksum")
    assert document["epochs"] == [[3, 9, 2, [[4, 6, 3, 77]]], [EPOCH, 2, 0, []]]
    compact = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert checksum == crc32(compact.encode())


def test_largest_state_fits_its_file() -> None:
    top = 2**62 - 1
    loss = LogLoss(1, top - 1, top, LossReason.REFUSED, 2**63 - 1)
    old = [EpochState(top - 20 + number, top, top, (loss,) * 32) for number in range(16)]
    state = LogState(
        boot_id="x" * 36,
        sync=SyncPolicy.INTERVAL,
        is_clean=False,
        written_ns=2**63 - 1,
        active=(top, top),
        epochs=(*old, EpochState(top, top, top, (loss,) * 448)),
    )
    assert len(encode_state(state)) <= 64 << 10


def test_header_is_read_as_it_was_written_and_not_with_a_flipped_bit() -> None:
    content = encode_header(HEADER)
    assert decode_header(content) == HEADER
    for index in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[index // 8] ^= 1 << index % 8
        assert decode_header(bytes(flipped)) is None
    assert decode_header(content[:-1]) is None


def test_header_of_another_version_is_told_from_a_damaged_one() -> None:
    content = bytearray(encode_header(HEADER))
    content[8] = 2
    content[-4:] = crc32(content[:-4]).to_bytes(4, "little")
    with pytest.raises(SegmentVersionError):
        decode_header(bytes(content))


def test_record_with_any_flipped_bit_is_no_record() -> None:
    content = b"".join(encode_record(example_group(), SALT, 1))
    assert isinstance(parse_record(content, 0, len(content), SALT), Record)
    assert isinstance(parse_record(content, 0, len(content), SALT + 1), Damage)
    for index in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[index // 8] ^= 1 << index % 8
        assert isinstance(parse_record(bytes(flipped), 0, len(content), SALT), Damage)


def test_record_that_ends_early_is_the_beginning_of_one() -> None:
    content = b"".join(encode_record(example_group(), SALT, 1))
    for end in range(1, len(content)):
        found = parse_record(content[:end], 0, end, SALT)
        assert isinstance(found, Damage)
        assert found.is_prefix
        assert found.named == ((1, 2) if end >= 64 else None)


def test_record_beyond_its_bound_is_neither_written_nor_read() -> None:
    group = example_group()
    group.append_frame(bytes(MAX_BODY_BYTES))
    with pytest.raises(ValueError, match="larger"):
        encode_record(group, SALT, 1)
    content = bytearray(b"".join(encode_record(example_group(), SALT, 1)))
    content[12:16] = (MAX_BODY_BYTES + 1).to_bytes(4, "little")
    content[60:64] = crc32(content[:60]).to_bytes(4, "little")
    assert parse_record(bytes(content), 0, 1 << 40, SALT) == Damage(False)


def test_names_sort_as_segments_follow_each_other() -> None:
    places = [(1, 2), (1, 10), (1, 300), (2, 1), (2**61, 1)]
    names = [segment_name(*place) for place in places]
    assert sorted(names) == names
    assert [parse_name(name) for name in names] == places
    for wrong in ("0" * 16 + "-" + "1".rjust(16, "0") + ".wal", names[0].upper(), names[0] + "x"):
        assert parse_name(wrong) is None
