"""``agent.v1.RegistryService``: leases, heartbeats and tokens."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

from google.protobuf import duration_pb2

from daemoneye.agent.v1 import registry_service_pb2 as pb
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import collector_health_pb2, event_log_pb2, ipc_pb2
from daemoneye_agent.collectors import CollectorClients
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.issuer import IdentityIssuer
from daemoneye_agent.log_position import LogLoss, LogPosition
from daemoneye_agent.registry import (
    MISSED_LIMIT,
    CollectorRegistry,
    Heartbeat,
    NotRegisteredError,
    RegistrationRequest,
    ReportedHealth,
)
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.completeness_message import from_completeness
from daemoneye_mesh.draining import read_until_drained
from daemoneye_mesh.errors import (
    ErrorReason,
    InvalidRequestError,
    PermissionDeniedError,
    UnavailableError,
)
from daemoneye_mesh.identity import Identity, IdentityKind

__all__ = ["RegistryServicer"]

_SHORTEST_S = 1e-3

_HEALTH = {
    pb.COLLECTOR_HEALTH_UNSPECIFIED: ReportedHealth.STARTING,
    pb.COLLECTOR_HEALTH_OK: ReportedHealth.HEALTHY,
    pb.COLLECTOR_HEALTH_DEGRADED: ReportedHealth.DEGRADED,
    pb.COLLECTOR_HEALTH_FAILED: ReportedHealth.UNHEALTHY,
}


class RegistryServicer(registry_service_pb2_grpc.RegistryServiceServicer):
    """Answers collectors, and operators who need a token.

    Args:
        registry: the leases.
        clients: checks the sockets that are registered.
        coverage: takes what collectors cannot see.
        issuer: signs tokens.
        broker: identity of the broker.
        is_subscribed: whether the agent hears the event bus.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry,
        clients: CollectorClients,
        coverage: Coverage,
        issuer: IdentityIssuer,
        broker: Identity,
        is_subscribed: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._clients = clients
        self._coverage = coverage
        self._issuer = issuer
        self._broker = broker
        self._is_subscribed = is_subscribed
        self._draining = asyncio.Event()

    async def drain(self) -> None:
        """Ends the heartbeat streams; their collectors come back to the next agent."""
        self._draining.set()

    async def RegisterCollector(
        self, request: pb.RegisterCollectorRequest, context: Any
    ) -> pb.RegisterCollectorResponse:
        """Grants a lease."""
        self._check_name(request.collector_id)
        domains = tuple(_domain_name(number) for number in request.domains)
        excess = frozenset(domains) - caller().domains
        if excess:
            raise PermissionDeniedError(
                f"{caller().identity.name} is not enrolled for {', '.join(sorted(excess))}; change"
                " 'collectors' in the agent's settings",
                domains=", ".join(sorted(excess)),
            )
        # What is too short is clamped; the registry takes zero and less for "not given".
        wanted_s = max(request.heartbeat_interval.ToNanoseconds() / 1e9, _SHORTEST_S)
        registration = RegistrationRequest(
            collector_id=request.collector_id,
            instance_epoch=request.instance_epoch,
            version=request.version,
            socket_path=request.socket_path,
            domains=domains,
            capabilities=tuple(_task_name(number) for number in request.task_types),
            pid=request.pid,
            heartbeat_interval_s=wanted_s if request.HasField("heartbeat_interval") else None,
        )
        self._clients.check_socket(request.collector_id, request.socket_path)
        lease = self._registry.register(registration, caller().identity.id)
        interval = duration_pb2.Duration()
        interval.FromNanoseconds(int(lease.heartbeat_interval_s * 1e9))
        return pb.RegisterCollectorResponse(
            heartbeat_interval=interval, missed_heartbeat_limit=MISSED_LIMIT
        )

    async def Heartbeat(
        self, request_iterator: AsyncIterator[pb.HeartbeatRequest], context: Any
    ) -> AsyncIterator[pb.HeartbeatResponse]:
        """Renews the lease with each heartbeat."""
        async with aclosing(read_until_drained(request_iterator, self._draining)) as requests:
            async for request in requests:
                self._beat(request)
                yield pb.HeartbeatResponse(heartbeat_sequence=request.heartbeat_sequence)

    async def DeregisterCollector(
        self, request: pb.DeregisterCollectorRequest, context: Any
    ) -> pb.DeregisterCollectorResponse:
        """Ends a lease; one that has ended already is fine."""
        with suppress(NotRegisteredError):
            self._registry.deregister(
                request.collector_id,
                request.instance_epoch,
                caller().identity.id,
                request.reason or "said good-bye",
            )
        return pb.DeregisterCollectorResponse()

    async def IssueToken(
        self, request: pb.IssueTokenRequest, context: Any
    ) -> pb.IssueTokenResponse:
        """Signs a token of the caller for one service."""
        bearer = caller().identity
        is_collector = bearer.kind is IdentityKind.COLLECTOR
        if (
            is_collector
            and request.audience == self._broker.spiffe_id
            and not self._is_subscribed()
        ):
            # Whatever a collector published now would reach nobody.
            raise UnavailableError(
                "the agent does not hear the event bus yet; ask again in a moment",
                audience=request.audience,
            )
        issued = self._issuer.issue(bearer, request.audience)
        response = pb.IssueTokenResponse(token=issued.token)
        response.expires_at.FromDatetime(issued.expires_at)
        return response

    def _beat(self, request: pb.HeartbeatRequest) -> None:
        health = _HEALTH.get(request.health)
        if health is None:
            raise InvalidRequestError(
                f"health {request.health} is not known here; use 0 to 3",
                reason=ErrorReason.ENUM_UNKNOWN,
                field="health",
                number=request.health,
            )
        degradations = from_completeness(request.completeness, request.collector_id)
        beat = Heartbeat(
            collector_id=request.collector_id,
            instance_epoch=request.instance_epoch,
            sequence=request.heartbeat_sequence,
            health=health,
            detail="; ".join(one.message for one in degradations)[:256],
            metrics=dict(request.metrics),
            status=_status_of(request.status),
            is_shedding=request.is_shedding,
            config_version=request.config_version,
            log_positions=tuple(map(_to_position, request.log_positions)),
        )
        self._registry.heartbeat(beat, caller().identity.id)
        self._coverage.report(request.collector_id, request.instance_epoch, degradations)

    def _check_name(self, collector_id: str) -> None:
        own = caller().identity.id
        if collector_id != own:
            raise PermissionDeniedError(
                f"{own!r} cannot register collector {collector_id!r} (MUST-REG-01); use the"
                " collector's own token",
                collector_id=collector_id,
                caller_id=own,
            )


