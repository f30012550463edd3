"""What the mesh cannot see right now, gathered from everybody who knows.

Invariant: an answer over a table is complete only when nobody has anything to say about that table,
and a collector that has said nothing yet counts as one that cannot see.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from daemoneye_agent.loss import Shortfall
from daemoneye_agent.registry import Collector, CollectorRegistry, CollectorState
from daemoneye_mesh.completeness import Degradation, DegradedReason, merge_degradations

__all__ = ["PROCESS_DOMAIN", "Coverage", "bound_degradations"]

PROCESS_DOMAIN = "process"
MAX_CAUSES = 32
"""Causes that are kept of one collector; each goes into every answer and alert."""

_MAX_SUBJECT_CHARS = 64
_MAX_MESSAGE_CHARS = 512
_EVENT_TABLES = frozenset({"process_events"})
_OTHER_EVENT_TABLES = frozenset({"collector_events", "analysis_results"})
_DERIVED_TABLES = frozenset({"alerts"})
_IN_SERVICE = {CollectorState.REGISTERED, CollectorState.SERVING, CollectorState.DEGRADED}


class Coverage:
    """Degradations by collector, of the bus, of the store and of the detection.

    Args:
        registry: the leases.
        is_subscribed: whether the agent hears the event bus.
        failing_rules: which rules do not look, with the reason, by rule id.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        is_subscribed: Callable[[], bool],
        failing_rules: Callable[[], Mapping[str, str]],
    ) -> None:
        self._registry = registry
        self._is_subscribed = is_subscribed
        self._failing_rules = failing_rules
        self._reported: dict[str, tuple[int, tuple[Degradation, ...]]] = {}
        self._shortfall: tuple[Degradation, ...] = ()
        self._store_failure: Degradation | None = None

    def report(
        self, collector_id: str, instance_epoch: int, degradations: tuple[Degradation, ...]
    ) -> None:
        """Takes over what an instance of a collector says of itself."""
        self._reported[collector_id] = (
            instance_epoch,
            bound_degradations(collector_id, degradations),
        )

    def forget(self, collector_id: str) -> None:
        """Drops what a collector said: it has left."""
        self._reported.pop(collector_id, None)

    def reported(self, collector: Collector) -> tuple[Degradation, ...]:
        """What a collector cannot see, as far as anybody can tell."""
        name = collector.registration.collector_id
        if collector.state not in _IN_SERVICE:
            return (self._unavailable(collector),)
        epoch, degradations = self._reported.get(name, (-1, ()))
        if epoch != collector.registration.instance_epoch:
            unsaid = f"{name} has not said yet what it can see"
            return (Degradation(DegradedReason.READ_ERRORS, name, unsaid),)
        return (*_describe_failure(collector), *degradations)

    def note_shortfall(self, shortfall: Shortfall) -> None:
        """Takes over what is known to be missing from the store."""
        self._shortfall = tuple(_describe_shortfall(shortfall))

    def note_store_failure(self, cause: str | None) -> None:
        """Takes over why events cannot be stored; None when they can again."""
        message = f"new events wait, because they cannot be stored: {cause}"
        self._store_failure = (
            Degradation(DegradedReason.COLLECTOR_UNAVAILABLE, "event store", message)
            if cause
            else None
        )

    def of_events(self) -> tuple[Degradation, ...]:
        """What may be missing from stored process events."""
        known = self._known()
        reported = (self.reported(one) for one in known if one.state in _IN_SERVICE)
        return merge_degradations(self._missing(known), *reported, self._of_store())

    def of_other_events(self) -> tuple[Degradation, ...]:
        """What may be missing from stored events that are not about processes."""
        known = [
            one
            for one in self._registry.collectors()
            if one.state is not CollectorState.DEREGISTERED
        ]
        nobody = Degradation(
            DegradedReason.COLLECTOR_UNAVAILABLE, "collectors", "no collector is in service"
        )
        return merge_degradations(
            *(self.reported(one) for one in known), () if known else (nobody,), self._of_store()
        )

    def of_tables(self, tables: Iterable[str]) -> tuple[Degradation, ...]:
        """What may be missing from an answer over stored ``tables``."""
        names = frozenset(tables)
        events = self.of_events() if names & (_EVENT_TABLES | _DERIVED_TABLES) else ()
        others = self.of_other_events() if names & _OTHER_EVENT_TABLES else ()
        rules = self._of_rules() if names & _DERIVED_TABLES else ()
        return merge_degradations(events, others, rules)

    def of_everything(self) -> tuple[Degradation, ...]:
        """All that is known to be missing."""
        return merge_degradations(self.of_events(), self._of_rules())

    def process_collectors(self) -> tuple[Collector, ...]:
        """The collectors that answer for processes and hold their lease."""
        return tuple(one for one in self._known() if one.state in _IN_SERVICE)

    def missing_collectors(self) -> tuple[Degradation, ...]:
        """The process collectors that should be in service and are not."""
        return self._missing(self._known())

    def _of_store(self) -> tuple[Degradation, ...]:
        own = [*self._shortfall]
        if self._store_failure:
            own.append(self._store_failure)
        if not self._is_subscribed():
            own.append(
                Degradation(
                    DegradedReason.COLLECTOR_UNAVAILABLE,
                    "eventbus",
                    "the event bus is not reached; new events do not arrive",
                )
            )
        return tuple(own)

    def _missing(self, known: tuple[Collector, ...]) -> tuple[Degradation, ...]:
        silent = tuple(
            self._unavailable(one) for one in known if one.state is CollectorState.UNAVAILABLE
        )
        if silent or any(one.state in _IN_SERVICE for one in known):
            return silent
        nobody = "no process collector is in service"
        return (Degradation(DegradedReason.COLLECTOR_UNAVAILABLE, PROCESS_DOMAIN, nobody),)

    def _known(self) -> tuple[Collector, ...]:
        return tuple(
            collector
            for collector in self._registry.collectors()
            if PROCESS_DOMAIN in collector.registration.domains
        )

    def _unavailable(self, collector: Collector) -> Degradation:
        name = collector.registration.collector_id
        message = f"{name} is {collector.state}: {collector.reason}"[:_MAX_MESSAGE_CHARS]
        return Degradation(DegradedReason.COLLECTOR_UNAVAILABLE, name, message)

    def _of_rules(self) -> tuple[Degradation, ...]:
        return tuple(
            Degradation(DegradedReason.RULE_FAILED, rule_id, reason[:_MAX_MESSAGE_CHARS])
            for rule_id, reason in self._failing_rules().items()
        )


