"""Keeps the progress of every source, and the losses, in the event store's database.

Invariant: what memory holds equals what the last commit wrote; after a rollback everything is
forgotten and read again. At most ``max_epochs`` epochs and ``max_ranges`` losses a source are kept:
older epochs are forgotten and the oldest ranges merged, and both are counted. What a source misses is
open when it is a replay source, and lost at once when it is not.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import apsw

from daemoneye_agent.loss import (
    EpochProgress,
    Loss,
    LossChanges,
    LossReason,
    LossState,
    MissingRange,
    Shortfall,
)
from daemoneye_agent.progress import SourceProgress

__all__ = ["ProgressTable", "SavedProgress"]

_CACHED_SOURCES = 1024
_FORGET_EPOCH = (
    "DELETE FROM event_losses WHERE source_id = ? AND source_epoch = ?",
    "DELETE FROM event_sources WHERE source_id = ? AND source_epoch = ?",
)
_COUNT_LOSSES = """SELECT count(*), total(last_sequence - first_sequence + 1),
    total(iif(state = 'open', last_sequence - first_sequence + 1, 0)) FROM event_losses"""
_SELECT_RANGES = """SELECT first_sequence, last_sequence, reason, recorded_ns, loss_id, state
    FROM event_losses WHERE source_id = ? AND source_epoch = ? ORDER BY first_sequence"""


@dataclass(slots=True)
class SavedProgress:
    """What saving the progress of one batch did."""

    losses: list[Loss] = field(default_factory=list)
    """Ranges that are new."""
    settled: list[Loss] = field(default_factory=list)
    """What was open before and is lost now."""
    merged_ranges: int = 0
    """Ranges that gave up their own row to keep within the bound."""
    forgotten_epochs: int = 0
    """Epochs whose progress was let go to keep within the bound."""
    progress: list[EpochProgress] = field(default_factory=list)
    """How far every epoch is that was touched."""
    grown: set[str] = field(default_factory=set)
    """Sources that have more rows than before."""

    @property
    def lost(self) -> list[Loss]:
        """Everything that nobody has any more and that was not known as lost before."""
        return [loss for loss in self.losses if loss.state is LossState.LOST] + self.settled


class ProgressTable:
    """Progress by (source, epoch). Every method expects an open transaction."""

    def __init__(self, connection: apsw.Connection, *, max_ranges: int, max_epochs: int) -> None:
        self._connection = connection
        self._max_ranges = max_ranges
        self._max_epochs = max_epochs
        self._known: dict[tuple[str, int], SourceProgress] = {}
        self._touched: set[tuple[str, int]] = set()
        self._replay_sources: set[str] = set()
        self._forgotten_epochs = 0
        self._version = 0

    def reset(self) -> None:
        """Forgets what memory holds, as after a rollback, and reads who can replay."""
        self._known.clear()
        self._touched.clear()
        self._forgotten_epochs = 0
        found = self._connection.execute("SELECT source_id FROM replay_sources")
        self._replay_sources = {str(row[0]) for row in found}

    @property
    def replay_sources(self) -> frozenset[str]:
        """Sources that are expected to send again what is missing."""
        return frozenset(self._replay_sources)

    def expect_replay(self, source_id: str, is_expected: bool) -> None:
        """Remembers whether a source can send again; without, what is open is settled."""
        if is_expected:
            statement = "INSERT OR IGNORE INTO replay_sources VALUES (?)"
            self._replay_sources.add(source_id)
        else:
            statement = "DELETE FROM replay_sources WHERE source_id = ?"
            self._replay_sources.discard(source_id)
            for progress in self._open_of(source_id):
                progress.give_up_open(LossReason.NO_LOG)
        self._connection.execute(statement, (source_id,))

    def give_up_open(self, source_id: str, reason: str) -> None:
        """Settles everything that is open of a source."""
        for progress in self._open_of(source_id):
            progress.give_up_open(reason)

    def reopen(self, source_id: str, epochs: Iterable[int]) -> None:
        """Lets be asked for again what these epochs miss for no better reason than our own."""
        for epoch in epochs:
            if self.peek(source_id, epoch) is not None:
                self.lookup(source_id, epoch).reopen()

    def lookup(self, source_id: str, source_epoch: int) -> SourceProgress:
        """The progress of one epoch, to be changed and then saved with ``save``."""
        key = (source_id, source_epoch)
        self._touched.add(key)
        progress = self._known.get(key)
        if progress is None:
            progress = self._known[key] = self._load(*key)
        is_open = source_id in self._replay_sources
        progress.gap_state = LossState.OPEN if is_open else LossState.LOST
        return progress

    def peek(self, source_id: str, source_epoch: int) -> SourceProgress | None:
        """The progress of one epoch, or None when nothing of it was ever seen; changes nothing."""
        key = (source_id, source_epoch)
        return self._known.get(key) or self._read(*key)

    def describe(self, source_id: str) -> tuple[EpochProgress, ...]:
        """How far every epoch of a source is; changes nothing."""
        found = ((epoch, self.peek(source_id, epoch)) for epoch in self._epochs(source_id))
        return tuple(
            known.describe(source_id, epoch, self._version) for epoch, known in found if known
        )

    def count_losses(self) -> tuple[int, Shortfall]:
        """How many ranges are kept, and how many events they span."""
        ranges: int
        spanned: float
        may_come: float
        ranges, spanned, may_come = self._connection.execute(_COUNT_LOSSES).get
        return ranges, Shortfall(int(spanned), int(may_come))

    def save(self, now_ns: int) -> SavedProgress:
        """Writes what changed since the last save."""
        saved = SavedProgress()
        for key in sorted(self._touched):
            self._save_one(key, now_ns, saved)
        saved.merged_ranges = sum(
            self._merge_excess(source_id, now_ns, saved) for source_id in sorted(saved.grown)
        )
        self._version += 1
        saved.progress = [
            self._known[key].describe(*key, self._version) for key in sorted(self._touched)
        ]
        saved.forgotten_epochs, self._forgotten_epochs = self._forgotten_epochs, 0
        self._touched.clear()
        if len(self._known) > _CACHED_SOURCES:
            self._known.clear()
        return saved

    def _open_of(self, source_id: str) -> Iterable[SourceProgress]:
        found = self._connection.execute(
            "SELECT DISTINCT source_epoch FROM event_losses WHERE source_id = ? AND state = ?",
            (source_id, str(LossState.OPEN)),
        )
        return [self.lookup(source_id, _integer(row[0])) for row in found.fetchall()]

    def _load(self, source_id: str, source_epoch: int) -> SourceProgress:
        return self._read(source_id, source_epoch) or self._begin(source_id, source_epoch)

    def _read(self, source_id: str, source_epoch: int) -> SourceProgress | None:
        key = (source_id, source_epoch)
        highest: int | None = self._connection.execute(
            "SELECT highest FROM event_sources WHERE source_id = ? AND source_epoch = ?", key
        ).get
        if highest is None:
            return None
        ranges = (
            MissingRange(first, last, reason, recorded_ns, loss_id, LossState(state))
            for first, last, reason, recorded_ns, loss_id, state in self._connection.execute(
                _SELECT_RANGES, key
            )
        )
        return SourceProgress(LossReason.NOT_RECEIVED, highest, ranges)

    def _begin(self, source_id: str, source_epoch: int) -> SourceProgress:
        seen_before = self._connection.execute(
            "SELECT 1 FROM event_sources WHERE source_id = ? LIMIT 1", (source_id,)
        ).get
        self._connection.execute(
            "INSERT INTO event_sources VALUES (?, ?, 0, 0, 0, 0)", (source_id, source_epoch)
        )
        self._forget_old_epochs(source_id)
        return SourceProgress(
            LossReason.NOT_RECEIVED if seen_before else LossReason.BEFORE_SUBSCRIBED
        )

    def _forget_old_epochs(self, source_id: str) -> None:
        # The rowid tells the order of first sight; epoch numbers need not rise.
        old = self._connection.execute(
            "SELECT source_epoch FROM event_sources WHERE source_id = ? "
            "ORDER BY rowid DESC LIMIT -1 OFFSET ?",
            (source_id, self._max_epochs),
        ).fetchall()
        for row in old:
            key = (source_id, _integer(row[0]))
            for statement in _FORGET_EPOCH:
                self._connection.execute(statement, key)
            self._known.pop(key, None)
            self._touched.discard(key)
        self._forgotten_epochs += len(old)

    def _save_one(self, key: tuple[str, int], now_ns: int, saved: SavedProgress) -> None:
        progress = self._known[key]
        self._connection.execute(
            "UPDATE event_sources SET contiguous = ?, highest = ?, last_seen_ns = ?, "
            "first_seen_ns = iif(first_seen_ns = 0, ?, first_seen_ns) "
            "WHERE source_id = ? AND source_epoch = ?",
            (progress.contiguous, progress.highest, now_ns, now_ns, *key),
        )
        changes = progress.take_changes()
        self._remove_and_change(changes)
        for gap in changes.added:
            saved.grown.add(key[0])
            self._insert(key, gap)
            if gap.is_news:
                saved.losses.append(_to_loss(key, gap))
                gap.is_news = False
        saved.settled += [_to_loss(key, gap) for gap in changes.settled]

    def _remove_and_change(self, changes: LossChanges) -> None:
        self._connection.executemany(
            "DELETE FROM event_losses WHERE loss_id = ?",
            [(loss_id,) for loss_id in changes.removed_ids],
        )
        self._connection.executemany(
            "UPDATE event_losses SET first_sequence = ?, last_sequence = ?, reason = ?, state = ? "
            "WHERE loss_id = ?",
            [
                (gap.first, gap.last, str(gap.reason), str(gap.state), gap.loss_id)
                for gap in changes.changed
            ],
        )

    def _insert(self, key: tuple[str, int], gap: MissingRange) -> None:
        self._connection.execute(
            "INSERT INTO event_losses (source_id, source_epoch, first_sequence, last_sequence, "
            "reason, recorded_ns, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*key, gap.first, gap.last, str(gap.reason), gap.recorded_ns, str(gap.state)),
        )
        gap.loss_id = self._connection.last_insert_rowid()

    def _merge_excess(self, source_id: str, now_ns: int, saved: SavedProgress) -> int:
        kept = self._connection.execute(
            "SELECT count(*) FROM event_losses WHERE source_id = ?", (source_id,)
        ).get
        excess = before = max(kept - self._max_ranges, 0)
        for epoch in self._epochs(source_id) if excess else ():
            excess -= self.lookup(source_id, epoch).merge_oldest(excess)
            self._save_one((source_id, epoch), now_ns, saved)
            if not excess:
                break
        return int(before - excess)

    def _epochs(self, source_id: str) -> list[int]:
        rows = self._connection.execute(
            "SELECT source_epoch FROM event_sources WHERE source_id = ? ORDER BY rowid",
            (source_id,),
        )
        return [_integer(row[0]) for row in rows.fetchall()]


def _to_loss(key: tuple[str, int], gap: MissingRange) -> Loss:
    return Loss(gap.loss_id, *key, gap.first, gap.last, str(gap.reason), gap.recorded_ns, gap.state)


def _integer(value: object) -> int:
    """Narrows what SQLite hands out; the column is declared INTEGER NOT NULL."""
    if not isinstance(value, int):
        raise apsw.CorruptError(f"{type(value).__name__} in an integer column")
    return value
