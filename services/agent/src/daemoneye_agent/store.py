"""The event store: events exactly once, their losses, the alerts and the switches of the rules.

Invariant: everything a call changes, it changes in one transaction, and it returns only after the
commit; when it raises, nothing changed. Calls inside ``transaction`` are committed together at its
end. Memory (progress, partitions, counters) mirrors what the connection sees. An ``EventStore`` is used from one thread; readers open connections of their own.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw

from daemoneye_agent.alert import Alert, AlertDraft, Severity
from daemoneye_agent.event import NS_PER_SECOND, EventRow
from daemoneye_agent.ingest import (
    IngestResult,
    Screening,
    SourceInvalidError,
    admit_rows,
    check_source,
    screen_rows,
)
from daemoneye_agent.loss import Loss, SourceProgress
from daemoneye_agent.migration import migrate
from daemoneye_agent.partition import DroppedPartition, day_of
from daemoneye_agent.store_alerts import AlertTable, RuleSwitches
from daemoneye_agent.store_counters import Counter, CounterTable
from daemoneye_agent.store_events import EventTables
from daemoneye_agent.store_file import open_reader, open_writer, size_bytes_of, translate_errors
from daemoneye_agent.store_limits import StoreLimits, StoreStats
from daemoneye_agent.store_progress import ProgressTable
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["EventStore", "StoreLimits", "StoreStats", "open_reader"]

_MAX_SEQUENCE = 2**63 - 1
_OUTERMOST = ("BEGIN IMMEDIATE", "COMMIT", "ROLLBACK")
_NESTED = ("SAVEPOINT call", "RELEASE call", "ROLLBACK TO call; RELEASE call")
_MAX_REASON_CHARS = 512
_ROW_AT_FAULT = (
    OverflowError,
    UnicodeEncodeError,
    TypeError,
    IndexError,
    apsw.BindingsError,
    SourceInvalidError,
)


class EventStore:
    """One database file. Make it with ``open``, end it with ``close``."""

    def __init__(
        self,
        connection: apsw.Connection,
        limits: StoreLimits,
        now_ns: Callable[[], int],
        set_aside: Path | None,
        lock_fd: int,
    ) -> None:
        self.path = Path(connection.filename)
        self.set_aside = set_aside
        """What a corrupt file was renamed to when the store was opened; tell the operator."""
        self._connection = connection
        self._now_ns = now_ns
        self._lock_fd = lock_fd
        self._is_writing = False
        self._counters = CounterTable(connection)
        self._events = EventTables(connection, limits, self._counters)
        self._progress = ProgressTable(
            connection, max_ranges=limits.max_loss_ranges, max_epochs=limits.max_source_epochs
        )
        window_ns = limits.alert_window_s * NS_PER_SECOND
        self._alerts = AlertTable(connection, max_alerts=limits.max_alerts, window_ns=window_ns)
        self._rules = RuleSwitches(connection)
        self._reload()
        with self._writing():
            self._events.catalog.newest_part(day_of(now_ns()))
            self._events.catalog.rebuild_view()

    @classmethod
    def open(
        cls,
        path: Path,
        limits: StoreLimits | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> "EventStore":
        """Opens the store, making the file (0600) and its directory (0700) when they are absent.

        A corrupt file is renamed and a new one begun; ``set_aside`` then has the new name.

        Raises:
            StoreFileError: the file or directory cannot be used, or another agent has it open.
            StoreVersionError: the file is newer than this program, or not an event store.
            StoreFailedError: the disk refused.
        """
        with translate_errors(str(path)):
            connection, aside, lock_fd = open_writer(path, now_ns())
            try:
                migrate(connection)
                return cls(connection, limits or StoreLimits(), now_ns, aside, lock_fd)
            except BaseException:
                connection.close(True)
                os.close(lock_fd)
                raise

    def close(self) -> None:
        """Ends the store; calling it again does nothing."""
        if self._lock_fd < 0:
            return
        self._connection.close(True)
        os.close(self._lock_fd)
        self._lock_fd = -1

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes the calls inside one transaction: all of them are kept, or none.

        Raises:
            StoreFailedError: the disk refused; nothing of it was kept.
        """
        with self._writing():
            yield

    def ingest(self, rows: Sequence[EventRow]) -> IngestResult:
        """Stores what is new of a batch, in one transaction.

        Args:
            rows: tuples in the order of ``EVENT_INSERT_COLUMNS``.

        Raises:
            StoreFailedError: the disk refused; nothing was stored, and the batch may be repeated.
        """
        try:
            with self._writing():
                return self._ingest(Screening(rows, frozenset(), 0))
        except _ROW_AT_FAULT:
            screening = screen_rows(rows)
            if not screening.keyless and not screening.refused_indices:
                raise
        with self._writing():
            return self._ingest(screening)

    def record_missing(
        self, source_id: str, source_epoch: int, through: int, reason: str
    ) -> tuple[Loss, ...]:
        """Records as lost what a source says it sent up to ``through`` and nobody has seen.

        Gaps between events need no call: ``ingest`` notices them. This is for a loss at the end,
        as told by a gap marker or a heartbeat. What arrives after all repairs the record. Returns
        the ranges that are new; a reason is kept up to 512 characters.
        """
        if not 1 <= through <= _MAX_SEQUENCE:
            raise InvalidRequestError(
                f"sequence {through} is out of range; use 1 to {_MAX_SEQUENCE}", through=through
            )
        now_ns = self._now_ns()
        with self._writing():
            self._lookup(source_id, source_epoch).skip(
                1, through, reason[:_MAX_REASON_CHARS], now_ns
            )
            return self._save_progress(now_ns)

    def contiguous(self, source_id: str, source_epoch: int) -> int:
        """The highest sequence up to which every event is stored; 0 when there is none."""
        with translate_errors(str(self.path)):
            progress = self._progress.peek(source_id, source_epoch)
        return progress.contiguous if progress else 0

    def enforce_retention(self) -> tuple[DroppedPartition, ...]:
        """Drops partitions that are too old or too much; call it at least once an hour.

        A busy store does so by itself whenever ``ingest`` fills a partition.
        """
        with self._writing():
            dropped = self._events.drop_excess(self._now_ns())
        with translate_errors(str(self.path)):
            self._events.give_back_pages()
        return dropped

    def record_alert(self, draft: AlertDraft) -> tuple[Alert, bool]:
        """Keeps an alert, or counts it with an equal one; see ``record_alerts``."""
        return self.record_alerts((draft,))[0]

    def record_alerts(self, drafts: Sequence[AlertDraft]) -> tuple[tuple[Alert, bool], ...]:
        """Keeps alerts in one transaction; each comes back with whether it is new."""
        with self._writing():
            recorded = tuple(self._alerts.record(draft) for draft in drafts)
            if any(is_new for _, is_new in recorded):
                self._counters.add(Counter.ALERTS_REMOVED, self._alerts.trim())
            return recorded

    def list_alerts(
        self,
        since_ns: int = 0,
        floor: Severity = Severity.INFO,
        rule_id: str | None = None,
        limit: int = 100,
    ) -> tuple[Alert, ...]:
        """Alerts last seen at or after ``since_ns``, latest first; limit 1 to 10,000."""
        with translate_errors(str(self.path)):
            return self._alerts.list(since_ns, floor, rule_id, limit)

    def get_alert(self, alert_id: str) -> Alert:
        """One alert; raises NotFoundError when it is not kept."""
        with translate_errors(str(self.path)):
            return self._alerts.get(alert_id)

    def set_rule_enabled(self, rule_id: str, enabled: bool) -> None:
        """Remembers that an operator switched a rule on or off."""
        with self._writing():
            self._rules.set(rule_id, enabled, self._now_ns())

    def rule_states(self) -> dict[str, bool]:
        """The switches set so far; a rule that is not in it keeps its own default."""
        with translate_errors(str(self.path)):
            return self._rules.read()

    def stats(self) -> StoreStats:
        """A picture of the store; costs a count over losses and alerts, not over events."""
        with translate_errors(str(self.path)):
            ranges, lost = self._progress.count_losses()
            partitions = tuple(self._events.catalog)
            filled = [item for item in partitions if item.row_count]
            return StoreStats(
                partitions=partitions,
                event_count=sum(item.row_count for item in partitions),
                oldest_time_ns=min((item.oldest_time_ns or 0 for item in filled), default=None),
                newest_time_ns=max((item.newest_time_ns or 0 for item in filled), default=None),
                used_bytes=self._events.used_bytes(),
                file_bytes=size_bytes_of(self.path),
                alert_count=self._alerts.count(),
                loss_ranges=ranges,
                lost_events=lost,
                counters=self._counters.snapshot(),
            )

    def _ingest(self, screening: Screening) -> IngestResult:
        now_ns = self._now_ns()
        admission = admit_rows(
            screening.rows,
            self._lookup,
            self._events.catalog.holds,
            now_ns,
            screening.refused_indices,
        )
        accepted, dropped = self._events.insert(admission.accepted, now_ns)
        result = IngestResult(
            accepted=accepted,
            duplicates=admission.duplicates + len(admission.accepted) - len(accepted),
            refused=admission.refused + screening.keyless,
            losses=self._save_progress(now_ns),
            repaired=admission.repaired,
            dropped=dropped,
        )
        self._count(result)
        return result

    def _count(self, result: IngestResult) -> None:
        self._counters.add(Counter.EVENTS_STORED, len(result.accepted))
        self._counters.add(Counter.DUPLICATES, result.duplicates)
        self._counters.add(Counter.REFUSED, result.refused)
        self._counters.add(Counter.REPAIRED, result.repaired)

    def _lookup(self, source_id: str, source_epoch: int) -> SourceProgress:
        check_source(source_id, source_epoch)
        return self._progress.lookup(source_id, source_epoch)

    def _save_progress(self, now_ns: int) -> tuple[Loss, ...]:
        saved = self._progress.save(now_ns)
        self._counters.add(Counter.RANGES_MERGED, saved.merged_ranges)
        self._counters.add(Counter.EPOCHS_FORGOTTEN, saved.forgotten_epochs)
        return saved.losses

    @contextmanager
    def _writing(self) -> Iterator[None]:
        begin, commit, rollback = _NESTED if self._is_writing else _OUTERMOST
        was_writing, self._is_writing = self._is_writing, True
        try:
            with translate_errors(str(self.path)):
                self._connection.execute(begin)
                try:
                    yield
                    self._counters.save()
                    self._connection.execute(commit)
                except BaseException:
                    # A full disk may have ended the transaction by itself.
                    if self._connection.in_transaction:
                        self._connection.execute(rollback)
                    self._reload()
                    raise
        finally:
            self._is_writing = was_writing

    def _reload(self) -> None:
        self._counters.reload()
        self._events.catalog.reload()
        self._progress.reset()
