"""Queries in threads: a bounded number at once, rows streamed, cancelled when the caller leaves."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from daemoneye_agent.event import EventRow, SqlValue
from daemoneye_agent.live_processes import LiveProcesses
from daemoneye_agent.live_table import LiveTable
from daemoneye_agent.query import Batch, QueryLimits, QueryRun, QueryRunner, Truncation
from daemoneye_agent.sql import ValidatedQuery
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import OverloadedError

__all__ = ["MAX_QUERIES", "QueryAnswer", "QueryPool"]

MAX_QUERIES = 4
"""Queries that run at once; each has a thread and a connection."""

OpenLive = Callable[[float], LiveProcesses]
"""Makes the live processes of one query, given its time limit in seconds."""


@dataclass(frozen=True, slots=True)
class QueryAnswer:
    """A piece of an answer, and on the last one what is missing."""

    columns: tuple[str, ...]
    rows: tuple[EventRow, ...]
    degradations: tuple[Degradation, ...] = ()


class QueryPool:
    """Runs validated queries over the store and the live tables.

    Args:
        path: the event store.
        limits: bounds of each query.
        open_live: makes the live processes of one query.
    """

    def __init__(self, path: Path, limits: QueryLimits, open_live: OpenLive) -> None:
        self._path = path
        self._limits = limits
        self._open_live = open_live
        self._running_count = 0
        self._threads = ThreadPoolExecutor(MAX_QUERIES, thread_name_prefix="query")

    async def run(
        self,
        query: ValidatedQuery,
        parameters: Mapping[str, SqlValue],
        max_rows: int | None,
        timeout_s: float | None,
    ) -> AsyncGenerator[QueryAnswer, None]:
        """Yields the answer in pieces, at least one; closing the iterator stops the query.

        Raises:
            OverloadedError: too many queries run already.
            DaemoneyeError: see ``QueryRunner``.
        """
        if self._running_count >= MAX_QUERIES:
            raise OverloadedError(
                f"{MAX_QUERIES} queries are running; try again when one is done", limit=MAX_QUERIES
            )
        limits = self._bound(max_rows, timeout_s)
        self._running_count += 1
        try:
            live = self._open_live(limits.deadline_s)
            async for answer in self._stream(query, parameters, limits, live):
                yield answer
        finally:
            self._running_count -= 1

    def close(self) -> None:
        """Frees the threads; no query may run any more."""
        self._threads.shutdown(wait=True)

    async def _stream(
        self,
        query: ValidatedQuery,
        parameters: Mapping[str, SqlValue],
        limits: QueryLimits,
        live: LiveProcesses,
    ) -> AsyncGenerator[QueryAnswer, None]:
        loop = asyncio.get_running_loop()

        def start() -> tuple[QueryRunner, QueryRun]:
            runner = QueryRunner(self._path, live=(LiveTable(live.fetch),), limits=limits)
            try:
                return runner, runner.run(query, parameters)
            except BaseException:
                runner.close()
                raise

        runner, running = await loop.run_in_executor(self._threads, start)
        try:
            while (batch := await self._next(running)) is not None:
                yield QueryAnswer(batch.columns, batch.rows, _truncation(batch) + live.degradations)
        finally:
            running.cancel()
            await loop.run_in_executor(self._threads, _finish, runner, running)

    async def _next(self, running: QueryRun) -> Batch | None:
        loop = asyncio.get_running_loop()
        step = loop.run_in_executor(self._threads, next, running, None)
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            running.cancel()
            raise

    def _bound(self, max_rows: int | None, timeout_s: float | None) -> QueryLimits:
        deadline_s = min(self._limits.deadline_s, timeout_s or self._limits.deadline_s)
        return replace(
            self._limits, deadline_s=deadline_s, max_rows=max_rows or self._limits.max_rows
        )


def _truncation(batch: Batch) -> tuple[Degradation, ...]:
    if batch.truncated is Truncation.NONE:
        return ()
    message = f"there are more rows than {batch.truncated} lets through; narrow the query"
    return (Degradation(DegradedReason.TRUNCATED, "query", message),)


def _finish(runner: QueryRunner, running: QueryRun) -> None:
    running.close()
    runner.close()
