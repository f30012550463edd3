"""Ending a collector in order, within one budget.

Invariant: every step is run, whatever became of the steps before it, and the end comes: at the latest
``budget_s`` after the start plus, for each of the three phases, ``forced_s`` and half a second.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from collector_core.clock import Clock, sleep_unless
from collector_core.listeners import Listeners
from daemoneye_mesh.errors import InternalError, PreconditionError

__all__ = ["Phase", "ShutdownCoordinator", "ShutdownReport", "StepOutcome", "StepReport"]

CANCEL_GRACE_S = 0.5
"""How long a step that was cancelled may take to notice."""

log = logging.getLogger("daemoneye.shutdown")


class Phase(StrEnum):
    """How far a shutdown is."""

    INITIATED = "INITIATED"
    """Nothing was done yet."""
    PREPARING = "PREPARING"
    """Told others, takes no more work."""
    STOPPING = "STOPPING"
    """Ends what runs, empties queues."""
    CLEANUP = "CLEANUP"
    """Makes durable what must be, removes sockets."""
    COMPLETED = "COMPLETED"
    """All steps ended within the budget."""
    FAILED = "FAILED"
    """A critical step did not do its job."""
    FORCED = "FORCED"
    """The budget ended first; the remaining steps get a moment each."""


_RUN_ORDER = (Phase.PREPARING, Phase.STOPPING, Phase.CLEANUP)


class StepOutcome(StrEnum):
    """What became of a step."""

    OK = "ok"
    FAILED = "failed"
    """It raised."""
    TIMEOUT = "timeout"
    """It was cancelled because time was up."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What became of one step."""

    phase: Phase
    name: str
    outcome: StepOutcome
    elapsed_s: float
    is_critical: bool = False
    is_abandoned: bool = False
    """Whether it ignored that it was cancelled and still runs."""


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """What became of a shutdown."""

    reason: str
    phase: Phase
    """COMPLETED, FORCED or FAILED."""
    duration_s: float
    steps: tuple[StepReport, ...]
    """In the order of the phases, within one as they were added."""

    @property
    def abandoned(self) -> tuple[str, ...]:
        """Steps that still run; a process that has some cannot end by leaving its event loop."""
        return tuple(step.name for step in self.steps if step.is_abandoned)


@dataclass(frozen=True, slots=True)
class _Step:
    phase: Phase
    name: str
    run: Callable[[], Awaitable[None]]
    is_critical: bool


class _Attempt:
    """One step while it runs."""

    def __init__(self, step: _Step, clock: Clock, woken: asyncio.Event) -> None:
        self.step = step
        self._clock = clock
        self._started_s = clock.monotonic_s()
        self._ended_s: float | None = None
        self._was_cancelled = False
        self._woken = woken
        self.task = asyncio.create_task(self._run(), name=f"shutdown {step.name}")
        self.task.add_done_callback(self._note_end)

    def cancel(self) -> None:
        """Ends the step, if it listens; is said once."""
        if not self._was_cancelled and not self.task.done():
            self._was_cancelled = True
            self.task.cancel()

    def report(self) -> StepReport:
        """What became of the step."""
        ended_s = self._clock.monotonic_s() if self._ended_s is None else self._ended_s
        return StepReport(
            phase=self.step.phase,
            name=self.step.name,
            outcome=self._outcome(),
            elapsed_s=ended_s - self._started_s,
            is_critical=self.step.is_critical,
            is_abandoned=not self.task.done(),
        )

    async def _run(self) -> None:
        await self.step.run()

    def _outcome(self) -> StepOutcome:
        if self._was_cancelled or not self.task.done():
            return StepOutcome.TIMEOUT
        is_ok = not self.task.cancelled() and self.task.exception() is None
        return StepOutcome.OK if is_ok else StepOutcome.FAILED

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._ended_s = self._clock.monotonic_s()
        self._woken.set()
        if task.cancelled():
            if not self._was_cancelled:
                log.error("shutdown: step %s cancelled itself", self.step.name)
        elif (error := task.exception()) is not None:
            log.error("shutdown: step %s failed", self.step.name, exc_info=error)


