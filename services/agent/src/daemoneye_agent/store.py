"""The event store: events exactly once, their losses, the alerts and the switches of the rules.

Invariant: everything a call changes, it changes in one transaction, and it returns only after the
commit; when it raises, nothing changed. Calls inside ``transaction`` are committed together at its
end. Memory (progress, partitions, counters) mirrors what the connection sees. An ``EventStore`` is
used from one thread; readers open connections of their own. Events that are lost for good, and gaps,
raise an alert in the transaction that records them.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import apsw

from daemoneye_agent.alert import Alert, AlertDraft, Recorded, Severity
from daemoneye_agent.builtin_alert import draft_gap, draft_losses
from daemoneye_agent.collector_event import sort_rows
from daemoneye_agent.event import NS_PER_SECOND, EventRow
from daemoneye_agent.ingest import (
    IngestResult,
    Screening,
    SourceInvalidError,
    admit_rows,
    check_source,
    screen_rows,
)
from daemoneye_agent.loss import EpochProgress, Shortfall
from daemoneye_agent.migration import migrate
from daemoneye_agent.partition import DroppedPartition, day_of
from daemoneye_agent.progress import SourceProgress
from daemoneye_agent.store_alerts import AlertTable, RuleSwitches
from daemoneye_agent.store_analyses import AnalysisTable
from daemoneye_agent.store_collector_events import CollectorEventTables
from daemoneye_agent.store_counters import Counter, CounterTable
from daemoneye_agent.store_events import EventTables
from daemoneye_agent.store_file import open_reader, open_writer, size_bytes_of, translate_errors
from daemoneye_agent.store_limits import Settlement, StoreLimits, StoreStats
from daemoneye_agent.store_progress import ProgressTable, SavedProgress
from daemoneye_agent.workflow_record import AnalysisRecord, StoredTrigger
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
        self._others = CollectorEventTables(connection, limits, self._counters)
        self._analyses = AnalysisTable(connection, limits, self._counters)
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

    def settle_lost(
        self, source_id: str, source_epoch: int, first: int, last: int, reason: str
    ) -> Settlement:
        """Records as lost what is open of first..last, and what was never seen of it.

        Somebody who must know said that nobody has it any more. What arrives after all repairs the
        record. A reason is kept up to 512 characters.

        Raises:
            InvalidRequestError: the range is none.
            StoreFailedError: the disk refused; nothing changed.
        """
        if not 1 <= first <= last <= _MAX_SEQUENCE:
            raise InvalidRequestError(
                f"sequences {first} to {last} are no range; use 1 to {_MAX_SEQUENCE}, in order",
                first=first,
                last=last,
            )
        now_ns = self._now_ns()
        with self._writing():
            progress = self._lookup(source_id, source_epoch)
            progress.give_up(first, last, reason[:_MAX_REASON_CHARS], now_ns)
            return self._settle(now_ns)

    def settle_source(self, source_id: str, reason: str) -> Settlement:
        """Records as lost all that is open of a source."""
        with self._writing():
            self._progress.give_up_open(source_id, reason[:_MAX_REASON_CHARS])
            return self._settle(self._now_ns())

    def expect_replay(self, source_id: str, is_expected: bool) -> Settlement:
        """Remembers whether a source can send again what is missing.

        From a source that can, what is missing is open; from one that cannot, it is lost at once.
        """
        check_source(source_id, 0)
        with self._writing():
            self._progress.expect_replay(source_id, is_expected)
            return self._settle(self._now_ns())

    def reopen(self, source_id: str, epochs: Iterable[int]) -> tuple[EpochProgress, ...]:
        """Opens what was given up of these epochs only because nobody could be asked.

        Returns:
            How far every epoch of the source is.
        """
        with self._writing():
            self._progress.reopen(source_id, epochs)
            self._settle(self._now_ns())
            return self._progress.describe(source_id)

    @property
    def replay_sources(self) -> frozenset[str]:
        """Sources that are expected to send again what is missing."""
        return self._progress.replay_sources

    def shortfall(self) -> Shortfall:
        """What is known to be missing; costs a look at every range."""
        with translate_errors(str(self.path)):
            _, missing = self._progress.count_losses()
            return replace(
                missing,
                gap_count=self._others.gap_count,
                last_gap=self._others.describe_last_gap(),
            )

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

    def drop_aged(self) -> int:
        """Drops some of the gaps, analyses and other events that are too old; repeat until 0."""
        with self._writing():
            now_ns = self._now_ns()
            return self._others.drop_aged(now_ns) + self._analyses.drop_aged(now_ns)

    @property
    def settled_trigger(self) -> int:
        """Every request for an analysis up to this event had its record."""
        return self._analyses.settled_id

    def find_triggers(self, after_id: int, limit: int) -> tuple[StoredTrigger, ...]:
        """The oldest requests for analyses after an event that have no record."""
        with translate_errors(str(self.path)):
            return self._analyses.find(after_id, limit)

    def record_analyses(
        self, records: Sequence[AnalysisRecord], settled_id: int
    ) -> tuple[bool, ...]:
        """Keeps what became of requests, all up to ``settled_id`` then; whether each is the first."""
        with self._writing():
            return self._analyses.insert(records, settled_id)

    def record_alert(self, draft: AlertDraft) -> Recorded:
        """Keeps an alert, or counts it with an equal one; see ``record_alerts``."""
        return self.record_alerts((draft,))[0]

    def record_alerts(self, drafts: Sequence[AlertDraft]) -> tuple[Recorded, ...]:
        """Keeps alerts in one transaction; each comes back with whether it is new."""
        with self._writing():
            return self._record(drafts)

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
            ranges, missing = self._progress.count_losses()
            partitions = tuple(self._events.catalog)
            filled = [item for item in partitions if item.row_count]
            return StoreStats(
                partitions=partitions,
                event_count=sum(item.row_count for item in partitions)
                + self._others.event_count
                + self._others.gap_count,
                oldest_time_ns=min((item.oldest_time_ns or 0 for item in filled), default=None),
                newest_time_ns=max((item.newest_time_ns or 0 for item in filled), default=None),
                used_bytes=self._events.used_bytes(),
                file_bytes=size_bytes_of(self.path),
                alert_count=self._alerts.count(),
                loss_ranges=ranges,
                lost_events=missing.missing_events,
                counters=self._counters.snapshot(),
            )

    def _ingest(self, screening: Screening) -> IngestResult:
        now_ns = self._now_ns()
        admission = admit_rows(
            screening.rows, self._lookup, self._holds, now_ns, screening.refused_indices
        )
        rows = sort_rows(admission.accepted, self._counters[Counter.LAST_EVENT_ID] + 1)
        self._counters.add(Counter.LAST_EVENT_ID, len(admission.accepted))
        accepted, dropped = self._events.insert(rows.process_events, now_ns)
        other_count, gaps = 0, []
        if rows.collector_events:
            other_count = len(self._others.insert_events(rows.collector_events))
        if rows.gaps:
            gaps = self._others.insert_gaps(rows.gaps)
        saved = self._save_progress(now_ns)
        stored = len(accepted) + other_count + len(gaps)
        drafts = draft_losses(saved.lost, now_ns) + [draft_gap(*gap) for gap in gaps]
        result = IngestResult(
            accepted=accepted,
            other_count=other_count,
            gaps=tuple(gap for _, gap in gaps),
            duplicates=admission.duplicates + len(admission.accepted) - stored,
            refused=admission.refused + screening.keyless,
            losses=tuple(saved.losses),
            repaired=admission.repaired,
            dropped=dropped,
            alerts=self._record(drafts),
            progress=tuple(saved.progress),
        )
        self._count(result)
        return result

    def _settle(self, now_ns: int) -> Settlement:
        saved = self._save_progress(now_ns)
        lost = tuple(saved.lost)
        self._counters.add(Counter.EVENTS_SETTLED, sum(loss.event_count for loss in lost))
        return Settlement(lost, self._record(draft_losses(lost, now_ns)), tuple(saved.progress))

    def _record(self, drafts: Sequence[AlertDraft]) -> tuple[Recorded, ...]:
        recorded = tuple(self._alerts.record(draft) for draft in drafts)
        if any(is_new for _, is_new in recorded):
            self._counters.add(Counter.ALERTS_REMOVED, self._alerts.trim())
        return recorded

    def _holds(self, source_id: str, source_epoch: int, sequence: int) -> bool:
        return self._others.holds(source_id, source_epoch, sequence) or self._events.catalog.holds(
            source_id, source_epoch, sequence
        )

    def _count(self, result: IngestResult) -> None:
        self._counters.add(Counter.EVENTS_STORED, result.stored)
        self._counters.add(Counter.DUPLICATES, result.duplicates)
        self._counters.add(Counter.REFUSED, result.refused)
        self._counters.add(Counter.REPAIRED, result.repaired)

    def _lookup(self, source_id: str, source_epoch: int) -> SourceProgress:
        check_source(source_id, source_epoch)
        return self._progress.lookup(source_id, source_epoch)

    def _save_progress(self, now_ns: int) -> SavedProgress:
        saved = self._progress.save(now_ns)
        self._counters.add(Counter.RANGES_MERGED, saved.merged_ranges)
        self._counters.add(Counter.EPOCHS_FORGOTTEN, saved.forgotten_epochs)
        return saved

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
