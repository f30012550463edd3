"""Whatever happens to the files of a log: it opens, believes nothing false, recovers what is intact."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collector_core.bus import EnvelopeKey
from collector_core.bus.outbox_group import OutboxGroup
from collector_core.bus.wire import iter_frames
from collector_core.wal import EventLog, WalLimits
from collector_core.wal.loss import LogLoss, LossList, LossReason
from collector_core.wal.record import HEADER_BYTES, RECORD_MAGIC, parse_record
from collector_core.wal.segment import SEGMENT_HEADER_BYTES, decode_header
from collector_core.wal.state import StateDamagedError, read_state

LIMITS = WalLimits(max_bytes=1 << 20, segment_bytes=4 << 10)
COUNT = 140
ACKNOWLEDGED = 4
SHARED_MEMORY = Path("/dev/shm")

Mutate = Callable[[bytes], bytes]


def scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)


def frame_of(epoch: int, sequence: int) -> bytes:
    return f"event {sequence} of {epoch} ".encode().ljust(60 + sequence % 50, b".")


def append(log: EventLog, per_group: int, key_epoch: int) -> None:
    key = EnvelopeKey(topic="events.process.start", source_id="procmond", epoch=key_epoch)
    first = log.last_sequence + 1
    group = OutboxGroup(key, first)
    for sequence in range(first, first + per_group):
        group.append_frame(frame_of(log.epoch, sequence))
    log.append([group])


def read(log: EventLog, epoch: int) -> set[int]:
    found: list[int] = []
    for group in log.read(epoch, 1, 10**9, 1 << 30):
        frames = list(iter_frames(group.block))
        assert len(frames) == group.count
        for sequence, frame in enumerate(frames, group.first_sequence):
            assert frame == frame_of(epoch, sequence)
            found.append(sequence)
    assert found == sorted(set(found))
    return set(found)


def records_of(content: bytes) -> dict[bytes, range]:
    found: dict[bytes, range] = {}
    offset = SEGMENT_HEADER_BYTES
    while offset < len(content):
        record = parse_record(content, offset, len(content) - offset, None)
        whole = content[offset : offset + record.size_bytes]  # type: ignore[union-attr]
        found[whole] = range(record.first_sequence, record.last_sequence + 1)  # type: ignore[union-attr]
        offset += len(whole)
    return found


@dataclass(frozen=True)
class Template:
    """A log that was closed cleanly."""

    files: dict[str, bytes]
    epoch: int
    records: dict[bytes, range]

    @property
    def segments(self) -> list[str]:
        return sorted(name for name in self.files if name.endswith(".wal"))


@pytest.fixture(scope="module")
def template() -> Template:
    with scratch() as place:
        directory = Path(place) / "log"
        log = EventLog.open(directory, LIMITS, boot_id="boot")
        while log.last_sequence < COUNT:
            append(log, min(1 + log.last_sequence % 4, COUNT - log.last_sequence), log.epoch)
        log.acknowledge(log.epoch, ACKNOWLEDGED)
        log.close()
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
    records: dict[bytes, range] = {}
    for name, content in files.items():
        if name.endswith(".wal"):
            records |= records_of(content)
    made = Template(files, log.epoch, records)
    assert len(made.segments) > 3
    return made


def flip(at: int, bit: int) -> Mutate:
    def mutate(content: bytes) -> bytes:
        changed = bytearray(content)
        if changed:
            changed[at % len(changed)] ^= 1 << bit
        return bytes(changed)

    return mutate


def cut(at: int) -> Mutate:
    return lambda content: content[: at % (len(content) + 1)]


def insert(at: int, what: bytes) -> Mutate:
    def mutate(content: bytes) -> bytes:
        place = at % (len(content) + 1)
        return content[:place] + what + content[place:]

    return mutate


def repeat(at: int, size_bytes: int, to: int) -> Mutate:
    """Puts a piece of the file somewhere else in it again."""

    def mutate(content: bytes) -> bytes:
        start = at % (len(content) + 1)
        return insert(to, content[start : start + size_bytes])(content)

    return mutate


def remove(at: int, size_bytes: int) -> Mutate:
    def mutate(content: bytes) -> bytes:
        place = at % (len(content) + 1)
        return content[:place] + content[place + size_bytes :]

    return mutate


def zero(at: int, size_bytes: int) -> Mutate:
    def mutate(content: bytes) -> bytes:
        place = at % (len(content) + 1)
        cleared = bytes(min(size_bytes, len(content) - place))
        return content[:place] + cleared + content[place + len(cleared) :]

    return mutate


places = st.integers(0, 5_000)
sizes = st.integers(1, 1_000)
garbage = st.binary(max_size=200) | st.just(RECORD_MAGIC * 3) | st.just(bytes(300))
mutations = st.one_of(
    st.builds(flip, places, st.integers(0, 7)),
    st.builds(cut, places),
    st.builds(insert, places, garbage),
    st.builds(repeat, places, sizes, places),
    st.builds(remove, places, sizes),
    st.builds(zero, places, sizes),
    st.builds(lambda content: lambda _: content, garbage),
    st.none(),
)
damages = st.lists(st.tuples(st.integers(0, 50), mutations), min_size=1, max_size=5)


def damage(template: Template, what: list[tuple[int, Mutate | None]]) -> dict[str, bytes]:
    files = dict(template.files)
    names = [*template.segments, "state.json"]
    for index, mutate in what:
        name = names[index % len(names)]
        content = files.pop(name, None)
        if mutate is not None and content is not None:
            files[name] = mutate(content)
    return files


@given(what=damages)
@example(what=[(0, None)])
@settings(max_examples=250)
def test_log_recovers_what_is_intact_and_nothing_else(
    template: Template, what: list[tuple[int, Mutate | None]]
) -> None:
    files = damage(template, what)
    segments = {name: content for name, content in files.items() if name.endswith(".wal")}
    intact = {
        sequence
        for record, range_ in template.records.items()
        if any(record in content for content in segments.values())
        for sequence in range_
    }
    with scratch() as place:
        directory = Path(place) / "log"
        directory.mkdir(mode=0o700)
        for name, content in files.items():
            (directory / name).write_bytes(content)
        check_recovery(directory, template, intact)
        check_later_life(directory)


def check_recovery(directory: Path, template: Template, intact: set[int]) -> None:
    log = EventLog.open(directory, LIMITS, boot_id="boot")
    try:
        positions = {position.epoch: position for position in log.positions()}
        if template.epoch in positions:
            position = positions[template.epoch]
            found = read(log, template.epoch)
            lost = {
                sequence
                for loss in log.losses(template.epoch, 1, COUNT)
                for sequence in range(loss.first_sequence, loss.last_sequence + 1)
            }
            expected = {number for number in intact if number > position.acknowledged_sequence}
            assert found >= expected
            assert position.acknowledged_sequence in (0, ACKNOWLEDGED) or not intact
            held = range(position.acknowledged_sequence + 1, position.last_sequence + 1)
            assert found | lost == set(held)
            assert not found & lost
        else:
            assert not intact
        assert log.epoch > template.epoch or log.last_sequence == COUNT
        append(log, 3, log.epoch)
    finally:
        log.close()


def check_later_life(directory: Path) -> None:
    log = EventLog.open(directory, LIMITS, boot_id="boot")
    try:
        assert log.recovery.was_clean
        assert not log.recovery.began_epoch
        assert not log.recovery.losses
        assert not log.recovery.repaired_bytes
        assert log.last_sequence in read(log, log.epoch)
    finally:
        log.close()


@given(content=st.binary(max_size=HEADER_BYTES * 3), at=st.integers(0, 40))
def test_parser_believes_no_bytes_that_nobody_wrote(content: bytes, at: int) -> None:
    framed = content[:at] + RECORD_MAGIC + content[at:]
    for position in range(len(framed)):
        found = parse_record(framed, position, len(framed) - position, None)
        assert not hasattr(found, "event_count")
    assert decode_header(content) is None


STATE_KEYS = ["boot_id", "sync", "clean", "written_ns", "active", "epochs"]
keys = st.sampled_from(["format", "epochs", "active", "checksum", "sync"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(content=st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
@example(content=b"0")
def test_state_is_refused_unless_a_log_wrote_it(content: bytes) -> None:
    with scratch() as place:
        path = Path(place) / "state.json"
        path.write_bytes(content)
        with pytest.raises(StateDamagedError):
            read_state(path)


@given(
    document=st.fixed_dictionaries(
        {"format": st.just(1)}, optional=dict.fromkeys(STATE_KEYS, json_values)
    )
)
def test_state_with_a_right_checksum_is_read_or_refused(document: dict[str, object]) -> None:
    compact = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document = {**document, "checksum": crc32(compact.encode())}
    with scratch() as place:
        path = Path(place) / "state.json"
        path.write_text(json.dumps(document))
        with pytest.raises(StateDamagedError):
            read_state(path)


ranges = st.tuples(st.integers(1, 60), st.integers(0, 20))
steps = st.lists(st.tuples(ranges, st.sampled_from(LossReason), st.integers(0, 3)), max_size=40)


@given(steps=steps)
def test_losses_count_each_event_once(
    steps: list[tuple[tuple[int, int], LossReason, int]],
) -> None:
    losses, model, forgotten = LossList(), set[int](), 0
    for (start, more), reason, forget in steps:
        first = max(start, forgotten + 1)
        added = losses.add(LogLoss(1, first, first + more, reason, 1))
        new = {
            number
            for loss in added
            for number in range(loss.first_sequence, loss.last_sequence + 1)
        }
        assert new == set(range(first, first + more + 1)) - model
        model |= new
        if forget:
            forgotten = max(forgotten, first)
            losses.forget(forgotten)
            model = {number for number in model if number > forgotten}
        assert losses.count == len(model)
        held = [number for low, high in losses.held(1, 100) for number in range(low, high + 1)]
        assert held == [number for number in range(1, 101) if number not in model]


def test_too_many_losses_become_fewer_and_larger() -> None:
    losses = LossList(max_count=4)
    lost = 0
    for first in (1, 10, 13, 30, 50, 80):
        added = losses.add(LogLoss(1, first, first, LossReason.REFUSED, 1))
        lost += sum(loss.count for loss in added)
    assert len(losses) == 4
    assert losses.count == lost == sum(loss.count for loss in losses)
    assert [(loss.first_sequence, loss.last_sequence) for loss in losses] == [
        (1, 13),
        (30, 30),
        (50, 50),
        (80, 80),
    ]
