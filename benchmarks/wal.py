"""The log of events: appending, reading back and recovering, beside SQLite and a plain file.

All write the same events in the same batches to the same file system in the same run, taking turns; a
figure is the median of the rounds. What was written is read back and counted each time.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Bar, Metric, NothingDeliveredError, Outcome
from benchmarks.wal_peers import PlainFile, SqliteEvents, SqliteGroups, Store
from collector_core.bus import EnvelopeKey
from collector_core.bus.outbox_group import OutboxGroup
from collector_core.wal import EventLog, SyncPolicy, WalLimits

__all__ = ["measure"]

EVENT_BYTES = 300
GROUP_EVENTS = 100
BATCH_EVENTS = 1_000
ROUNDS, QUICK_ROUNDS = 5, 3
EVENTS, QUICK_EVENTS = 200_000, 50_000
RECOVERY_BYTES, QUICK_RECOVERY_BYTES = 1 << 30, 64 << 20
READ_BYTES = 1 << 20
BAR_PER_S = 100_000.0
LIMITS = WalLimits(max_bytes=4 << 30)
BOOT_ID = "benchmark"


@dataclass(frozen=True, slots=True)
class Case:
    """One way of appending."""

    name: str
    batch_events: int
    sync: SyncPolicy


CASES = (
    Case("appended in batches, on disk", BATCH_EVENTS, SyncPolicy.COMMIT),
    Case("appended in groups, on disk", GROUP_EVENTS, SyncPolicy.COMMIT),
    Case("appended in batches, in the kernel", BATCH_EVENTS, SyncPolicy.INTERVAL),
    Case("appended in groups, in the kernel", GROUP_EVENTS, SyncPolicy.INTERVAL),
)
PEERS: dict[str, Callable[[Path, bool], Store]] = {
    "SQLite, a row an event": SqliteEvents,
    "SQLite, a row a group": SqliteGroups,
    "plain file": PlainFile,
}


class Log:
    """Our log as a store."""

    def __init__(self, directory: Path, is_synced: bool) -> None:
        sync = SyncPolicy.COMMIT if is_synced else SyncPolicy.INTERVAL
        self._directory = directory / "log"
        self._log = EventLog.open(self._directory, LIMITS, sync=sync, boot_id=BOOT_ID)
        self._key = _key(self._log.epoch)

    def append(self, groups: Sequence[OutboxGroup]) -> None:
        """Appends one batch."""
        self._log.append(groups)

    def read(self) -> int:
        """Reads everything back; returns how many events that were."""
        count, cursor = 0, 1
        while groups := self._log.read(self._log.epoch, cursor, 1 << 60, READ_BYTES):
            count += sum(group.count for group in groups)
            cursor = groups[-1].next_sequence
        return count

    def rekey(self, groups: Iterable[OutboxGroup]) -> list[OutboxGroup]:
        """Returns the groups as those of its epoch."""
        return [_with_key(group, self._key) for group in groups]

    def close(self) -> None:
        """Closes it, as a crash would."""
        self._log.close(clean=False)

    def check(self) -> int:
        """Recovers it; returns how many events it has."""
        log = EventLog.open(self._directory, LIMITS, boot_id=BOOT_ID)
        try:
            return log.unacknowledged_count
        finally:
            log.close()


async def measure(quick: bool) -> Outcome:
    """Measures all of them with the same events."""
    return await asyncio.to_thread(_measure, quick)


def _measure(quick: bool) -> Outcome:
    count = QUICK_EVENTS if quick else EVENTS
    rounds = QUICK_ROUNDS if quick else ROUNDS
    groups = list(_make_groups(count))
    replayed: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="daemoneye-wal-") as place:
        results = [_measure_case(case, groups, Path(place), rounds, replayed) for case in CASES]
        results.append(_metric("read back", "events/s", replayed))
        results.append(_measure_recovery(Path(place), quick))
        file_system = _file_system(Path(place))
    batched = results[0].value
    return Outcome(
        delivered_count=count * rounds * len(CASES),
        settings={
            "events": count,
            "bytes of an event": EVENT_BYTES,
            "events of a group": GROUP_EVENTS,
            "events of a batch": BATCH_EVENTS,
            "rounds": rounds,
            "file system": file_system,
            "figure": "median of the rounds",
        },
        results=results,
        bars=[Bar.at_least("appended in batches, on disk", BAR_PER_S, batched, "events/s")],
        notes=_notes(quick),
    )


def _notes(quick: bool) -> list[str]:
    notes = [
        "on disk: a batch is on stable storage before the next one begins (SQLite: WAL mode,"
        " synchronous=FULL); in the kernel: nobody syncs (SQLite: synchronous=OFF)",
        "SQLite is asked for a quick_check, a plain file is read: neither tells what is missing;"
        " the files are in the page cache",
    ]
    if quick:
        notes.append("recovery was measured with 64 MiB and multiplied by 16: leave QUICK out")
    return notes


def _make_groups(count: int) -> Iterator[OutboxGroup]:
    key, noise = _key(1), os.urandom(EVENT_BYTES)
    for first in range(1, count + 1, GROUP_EVENTS):
        group = OutboxGroup(key, first)
        for sequence in range(first, first + GROUP_EVENTS):
            group.append_frame((b"%d " % sequence + noise)[:EVENT_BYTES])
        yield group


def _key(epoch: int) -> EnvelopeKey:
    return EnvelopeKey(topic="events.process.lifecycle", source_id="bench", epoch=epoch)


def _with_key(group: OutboxGroup, key: EnvelopeKey) -> OutboxGroup:
    made = OutboxGroup(key, group.first_sequence)
    made.extend(bytes(group.block), group.count, group.largest_bytes)
    return made


def _measure_case(
    case: Case,
    groups: Sequence[OutboxGroup],
    place: Path,
    rounds: int,
    replayed: dict[str, list[float]],
) -> Metric:
    figures: dict[str, list[float]] = {}
    is_synced = case.sync is SyncPolicy.COMMIT
    for _ in range(rounds):
        for name, make in {"": Log, **PEERS}.items():
            with tempfile.TemporaryDirectory(dir=place) as directory:
                store = make(Path(directory), is_synced)
                ours = store.rekey(groups) if isinstance(store, Log) else list(groups)
                per_s, read_per_s = _write_and_read(store, ours, case.batch_events)
            figures.setdefault(name, []).append(per_s)
            if case is CASES[0]:
                replayed.setdefault(name, []).append(read_per_s)
    return _metric(case.name, "events/s", figures)


def _write_and_read(
    store: Store, groups: Sequence[OutboxGroup], batch_events: int
) -> tuple[float, float]:
    step = batch_events // GROUP_EVENTS
    count = sum(group.count for group in groups)
    try:
        begun_s = time.perf_counter()
        for start in range(0, len(groups), step):
            store.append(groups[start : start + step])
        written_s = time.perf_counter()
        found = store.read()
        read_s = time.perf_counter()
    finally:
        store.close()
    if found != count:
        raise NothingDeliveredError(f"{count} events were written and {found} read back")
    return count / (written_s - begun_s), count / (read_s - written_s)


def _measure_recovery(place: Path, quick: bool) -> Metric:
    size_bytes = QUICK_RECOVERY_BYTES if quick else RECOVERY_BYTES
    scale = RECOVERY_BYTES / size_bytes
    figures: dict[str, list[float]] = {}
    for name, make in {"": Log, **PEERS}.items():
        with tempfile.TemporaryDirectory(dir=place) as directory:
            store = make(Path(directory), False)
            written = _fill(store, size_bytes)
            store.close()
            begun_s = time.perf_counter()
            found = store.check()
            figures[name] = [(time.perf_counter() - begun_s) * scale]
            if found != written:
                raise NothingDeliveredError(f"{written} events were written, {found} recovered")
    title = "recovery of 1 GiB" + (" (from 64 MiB)" if quick else "")
    return _metric(title, "s", figures)


def _fill(store: Store, size_bytes: int) -> int:
    """Writes that much in batches; returns how many events that were."""
    batch = list(_make_groups(BATCH_EVENTS))
    count = size_bytes // (BATCH_EVENTS * EVENT_BYTES) * BATCH_EVENTS
    for first in range(1, count + 1, BATCH_EVENTS):
        groups = store.rekey(batch) if isinstance(store, Log) else batch
        for index, group in enumerate(groups):
            group.first_sequence = first + index * GROUP_EVENTS
            group.next_sequence = group.first_sequence + group.count
        store.append(groups)
    return count


def _metric(name: str, unit: str, figures: dict[str, list[float]]) -> Metric:
    medians = {peer: statistics.median(values) for peer, values in figures.items()}
    return Metric(name, unit, medians.pop(""), medians)


def _file_system(place: Path) -> str:
    """The type of the file system that the files lie on, without its path."""
    device = place.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return "unknown"
