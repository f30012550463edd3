"""Watches what the process uses and makes it do without something when that is too much.

Invariant: the level moves one step at a time, and only after a run of measurements that agree. A
budget never ends a process and never drops what was already collected.
"""

import logging
import math
from collections.abc import Callable

from collector_core.clock import Clock, ClockEvent, ClockEventKind
from collector_core.listeners import Listeners
from collector_core.resources.measurement import (
    ResourceSample,
    ResourcesUnreadableError,
    measure_self,
)
from collector_core.resources.use import DegradationLevel, ResourceBudget, ResourceUse
from daemoneye_mesh.completeness import Degradation, DegradedReason

__all__ = ["ResourceGuard"]

SMOOTHING_S = 10.0
OVER_COUNT = 3
"""Measurements in a row over the budget that cost a level."""
CALM_COUNT = 5
"""Measurements in a row well below the budget that give one back."""
CALM_SHARE = 0.8
LATE_INTERVALS = 3.0
"""A measurement later than this many intervals says nothing about the usual load."""

log = logging.getLogger("daemoneye.resources")


class ResourceGuard:
    """Holds a process to its budget.

    Args:
        budget: what it should use at most.
        clock: paces the measurements.
        sample: measures the process.
        interval_s: time between measurements, seconds.
    """

    def __init__(
        self,
        budget: ResourceBudget,
        clock: Clock,
        sample: Callable[[], ResourceSample] = measure_self,
        interval_s: float = 2.0,
    ) -> None:
        self._budget = budget
        self._clock = clock
        self._sample = sample
        self._interval_s = interval_s
        self._last: ResourceSample | None = None
        self._cpu_share = 0.0
        self._smoothed_s = 0.0
        self._use: ResourceUse | None = None
        self._over_count = 0
        self._calm_count = 0
        self._listeners = Listeners[DegradationLevel]("the resources of the collector")
        self.level = DegradationLevel.NONE
        """What the process does without now."""
        self.why = ""
        """Why and what to do, as one sentence; empty at level NONE."""
        self.failure = ""
        """Why the last measurement failed and what to do; empty when it did not."""
        self.failure_count = 0
        """Measurements that failed so far."""

    @property
    def budget(self) -> ResourceBudget:
        """The budget in force."""
        return self._budget

    def use(self) -> ResourceUse | None:
        """The last measurement; None before the first, which takes two looks."""
        return self._use

    def on_level(self, listener: Callable[[DegradationLevel], None]) -> None:
        """Calls ``listener`` with each new level."""
        self._listeners.add(listener)

    def degradations(self, subject: str) -> tuple[Degradation, ...]:
        """What ``subject`` does without; empty at level NONE."""
        if self.level is DegradationLevel.NONE:
            return ()
        return (Degradation(DegradedReason.OVER_BUDGET, subject, self.why),)

    def apply_budget(self, budget: ResourceBudget) -> None:
        """Holds the process to another budget from now on; the level follows as always."""
        self._budget = budget
        self._over_count = self._calm_count = 0
        if self._use is not None:
            self._use = self._judge(self._use.cpu_share, self._use.rss_bytes)

    def note_clock_event(self, event: ClockEvent) -> None:
        """Starts over after the process was away; made to be given to ``SuspendWatch.on_event``."""
        if event.kind is not ClockEventKind.WALL_STEPPED:
            self._start_over()

    async def run(self) -> None:
        """Measures every ``interval_s`` until cancelled."""
        while True:
            self.measure()
            await self._clock.sleep(self._interval_s)

    def measure(self) -> None:
        """Measures once and moves the level if it is time to."""
        try:
            sample = self._sample()
        except ResourcesUnreadableError as error:
            self._note_failure(error)
            return
        self.failure = ""
        last, self._last = self._last, sample
        if last is None or sample.at_s <= last.at_s:
            return
        elapsed_s = sample.at_s - last.at_s
        if elapsed_s > self._interval_s * LATE_INTERVALS:
            self._start_over()
            self._last = sample
            return
        share = max(sample.cpu_s - last.cpu_s, 0.0) / elapsed_s
        self._use = self._judge(self._smooth(share, elapsed_s), sample.rss_bytes)
        self._count(self._use)

    def _note_failure(self, error: ResourcesUnreadableError) -> None:
        if not self.failure:
            log.error("%s", error.message, exc_info=error)
        self.failure = error.message
        self.failure_count += 1
        self._start_over()

    def _smooth(self, share: float, elapsed_s: float) -> float:
        # At first a plain mean, so that one busy measurement does not pass for the usual load.
        self._smoothed_s += elapsed_s
        weight = max(1 - math.exp(-elapsed_s / SMOOTHING_S), elapsed_s / self._smoothed_s)
        self._cpu_share += weight * (share - self._cpu_share)
        return self._cpu_share

    def _judge(self, cpu_share: float, rss_bytes: int) -> ResourceUse:
        return ResourceUse(
            cpu_share=cpu_share,
            cpu_budget_share=self._budget.cpu_share,
            rss_bytes=rss_bytes,
            rss_budget_bytes=self._budget.rss_bytes,
            level=self.level,
        )

    def _count(self, use: ResourceUse) -> None:
        self._over_count = self._over_count + 1 if use.is_over else 0
        self._calm_count = self._calm_count + 1 if use.is_below(CALM_SHARE) else 0
        if self._over_count >= OVER_COUNT and self.level < max(DegradationLevel):
            self._move_to(DegradationLevel(self.level + 1), use)
        elif self._calm_count >= CALM_COUNT and self.level > DegradationLevel.NONE:
            self._move_to(DegradationLevel(self.level - 1), use)

    def _move_to(self, level: DegradationLevel, use: ResourceUse) -> None:
        before, self.level = self.level, level
        self.why = self._explain(use)
        self._use = self._judge(use.cpu_share, use.rss_bytes)
        # What was measured before the step says nothing about the load after it.
        self._forget_load()
        if level > before:
            log.warning("over budget, level %s: %s", level.name, self.why)
        else:
            log.info("within budget again, level %s", level.name)
        self._listeners.tell(level)

    def _explain(self, use: ResourceUse) -> str:
        if self.level is DegradationLevel.NONE:
            return ""
        excess, settings = use.excess()
        if not excess:
            return f"was over its budget: {self.level.consequence} until it stays below for a while"
        return f"{excess}: {self.level.consequence}; raise {settings}"

    def _start_over(self) -> None:
        self._last = None
        self._forget_load()

    def _forget_load(self) -> None:
        self._cpu_share = self._smoothed_s = 0.0
        self._over_count = self._calm_count = 0
