"""Time partitions of the event store: one table a UTC day, split further when a day is big.

Invariant: the view ``process_events`` is the UNION ALL of the tables listed in
``event_partitions``, and the two change in one transaction. A day has more than one part when it
outgrows its share of the store, so that what is dropped is never the newest events with the oldest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import apsw

from daemoneye_agent.event import EVENT_COLUMNS, NS_PER_SECOND, EventRow
from daemoneye_agent.schema import TABLES

__all__ = [
    "NS_PER_DAY",
    "DropReason",
    "DroppedPartition",
    "Partition",
    "PartitionCatalog",
    "day_of",
]

NS_PER_DAY = 86_400 * NS_PER_SECOND
_VIEW = "process_events"
_TIME_INDEX = EVENT_COLUMNS.index("time_ns")
_INDEXED = (
    ("key", "source_id, source_epoch, source_sequence"),
    ("time", "time_ns"),
    ("pid", "pid"),
)
_SELECT = """SELECT day, part, row_count, size_bytes, first_event_id, last_event_id,
    oldest_time_ns, newest_time_ns FROM event_partitions"""
_REPLACE = """INSERT OR REPLACE INTO event_partitions (name, day, part, row_count, size_bytes,
    first_event_id, last_event_id, oldest_time_ns, newest_time_ns)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""


class DropReason(StrEnum):
    """Why a partition was let go."""

    TOO_OLD = "older than the retention time"
    STORE_FULL = "the store reached its size"


@dataclass(frozen=True, slots=True)
class Partition:
    """One table of events."""

    name: str
    day: int
    """Days since the Unix epoch, UTC."""
    part: int
    """0 for the first table of a day."""
    row_count: int = 0
    size_bytes: int = 0
    """How much the file grew while this was written to."""
    first_event_id: int | None = None
    last_event_id: int | None = None
    oldest_time_ns: int | None = None
    newest_time_ns: int | None = None


@dataclass(frozen=True, slots=True)
class DroppedPartition:
    """A partition that is gone, with what was in it."""

    partition: Partition
    reason: DropReason


def day_of(time_ns: int) -> int:
    """The UTC day of a time, in days since the Unix epoch."""
    return time_ns // NS_PER_DAY


class PartitionCatalog:
    """The partitions of one database. Every method that writes expects an open transaction."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._partitions: dict[str, Partition] = {}

    def __iter__(self) -> Iterator[Partition]:
        """Oldest first."""
        return iter(sorted(self._partitions.values(), key=lambda item: (item.day, item.part)))

    def __len__(self) -> int:
        return len(self._partitions)

    def reload(self) -> None:
        """Reads the catalog from the database, as after a rollback."""
        found = (_partition(*row) for row in self._connection.execute(_SELECT))
        self._partitions = {item.name: item for item in found}

    def newest_part(self, day: int) -> Partition:
        """The part of a day that takes new events; made when the day has none."""
        parts = [item for item in self._partitions.values() if item.day == day]
        return max(parts, key=lambda item: item.part) if parts else self.add(day, 0)

    def add(self, day: int, part: int) -> Partition:
        """Creates a table and lists it."""
        partition = Partition(_table_name(day, part), day, part)
        for statement in _table_ddl(partition.name):
            self._connection.execute(statement)
        self._partitions[partition.name] = partition
        self._save(partition)
        self.rebuild_view()
        return partition

    def grow(self, name: str, rows: Sequence[EventRow], size_bytes: int) -> Partition:
        """Takes note of rows, the id in front, that were put into a partition."""
        old = self._partitions[name]
        times: list[int] = [row[_TIME_INDEX] for row in rows]  # type: ignore[misc]
        first_id: int = rows[0][0]  # type: ignore[assignment]
        last_id: int = rows[-1][0]  # type: ignore[assignment]
        oldest, newest = min(times), max(times)
        grown = replace(
            old,
            row_count=old.row_count + len(rows),
            size_bytes=old.size_bytes + max(size_bytes, 0),
            first_event_id=first_id if old.first_event_id is None else old.first_event_id,
            last_event_id=last_id,
            oldest_time_ns=min(oldest, _or(old.oldest_time_ns, oldest)),
            newest_time_ns=max(newest, _or(old.newest_time_ns, newest)),
        )
        self._partitions[name] = grown
        self._save(grown)
        return grown

    def drop(self, partition: Partition) -> None:
        """Drops one table; the caller rebuilds the view once it has dropped all it wants to."""
        self._connection.execute(f"DROP VIEW IF EXISTS {_VIEW}")
        self._connection.execute(f"DROP TABLE {partition.name}")
        self._connection.execute("DELETE FROM event_partitions WHERE name = ?", (partition.name,))
        del self._partitions[partition.name]

    def rebuild_view(self) -> None:
        """Makes the view show exactly the partitions there are."""
        columns = ", ".join(f'"{name}"' for name in EVENT_COLUMNS)
        selects = [f"SELECT {columns} FROM {item.name}" for item in self]  # noqa: S608 - our names
        self._connection.execute(f"DROP VIEW IF EXISTS {_VIEW}")
        self._connection.execute(f"CREATE VIEW {_VIEW} AS {' UNION ALL '.join(selects)}")

    def holds(self, source_id: str, source_epoch: int, sequence: int) -> bool:
        """Whether any partition holds the event."""
        key = (source_id, source_epoch, sequence)
        return any(self._connection.execute(_holds(item.name), key).get for item in self)

    def _save(self, partition: Partition) -> None:
        self._connection.execute(_REPLACE, astuple(partition))


def _partition(day: int, part: int, *rest: Any) -> Partition:
    # The name is made anew, so that a tampered catalog cannot put words into our statements.
    return Partition(_table_name(day, part), day, part, *rest)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _table_name(day: int, part: int) -> str:
    stamp = datetime.fromtimestamp(day * 86_400, UTC).strftime("%Y%m%d")
    return f"{_VIEW}_{stamp}_{part}" if part else f"{_VIEW}_{stamp}"


def _holds(name: str) -> str:
    where = "source_id = ? AND source_epoch = ? AND source_sequence = ?"
    return f"SELECT 1 FROM {name} WHERE {where}"  # noqa: S608 - the name is our own


def _table_ddl(name: str) -> Iterator[str]:
    columns = (
        f'"{column.name}" {column.type}' + (" PRIMARY KEY" if column.name == "event_id" else "")
        for column in TABLES["process_events"].columns
    )
    yield f"CREATE TABLE {name} ({', '.join(columns)})"
    for suffix, indexed in _INDEXED:
        unique = "UNIQUE " if suffix == "key" else ""
        yield f"CREATE {unique}INDEX {name}_{suffix} ON {name} ({indexed})"
