"""Puts events into partitions and lets go of partitions that are too old or too much.

Invariant: event ids rise in order of arrival over all partitions and are never given twice, not
even after everything was dropped. The partition that took the newest events is never dropped for
lack of room. Times out of range do not make partitions: an event goes at most one day into the
future and no further back than what is kept.
"""

from operator import itemgetter

import apsw

from daemoneye_agent.event import EVENT_COLUMNS, EventRow
from daemoneye_agent.partition import (
    DroppedPartition,
    DropReason,
    Partition,
    PartitionCatalog,
    day_of,
)
from daemoneye_agent.store_counters import Counter, CounterTable
from daemoneye_agent.store_limits import StoreLimits

__all__ = ["EventTables"]

_NAMES = ", ".join(f'"{name}"' for name in EVENT_COLUMNS)
_MARKS = ", ".join("?" * len(EVENT_COLUMNS))
_TIME_INDEX = EVENT_COLUMNS.index("time_ns")
_PARTS_PER_STORE = 16
_MAX_PARTITIONS = 450
_TRIM_PAGES = 16_384
"""Free pages given back to the file system in one go: 64 MiB of 4 KiB pages."""


class EventTables:
    """The events of one database. The methods that write expect an open transaction."""

    def __init__(
        self, connection: apsw.Connection, limits: StoreLimits, counters: CounterTable
    ) -> None:
        self._connection = connection
        self._limits = limits
        self._counters = counters
        self._page_bytes = int(connection.pragma("page_size"))
        self.catalog = PartitionCatalog(connection)

    def insert(
        self, rows: list[EventRow], now_ns: int
    ) -> tuple[list[EventRow], tuple[DroppedPartition, ...]]:
        """Stores rows with their ids; returns what was new, and what had to make room.

        A row that is there already is left out of the answer: the unique index is the second line
        of defence behind the progress of the sources.
        """
        groups = self._group_by_day(rows, day_of(now_ns))
        stored: list[EventRow] = []
        is_full = False
        for day, group in groups.items():
            partition, group_stored = self._insert_into(self.catalog.newest_part(day), group)
            stored += group_stored
            is_full |= self._begin_part_when_full(partition)
        if len(groups) > 1:
            stored.sort(key=itemgetter(0))
        return stored, self.drop_excess(now_ns) if is_full else ()

    def drop_excess(self, now_ns: int) -> tuple[DroppedPartition, ...]:
        """Drops what is older than the retention time, then the oldest until the rest fits."""
        oldest_day = self._oldest_day(day_of(now_ns))
        dropped = [
            self._drop(item, DropReason.TOO_OLD)
            for item in tuple(self.catalog)
            if item.day < oldest_day
        ]
        while self._is_over() and (candidate := self._oldest_but_one()):
            dropped.append(self._drop(candidate, DropReason.STORE_FULL))
        if dropped:
            self.catalog.newest_part(day_of(now_ns))
            self.catalog.rebuild_view()
        return tuple(dropped)

    def give_back_pages(self) -> None:
        """Shrinks the file toward its bound; outside a transaction, a bounded step a call."""
        excess_bytes = self._pages("page_count") * self._page_bytes - self._limits.max_store_bytes
        pages = min(excess_bytes // self._page_bytes, self._pages("freelist_count"), _TRIM_PAGES)
        if pages > 0:
            self._connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()

    def used_bytes(self) -> int:
        """Bytes of the file that hold something."""
        return (self._pages("page_count") - self._pages("freelist_count")) * self._page_bytes

    def _pages(self, pragma: str) -> int:
        return int(self._connection.pragma(pragma))

    def _oldest_day(self, today: int) -> int:
        return today - self._limits.retention_days

    def _group_by_day(self, rows: list[EventRow], today: int) -> dict[int, list[EventRow]]:
        if not rows:
            return {}
        oldest = self._oldest_day(today)
        newest = today + 1
        times: list[int] = [row[_TIME_INDEX] for row in rows]  # type: ignore[misc]
        first, last = day_of(min(times)), day_of(max(times))
        if first == last:
            return {min(max(first, oldest), newest): rows}
        groups: dict[int, list[EventRow]] = {}
        for time_ns, row in zip(times, rows, strict=True):
            day = min(max(day_of(time_ns), oldest), newest)
            groups.setdefault(day, []).append(row)
        return groups

    def _insert_into(
        self, partition: Partition, rows: list[EventRow]
    ) -> tuple[Partition, list[EventRow]]:
        before_bytes, before_rows = self.used_bytes(), self._connection.total_changes()
        self._connection.executemany(_insert(partition.name), rows)
        if self._connection.total_changes() - before_rows != len(rows):
            rows = self._keep_inserted(partition, rows)
        if not rows:
            return partition, []
        grown_bytes = self.used_bytes() - before_bytes
        return self.catalog.grow(partition.name, rows, grown_bytes), rows

    def _keep_inserted(self, partition: Partition, rows: list[EventRow]) -> list[EventRow]:
        found = self._connection.execute(
            f"SELECT event_id FROM {partition.name} WHERE event_id BETWEEN ? AND ?",  # noqa: S608
            (rows[0][0], rows[-1][0]),
        )
        inserted = {event_id for (event_id,) in found}
        return [row for row in rows if row[0] in inserted]

    def _begin_part_when_full(self, partition: Partition) -> bool:
        if partition.size_bytes < self._limits.max_store_bytes // _PARTS_PER_STORE:
            return False
        self.catalog.add(partition.day, partition.part + 1)
        return True

    def _is_over(self) -> bool:
        is_too_big = self.used_bytes() > self._limits.max_store_bytes
        return is_too_big or len(self.catalog) > _MAX_PARTITIONS

    def _oldest_but_one(self) -> Partition | None:
        filled = [item for item in self.catalog if item.row_count]
        newest = max(filled, key=lambda item: item.last_event_id or 0, default=None)
        return next((item for item in filled if item is not newest), None)

    def _drop(self, partition: Partition, reason: DropReason) -> DroppedPartition:
        self.catalog.drop(partition)
        self._counters.add(Counter.PARTITIONS_DROPPED, 1)
        self._counters.add(Counter.EVENTS_DROPPED, partition.row_count)
        return DroppedPartition(partition, reason)


def _insert(name: str) -> str:
    return f"INSERT OR IGNORE INTO {name} ({_NAMES}) VALUES ({_MARKS})"  # noqa: S608 - our names
