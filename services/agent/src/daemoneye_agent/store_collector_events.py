"""Events that are not about processes, and gaps: two plain tables, bounded by rows and bytes.

Invariant: a table never has more than its rows and bytes; the oldest go first, and what went is
counted. How much is in a table is known from counters that rise only, not from reading it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import apsw

from daemoneye_agent.collector_event import GapRow
from daemoneye_agent.event import EventRow, format_time
from daemoneye_agent.partition import NS_PER_DAY, day_of
from daemoneye_agent.schema import TABLES
from daemoneye_agent.store_counters import Counter, CounterTable
from daemoneye_agent.store_limits import StoreLimits

__all__ = ["CollectorEventTables"]

_ROW_BYTES = 200
"""What a row takes beside its texts, indices included; roughly."""
_AGED_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True)
class _Tally:
    """The counters of one table."""

    stored: Counter
    dropped: Counter
    stored_bytes: Counter
    dropped_bytes: Counter


@dataclass(frozen=True, slots=True)
class _Statements:
    insert: str
    drop_oldest: str
    drop_aged: str
    holds: str


def _write_statements(name: str, key: str, texts: str) -> _Statements:
    columns = TABLES[name].column_names
    names = ", ".join(f'"{column}"' for column in columns)
    size = f"{_ROW_BYTES} + length(CAST({texts} AS BLOB))"
    delete = f"DELETE FROM {name} WHERE {key} IN (SELECT {key} FROM {name}"  # noqa: S608
    return _Statements(
        insert=f"INSERT OR IGNORE INTO {name} ({names}) "  # noqa: S608 - the names are our own
        f"VALUES ({', '.join('?' * len(columns))}) RETURNING {key}, {size}",
        drop_oldest=f"{delete} ORDER BY {key} LIMIT ?) RETURNING {size}",
        drop_aged=f"{delete} WHERE time_ns < ? ORDER BY time_ns LIMIT ?) RETURNING {size}",
        holds=f"SELECT 1 FROM {name} "  # noqa: S608 - the names are our own
        "WHERE source_id = ? AND source_epoch = ? AND source_sequence = ?",
    )


class _BoundedTable:
    def __init__(
        self,
        connection: apsw.Connection,
        counters: CounterTable,
        tally: _Tally,
        statements: _Statements,
        bounds: tuple[int, int],
    ) -> None:
        self._connection = connection
        self._counters = counters
        self._tally = tally
        self._statements = statements
        self._max_rows, self._max_bytes = bounds

    def __len__(self) -> int:
        return self._counters[self._tally.stored] - self._counters[self._tally.dropped]

    @property
    def size_bytes(self) -> int:
        return self._counters[self._tally.stored_bytes] - self._counters[self._tally.dropped_bytes]

    def insert(self, rows: Iterable[EventRow]) -> set[int]:
        """Stores what is not there yet and makes room; returns the ids that were new."""
        found: list[Any] = self._connection.executemany(self._statements.insert, rows).fetchall()
        inserted: dict[int, int] = dict(found)
        self._counters.add(self._tally.stored, len(inserted))
        self._counters.add(self._tally.stored_bytes, sum(inserted.values()))
        while excess := self._excess():
            if not self._drop(self._statements.drop_oldest, (excess,)):
                break
        return set(inserted)

    def drop_aged(self, before_ns: int) -> int:
        return self._drop(self._statements.drop_aged, (before_ns, _AGED_AT_ONCE))

    def holds(self, key: tuple[str, int, int]) -> bool:
        return bool(self._connection.execute(self._statements.holds, key).get)

    def _excess(self) -> int:
        """How many rows to drop next: those above the bound, or about as many as bytes demand."""
        row_count, size_bytes = len(self), self.size_bytes
        excess_bytes = max(size_bytes - self._max_bytes, 0)
        by_size = -(-excess_bytes * row_count // max(size_bytes, 1))
        return max(row_count - self._max_rows, by_size)

    def _drop(self, statement: str, values: tuple[int, ...]) -> int:
        found: list[Any] = self._connection.execute(statement, values).fetchall()
        sizes = [int(size) for (size,) in found]
        self._counters.add(self._tally.dropped, len(sizes))
        self._counters.add(self._tally.dropped_bytes, sum(sizes))
        return len(sizes)


class CollectorEventTables:
    """Both tables of one database. The methods that write expect an open transaction."""

    def __init__(
        self, connection: apsw.Connection, limits: StoreLimits, counters: CounterTable
    ) -> None:
        self._connection = connection
        self._retention_days = limits.retention_days
        self._events = _BoundedTable(
            connection,
            counters,
            _Tally(
                Counter.COLLECTOR_EVENTS_STORED,
                Counter.COLLECTOR_EVENTS_DROPPED,
                Counter.COLLECTOR_EVENT_BYTES_STORED,
                Counter.COLLECTOR_EVENT_BYTES_DROPPED,
            ),
            _write_statements("collector_events", "event_id", "topic || event_type || data"),
            (limits.max_collector_events, limits.max_store_bytes // 4),
        )
        self._gaps = _BoundedTable(
            connection,
            counters,
            _Tally(
                Counter.GAPS_STORED,
                Counter.GAPS_DROPPED,
                Counter.GAP_BYTES_STORED,
                Counter.GAP_BYTES_DROPPED,
            ),
            _write_statements("collection_gaps", "gap_id", "source_name || message"),
            (limits.max_gaps, limits.max_store_bytes // 8),
        )

    @property
    def event_count(self) -> int:
        """How many events are stored that are not about processes; gaps aside."""
        return len(self._events)

    @property
    def gap_count(self) -> int:
        """How many gaps are stored."""
        return len(self._gaps)

    def insert_events(self, rows: Sequence[EventRow]) -> set[int]:
        """Stores rows with their ids; returns the ids of those that were new."""
        return self._events.insert(rows)

    def insert_gaps(self, rows: Sequence[tuple[int, GapRow]]) -> list[tuple[int, GapRow]]:
        """Stores gaps with their ids; returns those that were new."""
        inserted = self._gaps.insert((number, *row) for number, row in rows)
        return [(number, row) for number, row in rows if number in inserted]

    def drop_aged(self, now_ns: int) -> int:
        """Drops some of what is older than the retention time; returns how many rows."""
        before_ns = (day_of(now_ns) - self._retention_days) * NS_PER_DAY
        return self._events.drop_aged(before_ns) + self._gaps.drop_aged(before_ns)

    def holds(self, source_id: str, source_epoch: int, sequence: int) -> bool:
        """Whether an event is stored here."""
        key = (source_id, source_epoch, sequence)
        return self._events.holds(key) or self._gaps.holds(key)

    def describe_last_gap(self) -> str:
        """Source, time and reason of the latest gap; empty when there is none."""
        found: list[Any] = self._connection.execute(
            "SELECT source_id, time_ns, reason FROM collection_gaps ORDER BY gap_id DESC LIMIT 1"
        ).fetchall()
        return "".join(f"{source} at {format_time(when)}: {why}" for source, when, why in found)
