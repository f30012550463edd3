"""The live table ``processes``: asked of the process collectors while a query runs.

The query runs in a thread of its own and the calls run on the event loop; each fetch waits there
for its answer, within the deadline of the query.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing

from daemoneye.common.v1 import common_pb2
from daemoneye_agent.collectors import CollectorClients
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.event import EventRow, SqlValue
from daemoneye_agent.process_row import to_process_row
from daemoneye_mesh.completeness import Degradation, DegradedReason, merge_degradations
from daemoneye_mesh.completeness_message import from_completeness
from daemoneye_mesh.errors import DaemoneyeError, DeadlineError

__all__ = ["LiveProcesses"]

MAX_PID = 2**32 - 1


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
        self._deadline_s = time.monotonic() + timeout_s
        self.degradations: tuple[Degradation, ...] = ()
        """What the answers so far said is missing."""

    def fetch(
        self, constraints: Mapping[str, SqlValue], columns: frozenset[str]
    ) -> Iterator[EventRow]:
        """Returns the rows for one look-up; called in the thread of the query.

        Raises:
            DaemoneyeError: no collector could answer in time.
        """
        wanted = to_filter(constraints)
        if wanted is None:
            return iter(())
        future = asyncio.run_coroutine_threadsafe(self._ask_all(wanted), self._loop)
        try:
            return iter(future.result(timeout=self._remaining_s()))
        except TimeoutError:
            future.cancel()
            raise DeadlineError(
                "the collectors did not answer in time; narrow the query with pid = or name ="
            ) from None

    async def _ask_all(self, wanted: common_pb2.ProcessFilter) -> list[EventRow]:
        collectors = self._coverage.process_collectors()
        if not collectors:
            self._note(
                Degradation(
                    DegradedReason.COLLECTOR_UNAVAILABLE,
                    "processes",
                    "no process collector is in service, so nobody could look",
                )
            )
        rows: list[EventRow] = []
        for collector in collectors:
            rows += await self._ask(collector.registration.collector_id, wanted)
        return rows

    async def _ask(self, collector_id: str, wanted: common_pb2.ProcessFilter) -> list[EventRow]:
        rows: list[EventRow] = []
        answers = self._clients.enumerate_processes(collector_id, wanted, self._remaining_s())
        try:
            async with aclosing(answers) as chunks:
                async for chunk in chunks:
                    rows += map(to_process_row, chunk.result.processes)
                    if chunk.is_last:
                        self._note(*from_completeness(chunk.completeness, collector_id))
        except DaemoneyeError as error:
            message = f"{collector_id} could not answer: {error.message}"
            self._note(Degradation(DegradedReason.COLLECTOR_UNAVAILABLE, collector_id, message))
        return rows

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


def _names(constraints: Mapping[str, SqlValue]) -> Sequence[str]:
    name = constraints.get("name")
    return [name] if isinstance(name, str) and name else []
