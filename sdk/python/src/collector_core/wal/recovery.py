"""A log put in order when it is opened: what is intact, what is lost, whether its epoch can go on.

Invariant: nothing that was readable becomes unreadable by it; what is damaged is kept aside before
anything else takes its place.
"""

import logging
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from collector_core.wal.epoch_book import EpochBook
from collector_core.wal.errors import LogUnusableError
from collector_core.wal.files import create_file, is_temporary, replace_file
from collector_core.wal.limits import SyncPolicy
from collector_core.wal.loss import LogLoss, LossList, LossReason
from collector_core.wal.quarantine import Quarantine
from collector_core.wal.scan import Scan, salvage, scan_file
from collector_core.wal.segment import Segment, SegmentVersionError, parse_name
from collector_core.wal.state import EpochState, LogState, StateDamagedError, read_state

__all__ = ["REPAIR_FILE", "STATE_FILE", "Recovered", "Recovery", "recover"]

log = logging.getLogger("daemoneye.wal")

STATE_FILE = "state.json"
REPAIR_FILE = "repair"
"""There from before a segment is repaired until the new epoch is on disk."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a log found and did.

    Args:
        is_new: no log was there.
        was_clean: the last life closed it.
        last_written_ns: newest record or clean close, Unix time; None when there is neither.
        repaired_bytes: bytes of segments that were no records and are cut off or left out.
        quarantined: copies of what was damaged.
        losses: what is lost and was not known to be.
        began_epoch: whether a new epoch begins.
        why_epoch: why; empty when none begins.
    """

    is_new: bool
    was_clean: bool
    last_written_ns: int | None
    repaired_bytes: int
    quarantined: tuple[Path, ...]
    losses: tuple[LogLoss, ...]
    began_epoch: bool
    why_epoch: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a log begins with.

    Args:
        recovery: the story.
        books: by epoch, ascending.
    """

    recovery: Recovery
    books: dict[int, EpochBook]


def recover(directory: Path, boot_id: str, now_ns: int) -> Recovered:
    """Puts the files of a log in order.

    Args:
        directory: of the log, locked.
        boot_id: of this boot.
        now_ns: Unix time.

    Raises:
        LogUnusableError: a file was written by a newer version.
        OSError: a file cannot be read, or cannot be replaced.
    """
    return _Recoverer(directory, now_ns).run(boot_id)


class _Recoverer:
    def __init__(self, directory: Path, now_ns: int) -> None:
        self._directory = directory
        self._now_ns = now_ns
        self._quarantine = Quarantine(directory)
        self._quarantined: list[Path] = []
        self._repaired_bytes = 0
        self._losses: list[LogLoss] = []
        self._named: dict[int, int] = {}

    def run(self, boot_id: str) -> Recovered:
        segments, was_damaged = self._scan_all(), False
        try:
            state = read_state(self._directory / STATE_FILE)
        except StateDamagedError:
            self._keep(self._directory / STATE_FILE)
            state, was_damaged = None, True
        states = {entry.epoch: entry for entry in state.epochs} if state else {}
        epochs = sorted({*states, *(segment.header.epoch for segment in segments)})
        books = {epoch: self._book(epoch, states.get(epoch), segments) for epoch in epochs}
        is_new = not segments and state is None and not was_damaged
        why = "no log was there" if is_new else self._doubt(state, books, was_damaged, boot_id)
        was_clean = bool(state and state.is_clean)
        recovery = Recovery(
            is_new=is_new,
            was_clean=was_clean,
            last_written_ns=_last_written(state, segments),
            repaired_bytes=self._repaired_bytes,
            quarantined=tuple(self._quarantined),
            losses=tuple(self._losses),
            began_epoch=bool(why),
            why_epoch=why,
        )
        return Recovered(recovery, books)

    def _scan_all(self) -> list[Segment]:
        found = sorted(self._iter_segments())
        segments: list[Segment] = []
        for path, identity in found:
            try:
                scan = scan_file(path, identity)
            except SegmentVersionError:
                raise LogUnusableError(
                    f"{path} was written by another version; run that one, or move the log away",
                    path=path,
                ) from None
            if (segment := self._mend(scan, path == found[-1][0])) is not None:
                segments.append(segment)
        return segments

    def _iter_segments(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        for path in self._directory.iterdir():
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and is_temporary(path.name):
                path.unlink()  # it never had a name: whoever wrote it died before
            elif not path.name.endswith(".wal"):
                continue
            elif stat.S_ISREG(status.st_mode) and (identity := parse_name(path.name)):
                yield path, identity
            else:
                log.warning("%s is no segment of a log; it is left alone", path)

    def _mend(self, scan: Scan, is_newest: bool) -> Segment | None:
        segment = scan.segment
        if scan.cut_bytes and is_newest:
            self._cut(segment)
            self._repaired_bytes += scan.cut_bytes
        elif scan.is_damaged or scan.cut_bytes:
            return self._salvage(scan)
        return segment

    def _cut(self, segment: Segment) -> None:
        descriptor = os.open(segment.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, segment.size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _salvage(self, scan: Scan) -> Segment | None:
        path = scan.segment.path
        target = path.with_name(scan.segment.header_name)
        size_bytes = path.stat().st_size
        self._keep(path)
        if target != path and target.exists():
            path.unlink()  # somebody copied a segment; the copy is in quarantine
            return None
        temporary, segment = salvage(scan.segment)
        segment.path = target
        replace_file(temporary, target)
        if target != path:
            path.unlink()
        epoch = segment.header.epoch
        self._named[epoch] = max(self._named.get(epoch, 0), scan.named)
        self._repaired_bytes += max(0, size_bytes - segment.size_bytes)
        return segment

    def _keep(self, path: Path) -> None:
        repair = self._directory / REPAIR_FILE
        if not repair.exists():
            os.close(create_file(repair, b""))
        self._quarantined.append(self._quarantine.keep_file(path, self._now_ns))

    def _book(self, epoch: int, state: EpochState | None, segments: list[Segment]) -> EpochBook:
        ours = [segment for segment in segments if segment.header.epoch == epoch]
        acknowledged = max(segment.header.acknowledged_sequence for segment in ours) if ours else 0
        last = max((segment.last_sequence for segment in ours), default=0)
        last = max(last, self._named.get(epoch, 0))
        losses = LossList()
        if state:
            acknowledged = max(acknowledged, state.acknowledged_sequence)
            last = max(last, state.last_sequence)
            losses = LossList(state.losses)
        book = EpochBook(epoch, max(last, acknowledged), acknowledged, losses)
        for segment in ours:
            book.add_segment(segment)
        for first, last in _missing(book):
            loss = LogLoss(epoch, first, last, LossReason.LOG_CORRUPT, self._now_ns)
            self._losses += book.lose(loss)
        return book

    def _doubt(
        self, state: LogState | None, books: dict[int, EpochBook], was_damaged: bool, boot_id: str
    ) -> str:
        """Returns why a sequence may have been given out that nobody remembers; empty if none."""
        is_lost = (
            state is not None
            and state.sync is SyncPolicy.INTERVAL
            and state.boot_id != boot_id
            and not state.is_clean
        )
        doubts = {
            "state.json is damaged": bool(self._quarantined) and was_damaged,
            "a segment is damaged": bool(self._quarantined),
            "a repair was interrupted": (self._directory / REPAIR_FILE).exists(),
            "state.json is missing": state is None,
            "events are missing": bool(self._losses),
            "the state names what is not there": state is not None and not _goes_on(state, books),
            "the end of a segment was torn": bool(self._repaired_bytes),
            "the host went down before everything was on its disk": is_lost,
        }
        return next((doubt for doubt, is_there in doubts.items() if is_there), "")


def _goes_on(state: LogState, books: dict[int, EpochBook]) -> bool:
    """Whether the newest epoch has the file and the sequences that it had."""
    newest = max(books, default=0)
    if not state.epochs or state.active[0] != newest or state.epochs[-1].epoch != newest:
        return False
    segments = books[newest].segments
    found_last = max((segment.last_sequence for segment in segments), default=0)
    has_active = any(segment.first_sequence >= state.active[1] for segment in segments)
    return has_active and found_last >= books[newest].last_sequence


def _missing(book: EpochBook) -> Iterator[tuple[int, int]]:
    """Yields the ranges past the watermark that are in no segment."""
    expected = book.acknowledged + 1
    for index, segment in enumerate(book.segments):
        if segment.first_sequence > expected:
            yield expected, segment.first_sequence - 1
        last = book.last_of(index)
        yield from ((first, min(end, last)) for first, end in segment.gaps if first <= last)
        expected = max(expected, last + 1)
    if expected <= book.last_sequence:
        yield expected, book.last_sequence


def _last_written(state: LogState | None, segments: list[Segment]) -> int | None:
    times = [segment.newest_ns for segment in segments]
    if state and state.is_clean:
        times.append(state.written_ns)
    return max(times, default=None)


def clamp_times(books: dict[int, EpochBook], now_ns: int) -> None:
    """Lets no segment be newer than now, whatever the clock said when it was written."""
    for book in books.values():
        for segment in book.segments:
            segment.newest_ns = min(segment.newest_ns, now_ns)


def shorten(books: dict[int, EpochBook], max_count: int, max_losses: int) -> list[EpochBook]:
    """Takes the epochs out that are too many, those of which nothing is held first.

    Args:
        books: all are old; their losses are shortened too.
        max_count: how many stay.
        max_losses: ranges that each keeps.
    """
    for book in books.values():
        book.losses = LossList(tuple(book.losses), max_losses)
    by_worth = sorted(books, key=lambda epoch: (books[epoch].unacknowledged_count > 0, epoch))
    return [books.pop(epoch) for epoch in by_worth[: max(0, len(books) - max_count)]]