def _describe_failure(collector: Collector) -> Iterator[Degradation]:
    if collector.heartbeat and collector.heartbeat.failure:
        name = collector.registration.collector_id
        message = f"{name} does not do its job: {collector.reason}"[:_MAX_MESSAGE_CHARS]
        yield Degradation(DegradedReason.COLLECTOR_UNAVAILABLE, name, message)


def _describe_shortfall(shortfall: Shortfall) -> Iterator[Degradation]:
    if shortfall.missing_events:
        may_come = (
            f", {shortfall.open_events} of them may still come" if shortfall.open_events else ""
        )
        yield Degradation(
            DegradedReason.EVENTS_LOST,
            "event store",
            f"{shortfall.missing_events} events did not arrive{may_come}; the table event_losses has"
            " the ranges",
        )
    if shortfall.gap_count:
        yield Degradation(
            DegradedReason.COLLECTION_GAP,
            "event store",
            f"{shortfall.gap_count} gaps in collection are stored, the last one of"
            f" {shortfall.last_gap}; the table collection_gaps has them",
        )


def bound_degradations(
    collector_id: str, degradations: tuple[Degradation, ...]
) -> tuple[Degradation, ...]:
    """Returns what is kept of a collector's words; what is left out is said."""
    kept = tuple(
        Degradation(one.reason, one.subject[:_MAX_SUBJECT_CHARS], one.message[:_MAX_MESSAGE_CHARS])
        for one in degradations[:MAX_CAUSES]
    )
    excess = len(degradations) - len(kept)
    if not excess:
        return kept
    message = f"{collector_id} named {excess} more causes than {MAX_CAUSES}"
    return (*kept, Degradation(DegradedReason.TRUNCATED, collector_id, message))
