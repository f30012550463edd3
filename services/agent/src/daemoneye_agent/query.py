"""Guarded execution: one read-only connection to the event store, one query at a time.

Invariant: a query ends at its deadline, at its row or byte bound, or when it is cancelled, and the
last batch says which bound cut it. Everything here blocks; callers run it off the event loop.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import apsw

from daemoneye_agent.event import EventRow, SqlValue
from daemoneye_agent.live_table import LiveTable
from daemoneye_agent.schema import TABLES, Table
from daemoneye_agent.sql import ValidatedQuery
from daemoneye_agent.sql_guard import (
    Authorizer,
    Deadline,
    add_regexp,
    explain,
    harden,
    restrict,
)
from daemoneye_agent.sql_text import InvalidSqlError
from daemoneye_agent.store_file import open_reader
from daemoneye_mesh.errors import ConflictError, DeadlineError, OverloadedError

__all__ = [
    "Batch",
    "QueryCancelledError",
    "QueryLimits",
    "QueryRun",
    "QueryRunner",
    "Truncation",
]

_PATTERNS = 64
_CLOSE_TIMEOUT_S = 5.0
_COUNT_PARTITIONS = """SELECT count(*) FROM sqlite_schema
    WHERE type = 'table' AND name GLOB 'process_events_[0-9]*'"""
_CACHE_KIB = 8_192
_VALUE_BYTES = 8


class QueryCancelledError(ConflictError):
    """Somebody called ``cancel`` while the query ran."""


class Truncation(StrEnum):
    """Which bound cut a result."""

    NONE = ""
    ROWS = "max_rows"
    BYTES = "max_bytes"


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """The bounds of one query."""

    deadline_s: float = 10.0
    """Wall time from ``run`` to the last row, with the time the reader takes."""
    max_rows: int = 10_000
    max_bytes: int = 32 << 20
    """Sum over all values of the result; texts count their characters."""
    batch_bytes: int = 1 << 20
    """A batch is closed when it grew past this, however few its rows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A piece of a result; every query yields at least one, if only for the column names."""

    columns: tuple[str, ...]
    rows: tuple[EventRow, ...]
    truncated: Truncation = Truncation.NONE
    """Set on the last batch when rows are missing after it."""


class QueryRunner:
    """Runs validated queries over the event store and the live tables."""

    def __init__(
        self,
        path: Path,
        *,
        tables: Mapping[str, Table] = TABLES,
        live: Sequence[LiveTable] = (),
        limits: QueryLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the store at ``path`` for reading.

        Raises:
            StoreFailedError: the file is missing or cannot be read.
        """
        self.limits = limits or QueryLimits()
        self._live = tuple(live)
        self._slot = threading.Lock()
        self.deadline = Deadline(clock)
        self._authorizer = Authorizer(tables)
        self.connection = self._open(path)

    def _open(self, path: Path) -> apsw.Connection:
        connection = open_reader(path)
        connection.pragma("cache_size", -_CACHE_KIB)
        harden(connection)
        add_regexp(connection, max_patterns=_PATTERNS)
        for table in self._live:
            table.register(connection)
        restrict(connection, self._authorizer, self.deadline)
        return connection

    def run(
        self,
        query: ValidatedQuery,
        parameters: Mapping[str, SqlValue] | None = None,
        batch_rows: int = 500,
        limits: QueryLimits | None = None,
    ) -> "QueryRun":
        """Start a query; iterate the answer for its batches and close it.

        ``limits`` take the place of the runner's own for this query.

        Raises:
            InvalidSqlError: a parameter has no value, is not in the query or has a wrong type, or
                the query would grow too large over the partitions there are.
            OverloadedError: another query still runs on this connection.
        """
        bindings = _bindings(query, parameters or {})
        if not self._slot.acquire(blocking=False):
            raise OverloadedError("another query runs on this connection; try again when it ended")
        try:
            query.check_expansion(self._partitions())
        except BaseException:
            self._slot.release()
            raise
        self._authorizer.cte_names = query.cte_names
        for table in self._live:
            table.forget()
        self.deadline.start((limits or self.limits).deadline_s)
        return QueryRun(
            self, query.sql, bindings, batch_rows, limits or self.limits, self._slot.release
        )

    def _partitions(self) -> int:
        self._authorizer.is_trusted = True
        try:
            return int(self.connection.execute(_COUNT_PARTITIONS).get)
        except apsw.Error as error:
            raise explain(error, _COUNT_PARTITIONS) from error
        finally:
            self._authorizer.is_trusted = False

    def close(self) -> None:
        """Close the connection; a query that still runs is stopped."""
        self.connection.interrupt()
        # A reader that went away without closing its run must not hold up the shutdown.
        self._slot.acquire(timeout=_CLOSE_TIMEOUT_S)
        self.connection.close(True)


