"""What the mesh cannot see right now, gathered from everybody who knows.

Invariant: an answer over a table is complete only when nobody has anything to say about that table.
"""

from collections.abc import Callable, Iterable

from daemoneye_agent.registry import Collector, CollectorRegistry, CollectorState
from daemoneye_mesh.completeness import Degradation, DegradedReason, merge_degradations

__all__ = ["PROCESS_DOMAIN", "Coverage"]

PROCESS_DOMAIN = "process"

_EVENT_TABLES = frozenset({"process_events"})
_DERIVED_TABLES = frozenset({"alerts"})
_IN_SERVICE = {CollectorState.REGISTERED, CollectorState.SERVING, CollectorState.DEGRADED}


class Coverage:
    """Degradations by collector, of the bus and of the detection.

    Args:
        registry: the leases.
        is_subscribed: whether the agent hears the event bus.
    """

    def __init__(self, registry: CollectorRegistry, is_subscribed: Callable[[], bool]) -> None:
        self._registry = registry
        self._is_subscribed = is_subscribed
        self._reported: dict[str, tuple[Degradation, ...]] = {}
        self._lost: Degradation | None = None
        self._failed_rules: dict[str, Degradation] = {}

    def report(self, collector_id: str, degradations: tuple[Degradation, ...]) -> None:
        """Takes over what a collector says of itself."""
        self._reported[collector_id] = degradations

    def reported(self, collector_id: str) -> tuple[Degradation, ...]:
        """What a collector last said of itself."""
        return self._reported.get(collector_id, ())

    def note_lost(self, event_count: int) -> None:
        """Takes over how many events are known to be missing from the store."""
        message = f"{event_count} events never arrived; the table event_losses has the ranges"
        self._lost = (
            Degradation(DegradedReason.EVENTS_LOST, "event store", message) if event_count else None
        )

    def note_rule_failures(self, failures: Iterable[tuple[str, str]]) -> None:
        """Takes over which rules could not look at the latest batch, as (rule id, reason)."""
        self._failed_rules = {
            rule_id: Degradation(DegradedReason.RULE_FAILED, rule_id, reason)
            for rule_id, reason in failures
        }

    def of_events(self) -> tuple[Degradation, ...]:
        """What may be missing from stored process events."""
        own = [self._lost] if self._lost else []
        if not self._is_subscribed():
            own.append(
                Degradation(
                    DegradedReason.COLLECTOR_UNAVAILABLE,
                    "eventbus",
                    "the event bus is not reached; new events do not arrive",
                )
            )
        return merge_degradations(self._of_collectors(), own)

    def of_tables(self, tables: Iterable[str]) -> tuple[Degradation, ...]:
        """What may be missing from an answer over stored ``tables``."""
        names = frozenset(tables)
        events = self.of_events() if names & (_EVENT_TABLES | _DERIVED_TABLES) else ()
        rules = self._failed_rules.values() if names & _DERIVED_TABLES else ()
        return merge_degradations(events, rules)

    def of_everything(self) -> tuple[Degradation, ...]:
        """All that is known to be missing."""
        return merge_degradations(self.of_events(), self._failed_rules.values())

    def process_collectors(self) -> tuple[Collector, ...]:
        """The collectors that answer for processes and hold their lease."""
        return tuple(
            collector
            for collector in self._registry.collectors()
            if PROCESS_DOMAIN in collector.registration.domains and collector.state in _IN_SERVICE
        )

    def _of_collectors(self) -> list[Degradation]:
        serving = self.process_collectors()
        if not serving:
            return [
                Degradation(
                    DegradedReason.COLLECTOR_UNAVAILABLE,
                    PROCESS_DOMAIN,
                    "no process collector is in service",
                )
            ]
        return [
            one
            for collector in serving
            for one in self.reported(collector.registration.collector_id)
        ]
