"""What a collector says about itself: health of its parts, and what it cannot see.

Invariant: whatever fails in a running collector stands in its health as long as it does, and in its
degradations when events may be missing because of it.
"""

from collections.abc import Callable, Iterable, Sequence

from collector_core.bus.state import LinkState
from collector_core.clock import Clock, ClockEvent, ClockEventKind, SuspendWatch
from collector_core.delivery import Pressure
from collector_core.gap import Gap, GapKeeper, GapReason
from collector_core.health import HealthMonitor
from collector_core.resources import DegradationLevel, ResourceBudget, ResourceGuard
from collector_core.settings import CollectorSettings
from collector_core.source_runner import SourceRunner
from daemoneye_mesh.completeness import Degradation, DegradedReason, merge_degradations

__all__ = ["Vitals"]

NS_PER_SECOND = 1_000_000_000


class Vitals:
    """Gathers what the parts report.

    Args:
        collector_id: who suffers what is not a source's own.
        settings: those at the start.
        pressure: decides what is left out.
        clock: where time comes from.
    """

    def __init__(
        self, collector_id: str, settings: CollectorSettings, pressure: Pressure, clock: Clock
    ) -> None:
        self._collector_id = collector_id
        self._pressure = pressure
        self._shed_before = 0
        self._log_trouble = ""
        self.clocks = SuspendWatch(clock)
        self.health = HealthMonitor(clock, watch=self.clocks)
        self.resources = ResourceGuard(budget_of(settings), clock)
        self._log = self.health.component("log")
        self._bus = self.health.component("bus")
        self._registration = self.health.component("registration")
        self._resources = self.health.component("resources")
        self._config = self.health.component("config")
        self._log.ok()
        self._config.ok()
        self._resources.ok()
        self.resources.on_level(self._note_level)
        self.clocks.on_event(self.resources.note_clock_event)

    def follow_gaps(self, gaps: GapKeeper) -> None:
        """Tells the time that the host slept or the process was not run as gaps."""

        def note(event: ClockEvent) -> None:
            if event.kind is ClockEventKind.WALL_STEPPED:
                return
            started_ns = event.at_ns - round(event.duration_s * NS_PER_SECOND)
            what = "the host slept" if event.kind is ClockEventKind.SUSPENDED else "it was not run"
            message = f"{self._collector_id} saw nothing for {event.duration_s:.1f} s: {what}"
            gaps.tell(Gap(GapReason.SUSPENDED, started_ns, event.at_ns, message))

        self.clocks.on_event(note)

    def note_source(self, runner: SourceRunner) -> None:
        """Takes over how a source is."""
        component = self.health.component(f"source {runner.name}")
        if not runner.failure:
            component.ok()
        elif runner.is_lasting:
            component.permanent(f"{runner.failure}")
        else:
            component.recoverable(f"{runner.failure}; it is being started again")

    def note_log(self, trouble: str) -> None:
        """Takes over why the log cannot be written; empty when it can."""
        self._log_trouble = trouble
        if trouble:
            self._log.recoverable(f"{trouble}; events wait")
        else:
            self._log.ok()

    def note_config(self, problems: Sequence[str], is_inconsistent: bool) -> None:
        """Takes over what is wrong with the settings in force."""
        if is_inconsistent:
            self._config.permanent(
                "an update failed and so did going back; restart the collector, or update again"
            )
        elif problems:
            self._config.recoverable(f"{problems[0]}; update or reset it")
        else:
            self._config.ok()

    def note_resources(self) -> None:
        """Takes over whether the process stays within its budget, and whether that can be told."""
        if self.resources.failure:
            self._resources.recoverable(self.resources.failure)
        elif self.resources.level is DegradationLevel.NONE:
            self._resources.ok()
        else:
            self._resources.recoverable(self.resources.why)

    def note_bus(self, state: LinkState) -> None:
        """Takes over what the publisher does."""
        if state in (LinkState.READY, LinkState.DRAINING):
            self._bus.ok()
        elif state is LinkState.BACKOFF:
            self._bus.recoverable("the broker cannot be reached; events wait in the log")

    def note_registered(self, is_registered: bool) -> None:
        """Takes over whether the agent holds a lease for this collector."""
        if is_registered:
            self._registration.ok()
        else:
            self._registration.recoverable("the agent cannot be reached; registering again")

    def note_shedding(self, gaps: GapKeeper) -> None:
        """Takes over whether events are being left out, and tells how many were."""
        is_shedding = self._pressure.is_shedding
        # Also what was left out between two calls, when it is over already.
        if is_shedding or self._pressure.shed_count.total() > self._shed_before:
            message = f"{self._collector_id} leaves out events of lossy classes"
            gaps.open(GapReason.SHED, "", message, self.take_shed_count)
        if not is_shedding:
            gaps.close(GapReason.SHED, "")
        self.health.is_shedding = is_shedding

    def take_shed_count(self) -> int:
        """Returns how many events were left out since it was asked last."""
        total = self._pressure.shed_count.total()
        count, self._shed_before = total - self._shed_before, total
        return count

    def degradations(
        self, of_sources: Callable[[], Iterable[Degradation]]
    ) -> Sequence[Degradation]:
        """What the collector cannot see right now."""
        own: list[Degradation] = []
        if self._log_trouble:
            text = f"the log cannot be written, events wait: {self._log_trouble}"
            own.append(Degradation(DegradedReason.LOG_UNWRITABLE, self._collector_id, text))
        own += self.resources.degradations(self._collector_id)
        if self.health.is_shedding:
            text = "events of lossy classes are left out until the buffers have emptied"
            own.append(Degradation(DegradedReason.COLLECTION_GAP, self._collector_id, text))
        return merge_degradations(of_sources(), own)

    def _note_level(self, level: DegradationLevel) -> None:
        self._pressure.is_sampling = level >= DegradationLevel.SAMPLING
        self.note_resources()


def budget_of(settings: CollectorSettings) -> ResourceBudget:
    """Returns the budget that the settings give."""
    return ResourceBudget(settings.cpu_budget_share, settings.rss_budget_bytes)
