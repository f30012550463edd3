"""The live table ``processes``: asked of the process collectors while a query runs.

The query runs in a thread of its own and the calls run on the event loop; each fetch waits there
for its answer, within the deadline of the query. Records become rows in the thread, so that a large
host does not hold up the loop.
"""

import asyncio
import contextvars
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import aclosing
from dataclasses import dataclass, field

from daemoneye.common.v1 import common_pb2
from daemoneye_agent.collectors import CollectorClients
from daemoneye_agent.coverage import Coverage, bound_degradations
from daemoneye_agent.event import EventRow, SqlValue
from daemoneye_agent.process_row import to_process_row
from daemoneye_agent.query import QueryCancelledError
from daemoneye_mesh.completeness import Degradation, DegradedReason, merge_degradations
from daemoneye_mesh.completeness_message import from_completeness
from daemoneye_mesh.errors import DaemoneyeError, DeadlineError

__all__ = ["LiveProcesses"]

MAX_PID = 2**32 - 1
MAX_ANSWER_BYTES = 128 << 20
"""Encoded size of what one collector may answer; what is beyond is left out and said so."""

_MAX_INTEGER = 2**63 - 1
_CALL_SHARE = 0.9
"""Share of the remaining time that a call may take: a hung collector must not spoil the answer."""


@dataclass(slots=True)
class _Answer:
    collector_id: str
    parts: list[Sequence[common_pb2.ProcessRecord]] = field(default_factory=list)
    size_bytes: int = 0


class LiveProcesses:
    """Fetches processes for one query and gathers what was missing.

    Args:
        clients: calls to the collectors.
        coverage: knows the process collectors.
        loop: the loop on which calls run.
        timeout_s: how long the query may run from now on.
    """

    def __init__(
        self,
        clients: CollectorClients,
        coverage: Coverage,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
    ) -> None:
        self._clients = clients
        self._coverage = coverage
        self._loop = loop
        self._context = contextvars.copy_context()  # carries the correlation id into the calls
        self._deadline_s = time.monotonic() + timeout_s
        self._asking: Future[list[_Answer]] | None = None
        self._is_cancelled = False
        self.degradations: tuple[Degradation, ...] = ()
        """What the answers so far said is missing."""

    def fetch(
        self, constraints: Mapping[str, SqlValue], columns: frozenset[str]
    ) -> Iterable[EventRow]:
        """Returns the rows for one look-up; called in the thread of the query.

        Raises:
            DeadlineError: the time of the query is over.
            QueryCancelledError: the query was cancelled.
        """
        wanted = to_filter(constraints)
        return () if wanted is None else self._rows(self._wait(wanted))

    def cancel(self) -> None:
        """Ends a look-up under way and refuses further ones; called on the loop."""
        self._is_cancelled = True
        if self._asking is not None:
            self._asking.cancel()

    def _wait(self, wanted: common_pb2.ProcessFilter) -> list[_Answer]:
        asking: Future[list[_Answer]] = self._context.run(
            asyncio.run_coroutine_threadsafe, self._ask_all(wanted), self._loop
        )
        self._asking = asking
        if self._is_cancelled:  # before there was something to cancel
            asking.cancel()
        try:
            return asking.result(timeout=self._remaining_s())
        except CancelledError:
            raise QueryCancelledError("the query was cancelled; run it again") from None
        except TimeoutError:
            asking.cancel()
            raise DeadlineError(
                "the collectors did not answer in time; narrow the query with pid = or name ="
            ) from None

    def _rows(self, answers: Iterable[_Answer]) -> Iterator[EventRow]:
        for answer in answers:
            unusable_count = 0
            for part in answer.parts:
                for record in part:
                    if is_storable(record):
                        yield to_process_row(record)
                    else:
                        unusable_count += 1
            if unusable_count:
                message = f"{unusable_count} records of {answer.collector_id} are not usable"
                self._note(Degradation(DegradedReason.READ_ERRORS, answer.collector_id, message))

    async def _ask_all(self, wanted: common_pb2.ProcessFilter) -> list[_Answer]:
        self._note(*self._coverage.missing_collectors())
        answers = [
            _Answer(collector.registration.collector_id)
            for collector in self._coverage.process_collectors()
        ]
        async with asyncio.TaskGroup() as group:
            for answer in answers:
                group.create_task(self._ask(answer, wanted))
        return answers

    async def _ask(self, answer: _Answer, wanted: common_pb2.ProcessFilter) -> None:
        collector_id = answer.collector_id
        timeout_s = self._remaining_s() * _CALL_SHARE
        answers = self._clients.enumerate_processes(collector_id, wanted, timeout_s)
        try:
            async with aclosing(answers) as chunks:
                async for chunk in chunks:
                    answer.size_bytes += chunk.ByteSize()
                    if answer.size_bytes > MAX_ANSWER_BYTES:
                        self._note_excess(collector_id)
                        return
                    answer.parts.append(chunk.result.processes)
                    if chunk.is_last:
                        said = from_completeness(chunk.completeness, collector_id)
                        self._note(*bound_degradations(collector_id, said))
        except DaemoneyeError as error:
            message = f"{collector_id} could not answer: {error.message}"
            self._note(Degradation(DegradedReason.COLLECTOR_UNAVAILABLE, collector_id, message))

    def _note_excess(self, collector_id: str) -> None:
        message = f"{collector_id} answered more than {MAX_ANSWER_BYTES} bytes; narrow the query"
        self._note(Degradation(DegradedReason.TRUNCATED, collector_id, message))

    def _note(self, *degradations: Degradation) -> None:
        self.degradations = merge_degradations(self.degradations, degradations)

    def _remaining_s(self) -> float:
        return max(self._deadline_s - time.monotonic(), 0.05)


def to_filter(constraints: Mapping[str, SqlValue]) -> common_pb2.ProcessFilter | None:
    """Returns the filter that narrows to ``constraints``; None when nothing can match.

    The collector matches a name against the executable's file name too; SQLite then drops the rows
    whose command name differs.
    """
    pid = constraints.get("pid")
    if "pid" not in constraints:
        return common_pb2.ProcessFilter(process_names=_names(constraints))
    if not isinstance(pid, int) or not 0 < pid <= MAX_PID:
        return None
    return common_pb2.ProcessFilter(pids=[pid], process_names=_names(constraints))


def is_storable(record: common_pb2.ProcessRecord) -> bool:
    """Whether SQLite can hold the numbers of a record: the wire has one bit more."""
    largest = max(record.start_ticks, record.memory_usage, record.cpu_time_ms)
    return largest <= _MAX_INTEGER


def _names(constraints: Mapping[str, SqlValue]) -> Sequence[str]:
    name = constraints.get("name")
    return [name] if isinstance(name, str) and name else []
