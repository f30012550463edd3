"""Queries in threads: a bounded number at once, rows streamed, cancelled when the caller leaves.

Invariant: a query has one thread, which opens and closes everything it uses. It keeps its place
until that thread has let go of all, which is at the latest when its time is over, whether or not
anybody still reads the answer.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from daemoneye_agent.event import EventRow, SqlValue
from daemoneye_agent.live_table import LiveTable
from daemoneye_agent.query import (
    Batch,
    QueryCancelledError,
    QueryLimits,
    QueryRun,
    QueryRunner,
    Truncation,
)
from daemoneye_agent.sql import ValidatedQuery, validate
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import DeadlineError, ErrorReason, OverloadedError, UnavailableError

__all__ = ["MAX_QUERIES", "LiveRows", "QueryAnswer", "QueryPool"]

MAX_QUERIES = 4
"""Queries that run at once; each has a thread and a connection."""

_AHEAD = 2
"""Pieces that wait for a reader."""

_ANSWER_MARGIN_S = 0.25
"""How much sooner than the caller we stop, so that it is told why."""


class LiveRows(Protocol):
    """Where the live tables of one query get their rows."""

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """What the answers so far said is missing."""

    def fetch(
        self, constraints: Mapping[str, SqlValue], columns: frozenset[str]
    ) -> Iterable[EventRow]:
        """Returns the rows for one look-up; called in the thread of the query."""

    def cancel(self) -> None:
        """Ends a look-up under way and refuses further ones; called on the loop."""


OpenLive = Callable[[float], LiveRows]
"""Makes the live rows of one query, given its time limit in seconds."""


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """A piece of an answer, and on the last one what is missing."""

    columns: tuple[str, ...]
    rows: tuple[EventRow, ...]
    tables: frozenset[str] = frozenset()
    """The tables that the query reads."""
    degradations: tuple[Degradation, ...] = ()


class QueryPool:
    """Validates and runs queries over the store and the live tables.

    Args:
        path: the event store.
        limits: bounds of each query.
        open_live: makes the live rows of one query.
    """

    def __init__(self, path: Path, limits: QueryLimits, open_live: OpenLive) -> None:
        self._path = path
        self._limits = limits
        self._open_live = open_live
        self._running: set[_Query] = set()
        self._is_closed = False
        self._threads = ThreadPoolExecutor(MAX_QUERIES, thread_name_prefix="query")

    @property
    def running_count(self) -> int:
        """Queries that hold a place."""
        return len(self._running)

    async def run(
        self,
        sql: str,
        parameters: Mapping[str, SqlValue],
        max_rows: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[QueryAnswer, None]:
        """Yields the answer in pieces, at least one; closing the iterator stops the query.

        Args:
            sql: the query.
            parameters: values of its parameters.
            max_rows: most rows wanted; 0 for the default.
            timeout_s: how long the caller waits; None when it does not say.

        Raises:
            OverloadedError: too many queries run already.
            InvalidSqlError: see ``validate``.
            DaemoneyeError: see ``QueryRunner``.
        """
        query = self._start(sql, parameters, self._bound(max_rows, timeout_s))
        try:
            while (answer := await query.answers.take()) is not None:
                yield answer
        finally:
            query.cancel()

    async def close(self) -> None:
        """Stops what runs and frees the threads."""
        self._is_closed = True
        for query in tuple(self._running):
            query.cancel()
        await asyncio.to_thread(self._threads.shutdown)

    def _start(self, sql: str, parameters: Mapping[str, SqlValue], limits: QueryLimits) -> "_Query":
        if self._is_closed:
            raise UnavailableError(
                "the agent is shutting down; try again", reason=ErrorReason.DRAINING
            )
        if len(self._running) >= MAX_QUERIES:
            raise OverloadedError(
                f"{MAX_QUERIES} queries are running; try again when one is done", limit=MAX_QUERIES
            )
        query = _Query(self._path, limits, self._open_live(limits.deadline_s))
        query.answers.on_end(lambda: self._running.discard(query))
        self._running.add(query)
        self._threads.submit(query.work, sql, parameters)
        return query

    def _bound(self, max_rows: int, timeout_s: float | None) -> QueryLimits:
        deadline_s = self._limits.deadline_s
        if timeout_s is not None:
            margin_s = min(_ANSWER_MARGIN_S, timeout_s * 0.1)
            deadline_s = min(deadline_s, max(timeout_s - margin_s, 0.0))
        return replace(
            self._limits, deadline_s=deadline_s, max_rows=max_rows or self._limits.max_rows
        )


class _Query:
    """One query, from the validation to the last row."""

    def __init__(self, path: Path, limits: QueryLimits, live: LiveRows) -> None:
        self._path = path
        self._limits = limits
        self._live = live
        self._running: tuple[QueryRunner, QueryRun] | None = None
        self._is_cancelled = False
        self.answers = _Answers(asyncio.get_running_loop(), limits.deadline_s)

    def cancel(self) -> None:
        """Stops it, wherever it is; does nothing when it has ended."""
        self._is_cancelled = True
        self.answers.leave()
        self._live.cancel()
        if self._running is not None:
            stop(*self._running)

    def work(self, sql: str, parameters: Mapping[str, SqlValue]) -> None:
        """Runs it in the thread."""
        error: Exception | None = None
        try:
            query = validate(sql)
            with closing(self._run(query, parameters)) as pieces:
                for piece in pieces:
                    self.answers.put(piece)
        except Exception as raised:  # whatever it is, the reader raises it
            error = raised
        self.answers.end(error)

    def _run(
        self, query: ValidatedQuery, parameters: Mapping[str, SqlValue]
    ) -> Generator[QueryAnswer, None, None]:
        live = self._live
        runner = QueryRunner(self._path, live=(LiveTable(live.fetch),), limits=self._limits)
        with closing(runner), runner.run(query, parameters) as running:
            self._running = (runner, running)
            if self._is_cancelled:  # before there was something to cancel
                stop(runner, running)
            for batch in running:
                missing = _truncation(batch) + live.degradations
                yield QueryAnswer(batch.columns, batch.rows, query.tables, missing)


class _Answers:
    """Hands pieces of an answer from a thread to the loop, a few ahead of the reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._end_s = time.monotonic() + timeout_s
        self._room = threading.Semaphore(_AHEAD)
        self._items: asyncio.Queue[QueryAnswer | Exception | None] = asyncio.Queue()
        self._is_left = False
        self._ended: Callable[[], object] = lambda: None

    def on_end(self, callback: Callable[[], object]) -> None:
        """Sets what is called on the loop when the thread is through, before the reader knows."""
        self._ended = callback

    def put(self, answer: QueryAnswer) -> None:
        """Waits until the reader has room; in the thread.

        Raises:
            DeadlineError: the reader let the time run out.
            QueryCancelledError: it has left.
        """
        if not self._room.acquire(timeout=max(self._end_s - time.monotonic(), 0.0)):
            raise DeadlineError(
                f"the answer was not read within {self._timeout_s:g} s; read faster or select less",
                deadline_s=f"{self._timeout_s:g}",
            )
        if self._is_left:
            raise QueryCancelledError("the query was cancelled; run it again")
        self._loop.call_soon_threadsafe(self._items.put_nowait, answer)

    def end(self, error: Exception | None) -> None:
        """Says that nothing comes any more, and why; in the thread."""
        self._loop.call_soon_threadsafe(self._finish, error)

    async def take(self) -> QueryAnswer | None:
        """Returns the next piece, None after the last one; on the loop."""
        item = await self._items.get()
        if isinstance(item, Exception):
            raise item
        if item is not None:
            self._room.release()
        return item

    def leave(self) -> None:
        """Lets the thread go that waits for room; on the loop."""
        self._is_left = True
        self._room.release()

    def _finish(self, error: Exception | None) -> None:
        self._ended()
        self._items.put_nowait(error)


def stop(runner: QueryRunner, running: QueryRun) -> None:
    """Stops a query from any thread."""
    running.cancel()
    # SQLite forgets an interrupt that comes right before the statement begins; a deadline it keeps.
    runner.deadline.start(0)


def _truncation(batch: Batch) -> tuple[Degradation, ...]:
    if batch.truncated is Truncation.NONE:
        return ()
    message = f"there are more rows than {batch.truncated} lets through; narrow the query"
    return (Degradation(DegradedReason.TRUNCATED, "query", message),)
