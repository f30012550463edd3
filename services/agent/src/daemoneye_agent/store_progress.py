"""Keeps the progress of every source, and the losses, in the event store's database.

Invariant: what memory holds equals what the last commit wrote; after a rollback everything is
forgotten and read again. At most ``max_epochs`` epochs and ``max_ranges`` losses a source are kept:
older epochs are forgotten and the oldest ranges merged, and both are counted.
"""

from dataclasses import dataclass

import apsw

from daemoneye_agent.loss import Loss, LossChanges, LossReason, MissingRange, SourceProgress

__all__ = ["ProgressTable", "SavedProgress"]

_CACHED_SOURCES = 1024
_FORGET_EPOCH = (
    "DELETE FROM event_losses WHERE source_id = ? AND source_epoch = ?",
    "DELETE FROM event_sources WHERE source_id = ? AND source_epoch = ?",
)


@dataclass(frozen=True, slots=True)
class SavedProgress:
    """What saving the progress of one batch did."""

    losses: tuple[Loss, ...]
    """Ranges that are new."""
    merged_ranges: int
    """Ranges that gave up their own row to keep within the bound."""
    forgotten_epochs: int
    """Epochs whose progress was let go to keep within the bound."""


class ProgressTable:
    """Progress by (source, epoch). Every method expects an open transaction."""

    def __init__(self, connection: apsw.Connection, *, max_ranges: int, max_epochs: int) -> None:
        self._connection = connection
        self._max_ranges = max_ranges
        self._max_epochs = max_epochs
        self._known: dict[tuple[str, int], SourceProgress] = {}
        self._touched: set[tuple[str, int]] = set()
        self._forgotten_epochs = 0

    def reset(self) -> None:
        """Forgets what memory holds, as after a rollback."""
        self._known.clear()
        self._touched.clear()
        self._forgotten_epochs = 0

    def lookup(self, source_id: str, source_epoch: int) -> SourceProgress:
        """The progress of one epoch, to be changed and then saved with ``save``."""
        key = (source_id, source_epoch)
        self._touched.add(key)
        progress = self._known.get(key)
        if progress is None:
            progress = self._known[key] = self._load(*key)
        return progress

    def peek(self, source_id: str, source_epoch: int) -> SourceProgress | None:
        """The progress of one epoch, or None when nothing of it was ever seen; changes nothing."""
        key = (source_id, source_epoch)
        return self._known.get(key) or self._read(*key)

    def count_losses(self) -> tuple[int, int]:
        """How many ranges are kept, and how many events they span."""
        ranges: int
        spanned: float
        ranges, spanned = self._connection.execute(
            "SELECT count(*), total(last_sequence - first_sequence + 1) FROM event_losses"
        ).get
        return ranges, int(spanned)

    def save(self, now_ns: int) -> SavedProgress:
        """Writes what changed since the last save."""
        added: list[Loss] = []
        for key in sorted(self._touched):
            added += self._save_one(key, self._known[key], now_ns)
        grown = {loss.source_id for loss in added}
        merged = sum(self._merge_excess(source_id, now_ns) for source_id in sorted(grown))
        forgotten, self._forgotten_epochs = self._forgotten_epochs, 0
        self._touched.clear()
        if len(self._known) > _CACHED_SOURCES:
            self._known.clear()
        return SavedProgress(tuple(added), merged, forgotten)

    def _load(self, source_id: str, source_epoch: int) -> SourceProgress:
        return self._read(source_id, source_epoch) or self._begin(source_id, source_epoch)

    def _read(self, source_id: str, source_epoch: int) -> SourceProgress | None:
        key = (source_id, source_epoch)
        highest: int | None = self._connection.execute(
            "SELECT highest FROM event_sources WHERE source_id = ? AND source_epoch = ?", key
        ).get
        if highest is None:
            return None
        ranges = self._connection.execute(
            "SELECT first_sequence, last_sequence, reason, recorded_ns, loss_id FROM event_losses "
            "WHERE source_id = ? AND source_epoch = ? ORDER BY first_sequence",
            key,
        )
        return SourceProgress(
            LossReason.NOT_RECEIVED, highest, (MissingRange(*row) for row in ranges)
        )

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

    def _save_one(self, key: tuple[str, int], progress: SourceProgress, now_ns: int) -> list[Loss]:
        self._connection.execute(
            "UPDATE event_sources SET contiguous = ?, highest = ?, last_seen_ns = ?, "
            "first_seen_ns = iif(first_seen_ns = 0, ?, first_seen_ns) "
            "WHERE source_id = ? AND source_epoch = ?",
            (progress.contiguous, progress.highest, now_ns, now_ns, *key),
        )
        changes = progress.take_changes()
        self._remove_and_change(changes)
        return [self._insert(key, gap) for gap in changes.added]

    def _remove_and_change(self, changes: LossChanges) -> None:
        self._connection.executemany(
            "DELETE FROM event_losses WHERE loss_id = ?",
            [(loss_id,) for loss_id in changes.removed_ids],
        )
        self._connection.executemany(
            "UPDATE event_losses SET first_sequence = ?, last_sequence = ?, reason = ? "
            "WHERE loss_id = ?",
            [(gap.first, gap.last, str(gap.reason), gap.loss_id) for gap in changes.changed],
        )

    def _insert(self, key: tuple[str, int], gap: MissingRange) -> Loss:
        reason = str(gap.reason)
        self._connection.execute(
            "INSERT INTO event_losses (source_id, source_epoch, first_sequence, last_sequence, "
            "reason, recorded_ns) VALUES (?, ?, ?, ?, ?, ?)",
            (*key, gap.first, gap.last, reason, gap.recorded_ns),
        )
        gap.loss_id = self._connection.last_insert_rowid()
        return Loss(gap.loss_id, *key, gap.first, gap.last, reason, gap.recorded_ns)

    def _merge_excess(self, source_id: str, now_ns: int) -> int:
        kept = self._connection.execute(
            "SELECT count(*) FROM event_losses WHERE source_id = ?", (source_id,)
        ).get
        excess = before = max(kept - self._max_ranges, 0)
        for epoch in self._epochs(source_id) if excess else ():
            progress = self.lookup(source_id, epoch)
            excess -= progress.merge_oldest(excess)
            self._save_one((source_id, epoch), progress, now_ns)
            if not excess:
                break
        return int(before - excess)

    def _epochs(self, source_id: str) -> list[int]:
        rows = self._connection.execute(
            "SELECT source_epoch FROM event_sources WHERE source_id = ? ORDER BY rowid",
            (source_id,),
        )
        return [_integer(row[0]) for row in rows.fetchall()]


def _integer(value: object) -> int:
    """Narrows what SQLite hands out; the column is declared INTEGER NOT NULL."""
    if not isinstance(value, int):
        raise apsw.CorruptError(f"{type(value).__name__} in an integer column")
    return value
