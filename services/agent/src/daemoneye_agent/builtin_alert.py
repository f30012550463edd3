"""Alerts that the agent raises by itself: events that nobody has any more, and gaps in collection.

Invariant: what is lost raises one alert for each source and change, with all ranges of that change in
its count; a gap raises one alert.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from daemoneye_agent.alert import AlertDraft, Severity, build_dedup_key, render_row
from daemoneye_agent.collector_event import GapRow
from daemoneye_agent.loss import Loss

__all__ = ["COLLECTION_GAP", "EVENTS_LOST", "draft_gap", "draft_losses"]

EVENTS_LOST = "events_lost"
COLLECTION_GAP = "collection_gap"

_SEVERITIES = {"killed": Severity.HIGH, "stopped": Severity.INFO, "paused": Severity.INFO}


def draft_losses(losses: Iterable[Loss], now_ns: int) -> list[AlertDraft]:
    """Returns an alert for each source that lost events for good."""
    by_source: dict[str, list[Loss]] = defaultdict(list)
    for loss in losses:
        by_source[loss.source_id].append(loss)
    return [_draft_source(name, ranges, now_ns) for name, ranges in by_source.items()]


def draft_gap(gap_id: int, gap: GapRow) -> AlertDraft:
    """Returns the alert that a gap raises."""
    what = f"source {gap.source_name} of {gap.source_id}" if gap.source_name else gap.source_id
    return AlertDraft(
        rule_id=COLLECTION_GAP,
        severity=_SEVERITIES.get(gap.reason, Severity.MEDIUM),
        title="A collector did not see everything",
        description=f"{what} did not see everything ({gap.reason}): {gap.message}",
        dedup_key=build_dedup_key(COLLECTION_GAP, gap.source_id, gap.reason),
        seen_ns=gap.time_ns,
        event_id=gap_id,
        row=render_row({"gap_id": gap_id, **gap._asdict()}),
    )


def _draft_source(source_id: str, losses: Sequence[Loss], now_ns: int) -> AlertDraft:
    first = losses[0]
    event_count = sum(loss.event_count for loss in losses)
    more = f", and {len(losses) - 1} more ranges" if len(losses) > 1 else ""
    return AlertDraft(
        rule_id=EVENTS_LOST,
        severity=Severity.HIGH,
        title="Events of a collector are lost",
        description=(
            f"{event_count} events of {source_id} are lost: {first.first_sequence} to "
            f"{first.last_sequence} of epoch {first.source_epoch} ({first.reason}){more}; the table "
            "event_losses has the ranges"
        ),
        dedup_key=build_dedup_key(EVENTS_LOST, source_id),
        seen_ns=now_ns,
        row=render_row(
            {
                "source_id": source_id,
                "source_epoch": first.source_epoch,
                "first_sequence": first.first_sequence,
                "last_sequence": first.last_sequence,
                "reason": first.reason,
                "range_count": len(losses),
                "event_count": event_count,
            }
        ),
    )
