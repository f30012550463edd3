"""``agent.v1.StatusService``: is everything all right."""

import time
from importlib.metadata import version
from typing import Any, Protocol

from daemoneye.agent.v1 import status_service_pb2 as pb
from daemoneye.agent.v1 import status_service_pb2_grpc
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.pipeline import Pipeline
from daemoneye_agent.registry import CollectorRegistry, CollectorState
from daemoneye_agent.rulebook import Rulebook
from daemoneye_agent.store import EventStore, StoreStats
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.completeness_message import to_completeness

__all__ = ["StatusServicer"]

_SERVING = {CollectorState.SERVING, CollectorState.DEGRADED}


class BusState(Protocol):
    """What is known of the connection to the event bus."""

    refusal: str
    """Why the broker refuses the subscription; empty while it does not."""

    @property
    def since_ns(self) -> int:
        """Since when events arrive; 0 while they do not."""


class StatusServicer(status_service_pb2_grpc.StatusServiceServicer):
    """Answers operators about the whole mesh.

    Args:
        store: thread that owns the event store.
        rulebook: the rules.
        pipeline: counters of the ingest.
        registry: the leases.
        coverage: what cannot be seen.
        bus: whether the event bus is heard.
    """

    def __init__(
        self,
        *,
        store: StoreThread,
        rulebook: Rulebook,
        pipeline: Pipeline,
        registry: CollectorRegistry,
        coverage: Coverage,
        bus: BusState,
    ) -> None:
        self._store = store
        self._rulebook = rulebook
        self._pipeline = pipeline
        self._registry = registry
        self._coverage = coverage
        self._bus = bus
        self._version = version("daemoneye-agent")
        self._started_ns = time.time_ns()
        self._started_s = time.monotonic()

    async def GetStatus(self, request: pb.GetStatusRequest, context: Any) -> pb.GetStatusResponse:
        """Reads the state."""
        stats, rule_count = await self._store.run(self._read)
        response = pb.GetStatusResponse(
            version=self._version,
            components=[self._agent(), self._broker(), *self._collectors()],
            completeness=to_completeness(self._coverage.of_everything()),
            store=_to_store(stats),
            ingest=self._ingest(stats),
            enabled_rule_count=rule_count,
        )
        response.uptime.FromNanoseconds(int((time.monotonic() - self._started_s) * 1e9))
        return response

    def _read(self, store: EventStore) -> tuple[StoreStats, int]:
        return store.stats(), self._rulebook.enabled_count

    def _agent(self) -> pb.ComponentStatus:
        trouble = self._pipeline.trouble
        text = f"does not store events: {trouble}" if trouble else "in service"
        return _component("agent", not trouble, text, self._started_ns)

    def _broker(self) -> pb.ComponentStatus:
        since_ns = self._bus.since_ns
        text = "subscribed" if since_ns else self._bus.refusal or "not reached"
        return _component("eventbus", since_ns > 0, text, since_ns)

    def _collectors(self) -> list[pb.ComponentStatus]:
        return [
            _component(
                one.registration.collector_id,
                one.state in _SERVING,
                f"{one.state}: {one.reason}",
                one.since_ns,
            )
            for one in self._registry.collectors()
        ]

    def _ingest(self, stats: StoreStats) -> pb.IngestStatus:
        counters = self._pipeline.counters
        return pb.IngestStatus(
            received_count=counters.received,
            stored_count=counters.stored,
            duplicate_count=counters.duplicate,
            refused_count=dict(self._pipeline.refused),
            lost_count=stats.lost_events,
            alert_count=counters.alerts,
        )


def _component(name: str, is_serving: bool, message: str, since_ns: int) -> pb.ComponentStatus:
    status = pb.ComponentStatus(component=name, is_serving=is_serving, message=message)
    if since_ns:
        status.since.FromNanoseconds(since_ns)
    return status


def _to_store(stats: StoreStats) -> pb.StoreStatus:
    status = pb.StoreStatus(event_count=stats.event_count, size_bytes=stats.file_bytes)
    if stats.oldest_time_ns is not None:
        status.oldest_event_at.FromNanoseconds(stats.oldest_time_ns)
    if stats.newest_time_ns is not None:
        status.newest_event_at.FromNanoseconds(stats.newest_time_ns)
    return status
