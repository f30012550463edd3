"""The shapes of stored events that are not about processes; no I/O.

Invariant: a row is a tuple that begins like a process event, with source, epoch and sequence, so that
one admission goes over all events of a batch in their order. Its class says where it belongs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from daemoneye_agent.event import EventRow

__all__ = ["CollectorEventRow", "GapRow", "SortedRows", "sort_rows"]

_PLAIN = {tuple}


class CollectorEventRow(NamedTuple):
    """A row of ``collector_events`` without its id."""

    source_id: str
    source_epoch: int
    source_sequence: int
    time_ns: int
    time: str
    topic: str
    event_type: str
    data: str


class GapRow(NamedTuple):
    """A row of ``collection_gaps`` without its id."""

    source_id: str
    source_epoch: int
    source_sequence: int
    time_ns: int
    reason: str
    source_name: str
    started_ns: int | None
    ended_ns: int | None
    event_count: int | None
    message: str


@dataclass(slots=True)
class SortedRows:
    """Rows with their ids in front, by the table they belong to."""

    process_events: list[EventRow] = field(default_factory=list)
    collector_events: list[EventRow] = field(default_factory=list)
    gaps: list[tuple[int, GapRow]] = field(default_factory=list)
    """Ids and rows of gaps, which somebody is to be told of."""


def sort_rows(rows: Sequence[EventRow], first_id: int) -> SortedRows:
    """Gives ids in order of arrival and tells process events, gaps and other events apart."""
    if set(map(type, rows)) <= _PLAIN:  # nearly every batch has process events alone
        return SortedRows([(number, *row) for number, row in enumerate(rows, first_id)])
    result = SortedRows()
    for number, row in enumerate(rows, first_id):
        if isinstance(row, GapRow):
            result.gaps.append((number, row))
        elif isinstance(row, CollectorEventRow):
            result.collector_events.append((number, *row))
        else:
            result.process_events.append((number, *row))
    return result
