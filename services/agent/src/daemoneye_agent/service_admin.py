"""``agent.v1.CollectorAdminService``: collectors, for operators.

Invariant: who asked a collector for what is in the log before the collector is asked, since one that
ends may never answer.
"""

import logging
import re
from typing import Any

from daemoneye.agent.v1 import collector_admin_service_pb2 as pb
from daemoneye.agent.v1 import collector_admin_service_pb2_grpc
from daemoneye.ipc.v1 import collector_config_pb2, collector_health_pb2
from daemoneye_agent.collectors import CollectorClients
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.registry import Collector, CollectorRegistry, CollectorState
from daemoneye_agent.registry_records import Heartbeat
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.completeness_message import to_completeness
from daemoneye_mesh.errors import InvalidRequestError, NotFoundError

__all__ = ["CollectorAdminServicer"]

MAX_CHANGES = 64
MAX_KEY_BYTES = 64
MAX_FIELD_NAME_CHARS = 64
MAX_REASON_CHARS = 256
MIN_DRAIN_S, MAX_DRAIN_S = 0.1, 300.0

_MAX_UINT64 = 2**64 - 1
_COLLECTOR_ID = re.compile(r"[a-z0-9_-]{1,64}")
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
        _check_id(request.collector_id)
        _note(logging.WARNING, request.collector_id, "pause")
        await self._clients.pause(request.collector_id)
        return pb.PauseCollectorResponse()

    async def ResumeCollector(
        self, request: pb.ResumeCollectorRequest, context: Any
    ) -> pb.ResumeCollectorResponse:
        """Makes a collector watch again."""
        _check_id(request.collector_id)
        _note(logging.INFO, request.collector_id, "resume")
        await self._clients.resume(request.collector_id)
        return pb.ResumeCollectorResponse()

    async def StartCollector(
        self, request: pb.StartCollectorRequest, context: Any
    ) -> pb.StartCollectorResponse:
        """Makes a stopped collector prepare its sources and watch."""
        _check_id(request.collector_id)
        _note(logging.INFO, request.collector_id, "start")
        await self._clients.begin(request.collector_id)
        return pb.StartCollectorResponse()

    async def StopCollector(
        self, request: pb.StopCollectorRequest, context: Any
    ) -> pb.StopCollectorResponse:
        """Makes a collector stop watching and close its sources."""
        _check_id(request.collector_id)
        _note(logging.WARNING, request.collector_id, "stop")
        await self._clients.stop(request.collector_id)
        return pb.StopCollectorResponse()

    async def RestartCollector(
        self, request: pb.RestartCollectorRequest, context: Any
    ) -> pb.RestartCollectorResponse:
        """Stops and starts a collector, once for each key."""
        _check_id(request.collector_id)
        _check_key(request.idempotency_key, min_bytes=1)
        _note(logging.WARNING, request.collector_id, "restart")
        await self._clients.restart(request.collector_id, request.idempotency_key)
        return pb.RestartCollectorResponse()

    async def CheckCollector(
        self, request: pb.CheckCollectorRequest, context: Any
    ) -> pb.CheckCollectorResponse:
        """Asks a collector how it and its parts are."""
        _check_id(request.collector_id)
        health = await self._clients.check(request.collector_id)
        return pb.CheckCollectorResponse(health=health)

    async def GetCollectorConfig(
        self, request: pb.GetCollectorConfigRequest, context: Any
    ) -> pb.GetCollectorConfigResponse:
        """Reads the configuration of a collector."""
        _check_id(request.collector_id)
        config = await self._clients.get_config(request.collector_id)
        return pb.GetCollectorConfigResponse(config=config)

    async def ConfigureCollector(
        self, request: pb.ConfigureCollectorRequest, context: Any
    ) -> pb.ConfigureCollectorResponse:
        """Changes the configuration of a collector, or checks a change."""
        _check_id(request.collector_id)
        _check_update(request.update)
        if not request.update.validate_only:
            names = sorted({*request.update.changes, *request.update.reset_fields})
            _note(logging.WARNING, request.collector_id, f"change {', '.join(names)}")
        update = collector_config_pb2.UpdateConfigRequest()
        update.CopyFrom(request.update)
        update.on_behalf_of = caller().identity.name
        done = await self._clients.update_config(request.collector_id, update)
        return pb.ConfigureCollectorResponse(update=done)

    async def GetCollectorCounters(
        self, request: pb.GetCollectorCountersRequest, context: Any
    ) -> pb.GetCollectorCountersResponse:
        """Reads the counters of a collector."""
        _check_id(request.collector_id)
        stats = await self._clients.counters(request.collector_id)
        return pb.GetCollectorCountersResponse(stats=stats)

    async def EndCollector(
        self, request: pb.EndCollectorRequest, context: Any
    ) -> pb.EndCollectorResponse:
        """Makes the process of a collector drain, or exit at once."""
        _check_id(request.collector_id)
        timeout_s = _drain_timeout_s(request)
        if len(request.reason) > MAX_REASON_CHARS:
            raise _refused(
                "reason", f"{len(request.reason)} long", f"at most {MAX_REASON_CHARS} characters"
            )
        what = "exit at once" if request.force else "shut down"
        _note(logging.WARNING, request.collector_id, what)
        asked_by = f"asked by {caller().identity.name}"
        reason = f"{request.reason} ({asked_by})" if request.reason else asked_by
        await self._clients.end(
            request.collector_id, reason, force=request.force, timeout_s=timeout_s
        )
        return pb.EndCollectorResponse()

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
        )
        if beat is not None:
            _add_heartbeat(info, beat)
        info.state_since.FromNanoseconds(collector.since_ns)
        if collector.heartbeat_at_ns is not None:
            info.last_heartbeat_at.FromNanoseconds(collector.heartbeat_at_ns)
        return info


