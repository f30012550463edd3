"""One batch of messages on its way through the pipeline, and how far it got."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_agent.alert import AlertDraft, Recorded, render_row
from daemoneye_agent.alert_message import describe_degradations
from daemoneye_agent.collector_event import CollectorEventRow
from daemoneye_agent.collector_event_message import to_collector_row
from daemoneye_agent.engine import Match
from daemoneye_agent.event import EventRow
from daemoneye_agent.ingest import IngestResult
from daemoneye_agent.loss import Shortfall
from daemoneye_agent.process_row import NotAboutProcessError, to_event_row
from daemoneye_agent.workflow_record import TRIGGER_EVENT
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["Batch", "to_draft"]


@dataclass(slots=True)
class Batch:
    """What is known of a batch; None is what has not been done yet."""

    messages: Sequence[eventbus_pb2.EventBusMessage]
    degradations: tuple[Degradation, ...]
    """What could not be seen when the batch came."""
    rows: list[EventRow] | None = None
    refused: Counter[str] = field(default_factory=Counter)
    """Messages without a usable event, by reason."""
    unusable: Counter[str] = field(default_factory=Counter)
    """The same by sentence, for the log."""
    result: IngestResult | None = None
    failures: dict[str, str] = field(default_factory=dict)
    """Why rules did not see all of it, by rule id."""
    recorded: tuple[Recorded, ...] = ()
    shortfall: Shortfall | None = None
    """All that is known to be missing; None when that did not change."""

    @property
    def has_triggers(self) -> bool:
        """Whether something in it asks for an analysis; costs a look at every row."""
        rows = (row for row in self.rows or () if isinstance(row, CollectorEventRow))
        return any(row.event_type == TRIGGER_EVENT for row in rows)

    def convert(self) -> None:
        """Makes rows of the messages.

        A message without a usable event leaves a row of its key alone: the store refuses that row
        and thereby knows why its sequence is missing.
        """
        rows: list[EventRow] = []
        for message in self.messages:
            try:
                rows.append(_to_row(message))
            except InvalidRequestError as error:
                metadata = message.metadata
                rows.append((metadata.source_id, metadata.source_epoch, metadata.source_sequence))
                self.refused[error.reason.lower()] += 1
                self.unusable[f"{metadata.source_id}: {error.message}"] += 1
        self.rows = rows

    def degradations_for(self, rule_id: str) -> tuple[Degradation, ...]:
        """What may be missing from what a rule found in this batch."""
        reason = self.failures.get(rule_id)
        if reason is None:
            return self.degradations
        return (*self.degradations, Degradation(DegradedReason.RULE_FAILED, rule_id, reason))


def _to_row(message: eventbus_pb2.EventBusMessage) -> EventRow:
    try:
        return to_event_row(message)
    except NotAboutProcessError:  # the rare case pays for finding out
        return to_collector_row(message)


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
