"""Counters that survive a restart, kept in the event store's database.

Invariant: a counter is written in the transaction of the change it counts, and never falls.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import apsw

__all__ = ["Counter", "CounterTable"]


class Counter(StrEnum):
    """What is counted."""

    LAST_EVENT_ID = "last_event_id"
    EVENTS_STORED = "events_stored"
    DUPLICATES = "duplicates"
    REFUSED = "refused"
    REPAIRED = "repaired"
    RANGES_MERGED = "ranges_merged"
    EPOCHS_FORGOTTEN = "epochs_forgotten"
    EVENTS_DROPPED = "events_dropped"
    PARTITIONS_DROPPED = "partitions_dropped"
    ALERTS_REMOVED = "alerts_removed"
    EVENTS_SETTLED = "events_settled"
    COLLECTOR_EVENTS_STORED = "collector_events_stored"
    COLLECTOR_EVENTS_DROPPED = "collector_events_dropped"
    COLLECTOR_EVENT_BYTES_STORED = "collector_event_bytes_stored"
    COLLECTOR_EVENT_BYTES_DROPPED = "collector_event_bytes_dropped"
    GAPS_STORED = "gaps_stored"
    GAPS_DROPPED = "gaps_dropped"
    GAP_BYTES_STORED = "gap_bytes_stored"
    GAP_BYTES_DROPPED = "gap_bytes_dropped"
    TRIGGERS_SETTLED = "triggers_settled"
    ANALYSES_STORED = "analyses_stored"
    ANALYSES_DROPPED = "analyses_dropped"
    ANALYSIS_BYTES_STORED = "analysis_bytes_stored"
    ANALYSIS_BYTES_DROPPED = "analysis_bytes_dropped"


class CounterTable:
    """All counters of one database."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._values: dict[Counter, int] = dict.fromkeys(Counter, 0)
        self._changed: set[Counter] = set()

    def __getitem__(self, counter: Counter) -> int:
        return self._values[counter]

    def reload(self) -> None:
        """Reads the last commit, as after a rollback."""
        rows: list[Any] = self._connection.execute("SELECT name, value FROM counters").fetchall()
        known = dict(rows)
        self._values = {counter: int(known.get(counter.value, 0)) for counter in Counter}
        self._changed.clear()

    def add(self, counter: Counter, amount: int) -> None:
        """Counts; nothing is written before ``save``."""
        if amount:
            self._values[counter] += amount
            self._changed.add(counter)

    def save(self) -> None:
        """Writes what changed, inside the open transaction."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO counters (name, value) VALUES (?, ?)",
            [(counter.value, self._values[counter]) for counter in sorted(self._changed)],
        )
        self._changed.clear()

    def snapshot(self) -> Mapping[str, int]:
        """Every counter by name."""
        return {counter.value: value for counter, value in self._values.items()}
