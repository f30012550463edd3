"""The log of events as its holder sees it: append, read, acknowledge, bounds, epochs."""

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from collector_core.bus import EnvelopeKey
from collector_core.bus.outbox_group import OutboxGroup
from collector_core.bus.wire import iter_frames
from collector_core.wal import (
    EventLog,
    LogUnusableError,
    LossReason,
    SyncPolicy,
    WalLimits,
)
from daemoneye_mesh.correlation import Correlation
from daemoneye_mesh.errors import InvalidConfigError, InvalidRequestError, PreconditionError

LIMITS = WalLimits(max_bytes=64 << 10, segment_bytes=8 << 10)
ALL = 10**9


@dataclass
class Clock:
    """Time that passes when a test says so."""

    unix_ns: int = 1_700_000_000_000_000_000
    boot_ns: int = 5_000_000_000

    def pass_s(self, seconds: float) -> None:
        self.unix_ns += int(seconds * 1e9)
        self.boot_ns += int(seconds * 1e9)


class Logs:
    """Opens one log as often as a test wants."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self._opened: list[EventLog] = []

    def open(
        self,
        limits: WalLimits = LIMITS,
        sync: SyncPolicy = SyncPolicy.COMMIT,
        boot_id: str = "boot-1",
    ) -> EventLog:
        log = EventLog.open(
            self.directory,
            limits,
            sync=sync,
            boot_id=boot_id,
            now_ns=lambda: self.clock.unix_ns,
            boottime_ns=lambda: self.clock.boot_ns,
        )
        self._opened.append(log)
        return log

    def close(self) -> None:
        for log in self._opened:
            log.close()


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    made = Logs(tmp_path / "log")
    yield made
    made.close()


def frame_of(sequence: int, size_bytes: int = 100) -> bytes:
    return f"event {sequence} ".encode().ljust(size_bytes, b".")


def group_of(
    epoch: int, first: int, count: int, size_bytes: int = 100, topic: str = "events.process.start"
) -> OutboxGroup:
    group = OutboxGroup(EnvelopeKey(topic=topic, source_id="procmond", epoch=epoch), first)
    for sequence in range(first, first + count):
        group.append_frame(frame_of(sequence, size_bytes))
    return group


def append(log: EventLog, count: int, per_group: int = 5, size_bytes: int = 100) -> None:
    for _ in range(count // per_group):
        log.append([group_of(log.epoch, log.last_sequence + 1, per_group, size_bytes)])


def sequences(groups: list[OutboxGroup]) -> list[int]:
    found: list[int] = []
    for group in groups:
        frames = list(iter_frames(group.block))
        assert len(frames) == group.count
        for sequence, frame in enumerate(frames, group.first_sequence):
            assert frame.startswith(f"event {sequence} ".encode())
            found.append(sequence)
    return found


def read(log: EventLog, epoch: int | None = None, first: int = 1, last: int = ALL) -> list[int]:
    return sequences(log.read(epoch or log.epoch, first, last, 1 << 30))


def test_log_gives_back_what_was_appended(logs: Logs) -> None:
    log = logs.open()
    append(log, 20)
    assert read(log) == list(range(1, 21))
    assert log.last_sequence == 20
    assert log.unacknowledged_count == 20


def test_log_gives_back_the_envelope_with_everything(logs: Logs) -> None:
    log = logs.open()
    key = EnvelopeKey(
        topic="events.process.exec",
        source_id="procmond",
        message_type=3,
        event_type=2,
        priority=200,
        ttl_ms=5_000,
        epoch=log.epoch,
        correlation=Correlation(correlation_id="c-1", root_correlation_id="c-1", tags={"a": "b"}),
        message_id="m-1",
    )
    group = OutboxGroup(key, 1)
    group.append_frame(b"payload")
    log.append([group])
    (found,) = log.read(log.epoch, 1, 1, 1)
    assert found.key == key
    assert found.key.head == key.head
    assert (found.count, found.first_sequence, found.next_sequence) == (1, 1, 2)
    assert (found.size_bytes, found.largest_bytes) == (group.size_bytes, group.largest_bytes)
    assert found.block == group.block


@pytest.mark.parametrize(("first", "last"), [(1, 1), (3, 12), (5, 5), (6, 10), (20, 99), (0, 3)])
def test_read_cuts_groups_at_the_edges_of_the_range(logs: Logs, first: int, last: int) -> None:
    log = logs.open()
    append(log, 20)
    assert read(log, first=first, last=last) == list(range(max(1, first), min(20, last) + 1))


def test_read_stops_at_its_budget_and_returns_one_group_at_least(logs: Logs) -> None:
    log = logs.open()
    append(log, 20)
    assert sequences(log.read(log.epoch, 1, ALL, 1)) == [1, 2, 3, 4, 5]
    two = 2 * group_of(log.epoch, 1, 5).size_bytes
    assert sequences(log.read(log.epoch, 3, ALL, two)) == list(range(3, 11))


def test_read_of_an_unknown_epoch_is_refused(logs: Logs) -> None:
    with pytest.raises(InvalidRequestError):
        logs.open().read(7, 1, 2, 100)


def test_append_refuses_a_gap_a_wrong_epoch_and_too_large_a_group(logs: Logs) -> None:
    log = logs.open()
    append(log, 5)
    for wrong in (
        group_of(log.epoch, 7, 1),
        group_of(log.epoch, 5, 1),
        group_of(log.epoch + 1, 6, 1),
        group_of(log.epoch, 6, 1, (2 << 20) + 1),
        OutboxGroup(EnvelopeKey(topic="events.a", source_id="b", epoch=log.epoch), 6),
    ):
        with pytest.raises(ValueError, match="group"):
            log.append([wrong])
    append(log, 5)
    assert read(log) == list(range(1, 11))


def test_log_goes_on_in_its_epoch_after_a_clean_close(logs: Logs) -> None:
    log = logs.open()
    assert log.recovery.is_new
    assert log.recovery.began_epoch
    append(log, 10)
    log.close()
    again = logs.open(boot_id="boot-2")
    assert (again.epoch, again.last_sequence) == (log.epoch, 10)
    assert again.recovery.was_clean
    assert not again.recovery.began_epoch
    append(again, 5)
    assert read(again) == list(range(1, 16))


@pytest.mark.parametrize(
    ("sync", "boot_id", "began"),
    [
        (SyncPolicy.COMMIT, "boot-1", False),
        (SyncPolicy.COMMIT, "boot-2", False),
        (SyncPolicy.INTERVAL, "boot-1", False),
        (SyncPolicy.INTERVAL, "boot-2", True),
    ],
)
def test_epoch_ends_after_a_crash_when_the_disk_may_lack_events(
    logs: Logs, sync: SyncPolicy, boot_id: str, began: bool
) -> None:
    log = logs.open(sync=sync)
    append(log, 10)
    log.close(clean=False)
    again = logs.open(boot_id=boot_id)
    assert not again.recovery.was_clean
    assert again.recovery.began_epoch is began
    assert (again.epoch > log.epoch) is began
    assert read(again, log.epoch) == list(range(1, 11))


def test_epochs_ascend_when_the_clock_was_set_back(logs: Logs) -> None:
    log = logs.open(sync=SyncPolicy.INTERVAL)
    append(log, 5)
    log.close(clean=False)
    logs.clock.unix_ns = 1_000
    again = logs.open(boot_id="boot-2")
    assert again.epoch == log.epoch + 1


def test_highest_sequence_is_kept_when_everything_was_acknowledged(logs: Logs) -> None:
    log = logs.open()
    append(log, 100)
    log.acknowledge(log.epoch, 100)
    log.close(clean=False)
    again = logs.open()
    assert (again.epoch, again.last_sequence) == (log.epoch, 100)
    assert again.unacknowledged_count in (0, 100)  # the watermark may be a second old
    assert not again.recovery.losses


def test_acknowledge_moves_up_only(logs: Logs) -> None:
    log = logs.open()
    append(log, 20)
    assert log.acknowledge(log.epoch, 12) == 12
    assert log.acknowledge(log.epoch, 3) == 12
    assert read(log) == list(range(13, 21))
    assert log.unacknowledged_count == 8
    for epoch, sequence in ((log.epoch, 21), (log.epoch, -1), (log.epoch - 1, 1)):
        with pytest.raises(InvalidRequestError):
            log.acknowledge(epoch, sequence)


def test_acknowledge_lets_go_of_files_but_never_of_more_than_it_says(logs: Logs) -> None:
    log = logs.open()
    append(log, 200)
    before = log.segment_count
    assert before > 2
    logs.clock.pass_s(2)
    log.acknowledge(log.epoch, 100)
    assert 1 < log.segment_count < before
    assert read(log) == list(range(101, 201))
    logs.clock.pass_s(2)
    log.acknowledge(log.epoch, 200)
    log.sync()
    logs.clock.pass_s(2)
    log.sync()
    assert log.segment_count == 1
    assert log.size_bytes < 2 << 10
    assert len(list(logs.directory.glob("*.wal"))) == 1


def test_watermark_survives_a_clean_close(logs: Logs) -> None:
    log = logs.open()
    append(log, 10)
    log.acknowledge(log.epoch, 7)
    log.close()
    (position,) = logs.open().positions()
    assert (position.first_sequence, position.last_sequence) == (8, 10)
    assert position.acknowledged_sequence == 7


def test_full_log_drops_its_oldest_and_says_so(logs: Logs) -> None:
    log = logs.open()
    append(log, 1_000)
    assert log.size_bytes <= LIMITS.max_bytes + LIMITS.segment_bytes
    (position,) = log.positions()
    (loss,) = position.losses
    assert (loss.first_sequence, loss.reason) == (1, LossReason.LOG_FULL)
    assert position.first_sequence == loss.last_sequence + 1
    assert log.lost_count == {"log_full": loss.count}
    assert read(log) == list(range(position.first_sequence, 1_001))
    assert log.losses(log.epoch, 1, 3)[0].last_sequence == 3


def test_loss_is_known_to_the_next_life_and_forgotten_when_acknowledged(logs: Logs) -> None:
    log = logs.open()
    append(log, 1_000)
    losses = log.positions()[0].losses
    log.close(clean=False)
    again = logs.open()
    assert again.positions()[0].losses == losses
    assert not again.recovery.losses
    again.acknowledge(again.epoch, 1_000)
    assert again.positions()[0].losses == ()


def test_acknowledged_events_are_no_loss_when_the_log_is_full(logs: Logs) -> None:
    log = logs.open()
    for _ in range(20):
        append(log, 50)
        log.acknowledge(log.epoch, log.last_sequence)
    assert log.lost_count == {}


def test_old_segments_expire_by_a_clock_that_does_not_jump(logs: Logs) -> None:
    log = logs.open()
    append(log, 100)
    logs.clock.unix_ns += 30 * 86_400 * 10**9  # somebody set the clock
    assert log.enforce_limits() == ()
    logs.clock.pass_s(8 * 86_400)
    (*_, last) = log.enforce_limits()
    assert (last.reason, last.last_sequence) == (LossReason.LOG_EXPIRED, 100)
    assert log.unacknowledged_count == 0
    append(log, 5)
    assert read(log) == [101, 102, 103, 104, 105]


def test_limits_apply_at_once(logs: Logs) -> None:
    log = logs.open()
    append(log, 300)
    log.apply_limits(WalLimits(max_bytes=16 << 10, segment_bytes=8 << 10))
    assert log.size_bytes <= 16 << 10
    assert log.lost_count["log_full"] > 0
    assert read(log)[-1] == 300


@pytest.mark.parametrize(
    "wrong",
    [{"max_bytes": 1}, {"max_age_s": 0.0}, {"max_age_s": float("nan")}, {"segment_bytes": 9}],
)
def test_limits_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidConfigError):
        WalLimits(**wrong)  # type: ignore[arg-type]


def test_refused_events_are_lost_and_skipped(logs: Logs) -> None:
    log = logs.open()
    append(log, 10)
    log.note_refused(log.epoch, 3, 7)
    assert read(log) == [1, 2, 8, 9, 10]
    assert log.lost_count == {"refused": 5}
    assert log.unacknowledged_count == 5
    log.close()
    again = logs.open()
    assert read(again) == [1, 2, 8, 9, 10]
    assert again.epoch == log.epoch


def test_positions_name_at_most_64_losses_and_the_last_stands_for_the_rest(logs: Logs) -> None:
    log = logs.open()
    append(log, 200)
    for sequence in range(2, 200, 2):
        log.note_refused(log.epoch, sequence, sequence)
    (position,) = log.positions()
    assert len(position.losses) == 64
    assert position.losses[-1].first_sequence == 128
    assert position.losses[-1].last_sequence == 198
    assert read(log) == [*range(1, 200, 2), 200]


def test_old_epochs_stay_until_acknowledged_and_are_bounded(logs: Logs) -> None:
    epochs = []
    for number in range(20):
        log = logs.open(sync=SyncPolicy.INTERVAL, boot_id=f"boot-{number}")
        epochs.append(log.epoch)
        append(log, 5)
        log.close(clean=False)
        logs.clock.pass_s(1)
    log = logs.open(boot_id="last")
    positions = log.positions()
    assert [position.epoch for position in positions] == [log.epoch, *reversed(epochs[-16:])]
    assert read(log, epochs[-1]) == [1, 2, 3, 4, 5]
    assert log.unacknowledged_count == 16 * 5
    assert log.lost_count["log_full"] == 5
    for epoch in epochs[-16:]:
        log.acknowledge(epoch, 5)
    logs.clock.pass_s(2)
    log.sync()
    log.acknowledge(epochs[-1], 5)
    assert log.unacknowledged_count == 0
    log.close()
    assert len(list(logs.directory.glob("*.wal"))) == 1


def test_files_are_for_their_owner_alone(logs: Logs) -> None:
    log = logs.open()
    append(log, 100)
    log.close()
    assert stat.S_IMODE(logs.directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in logs.directory.iterdir()}
    assert len(modes) > 3
    assert set(modes.values()) == {0o600}


def test_second_process_is_refused(logs: Logs) -> None:
    log = logs.open()
    with pytest.raises(LogUnusableError, match="another process"):
        logs.open()
    log.close()
    logs.open()


def test_closed_log_refuses_everything(logs: Logs) -> None:
    log = logs.open()
    log.close()
    log.close()
    calls: list[Callable[[], object]] = [
        lambda: log.append([]),
        log.sync,
        lambda: log.read(log.epoch, 1, 1, 1),
        lambda: log.acknowledge(log.epoch, 0),
        log.enforce_limits,
    ]
    for call in calls:
        with pytest.raises(PreconditionError):
            call()


def test_oldest_event_is_as_old_as_its_record(logs: Logs) -> None:
    log = logs.open()
    assert log.oldest_unacknowledged_ns is None
    append(log, 5)
    first_ns = logs.clock.unix_ns
    logs.clock.pass_s(60)
    append(log, 5)
    assert log.oldest_unacknowledged_ns == first_ns
    log.acknowledge(log.epoch, 10)
    assert log.oldest_unacknowledged_ns is None


def test_recovery_says_when_the_log_was_last_written(logs: Logs) -> None:
    log = logs.open()
    append(log, 5)
    written_ns = logs.clock.unix_ns
    logs.clock.pass_s(10)
    log.close(clean=False)
    again = logs.open()
    assert again.recovery.last_written_ns == written_ns
    logs.clock.pass_s(10)
    closed_ns = logs.clock.unix_ns
    again.close()
    logs.clock.pass_s(10)
    assert logs.open().recovery.last_written_ns == closed_ns