class ShutdownCoordinator:
    """Runs the steps of a shutdown.

    Args:
        budget_s: time for all phases together, seconds on the monotonic clock.
        clock: where time comes from.
        forced_s: time that the steps of a phase get at least, also after the budget ended.
    """

    def __init__(self, budget_s: float, clock: Clock, forced_s: float = 1.0) -> None:
        self._budget_s = budget_s
        self._clock = clock
        self._forced_s = forced_s
        self._steps: list[_Step] = []
        self._attempts: list[_Attempt] = []
        self._listeners = Listeners[Phase]("the shutdown")
        self._woken = asyncio.Event()
        self._ended = asyncio.Event()
        self._is_hurried = False
        self._started_s: float | None = None
        self._deadline_s = 0.0
        self.phase = Phase.INITIATED
        """How far it is."""
        self.report: ShutdownReport | None = None
        """What became of it; None until it ended."""

    @property
    def has_begun(self) -> bool:
        """Whether a shutdown was begun."""
        return self._started_s is not None

    def on_phase(self, listener: Callable[[Phase], None]) -> None:
        """Calls ``listener`` with each phase."""
        self._listeners.add(listener)

    def add(
        self,
        phase: Phase,
        name: str,
        step: Callable[[], Awaitable[None]],
        critical: bool = False,
    ) -> None:
        """Adds a step.

        Args:
            phase: PREPARING, STOPPING or CLEANUP; steps of one phase run at the same time.
            name: for the log and the report.
            step: what to do.
            critical: whether the shutdown fails when this step does not do its job.

        Raises:
            ValueError: steps cannot be in that phase.
            PreconditionError: the shutdown has begun.
        """
        if phase not in _RUN_ORDER:
            raise ValueError(f"no step runs in phase {phase}; use one of {', '.join(_RUN_ORDER)}")
        if self.has_begun:
            raise PreconditionError(
                f"the shutdown has begun without step {name}; add steps before", step=name
            )
        self._steps.append(_Step(phase, name, step, critical))

    def hurry(self) -> None:
        """Ends the budget now, as a second signal does; what runs gets ``forced_s`` at most."""
        self._is_hurried = True
        if self.has_begun:
            self._deadline_s = min(self._deadline_s, self._clock.monotonic_s())
            self._woken.set()

    async def run(self, reason: str) -> ShutdownReport:
        """Shuts down and says what became of it; whoever calls later gets the same report."""
        if not self.has_begun:
            return await self._run(reason)
        await self._ended.wait()
        if self.report is None:
            raise InternalError("the shutdown ended without a report; see the log")
        return self.report

    async def _run(self, reason: str) -> ShutdownReport:
        started_s = self._started_s = self._clock.monotonic_s()
        self._deadline_s = started_s + (0.0 if self._is_hurried else self._budget_s)
        log.info("shutdown: %s, at most %.1f s", reason, self._deadline_s - started_s)
        self._listeners.tell(Phase.INITIATED)
        is_whole = False
        try:
            for phase in _RUN_ORDER:
                await self._run_phase(phase)
            is_whole = True
        finally:
            for attempt in self._attempts:
                attempt.cancel()
            self.report = self._finish(reason, is_whole)
            self._ended.set()
        return self.report

    async def _run_phase(self, phase: Phase) -> None:
        steps = [step for step in self._steps if step.phase is phase]
        if self.phase is not Phase.FORCED:
            self._enter(phase)
        if not steps:
            return
        started_s = self._clock.monotonic_s()
        attempts = [_Attempt(step, self._clock, self._woken) for step in steps]
        self._attempts += attempts
        await self._wait(attempts, lambda: self._deadline_s)
        if _running(attempts):
            self._force()
            await self._wait(attempts, lambda: started_s + self._forced_s)
            await self._cancel(attempts)

    async def _wait(self, attempts: list[_Attempt], until_s: Callable[[], float]) -> None:
        """Waits for the end of all; ``until_s`` may come closer meanwhile."""
        while _running(attempts):
            left_s = until_s() - self._clock.monotonic_s()
            if left_s <= 0:
                return
            self._woken.clear()
            await sleep_unless(self._clock, left_s, self._woken)

    async def _cancel(self, attempts: list[_Attempt]) -> None:
        late = _running(attempts)
        for attempt in late:
            log.warning("shutdown: step %s took too long", attempt.step.name)
            attempt.cancel()
        until_s = self._clock.monotonic_s() + CANCEL_GRACE_S
        await self._wait(late, lambda: until_s)
        for attempt in _running(late):
            log.error("shutdown: step %s cannot be ended and is left alone", attempt.step.name)

    def _force(self) -> None:
        if self.phase is not Phase.FORCED:
            log.warning("shutdown: out of time in phase %s", self.phase)
            self._enter(Phase.FORCED)

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._listeners.tell(phase)

    def _finish(self, reason: str, is_whole: bool) -> ShutdownReport:
        steps = tuple(attempt.report() for attempt in self._attempts)
        has_failed = any(step.is_critical and step.outcome is not StepOutcome.OK for step in steps)
        if has_failed or not is_whole:
            self._enter(Phase.FAILED)
        elif self.phase is not Phase.FORCED:
            self._enter(Phase.COMPLETED)
        started_s = self._started_s or 0.0
        duration_s = self._clock.monotonic_s() - started_s
        log.info("shutdown: %s after %.2f s", self.phase, duration_s)
        return ShutdownReport(reason, self.phase, duration_s, steps)


def _running(attempts: list[_Attempt]) -> list[_Attempt]:
    return [attempt for attempt in attempts if not attempt.task.done()]
