"""``ipc.v1.CollectorControlService``: state, configuration, health and shutdown of one collector.

Invariants: a call is carried out within its deadline or cancelled (MUST-CTL-02); operations that
change the state wait for each other; health and counters wait for nobody.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from google.protobuf.duration_pb2 import Duration

from collector_core.control_task import run_within
from collector_core.idempotency import IdempotencyCache
from collector_core.live_config import ConfigChange, ConfigFieldView, LiveConfig, OriginKind
from daemoneye.ipc.v1 import collector_config_pb2 as config_pb
from daemoneye.ipc.v1 import collector_control_service_pb2 as pb
from daemoneye.ipc.v1 import collector_control_service_pb2_grpc
from daemoneye.ipc.v1 import collector_health_pb2 as health_pb
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.errors import InvalidRequestError, PreconditionError
from daemoneye_mesh.identity import IdentityKind

__all__ = ["CEILING_S", "CollectorControlServicer", "Controlled"]

CEILING_S: Mapping[str, float] = MappingProxyType(
    {
        "BeginMonitoring": 30.0,
        "StopMonitoring": 30.0,
        "RestartMonitoring": 60.0,
        "PauseMonitoring": 5.0,
        "ResumeMonitoring": 5.0,
        "UpdateConfig": 10.0,
        "ShutdownCollector": 5.0,
        "ForceShutdownCollector": 5.0,
    }
)
"""Longest time that a method may take, as its contract says; those not named answer at once."""

MAX_FIELDS = 64
MAX_REASON_CHARS = 256
MIN_SHUTDOWN_TIMEOUT_S = 0.1
MAX_SHUTDOWN_TIMEOUT_S = 300.0

_NEEDS_SOURCES = ("PauseMonitoring", "ResumeMonitoring")
_STATE_PREFIX = "MONITORING_STATE_"
_ORIGINS = {
    OriginKind.DEFAULT: config_pb.CONFIG_ORIGIN_DEFAULT,
    OriginKind.FILE: config_pb.CONFIG_ORIGIN_FILE,
    OriginKind.ENVIRONMENT: config_pb.CONFIG_ORIGIN_ENVIRONMENT,
    OriginKind.FLAG: config_pb.CONFIG_ORIGIN_FLAG,
    OriginKind.LIVE: config_pb.CONFIG_ORIGIN_LIVE,
}

T = TypeVar("T")


class Controlled(Protocol):
    """What the service steers. Each coroutine is idempotent and leaves a legal state when cancelled."""

    @property
    def state(self) -> pb.MonitoringState.ValueType:
        """What the collector does."""

    @property
    def config(self) -> LiveConfig[Any]:
        """Its configuration."""

    async def begin(self) -> None:
        """Prepares the sources and watches; returns when each is prepared or failed."""

    async def stop_monitoring(self) -> None:
        """Stops watching and closes the sources."""

    async def restart(self) -> None:
        """Stops and begins."""

    async def pause(self) -> None:
        """Stops watching; the sources stay open."""

    async def resume(self) -> None:
        """Watches again."""

    def health(self) -> health_pb.CheckHealthResponse:
        """How it is; at once."""

    def stats(self) -> pb.GetCollectorStatsResponse:
        """The counters; at once."""

    def shut_down(self, reason: str, timeout_s: float | None) -> None:
        """Asks for a drain, in its own time when none is given."""

    def force_shut_down(self, reason: str) -> None:
        """Asks for the end at once, after the answer is out."""


class CollectorControlServicer(collector_control_service_pb2_grpc.CollectorControlServiceServicer):
    """Answers for one collector.

    Args:
        collector: what is steered.
        ceiling_s: longest time by method.
    """

    def __init__(self, collector: Controlled, ceiling_s: Mapping[str, float] = CEILING_S) -> None:
        self._collector = collector
        self._ceiling_s = ceiling_s
        self._turn = asyncio.Lock()
        self._calls = IdempotencyCache()

    async def BeginMonitoring(
        self, request: pb.BeginMonitoringRequest, context: Any
    ) -> pb.BeginMonitoringResponse:
        """Prepares the sources and watches."""
        await self._operate("BeginMonitoring", context, self._collector.begin)
        return pb.BeginMonitoringResponse(state=self._collector.state)

    async def StopMonitoring(
        self, request: pb.StopMonitoringRequest, context: Any
    ) -> pb.StopMonitoringResponse:
        """Stops watching and closes the sources."""
        await self._operate("StopMonitoring", context, self._collector.stop_monitoring)
        return pb.StopMonitoringResponse(state=self._collector.state)

    async def RestartMonitoring(
        self, request: pb.RestartMonitoringRequest, context: Any
    ) -> pb.RestartMonitoringResponse:
        """Stops and begins, once for each key."""
        operation = "RestartMonitoring"

        async def restart() -> pb.MonitoringState.ValueType:
            return await self._in_turn(operation, self._collector.restart)

        state = await self._within(
            operation,
            context,
            lambda: self._calls.run(request.idempotency_key, operation.encode(), restart),
        )
        return pb.RestartMonitoringResponse(state=state)

    async def PauseMonitoring(
        self, request: pb.PauseMonitoringRequest, context: Any
    ) -> pb.PauseMonitoringResponse:
        """Stops watching."""
        await self._operate("PauseMonitoring", context, self._collector.pause)
        return pb.PauseMonitoringResponse(state=self._collector.state)

    async def ResumeMonitoring(
        self, request: pb.ResumeMonitoringRequest, context: Any
    ) -> pb.ResumeMonitoringResponse:
        """Watches again."""
        await self._operate("ResumeMonitoring", context, self._collector.resume)
        return pb.ResumeMonitoringResponse(state=self._collector.state)

    async def CheckHealth(
        self, request: health_pb.CheckHealthRequest, context: Any
    ) -> health_pb.CheckHealthResponse:
        """Says how the collector is."""
        return self._collector.health()

    async def UpdateConfig(
        self, request: config_pb.UpdateConfigRequest, context: Any
    ) -> config_pb.UpdateConfigResponse:
        """Changes some fields, or checks a change."""
        operation, by = "UpdateConfig", author_of(request)
        check_field_counts(request)

        async def update() -> config_pb.UpdateConfigResponse:
            self._require_running(operation)
            done = await self._collector.config.update(
                dict(request.changes),
                tuple(request.reset_fields),
                by=by,
                validate_only=request.validate_only,
                expected_version=request.expected_version,
            )
            changes = map(to_change, done.changes)
            return config_pb.UpdateConfigResponse(version=done.version, changes=changes)

        async def update_once() -> config_pb.UpdateConfigResponse:
            if not request.idempotency_key:
                return await update()
            fingerprint = operation.encode() + request.SerializeToString(deterministic=True)
            return await self._calls.run(request.idempotency_key, fingerprint, update)

        return await self._within(operation, context, update_once)

    async def GetConfig(
        self, request: config_pb.GetConfigRequest, context: Any
    ) -> config_pb.GetConfigResponse:
        """Reads the configuration in force."""
        config = self._collector.config
        answer = config_pb.GetConfigResponse(
            version=config.version,
            applied_by=to_wire(config.applied_by),
            fields=map(to_field, config.fields()),
        )
        if config.applied_at_ns is not None:
            answer.applied_at.FromNanoseconds(config.applied_at_ns)
        return answer

    async def GetCollectorStats(
        self, request: pb.GetCollectorStatsRequest, context: Any
    ) -> pb.GetCollectorStatsResponse:
        """Reads the counters."""
        return self._collector.stats()

    async def ShutdownCollector(
        self, request: pb.ShutdownCollectorRequest, context: Any
    ) -> pb.ShutdownCollectorResponse:
        """Asks for a drain and answers before it happens."""
        timeout_s = timeout_of(request.timeout) if request.HasField("timeout") else None

        async def ask() -> None:
            self._collector.shut_down(reason_of(request.reason), timeout_s)

        await self._within("ShutdownCollector", context, ask)
        return pb.ShutdownCollectorResponse(state=pb.MONITORING_STATE_STOPPING)

    async def ForceShutdownCollector(
        self, request: pb.ForceShutdownCollectorRequest, context: Any
    ) -> pb.ForceShutdownCollectorResponse:
        """Asks for the end and answers before it happens."""

        async def ask() -> None:
            self._collector.force_shut_down(reason_of(request.reason))

        await self._within("ForceShutdownCollector", context, ask)
        return pb.ForceShutdownCollectorResponse(state=pb.MONITORING_STATE_STOPPING)

    async def _operate(
        self, operation: str, context: Any, work: Callable[[], Awaitable[None]]
    ) -> None:
        await self._within(operation, context, lambda: self._in_turn(operation, work))

    async def _in_turn(
        self, operation: str, work: Callable[[], Awaitable[None]]
    ) -> pb.MonitoringState.ValueType:
        async with self._turn:
            self._require_running(operation)
            await work()
            return self._collector.state

    async def _within(self, operation: str, context: Any, work: Callable[[], Awaitable[T]]) -> T:
        return await run_within(operation, context, self._ceiling_s[operation], work)

    def _require_running(self, operation: str) -> None:
        state = self._collector.state
        if state == pb.MONITORING_STATE_STOPPING:
            raise illegal(operation, state, "ask again when it has been started anew")
        if state == pb.MONITORING_STATE_IDLE and operation in _NEEDS_SOURCES:
            raise illegal(operation, state, "call BeginMonitoring first")


def illegal(operation: str, state: pb.MonitoringState.ValueType, advice: str) -> PreconditionError:
    """Returns why an operation makes no sense in a state."""
    name = pb.MonitoringState.Name(state).removeprefix(_STATE_PREFIX)
    return PreconditionError(
        f"{operation} is not possible while the collector is {name.lower()}; {advice}",
        operation=operation,
        state=name,
    )


def check_field_counts(request: config_pb.UpdateConfigRequest) -> None:
    """Checks how much an update asks for.

    Raises:
        InvalidRequestError: more than 64 fields to change or to reset.
    """
    counts = {"changes": len(request.changes), "reset_fields": len(request.reset_fields)}
    for field, count in counts.items():
        if count > MAX_FIELDS:
            raise InvalidRequestError(
                f"{field} has {count} fields, at most {MAX_FIELDS} are allowed; send several updates",
                field=field,
                count=count,
                limit=MAX_FIELDS,
            )


def timeout_of(timeout: Duration) -> float:
    """Returns the time that a caller gives a drain, in seconds.

    Raises:
        InvalidRequestError: it is less than 0.1 s or more than 300 s.
    """
    timeout_s = timeout.seconds + timeout.nanos / 1e9
    if not MIN_SHUTDOWN_TIMEOUT_S <= timeout_s <= MAX_SHUTDOWN_TIMEOUT_S:
        raise InvalidRequestError(
            f"timeout is {timeout_s:g} s; give {MIN_SHUTDOWN_TIMEOUT_S:g} s to"
            f" {MAX_SHUTDOWN_TIMEOUT_S:g} s, or none for the collector's own",
            field="timeout",
            timeout_s=f"{timeout_s:g}",
            minimum_s=MIN_SHUTDOWN_TIMEOUT_S,
            maximum_s=MAX_SHUTDOWN_TIMEOUT_S,
        )
    return timeout_s


def author_of(request: config_pb.UpdateConfigRequest) -> str:
    """Returns who wants an update: whom the agent asks for, else the caller itself."""
    identity = caller().identity
    if identity.kind is not IdentityKind.AGENT or not request.on_behalf_of:
        return identity.name
    return "".join(one for one in request.on_behalf_of if one.isprintable())[:MAX_REASON_CHARS]


def reason_of(text: str) -> str:
    """Returns why a caller ends the collector, fit for one line of the log."""
    clean = "".join(one for one in text if one.isprintable())[:MAX_REASON_CHARS].strip()
    return clean or f"asked by {caller().identity.name}"


def to_change(change: ConfigChange) -> config_pb.ConfigChange:
    """Returns the message of a change."""
    return config_pb.ConfigChange(
        name=change.name, before=to_wire(change.before), after=to_wire(change.after)
    )


def to_field(field: ConfigFieldView) -> config_pb.ConfigField:
    """Returns the message of a field."""
    return config_pb.ConfigField(
        name=field.name,
        value=to_wire(field.value),
        origin=_ORIGINS[field.origin.kind],
        origin_detail=to_wire(field.origin.detail),
        is_live=field.is_live,
        help=field.help,
    )


def to_wire(text: str) -> str:
    """Returns a text without the lone surrogates of a path, which protobuf refuses."""
    return text.encode("utf-8", "backslashreplace").decode()
