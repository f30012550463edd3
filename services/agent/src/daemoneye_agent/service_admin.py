"""``agent.v1.CollectorAdminService``: collectors, for operators."""

import logging
from typing import Any

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye.agent.v1 import collector_admin_service_pb2_grpc
from daemoneye_agent.collectors import CollectorClients
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.registry import Collector, CollectorRegistry, CollectorState
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.completeness_message import to_completeness

__all__ = ["CollectorAdminServicer"]

_STATES = {
    CollectorState.REGISTERED: pb.COLLECTOR_STATE_REGISTERED,
    CollectorState.SERVING: pb.COLLECTOR_STATE_SERVING,
    CollectorState.DEGRADED: pb.COLLECTOR_STATE_DEGRADED,
    CollectorState.UNAVAILABLE: pb.COLLECTOR_STATE_UNAVAILABLE,
    CollectorState.DEREGISTERED: pb.COLLECTOR_STATE_DEREGISTERED,
}

log = logging.getLogger("daemoneye.admin")


class CollectorAdminServicer(collector_admin_service_pb2_grpc.CollectorAdminServiceServicer):
    """Answers operators about collectors.

    Args:
        registry: the leases.
        coverage: what collectors cannot see.
        clients: calls to collectors.
    """

    def __init__(
        self, registry: CollectorRegistry, coverage: Coverage, clients: CollectorClients
    ) -> None:
        self._registry = registry
        self._coverage = coverage
        self._clients = clients

    async def ListCollectors(
        self, request: pb.ListCollectorsRequest, context: Any
    ) -> pb.ListCollectorsResponse:
        """Lists collectors by id."""
        return pb.ListCollectorsResponse(
            collectors=[self._to_info(one) for one in self._registry.collectors()]
        )

    async def PauseCollector(
        self, request: pb.PauseCollectorRequest, context: Any
    ) -> pb.PauseCollectorResponse:
        """Makes a collector stop watching."""
        await self._clients.pause(request.collector_id)
        log.warning("%s paused %s", caller().identity.name, request.collector_id)
        return pb.PauseCollectorResponse()

    async def ResumeCollector(
        self, request: pb.ResumeCollectorRequest, context: Any
    ) -> pb.ResumeCollectorResponse:
        """Makes a collector watch again."""
        await self._clients.resume(request.collector_id)
        log.info("%s resumed %s", caller().identity.name, request.collector_id)
        return pb.ResumeCollectorResponse()

    def _to_info(self, collector: Collector) -> pb.CollectorInfo:
        registration = collector.registration
        beat = collector.heartbeat
        info = pb.CollectorInfo(
            collector_id=registration.collector_id,
            state=_STATES[collector.state],
            version=registration.version,
            pid=registration.pid,
            socket_path=registration.socket_path,
            domains=registration.domains,
            instance_epoch=registration.instance_epoch,
            completeness=to_completeness(self._coverage.reported(collector)),
            metrics=dict(beat.metrics) if beat else {},
        )
        info.state_since.FromNanoseconds(collector.since_ns)
        if collector.heartbeat_at_ns is not None:
            info.last_heartbeat_at.FromNanoseconds(collector.heartbeat_at_ns)
        return info
