"""From the bus to the alert: ingest, evaluate, keep, publish.

Order for every batch: the events are committed, then the rules look at exactly what was new, then
alerts are committed, then they are published (MUST-ALR-01). All that touches SQLite runs in the one
thread of the store.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_agent.alert import Alert, AlertDraft, render_row
from daemoneye_agent.alert_message import describe_degradations, to_alert_message
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.engine import Match, RuleFailure
from daemoneye_agent.event import EventRow
from daemoneye_agent.process_row import to_event_row
from daemoneye_agent.rulebook import Rulebook
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.completeness import Degradation
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["BatchOutcome", "Pipeline", "PipelineCounters"]

log = logging.getLogger("daemoneye.pipeline")


@dataclass(slots=True)
class PipelineCounters:
    """What the pipeline did: received = stored + duplicate + refused."""

    received: int = 0
    stored: int = 0
    duplicate: int = 0
    alerts: int = 0


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What became of one batch in the store's thread."""

    stored: int
    duplicate: int
    refused: int
    lost_events: int | None
    """All events known to be missing; None when that did not change."""
    alerts: tuple[tuple[Alert, bool], ...]
    failures: tuple[RuleFailure, ...]


class Pipeline:
    """Takes batches of the bus through store, rules and alerts.

    Args:
        store: thread that owns the event store.
        rulebook: the rules, evaluated in the same thread.
        coverage: what cannot be seen, for the completeness of alerts.
        publish: takes an encoded alert message for the bus.
    """

    def __init__(
        self,
        store: StoreThread,
        rulebook: Rulebook,
        coverage: Coverage,
        publish: Callable[[eventbus_pb2.EventBusMessage], None],
    ) -> None:
        self._store = store
        self._rulebook = rulebook
        self._coverage = coverage
        self._publish = publish
        self.counters = PipelineCounters()
        self.refused: Counter[str] = Counter()
        """Messages that could not be used, by reason."""

    async def process(
        self, messages: Sequence[eventbus_pb2.EventBusMessage], undecodable_count: int = 0
    ) -> None:
        """Takes one batch through; returns when its alerts are on their way.

        Args:
            messages: the batch.
            undecodable_count: further messages of it that were no messages.
        """
        self.counters.received += len(messages) + undecodable_count
        if undecodable_count:
            self.refused["undecodable"] += undecodable_count
        degradations = self._coverage.of_events()
        outcome = await self._store.run(self._process_batch, messages, degradations)
        self._count(outcome)
        for alert, _ in outcome.alerts:
            self._publish(to_alert_message(alert, degradations))

    def _count(self, outcome: BatchOutcome) -> None:
        self.counters.stored += outcome.stored
        self.counters.duplicate += outcome.duplicate
        self.counters.alerts += len(outcome.alerts)
        if outcome.refused:
            self.refused["store_refused"] += outcome.refused
        if outcome.lost_events is not None:
            self._coverage.note_lost(outcome.lost_events)
        self._coverage.note_rule_failures(
            (failure.rule_id, failure.reason) for failure in outcome.failures
        )

    def _process_batch(
        self,
        store: EventStore,
        messages: Sequence[eventbus_pb2.EventBusMessage],
        degradations: Sequence[Degradation],
    ) -> BatchOutcome:
        rows = self._convert(messages)
        result = store.ingest(rows)
        matches, failures = self._rulebook.evaluate(result.accepted)
        for failure in failures:
            log.error("rule %s failed: %s", failure.rule_id, failure.reason)
        for loss in result.losses:
            log.warning(
                "events %d to %d of %s are missing: %s",
                loss.first_sequence,
                loss.last_sequence,
                loss.source_id,
                loss.reason,
            )
        drafts = [to_draft(match, degradations) for match in matches]
        changed = bool(result.losses or result.repaired)
        return BatchOutcome(
            stored=len(result.accepted),
            duplicate=result.duplicates,
            refused=result.refused,
            lost_events=store.stats().lost_events if changed else None,
            alerts=store.record_alerts(drafts) if drafts else (),
            failures=failures,
        )

    def _convert(self, messages: Sequence[eventbus_pb2.EventBusMessage]) -> list[EventRow]:
        rows: list[EventRow] = []
        for message in messages:
            try:
                rows.append(to_event_row(message))
            except InvalidRequestError as error:
                self.refused[error.reason.lower()] += 1
                log.warning("event of %s not used: %s", message.metadata.source_id, error.message)
        return rows


def to_draft(match: Match, degradations: Sequence[Degradation]) -> AlertDraft:
    """Returns the alert that a match raises."""
    return AlertDraft(
        rule_id=match.rule.id,
        severity=match.rule.severity,
        title=match.rule.title,
        description=match.rule.description,
        dedup_key=match.dedup_key,
        seen_ns=_seen_ns(match),
        event_id=match.event_id,
        row=render_row(match.row),
        completeness=describe_degradations(degradations),
    )


def _seen_ns(match: Match) -> int:
    seen = match.row.get("time_ns")
    return seen if isinstance(seen, int) else time.time_ns()
