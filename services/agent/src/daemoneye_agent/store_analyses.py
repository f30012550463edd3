"""Requests for analyses and what became of them: a plain table, bounded by rows and bytes.

Invariant: a request has at most one record; the oldest records make room and are counted. Up to the
counter ``triggers_settled`` every stored request had its record, also when that made room since.
"""

from collections.abc import Sequence
from typing import Any

import apsw

from daemoneye_agent.partition import NS_PER_DAY, day_of
from daemoneye_agent.schema import TABLES
from daemoneye_agent.store_counters import Counter, CounterTable
from daemoneye_agent.store_limits import StoreLimits
from daemoneye_agent.workflow_record import AnalysisRecord, StoredTrigger

__all__ = ["AnalysisTable"]

_MAX_DATA_BYTES = 1 << 20
"""A request within the bounds of the contract takes less, however it is escaped."""
_AGED_AT_ONCE = 20_000
_NAMES = TABLES["analysis_results"].column_names
_SIZE = (
    "200 + length(CAST(trigger_id || ifnull(path, '') || ifnull(findings, '') AS BLOB))"
    " + length(CAST(ifnull(custom_type, '') || target_collector AS BLOB))"
)
_INSERT = (
    f"INSERT OR IGNORE INTO analysis_results ({', '.join(_NAMES)}) "  # noqa: S608 - our own names
    f"VALUES ({', '.join('?' * len(_NAMES))}) RETURNING {_SIZE}"
)
_DELETE = "DELETE FROM analysis_results WHERE result_id IN (SELECT result_id FROM analysis_results"
_DROP_OLDEST = f"{_DELETE} ORDER BY result_id LIMIT ?) RETURNING {_SIZE}"
_DROP_AGED = f"{_DELETE} WHERE finished_ns < ? ORDER BY finished_ns LIMIT ?) RETURNING {_SIZE}"
_FIND = (
    "SELECT event_id, source_id, time_ns, "  # noqa: S608 - a number of our own
    f"CASE WHEN length(CAST(data AS BLOB)) <= {_MAX_DATA_BYTES} THEN data END "
    "FROM collector_events AS asked WHERE event_type = 'trigger' AND event_id > ? "
    "AND NOT EXISTS (SELECT 1 FROM analysis_results AS known "
    "WHERE known.source_id = asked.source_id AND known.trigger_id = "
    "ifnull(CASE WHEN json_valid(asked.data) "
    "THEN json_extract(asked.data, '$.trigger_id') END, '')) "
    "ORDER BY event_id LIMIT ?"
)


class AnalysisTable:
    """The records of one database. The methods that write expect an open transaction."""

    def __init__(
        self, connection: apsw.Connection, limits: StoreLimits, counters: CounterTable
    ) -> None:
        self._connection = connection
        self._counters = counters
        self._retention_days = limits.retention_days
        self._max_rows = limits.max_analyses
        self._max_bytes = limits.max_store_bytes // 8

    @property
    def settled_id(self) -> int:
        """Every request up to this event had its record."""
        return self._counters[Counter.TRIGGERS_SETTLED]

    def find(self, after_id: int, limit: int) -> tuple[StoredTrigger, ...]:
        """The oldest requests after an event that have no record."""
        rows: list[Any] = self._connection.execute(_FIND, (after_id, limit)).fetchall()
        return tuple(StoredTrigger(*row) for row in rows)

    def insert(self, records: Sequence[AnalysisRecord], settled_id: int) -> tuple[bool, ...]:
        """Keeps records; returns for each whether it is the first of its request.

        Args:
            records: what became of requests.
            settled_id: every request up to this event has its record then.
        """
        is_new = tuple(self._insert(record) for record in records)
        rise = settled_id - self.settled_id
        self._counters.add(Counter.TRIGGERS_SETTLED, max(rise, 0))
        while excess := self._excess():
            if not self._drop(_DROP_OLDEST, (excess,)):
                break
        return is_new

    def drop_aged(self, now_ns: int) -> int:
        """Drops some of what is older than the retention time; returns how many rows."""
        before_ns = (day_of(now_ns) - self._retention_days) * NS_PER_DAY
        return self._drop(_DROP_AGED, (before_ns, _AGED_AT_ONCE))

    def _insert(self, record: AnalysisRecord) -> bool:
        size_bytes = self._connection.execute(_INSERT, _to_row(record)).get
        if size_bytes is None:
            return False
        self._counters.add(Counter.ANALYSES_STORED, 1)
        self._counters.add(Counter.ANALYSIS_BYTES_STORED, int(size_bytes))
        return True

    def _excess(self) -> int:
        """How many rows to drop next: those above the bound, or about as many as bytes demand."""
        counters = self._counters
        row_count = counters[Counter.ANALYSES_STORED] - counters[Counter.ANALYSES_DROPPED]
        size_bytes = (
            counters[Counter.ANALYSIS_BYTES_STORED] - counters[Counter.ANALYSIS_BYTES_DROPPED]
        )
        excess_bytes = max(size_bytes - self._max_bytes, 0)
        by_size = -(-excess_bytes * row_count // max(size_bytes, 1))
        return max(row_count - self._max_rows, by_size)

    def _drop(self, statement: str, values: tuple[int, ...]) -> int:
        found: list[Any] = self._connection.execute(statement, values).fetchall()
        sizes = [int(size) for (size,) in found]
        self._counters.add(Counter.ANALYSES_DROPPED, len(sizes))
        self._counters.add(Counter.ANALYSIS_BYTES_DROPPED, sum(sizes))
        return len(sizes)


def _to_row(record: AnalysisRecord) -> tuple[str | int | float | None, ...]:
    asked, verdict = record.asked, record.verdict
    values: dict[str, str | int | float | None] = {
        "result_id": None,
        "finished_ns": record.finished_ns,
        **{name: getattr(asked, name) for name in _NAMES if hasattr(asked, name)},
        **{name: getattr(verdict, name) for name in _NAMES if hasattr(verdict, name)},
    }
    return tuple(values[name] for name in _NAMES)
