"""Passes the analyses that collectors ask for on to those that offer them, and keeps what they answer.

The event store is the queue: a request is stored before it is passed on, and is only over once its
record is stored as well. What the end of the process cuts off is found again at the next start; the
same id makes that harmless. A result never leads to another request.

Invariants: nothing here holds up the pipeline; every call has a deadline; while the store refuses
records, nothing new is begun.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from collector_core.analysis import TriggerPriority
from daemoneye.ipc.v1 import analysis_pb2, ipc_pb2
from daemoneye_agent.pipeline import report
from daemoneye_agent.registry import CollectorRegistry, CollectorState, Transition
from daemoneye_agent.retry_pace import RetryPace
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_file import StoreFailedError
from daemoneye_agent.store_thread import StoreThread
from daemoneye_agent.workflow_message import read_trigger, to_offer, to_verdict
from daemoneye_agent.workflow_queue import Offer, Order, Probe, WorkQueue
from daemoneye_agent.workflow_record import (
    AnalysisRecord,
    Asked,
    Cause,
    Outcome,
    StoredTrigger,
    Verdict,
)
from daemoneye_mesh.errors import (
    DaemoneyeError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UnsupportedError,
)

__all__ = ["AnalysisClients", "Workflow", "WorkflowCounters"]

ANALYSIS_TIMEOUT_S = 30.0
MAX_AGE_NS = 3_600 * 10**9
"""A request older than this is not passed on when the agent finds it at its start."""
PAGE = 32
POLL_S = 0.5
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 10.0

log = logging.getLogger("daemoneye.workflow")


class AnalysisClients(Protocol):
    """Calls to collectors; each has a deadline."""

    async def negotiate(self, collector_id: str) -> ipc_pb2.CapabilityResponse:
        """Asks what a collector offers."""
        ...

    async def analyze(
        self, collector_id: str, request: analysis_pb2.AnalyzeRequest, timeout_s: float
    ) -> analysis_pb2.AnalyzeResponse:
        """Has a collector carry out an analysis."""
        ...


@dataclass(slots=True)
class WorkflowCounters:
    """What was done since the agent started."""

    taken: int = 0
    """Requests that were found in the store: duplicates + recorded, but for those under way."""
    duplicates: int = 0
    """Requests with the id of another one of the same collector."""
    attempts: int = 0
    """Calls to collectors."""
    recorded: Counter[Outcome] = field(default_factory=Counter)
    """Requests that are over, by outcome."""


class Workflow:
    """The dispatcher of one agent.

    Args:
        store: thread that owns the event store.
        registry: the leases.
        clients: calls to the collectors.
        clock: seconds that never jump back.
        wall_ns: nanoseconds since the Unix epoch.
        jitter: a number from 0 to 1, to spread retries.
    """

    def __init__(
        self,
        *,
        store: StoreThread,
        registry: CollectorRegistry,
        clients: AnalysisClients,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._registry = registry
        self._clients = clients
        self._clock = clock
        self._wall_ns = wall_ns
        self.counters = WorkflowCounters()
        self._queue = WorkQueue(self._find_instance, jitter)
        self._known: dict[tuple[str, str], int] = {}
        """Event ids by key of all that is not recorded yet."""
        self._finished: list[AnalysisRecord] = []
        self._store_pace = RetryPace(FIRST_RETRY_S, MAX_RETRY_S, jitter)
        self._read_id: int | None = None
        """Event up to which requests were read; None before the first look."""
        self._oldest_ns = 0
        """Requests of before are too old; only while those of an earlier life are read."""
        self._has_news = True
        self._is_draining = False
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()

    def note_stored(self) -> None:
        """The store committed requests; cheap, so that the pipeline can call it."""
        self._has_news = True
        self._changed.set()

    async def run(self) -> None:
        """Passes requests on until cancelled."""
        unlisten = self._registry.on_change(self._note_change)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._keep_up()
                    if not self._finished and not self._is_draining:
                        self._begin(group)
                    if not self._finished and self._is_draining and not self._queue.active:
                        self._drained.set()
                    await self._wait()
        finally:
            unlisten()
            told = ", ".join(f"{self.counters.recorded[one]} {one}" for one in Outcome)
            log.info(
                "workflow ends: %s; %d requests are left for the next start", told, len(self._known)
            )

    async def drain(self, budget_s: float) -> None:
        """Begins nothing new and waits for the analyses under way, at most ``budget_s``.

        What is not done by then is found again at the next start.
        """
        self._is_draining = True
        self._changed.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(budget_s):
                await self._drained.wait()

    async def _wait(self) -> None:
        is_idle = not len(self._queue) and not self._finished and not self._has_news
        with suppress(TimeoutError):
            async with asyncio.timeout(None if is_idle else POLL_S):
                await self._changed.wait()
        self._changed.clear()

    async def _keep_up(self) -> None:
        """Does what touches the store; when that refuses, it is tried again later."""
        if not self._store_pace.is_due(self._clock()):
            return
        try:
            await self._record()
            while self._has_news and not self._is_draining:
                await self._read_page()
                await self._record()
            self._give_up_expired()
            await self._record()
        except StoreFailedError as error:
            if not self._store_pace.attempts:
                log.error("analyses wait, because the store refuses: %s", error.message)
            self._store_pace.fail(self._clock())
        else:
            self._store_pace.reset()

    async def _read_page(self) -> None:
        if self._read_id is None:
            self._read_id = await self._store.run(lambda store: store.settled_trigger)
            self._oldest_ns = self._wall_ns() - MAX_AGE_NS
        self._has_news = False
        try:
            page = await self._store.run(EventStore.find_triggers, self._read_id, PAGE)
        except StoreFailedError:
            self._has_news = True
            raise
        for stored in page:
            self._take(stored)
            self._read_id = stored.event_id
        if len(page) == PAGE:
            self._has_news = True
        else:
            self._oldest_ns = 0  # from here on they come as they are stored

    def _take(self, stored: StoredTrigger) -> None:
        asked, request = read_trigger(stored)
        self.counters.taken += 1
        if asked.key in self._known:
            self.counters.duplicates += 1
            return
        self._known[asked.key] = asked.event_id
        if isinstance(request, Cause):
            self._finish(asked, Verdict(Outcome.REFUSED, request))
        elif stored.time_ns < self._oldest_ns:
            self._finish(asked, Verdict(Outcome.UNDELIVERABLE, Cause.EXPIRED))
        else:
            for order in self._queue.add(self._to_order(asked, request)):
                self._finish(order.asked, Verdict(Outcome.REFUSED, Cause.QUEUE_FULL))

    def _to_order(self, asked: Asked, request: analysis_pb2.AnalyzeRequest) -> Order:
        return Order(
            asked=asked,
            encoded=request.SerializeToString(),
            analysis=request.analysis_type,
            urgency=TriggerPriority.of(request.priority),
            queued_s=self._clock(),
            pace=self._queue.make_pace(),
        )

    def _give_up_expired(self) -> None:
        for order, cause in self._queue.take_expired(self._clock()):
            # It was reached and said so itself.
            is_answer = cause is Cause.RESOURCE_EXHAUSTED
            outcome = Outcome.FAILED if is_answer else Outcome.UNDELIVERABLE
            self._finish(order.asked, Verdict(outcome, cause))

    def _finish(self, asked: Asked, verdict: Verdict) -> None:
        self._finished.append(AnalysisRecord(asked, verdict, self._wall_ns()))

    async def _record(self) -> None:
        if not self._finished:
            return
        records = tuple(self._finished)
        over = {record.asked.key for record in records}
        left = [event_id for key, event_id in self._known.items() if key not in over]
        settled_id = min(left) - 1 if left else self._read_id or 0
        is_new = await self._store.run(EventStore.record_analyses, records, settled_id)
        del self._finished[: len(records)]
        for key in over:
            self._known.pop(key, None)
        self._tell([one for one, is_first in zip(records, is_new, strict=True) if is_first])
        self.counters.duplicates += is_new.count(False)

    def _tell(self, records: Sequence[AnalysisRecord]) -> None:
        refused = []
        for record in records:
            outcome = record.verdict.outcome
            self.counters.recorded[outcome] += 1
            line = describe(record)
            if outcome is Outcome.DONE:
                log.info("%s", line)
            elif outcome is Outcome.FAILED:
                log.warning("%s", line)
            else:
                refused.append(line)  # their number is whatever a collector likes
        report(refused)

    def _begin(self, group: asyncio.TaskGroup) -> None:
        while (step := self._queue.next_step(self._clock())) is not None:
            if isinstance(step, Probe):
                group.create_task(self._probe(step), name=f"probe {step.target}")
            else:
                group.create_task(self._pass_on(step.order), name=f"analyze {step.order.target}")

    async def _probe(self, probe: Probe) -> None:
        try:
            offer = to_offer(await self._clients.negotiate(probe.target))
        except UnsupportedError:
            offer = Offer()
        except DaemoneyeError as error:
            cause = _cause_of(error)
            log.info("analyses for %s wait: %s", probe.target, error.message)
            self._queue.note_unreached(probe, cause, self._clock())
            self._changed.set()
            return
        self._queue.note_offer(probe, offer)
        self._changed.set()

    async def _pass_on(self, order: Order) -> None:
        verdict = await self._ask(order)
        if isinstance(verdict, Cause):
            self._queue.put_back(order, verdict, self._clock())
        else:
            self._queue.finish(order)
            self._finish(order.asked, verdict)
        self._changed.set()

    async def _ask(self, order: Order) -> Verdict | Cause:
        """Returns what became of a request, or why it has to wait."""
        request = analysis_pb2.AnalyzeRequest.FromString(order.encoded)
        self.counters.attempts += 1
        try:
            answer = await self._clients.analyze(order.target, request, ANALYSIS_TIMEOUT_S)
        except InvalidRequestError:
            return Verdict(Outcome.FAILED, Cause.INVALID_REQUEST)
        except DeadlineError:
            return Verdict(Outcome.FAILED, Cause.TIMEOUT)
        except DaemoneyeError as error:
            log.info("analysis %r waits: %s", order.asked.trigger_id, error.message)
            return _cause_of(error)
        verdict = to_verdict(request, answer)
        if verdict.error_kind == Cause.RESOURCE_EXHAUSTED:
            return Cause.RESOURCE_EXHAUSTED  # it was not looked at, so that it may be asked again
        return verdict

    def _find_instance(self, collector_id: str) -> int | Cause:
        collector = self._registry.get(collector_id)
        if collector is None or collector.state is CollectorState.DEREGISTERED:
            return Cause.NOT_REGISTERED
        if collector.state is CollectorState.UNAVAILABLE:
            return Cause.NOT_IN_SERVICE
        return collector.registration.instance_epoch

    def _note_change(self, change: Transition) -> None:
        is_back = change.before is CollectorState.UNAVAILABLE
        if change.after is CollectorState.REGISTERED or is_back:
            self._queue.hasten(change.collector_id)
            self._changed.set()


def describe(record: AnalysisRecord) -> str:
    """Returns the sentence about one request that is over."""
    asked, verdict = record.asked, record.verdict
    why = f" ({verdict.error_kind})" if verdict.error_kind else ""
    return (
        f"analysis {asked.trigger_id!r} of {asked.source_id}, {asked.analysis_type or 'unknown'} by"
        f" {asked.target_collector!r}: {verdict.outcome}{why}"
    )


def _cause_of(error: DaemoneyeError) -> Cause:
    if isinstance(error, UnsupportedError):
        return Cause.NOT_OFFERED
    if isinstance(error, OverloadedError):
        return Cause.OVERLOADED
    return Cause.NOT_REGISTERED if isinstance(error, NotFoundError) else Cause.UNREACHABLE