def _status_of(number: int) -> int:
    known = collector_health_pb2.CollectorStatus.values()
    return number if number in known else collector_health_pb2.COLLECTOR_STATUS_UNSPECIFIED


def _to_position(position: event_log_pb2.LogPosition) -> LogPosition:
    return LogPosition(
        position.source_epoch,
        position.first_sequence,
        position.last_sequence,
        position.acknowledged_sequence,
        tuple(
            LogLoss(loss.first_sequence, loss.last_sequence, loss.reason)
            for loss in position.losses
        ),
    )


def _domain_name(number: int) -> str:
    if number not in ipc_pb2.MonitoringDomain.values():
        raise _unknown_enum("domains", number)
    name = ipc_pb2.MonitoringDomain.Name(ipc_pb2.MonitoringDomain.ValueType(number))
    return name.removeprefix("MONITORING_DOMAIN_").lower()


def _task_name(number: int) -> str:
    if number not in common_pb2.TaskType.values():
        raise _unknown_enum("task_types", number)
    name = common_pb2.TaskType.Name(common_pb2.TaskType.ValueType(number))
    return name.removeprefix("TASK_TYPE_").lower()


def _unknown_enum(field: str, number: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"{field} has {number}, which is not known here; leave it out or update the agent",
        reason=ErrorReason.ENUM_UNKNOWN,
        field=field,
        number=number,
    )