class QueryRun:
    """One running query: an iterator of batches that can be cancelled from any thread."""

    def __init__(
        self,
        runner: QueryRunner,
        sql: str,
        bindings: dict[str, SqlValue],
        batch_rows: int,
        limits: QueryLimits,
        release: Callable[[], None],
    ) -> None:
        self._connection = runner.connection
        self._deadline = runner.deadline
        self._limits = limits
        self._sql = sql
        self._batch_rows = batch_rows
        self._release: Callable[[], None] | None = release
        self._is_cancelled = False
        self._columns: tuple[str, ...] = ()
        self._ending = threading.Lock()
        self._batches = self._stream(bindings)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "QueryRun":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def cancel(self) -> None:
        """Stop the query from any thread; its iterator then raises ``QueryCancelledError``."""
        self._is_cancelled = True
        # Interrupting after the end would hit whoever runs next on the connection.
        with self._ending:
            if self._release is not None:
                self._connection.interrupt()

    def close(self) -> None:
        """Give the connection back; call it from the thread that iterates."""
        self._batches.close()
        with self._ending:
            release, self._release = self._release, None
        if release is not None:
            self._deadline.stop()
            release()

    def _stream(self, bindings: dict[str, SqlValue]) -> Generator[Batch, None, None]:
        rows: list[EventRow] = []
        size_bytes = total_bytes = total_rows = 0
        truncated = Truncation.NONE
        for row in self._rows(bindings):
            row_bytes = _size_bytes(row)
            truncated = self._bound(total_rows + 1, total_bytes + row_bytes)
            if truncated:
                break
            total_rows, total_bytes = total_rows + 1, total_bytes + row_bytes
            size_bytes += row_bytes
            rows.append(row)
            if len(rows) >= self._batch_rows or size_bytes >= self._limits.batch_bytes:
                yield Batch(self._columns, tuple(rows))
                rows, size_bytes = [], 0
        yield Batch(self._columns, tuple(rows), truncated)

    def _bound(self, rows: int, size_bytes: int) -> Truncation:
        if rows > self._limits.max_rows:
            return Truncation.ROWS
        return Truncation.BYTES if size_bytes > self._limits.max_bytes else Truncation.NONE

    def _rows(self, bindings: dict[str, SqlValue]) -> Iterator[EventRow]:
        cursor = self._connection.cursor()
        cursor.exec_trace = self._note_columns
        try:
            self._check_time()
            # A statement from the cache would have been authorized for another query's names.
            for row in cursor.execute(self._sql, bindings, can_cache=False):
                self._check_time()
                yield row
        except apsw.InterruptError:
            self._check_time()
            raise QueryCancelledError("the query was stopped; run it again") from None
        except (apsw.Error, UnicodeDecodeError, OverflowError) as error:
            raise explain(error, self._sql) from error
        finally:
            cursor.close(force=True)

    def _note_columns(self, cursor: apsw.Cursor, _sql: str, _bindings: object) -> bool:
        self._columns = tuple(column[0] for column in cursor.get_description())
        return True

    def _check_time(self) -> None:
        if self._is_cancelled:
            raise QueryCancelledError("the query was cancelled; run it again")
        if self._deadline.is_over:
            seconds = f"{self._limits.deadline_s:g}"
            raise DeadlineError(
                f"the query took longer than {seconds} s; narrow it or add a LIMIT",
                deadline_s=seconds,
            )


def _size_bytes(row: EventRow) -> int:
    return sum(len(value) if isinstance(value, (str, bytes)) else _VALUE_BYTES for value in row)


def _bindings(query: ValidatedQuery, parameters: Mapping[str, SqlValue]) -> dict[str, SqlValue]:
    missing = [name for name in query.parameters if name not in parameters]
    if missing:
        names = ", ".join(missing)
        raise InvalidSqlError(f"no value for parameter {names}; send one for each", names=names)
    unused = sorted(set(parameters) - set(query.parameters))
    if unused:
        names = ", ".join(unused)
        raise InvalidSqlError(
            f"the query has no parameter {names}; remove it or write :name", names=names
        )
    for name, value in parameters.items():
        if not isinstance(value, (str, int, float, bytes, type(None))):
            raise InvalidSqlError(
                f"the value of parameter {name} has no SQL type; send text or a number", name=name
            )
    return dict(parameters)
