"""Carries out analyses for ``CollectorService.Analyze``: checked, bounded, each done once.

Invariants: an analysis runs only as long as somebody waits for it; of a failure only its kind leaves
the process; what waits for a slot is bounded, the urgent first.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from collector_core.analysis import (
    AnalysisError,
    AnalysisErrorKind,
    AnalysisRequest,
    TriggerPriority,
)
from collector_core.analysis_message import to_request, to_result
from collector_core.capability import Analyzes, Described
from daemoneye.common.v1 import analysis_pb2
from daemoneye.ipc.v1 import analysis_pb2 as pb
from daemoneye_mesh.errors import InvalidRequestError, UnsupportedError

__all__ = ["AnalysisRunner"]

MAX_WAITING = 64
"""Analyses that wait for a slot."""
MAX_REMEMBERED = 256
REMEMBER_S = 60.0
"""How long an answer is given again to who asks with the same id."""
DEFAULT_TIMEOUT_S = 30.0
"""For callers that set no deadline."""
ANSWER_RESERVE_S = 0.1
"""Kept of a deadline, at most a tenth of it, so that the answer still arrives."""

log = logging.getLogger("daemoneye.analyses")

_Outcome = pb.AnalysisResult | AnalysisErrorKind


@dataclass(slots=True)
class _Job:
    """One analysis that runs or waits for a slot."""

    request: AnalysisRequest
    task: "asyncio.Task[pb.AnalyzeResponse]"
    waiters: int = 0


@dataclass(frozen=True, slots=True)
class _Answered:
    request: AnalysisRequest
    response: pb.AnalyzeResponse
    at_s: float


@dataclass(slots=True)
class _Slots:
    """Lets so many in at once; the others wait by priority, then by arrival."""

    free: int
    lanes: dict[TriggerPriority, "deque[asyncio.Future[None]]"] = field(
        default_factory=lambda: {one: deque() for one in sorted(TriggerPriority, reverse=True)}
    )

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self.lanes.values()))

    async def enter(self, priority: TriggerPriority) -> None:
        if self.free > 0:  # then nobody waits: a slot that gets free is handed on
            self.free -= 1
            return
        if self.waiting >= MAX_WAITING:
            raise AnalysisError(AnalysisErrorKind.RESOURCE_EXHAUSTED, "too many analyses wait")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lanes[priority].append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # its turn came in the same moment
            elif turn in self.lanes[priority]:
                self.lanes[priority].remove(turn)
            raise

    def leave(self) -> None:
        for lane in self.lanes.values():
            while lane:
                turn = lane.popleft()
                if not turn.done():  # else it was cancelled and does not know yet
                    turn.set_result(None)
                    return
        self.free += 1


class AnalysisRunner:
    """The analyses that the sources of one collector offer; used from its event loop only.

    Args:
        sources: where several offer the same, the first does it.
        concurrency: analyses that run at once.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        sources: Iterable[Described],
        concurrency: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._offered: dict[int, Analyzes] = {}
        for source in sources:
            if isinstance(source, Analyzes):
                for analysis_type in source.analyses:
                    self._offered.setdefault(analysis_type, source)
        self._clock = clock
        self._slots = _Slots(concurrency)
        self.concurrency = concurrency
        """Analyses that run at once."""
        self._jobs: dict[str, _Job] = {}
        self._tasks: set[asyncio.Task[pb.AnalyzeResponse]] = set()
        self._answered: OrderedDict[str, _Answered] = OrderedDict()
        self.counts: Counter[str] = Counter()
        """Analyses by outcome: ``ok``, a kind of failure, or ``cancelled``; a caller whose time ran
        out counts as ``timeout``."""

    @property
    def running(self) -> int:
        """Analyses that run or wait for a slot."""
        return len(self._tasks)

    async def analyze(
        self, request: pb.AnalyzeRequest, timeout_s: float | None = None
    ) -> pb.AnalyzeResponse:
        """Carries out an analysis, or joins one of the same id.

        Args:
            request: as it came over the wire.
            timeout_s: what is left of the caller's deadline; None when it set none.

        Raises:
            InvalidRequestError: the request makes no sense, or its id belongs to another one.
            UnsupportedError: no source offers such an analysis.
        """
        wanted = to_request(request)
        self._check_offered(wanted)
        started_s = self._clock()
        answered = self._find_answered(wanted, started_s)
        if answered is not None:
            return answered
        job = self._find_job(wanted)
        job.waiters += 1
        try:
            await asyncio.wait({job.task}, timeout=_until_answer(timeout_s))
            if not job.task.done():
                self.counts["timeout"] += 1
                return self._respond(wanted, AnalysisErrorKind.TIMEOUT, started_s)
            if job.task.cancelled():  # by ``close``
                return self._respond(wanted, AnalysisErrorKind.RESOURCE_EXHAUSTED, started_s)
            return job.task.result()
        except asyncio.CancelledError:
            self.counts["cancelled"] += job.waiters == 1 and not job.task.done()
            raise
        finally:
            self._leave(job)

    async def close(self) -> None:
        """Cancels what still runs, and waits for its end; call it once no request comes any more."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _check_offered(self, wanted: AnalysisRequest) -> None:
        if wanted.analysis_type not in self._offered:
            name = analysis_pb2.AnalysisType.Name(wanted.analysis_type)
            offered = ", ".join(
                analysis_pb2.AnalysisType.Name(one)
                for one in sorted(analysis_pb2.AnalysisType.values())
                if one in self._offered
            )
            raise UnsupportedError(
                f"{name} is not offered here; ask for {offered or 'nothing, no analysis is'}",
                analysis_type=name,
                offered=offered,
            )

    def _find_answered(self, wanted: AnalysisRequest, now_s: float) -> pb.AnalyzeResponse | None:
        self._forget_old(now_s)
        answered = self._answered.get(wanted.trigger_id)
        if answered is None:
            return None
        _check_same(wanted, answered.request)
        return answered.response

    def _find_job(self, wanted: AnalysisRequest) -> _Job:
        job = self._jobs.get(wanted.trigger_id)
        if job is not None:
            _check_same(wanted, job.request)
            return job
        # Its life is that of its waiters: the last one to leave cancels it.
        task = asyncio.ensure_future(self._work(wanted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        job = self._jobs[wanted.trigger_id] = _Job(wanted, task)
        return job

    def _leave(self, job: _Job) -> None:
        job.waiters -= 1
        if job.waiters == 0 or job.task.done():
            if self._jobs.get(job.request.trigger_id) is job:
                del self._jobs[job.request.trigger_id]
            job.task.cancel()

    async def _work(self, wanted: AnalysisRequest) -> pb.AnalyzeResponse:
        started_s = self._clock()
        try:
            await self._slots.enter(wanted.priority)
        except AnalysisError as err:  # it was not done, so it may be asked for again
            self._note(wanted, err.kind, err.cause)
            return self._respond(wanted, err.kind, started_s)
        started_s = self._clock()
        try:
            outcome = await self._find_out(wanted)
        finally:
            self._slots.leave()
        response = self._respond(wanted, outcome, started_s)
        self._remember(wanted, response)
        return response

    async def _find_out(self, wanted: AnalysisRequest) -> _Outcome:
        try:
            result = to_result(await self._offered[wanted.analysis_type].analyze(wanted))
        except AnalysisError as err:
            return self._note(wanted, err.kind, err.cause)
        except TimeoutError:
            return self._note(wanted, AnalysisErrorKind.TIMEOUT, "the source ran out of time")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return self._note(wanted, AnalysisErrorKind.INTERNAL, "the source cancelled itself")
        except Exception:
            log.exception("analysis %s failed", wanted.trigger_id)
            return self._note(wanted, AnalysisErrorKind.INTERNAL, "see above")
        self.counts["ok"] += 1
        return result

    def _note(
        self, wanted: AnalysisRequest, kind: AnalysisErrorKind, cause: str
    ) -> AnalysisErrorKind:
        self.counts[kind.name.lower()] += 1
        level = logging.ERROR if kind is AnalysisErrorKind.INTERNAL else logging.INFO
        log.log(level, "analysis %s: %s (%s)", wanted.trigger_id, kind.name.lower(), cause)
        return kind

    def _respond(
        self, wanted: AnalysisRequest, outcome: _Outcome, started_s: float
    ) -> pb.AnalyzeResponse:
        response = pb.AnalyzeResponse(trigger_id=wanted.trigger_id)
        if isinstance(outcome, AnalysisErrorKind):
            response.failure.kind = outcome.value
        else:
            response.result.CopyFrom(outcome)
        response.elapsed.FromNanoseconds(int((self._clock() - started_s) * 1e9))
        return response

    def _remember(self, wanted: AnalysisRequest, response: pb.AnalyzeResponse) -> None:
        self._answered[wanted.trigger_id] = _Answered(wanted, response, self._clock())
        self._answered.move_to_end(wanted.trigger_id)
        if len(self._answered) > MAX_REMEMBERED:
            self._answered.popitem(last=False)

    def _forget_old(self, now_s: float) -> None:
        while self._answered:
            oldest = next(iter(self._answered.values()))
            if now_s - oldest.at_s < REMEMBER_S:
                return
            self._answered.popitem(last=False)


def _check_same(wanted: AnalysisRequest, known: AnalysisRequest) -> None:
    if wanted != known:
        raise InvalidRequestError(
            "trigger_id belongs to another request already; make up a new one", field="trigger_id"
        )


def _until_answer(timeout_s: float | None) -> float:
    if timeout_s is None:
        return DEFAULT_TIMEOUT_S
    return max(timeout_s - min(ANSWER_RESERVE_S, timeout_s / 10), 0.0)
