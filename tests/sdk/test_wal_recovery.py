"""What a log makes of damaged files: torn ends, flipped bits, missing files, a state nobody can read."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest

from collector_core.bus import EnvelopeKey
from collector_core.bus.outbox_group import OutboxGroup
from collector_core.bus.wire import iter_frames
from collector_core.wal import EventLog, LogUnusableError, LossReason, SyncPolicy, WalLimits
from collector_core.wal.segment import SEGMENT_HEADER_BYTES

LIMITS = WalLimits(max_bytes=1 << 20, segment_bytes=8 << 10)
PER_GROUP = 5


class Logs:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: list[EventLog] = []

    def open(self, sync: SyncPolicy = SyncPolicy.COMMIT) -> EventLog:
        self._opened.append(EventLog.open(self.directory, LIMITS, sync=sync, boot_id="boot"))
        return self._opened[-1]

    def close(self) -> None:
        for log in self._opened:
            log.close()

    def segments(self) -> list[Path]:
        return sorted(self.directory.glob("*.wal"))

    def quarantined(self) -> list[Path]:
        return sorted((self.directory / "quarantine").glob("*"))

    def fill(self, count: int, clean: bool = True) -> int:
        log = self.open()
        append(log, count)
        log.close(clean)
        return log.epoch


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    made = Logs(tmp_path / "log")
    yield made
    made.close()


def append(log: EventLog, count: int) -> None:
    for _ in range(count // PER_GROUP):
        first = log.last_sequence + 1
        key = EnvelopeKey(topic="events.process.start", source_id="procmond", epoch=log.epoch)
        group = OutboxGroup(key, first)
        for sequence in range(first, first + PER_GROUP):
            group.append_frame(f"event {sequence} ".encode().ljust(100, b"."))
        log.append([group])


def read(log: EventLog, epoch: int) -> list[int]:
    found: list[int] = []
    for group in log.read(epoch, 1, 10**9, 1 << 30):
        for sequence, frame in enumerate(iter_frames(group.block), group.first_sequence):
            assert frame.startswith(f"event {sequence} ".encode())
            found.append(sequence)
    return found


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def record_offsets(path: Path) -> list[int]:
    content = path.read_bytes()
    offsets, offset = [], SEGMENT_HEADER_BYTES
    while offset < len(content):
        offsets.append(offset)
        head = int.from_bytes(content[offset + 8 : offset + 12], "little")
        block = int.from_bytes(content[offset + 12 : offset + 16], "little")
        offset += 64 + head + block
    assert offset == len(content)
    return offsets


def test_torn_end_is_cut_at_every_byte_of_the_last_record(logs: Logs, tmp_path: Path) -> None:
    epoch = logs.fill(10, clean=False)
    # What a crash in the middle of the third append leaves behind.
    whole = tmp_path / "whole"
    shutil.copytree(logs.directory, whole)
    (segment,) = logs.segments()
    content = segment.read_bytes()
    *_, last = record_offsets(segment)
    for end in range(last, len(content)):
        shutil.rmtree(logs.directory)
        shutil.copytree(whole, logs.directory)
        os.truncate(segment, end)
        log = logs.open()
        # With nothing of it there, nobody can have seen it; else somebody may have, before it broke.
        is_torn = end > last
        assert (log.epoch > epoch, log.last_sequence) == (is_torn, 0 if is_torn else 5)
        assert log.recovery.repaired_bytes == end - last
        assert not log.recovery.quarantined
        append(log, 5)
        held = [*read(log, epoch), *(read(log, log.epoch) if is_torn else ())]
        assert held == ([*range(1, 6), *range(1, 6)] if is_torn else [*range(1, 11)])
        log.close()


def test_end_that_was_said_to_be_there_is_a_loss_and_ends_the_epoch(logs: Logs) -> None:
    epoch = logs.fill(10)  # the clean close says that there are ten
    (segment,) = logs.segments()
    os.truncate(segment, record_offsets(segment)[-1] + 70)
    log = logs.open()
    assert log.epoch > epoch
    assert read(log, epoch) == [1, 2, 3, 4, 5]
    (loss,) = log.recovery.losses
    assert (loss.first_sequence, loss.last_sequence) == (6, 10)
    assert loss.reason is LossReason.LOG_CORRUPT
    assert log.lost_count == {"log_corrupt": 5}


@pytest.mark.parametrize("garbage", [b"\0" * 4096, b"garbage", b"\xdeEr\n" * 100])
def test_garbage_at_the_end_is_kept_aside_and_ends_the_epoch(logs: Logs, garbage: bytes) -> None:
    epoch = logs.fill(10, clean=False)
    (segment,) = logs.segments()
    with segment.open("ab") as file:
        file.write(garbage)
    log = logs.open()
    assert log.epoch > epoch
    assert read(log, epoch) == list(range(1, 11))
    (kept,) = logs.quarantined()
    assert kept.read_bytes().endswith(garbage)
    assert log.recovery.quarantined == (kept,)
    assert not log.recovery.losses


def test_damaged_record_costs_its_own_events_only(logs: Logs) -> None:
    epoch = logs.fill(50)
    segment = logs.segments()[0]
    flip(segment, record_offsets(segment)[2] + 100)
    log = logs.open()
    lost = set(range(11, 16))
    assert read(log, epoch) == [sequence for sequence in range(1, 51) if sequence not in lost]
    assert [(loss.first_sequence, loss.last_sequence) for loss in log.recovery.losses] == [(11, 15)]
    assert log.recovery.why_epoch == "a segment is damaged"
    log.close()
    again = logs.open()
    assert again.epoch == log.epoch
    assert not again.recovery.quarantined
    assert again.positions()[1].losses == log.recovery.losses


def test_flipped_length_leads_nobody_astray(logs: Logs) -> None:
    epoch = logs.fill(20)
    (segment,) = logs.segments()
    offset = record_offsets(segment)[1]
    content = bytearray(segment.read_bytes())
    content[offset + 12 : offset + 16] = (1 << 31).to_bytes(4, "little")
    segment.write_bytes(content)
    assert read(logs.open(), epoch) == [*range(1, 6), *range(11, 21)]


def test_damaged_header_costs_nothing(logs: Logs) -> None:
    epoch = logs.fill(20)
    (segment,) = logs.segments()
    flip(segment, 20)
    log = logs.open()
    assert read(log, epoch) == list(range(1, 21))
    assert log.epoch > epoch
    assert not log.recovery.losses


def test_record_inside_an_event_is_not_taken_for_one(logs: Logs) -> None:
    """Who can choose the bytes of an event cannot make the log believe a record in them."""
    log = logs.open()
    append(log, 5)
    (segment,) = logs.segments()
    content = segment.read_bytes()
    forged = bytearray(content[SEGMENT_HEADER_BYTES:])
    forged[32:40] = (12345).to_bytes(8, "little")  # the salt of the segment is what he cannot know
    forged[56:60] = crc32(forged[64:], crc32(forged[:56])).to_bytes(4, "little")
    forged[60:64] = crc32(forged[:60]).to_bytes(4, "little")
    key = EnvelopeKey(topic="events.process.start", source_id="procmond", epoch=log.epoch)
    group = OutboxGroup(key, 6)
    group.append_frame(bytes(forged))
    log.append([group])
    log.close()
    offset = record_offsets(segment)[1]
    flip(segment, offset + 8)
    assert read(logs.open(), log.epoch) == [1, 2, 3, 4, 5]


def test_deleted_segment_is_a_loss(logs: Logs) -> None:
    epoch = logs.fill(100)
    first, second, *_ = logs.segments()
    lost = range(1, int(second.stem.split("-")[1], 16))
    first.unlink()
    log = logs.open()
    assert read(log, epoch) == list(range(lost.stop, 101))
    assert log.recovery.losses[0].last_sequence == lost.stop - 1
    assert log.recovery.why_epoch == "events are missing"


def test_deleted_newest_segment_ends_the_epoch_even_if_it_was_empty(logs: Logs) -> None:
    epoch = logs.fill(100)
    logs.segments()[-1].unlink()
    log = logs.open()
    assert log.epoch > epoch
    assert log.recovery.losses[-1].last_sequence == 100


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other_type(path: Path) -> None:
    path.write_text('{"format": 1, "checksum": []}')


def _nested(path: Path) -> None:
    path.write_text("[" * 50_000)


def _edited(path: Path) -> None:
    document = json.loads(path.read_text())
    document["epochs"][0][2] = 3
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("damage", [_remove, _empty, _other_type, _nested, _edited])
def test_epoch_ends_when_the_state_cannot_be_believed(
    logs: Logs, damage: Callable[[Path], None]
) -> None:
    epoch = logs.fill(20)
    damage(logs.directory / "state.json")
    log = logs.open()
    assert log.epoch > epoch
    assert log.recovery.why_epoch.startswith("state.json is")
    assert read(log, epoch) == list(range(1, 21))


def test_watermark_of_a_lost_state_is_that_of_the_newest_segment(logs: Logs) -> None:
    log = logs.open()
    append(log, 40)
    log.acknowledge(log.epoch, 40)
    append(log, 100)
    log.close()
    (logs.directory / "state.json").unlink()
    again = logs.open()
    assert not again.recovery.losses
    assert read(again, log.epoch)[-1] == 140


def test_repair_that_was_interrupted_ends_the_epoch(logs: Logs) -> None:
    epoch = logs.fill(10)
    (logs.directory / "repair").touch(0o600)
    log = logs.open()
    assert log.epoch > epoch
    assert log.recovery.why_epoch == "a repair was interrupted"
    assert not (logs.directory / "repair").exists()


def test_other_files_are_left_alone(logs: Logs, tmp_path: Path) -> None:
    epoch = logs.fill(10)
    strange = ["notes.txt", "1-2.wal", "ffffffffffffffff-0000000000000001.wal", "x.wal"]
    for name in strange:
        (logs.directory / name).write_bytes(b"mine")
    target = tmp_path / "target"
    target.write_bytes(b"not ours")
    link = logs.directory / f"{epoch + 9:016x}-{1:016x}.wal"
    link.symlink_to(target)
    (logs.directory / ".half.wal.0123.tmp").touch()
    log = logs.open()
    assert log.epoch == epoch
    assert all((logs.directory / name).read_bytes() == b"mine" for name in strange)
    assert target.read_bytes() == b"not ours"
    assert link.is_symlink()
    assert not (logs.directory / ".half.wal.0123.tmp").exists()


def test_segment_of_another_version_is_not_touched(logs: Logs) -> None:
    logs.fill(10)
    (segment,) = logs.segments()
    content = bytearray(segment.read_bytes())
    content[8] = 2
    content[92:96] = crc32(content[:92]).to_bytes(4, "little")
    segment.write_bytes(content)
    with pytest.raises(LogUnusableError, match="another version"):
        logs.open()
    assert segment.read_bytes() == bytes(content)


def test_renamed_and_copied_segments_are_found_out(logs: Logs) -> None:
    epoch = logs.fill(100)
    first, second, *_ = logs.segments()
    shutil.copy(second, first.with_name(f"{epoch:016x}-{5000:016x}.wal"))
    first.rename(first.with_name(f"{epoch:016x}-{7000:016x}.wal"))
    log = logs.open()
    assert read(log, epoch) == list(range(1, 101))
    assert first.exists()
    assert log.positions()[1].last_sequence == 100


def test_record_that_turns_out_damaged_while_reading_is_a_loss(logs: Logs) -> None:
    log = logs.open()
    append(log, 100)
    segment = logs.segments()[1]
    first = int(segment.stem.split("-")[1], 16)
    flip(segment, record_offsets(segment)[1] + 90)
    lost = range(first + 5, first + 10)
    assert read(log, log.epoch) == [number for number in range(1, 101) if number not in lost]
    assert log.lost_count == {"log_corrupt": 5}
    assert len(logs.quarantined()) == 1
    append(log, 5)
    log.close()
    again = logs.open()
    assert not again.recovery.began_epoch
    assert len(read(again, log.epoch)) == 100


def test_damage_in_the_segment_that_is_appended_to_is_a_loss(logs: Logs) -> None:
    log = logs.open()
    append(log, 20)
    (segment,) = logs.segments()
    flip(segment, record_offsets(segment)[3] + 90)
    assert read(log, log.epoch) == list(range(1, 16))
    append(log, 5)
    assert read(log, log.epoch) == [*range(1, 16), *range(21, 26)]


def test_segment_that_vanishes_while_the_log_is_open_is_a_loss(logs: Logs) -> None:
    log = logs.open()
    append(log, 100)
    first, second, *_ = logs.segments()
    first.unlink()
    kept = int(second.stem.split("-")[1], 16)
    assert read(log, log.epoch) == list(range(kept, 101))
    assert log.lost_count == {"log_corrupt": kept - 1}


def test_quarantine_is_bounded(logs: Logs) -> None:
    logs.fill(10)
    for _ in range(20):
        segment = logs.segments()[0]
        with segment.open("ab") as file:
            file.write(b"garbage")
        logs.open().close()
    assert len(logs.quarantined()) == 16
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in logs.quarantined())


def test_epoch_ends_when_more_was_acknowledged_than_is_there(logs: Logs) -> None:
    log = logs.open()
    append(log, 10)
    log.acknowledge(log.epoch, 10)
    log.close()
    (segment,) = logs.segments()
    os.truncate(segment, record_offsets(segment)[1])
    again = logs.open()
    assert again.epoch > log.epoch
    assert not again.recovery.losses
    assert again.positions()[1].last_sequence == 10


def test_segment_stamped_in_the_future_expires_like_any_other(tmp_path: Path) -> None:
    week_ns = 7 * 86_400 * 10**9
    now = [10 * week_ns]
    directory = tmp_path / "log"

    def opened() -> EventLog:
        return EventLog.open(
            directory, LIMITS, boot_id="boot", now_ns=lambda: now[0], boottime_ns=lambda: now[0]
        )

    log = opened()
    append(log, 10)
    log.close()
    now[0] = 5 * week_ns  # the clock was wrong before
    log = opened()
    now[0] += 2 * week_ns
    (loss,) = log.enforce_limits()
    log.close()
    assert (loss.last_sequence, loss.reason) == (10, LossReason.LOG_EXPIRED)
