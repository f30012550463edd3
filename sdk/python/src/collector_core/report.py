"""What a collector tells the agent about itself, as messages of the contract."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from collector_core.delivery import Delivery
from collector_core.health_message import to_health_response
from collector_core.live_config import LiveConfig
from collector_core.log_message import to_position
from collector_core.vitals import Vitals
from daemoneye.agent.v1 import registry_service_pb2
from daemoneye.ipc.v1 import collector_control_service_pb2 as control_pb
from daemoneye.ipc.v1 import collector_health_pb2
from daemoneye_mesh.completeness import Degradation
from daemoneye_mesh.completeness_message import to_completeness

__all__ = ["Report"]

_FAILED = (
    collector_health_pb2.COLLECTOR_STATUS_PERMANENT_ERROR,
    collector_health_pb2.COLLECTOR_STATUS_FATAL_ERROR,
)


class Report:
    """Health, heartbeats and counters of one collector.

    Args:
        delivery: the way of its events.
        vitals: what its parts report.
        config: its settings.
        degradations: what it cannot see right now.
        monotonic_s: clock that says how long it runs.
    """

    def __init__(
        self,
        delivery: Delivery,
        vitals: Vitals,
        config: LiveConfig[Any],
        degradations: Callable[[], Sequence[Degradation]],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._delivery = delivery
        self._vitals = vitals
        self._config = config
        self._degradations = degradations
        self._monotonic_s = monotonic_s
        self._started_s = monotonic_s()

    def health(self) -> collector_health_pb2.CheckHealthResponse:
        """How the collector and its parts are."""
        return to_health_response(
            self._vitals.health.snapshot(),
            self._vitals.resources.use(),
            self._degradations(),
            self._uptime_s(),
        )

    def heartbeat(self) -> registry_service_pb2.HeartbeatRequest:
        """A sign of life, without identity and sequence."""
        degradations = self._degradations()
        snapshot = self._vitals.health.snapshot()
        status = collector_health_pb2.CollectorStatus.Value("COLLECTOR_STATUS_" + snapshot.status)
        health = registry_service_pb2.COLLECTOR_HEALTH_OK
        if status in _FAILED:
            health = registry_service_pb2.COLLECTOR_HEALTH_FAILED
        elif degradations or status == collector_health_pb2.COLLECTOR_STATUS_RECOVERABLE_ERROR:
            health = registry_service_pb2.COLLECTOR_HEALTH_DEGRADED
        return registry_service_pb2.HeartbeatRequest(
            health=health,
            completeness=to_completeness(degradations),
            metrics=self._metrics(),
            status=status,
            is_shedding=snapshot.is_shedding,
            config_version=self._config.version,
            log_positions=map(to_position, self._delivery.positions()),
        )

    def stats(
        self,
        state: control_pb.MonitoringState.ValueType,
        task_count: Mapping[str, int],
        analysis_count: Mapping[str, int],
    ) -> control_pb.GetCollectorStatsResponse:
        """The counters."""
        delivery = self._delivery
        stats = control_pb.GetCollectorStatsResponse(
            state=state,
            source_epoch=delivery.epoch,
            source_sequence=delivery.sequence,
            emitted_count=delivery.emitted_count,
            published_count=delivery.outbox.published_count,
            dropped_count=delivery.dropped_count,
            pending_count=delivery.pending_count,
            pending_bytes=delivery.pending_bytes,
            task_count=task_count,
            logged_count=delivery.logged_count,
            log_bytes=delivery.log.size_bytes,
            unacknowledged_count=delivery.log.unacknowledged_count,
            replayed_count=delivery.replayed_count,
            lost_count=delivery.lost_count,
            log_positions=map(to_position, delivery.positions()),
            analysis_count=analysis_count,
        )
        stats.uptime.FromNanoseconds(round(self._uptime_s() * 1e9))
        return stats

    def _metrics(self) -> dict[str, float]:
        delivery = self._delivery
        use = self._vitals.resources.use()
        return {
            "events_emitted": delivery.emitted_count,
            "events_logged": delivery.logged_count,
            "events_shed": delivery.pressure.shed_count.total(),
            "events_pending": delivery.pending_count,
            "events_published": delivery.outbox.published_count,
            "events_unacknowledged": delivery.log.unacknowledged_count,
            "events_replayed": delivery.replayed_count,
            "events_lost": delivery.lost_count.total(),
            "log_bytes": delivery.log.size_bytes,
            "cpu_share": use.cpu_share if use else 0.0,
            "rss_bytes": use.rss_bytes if use else 0.0,
        }

    def _uptime_s(self) -> float:
        return self._monotonic_s() - self._started_s