def _add_heartbeat(info: pb.CollectorInfo, beat: Heartbeat) -> None:
    info.metrics.update(beat.metrics)
    info.status = collector_health_pb2.CollectorStatus.ValueType(beat.status)
    info.is_shedding = beat.is_shedding
    info.config_version = beat.config_version
    info.unacknowledged_count = _unacknowledged_count(beat)


def _unacknowledged_count(beat: Heartbeat) -> int:
    """Returns the events held that were not acknowledged; nobody waits for what was lost."""
    count = sum(
        max(one.last_sequence - max(one.acknowledged_sequence, one.first_sequence - 1), 0)
        for one in beat.log_positions
    )
    return min(count, _MAX_UINT64)  # positions are what a collector says, and need not make sense


def _note(level: int, collector_id: str, what: str) -> None:
    log.log(level, "%s asks collector %s to %s", caller().identity.name, collector_id, what)


def _check_id(collector_id: str) -> None:
    """Refuses what no collector can be called, before it gets into the log."""
    if not _COLLECTOR_ID.fullmatch(collector_id):
        raise NotFoundError(
            f"there is no collector {collector_id[:80]!r}; 'daemoneye collectors' lists them",
            collector_id=collector_id[:80],
        )


def _check_key(key: str, min_bytes: int = 0) -> None:
    if not min_bytes <= len(key.encode()) <= MAX_KEY_BYTES:
        allowed = f"{min_bytes} to {MAX_KEY_BYTES} bytes"
        raise _refused("idempotency_key", f"{len(key.encode())} bytes long", allowed)


def _check_update(update: collector_config_pb2.UpdateConfigRequest) -> None:
    _check_key(update.idempotency_key)
    for field, names in (("changes", update.changes), ("reset_fields", update.reset_fields)):
        if len(names) > MAX_CHANGES:
            raise _refused(field, f"{len(names)} entries", f"at most {MAX_CHANGES}")
        for name in names:
            if not 1 <= len(name) <= MAX_FIELD_NAME_CHARS:
                allowed = f"names of 1 to {MAX_FIELD_NAME_CHARS} characters"
                raise _refused(field, repr(name[:80]), allowed)


def _drain_timeout_s(request: pb.EndCollectorRequest) -> float | None:
    if not request.HasField("timeout"):
        return None
    if request.force:
        raise _refused("timeout", "set", "none with force, which does not wait")
    timeout_s: float = request.timeout.seconds + request.timeout.nanos / 1e9
    if not MIN_DRAIN_S <= timeout_s <= MAX_DRAIN_S:
        raise _refused("timeout", f"{timeout_s:g} s", f"{MIN_DRAIN_S:g} to {MAX_DRAIN_S:g} s")
    return timeout_s


def _refused(field: str, value: object, allowed: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{field} is {value}; use {allowed}", field=field, value=value, allowed=allowed
    )
