"""A collector as the agent sees it: its services by name, and what of its events has arrived.

Invariant: a call that fails raises an error of ``daemoneye_mesh.errors``; a test never needs gRPC.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import grpc.aio
from google.protobuf import duration_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from collector_core.event import Record
from collector_core.testing.delivery import DeliveryRecord, SequenceRange
from collector_core.testing.seen_event import SeenEvent
from daemoneye.common.v1 import completeness_pb2
from daemoneye.eventbus.v1 import collection_gap_pb2
from daemoneye.ipc.v1 import (
    analysis_pb2,
    collector_config_pb2,
    collector_control_service_pb2_grpc,
    collector_health_pb2,
    collector_service_pb2,
    collector_service_pb2_grpc,
    event_log_pb2,
    ipc_pb2,
)
from daemoneye.ipc.v1 import collector_control_service_pb2 as control_pb
from daemoneye_mesh.limits import PROTOCOL_VERSION
from daemoneye_mesh.rpc_status import from_rpc_error

__all__ = ["CollectorControl", "CollectorPeer", "TaskAnswer"]

CALL_TIMEOUT_S = 10.0
RESTART_TIMEOUT_S = 60.0
"""What a restart may take by the contract; begin and stop may take half of it each."""

_RECORD_FIELDS = ("processes", "network_events", "filesystem_events", "performance_events")


@dataclass(frozen=True, slots=True)
class TaskAnswer:
    """The whole answer to one task."""

    records: Sequence[Record]
    """What was found, in the order in which it was sent."""
    completeness: completeness_pb2.Completeness
    """What may be missing."""
    chunks: Sequence[collector_service_pb2.ExecuteTaskResponse]
    """The parts in which it came."""


class CollectorPeer:
    """One collector.

    Args:
        collector_id: its id.
        channel: to its socket, with tokens of the agent.
        record: what of its events has arrived.
    """

    def __init__(
        self, collector_id: str, channel: grpc.aio.Channel, record: DeliveryRecord
    ) -> None:
        self.collector_id = collector_id
        self.record = record
        self.control = CollectorControl(channel)
        """``CollectorControlService``."""
        self._stub: Any = collector_service_pb2_grpc.CollectorServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    # -- CollectorService ---------------------------------------------------------------------------

    async def negotiate(
        self, *, versions: tuple[int, int] = (1, PROTOCOL_VERSION), domains: Sequence[int] = ()
    ) -> ipc_pb2.CapabilityResponse:
        """Asks what the collector can do.

        Args:
            versions: lowest and highest protocol version to offer.
            domains: numbers of the domains to ask about; all when empty.
        """
        request = ipc_pb2.CapabilityRequest(
            client_id="agent",
            requested_domains=cast("Any", domains),
            min_protocol_version=versions[0],
            max_protocol_version=versions[1],
        )
        answer = await _call(self._stub.NegotiateCapabilities, request)
        return cast("ipc_pb2.CapabilityResponse", answer)

    async def describe(self) -> Sequence[collector_service_pb2.TableDescription]:
        """Asks for the tables of the collector."""
        answer = await _call(
            self._stub.DescribeSchema, collector_service_pb2.DescribeSchemaRequest()
        )
        return cast("collector_service_pb2.DescribeSchemaResponse", answer).tables

    async def execute(
        self, task: ipc_pb2.DetectionTask, timeout_s: float = CALL_TIMEOUT_S
    ) -> TaskAnswer:
        """Runs one task and returns all that it found."""
        request = collector_service_pb2.ExecuteTaskRequest(task=task)
        call = self._stub.ExecuteTask(request, timeout=timeout_s)
        chunks: list[collector_service_pb2.ExecuteTaskResponse] = []
        try:
            with _our_errors():
                chunks = [chunk async for chunk in cast("AsyncIterator[Any]", call)]
        finally:
            call.cancel()
        records = [record for chunk in chunks for record in _records_of(chunk.result)]
        completeness = chunks[-1].completeness if chunks else completeness_pb2.Completeness()
        return TaskAnswer(records, completeness, chunks)

    async def analyze(
        self, request: analysis_pb2.AnalyzeRequest, timeout_s: float = CALL_TIMEOUT_S
    ) -> analysis_pb2.AnalyzeResponse:
        """Asks for one analysis."""
        answer = await _call(self._stub.Analyze, request, timeout_s)
        return cast("analysis_pb2.AnalyzeResponse", answer)

    # -- delivery -----------------------------------------------------------------------------------

    @property
    def events(self) -> Sequence[SeenEvent]:
        """What has arrived, each event once."""
        return self.record.events

    def gaps(self) -> list[collection_gap_pb2.CollectionGapData]:
        """The times in which the collector says that it did not see everything."""
        kind = collection_gap_pb2.CollectionGapData
        return [event.data for event in self.record.events if isinstance(event.data, kind)]

    def missing(self) -> list[SequenceRange]:
        """What was given out and has not arrived."""
        return self.record.missing()

    async def acknowledge(self, epoch: int | None = None, sequence: int | None = None) -> None:
        """Acknowledges what has arrived without a hole.

        Args:
            epoch: of all epochs when left out.
            sequence: the watermark; up to where nothing is missing when left out.
        """
        for one in self.record.epochs if epoch is None else [epoch]:
            watermark = self.record.contiguous(one) if sequence is None else sequence
            if watermark or sequence is not None:
                request = collector_service_pb2.AcknowledgeRequest(
                    source_epoch=one, source_sequence=watermark
                )
                await _call(self._stub.Acknowledge, request)

    async def replay(
        self, epoch: int | None = None, first: int = 1, last: int = 0
    ) -> list[event_log_pb2.EventLoss]:
        """Asks for events again, and settles what cannot be had any more.

        Args:
            epoch: of what is missing in all epochs when left out.
            first: first sequence wanted.
            last: last sequence wanted; 0 means up to now.

        Returns:
            What the collector says is lost.
        """
        if epoch is not None:
            return await self._replay(epoch, first, last)
        losses: list[event_log_pb2.EventLoss] = []
        for one in self.missing():
            losses += await self._replay(one.epoch, one.first, one.last)
        return losses

    async def _replay(self, epoch: int, first: int, last: int) -> list[event_log_pb2.EventLoss]:
        request = collector_service_pb2.ReplayRequest(
            source_epoch=epoch, from_sequence=first, to_sequence=last
        )
        answer = await _call(self._stub.Replay, request)
        if answer.from_sequence > first:  # older ones are gone: acknowledged before, or lost
            self.record.settle(SequenceRange(epoch, first, answer.from_sequence - 1))
        for loss in answer.losses:
            lost = SequenceRange(epoch, loss.first_sequence, loss.last_sequence)
            self.record.settle(lost)
        return list(answer.losses)

    # -- grpc.health.v1 -----------------------------------------------------------------------------

    async def health(self, service: str = "") -> str:
        """Returns SERVING, NOT_SERVING or SERVICE_UNKNOWN; UNREACHABLE when nobody answers."""
        try:
            answer = await self._health.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=1.0
            )
        except grpc.aio.AioRpcError as error:
            is_unknown = error.code() is grpc.StatusCode.NOT_FOUND
            return "SERVICE_UNKNOWN" if is_unknown else "UNREACHABLE"
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    async def is_serving(self) -> bool:
        """Whether it says SERVING right now."""
        return await self.health() == "SERVING"


class CollectorControl:
    """``CollectorControlService`` of one collector.

    Args:
        channel: to its socket.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = collector_control_service_pb2_grpc.CollectorControlServiceStub(channel)

    async def begin(self) -> "control_pb.MonitoringState.ValueType":
        """Prepares the sources and watches."""
        request = control_pb.BeginMonitoringRequest()
        return await self._state(self._stub.BeginMonitoring, request, RESTART_TIMEOUT_S / 2)

    async def stop(self) -> "control_pb.MonitoringState.ValueType":
        """Stops watching and closes the sources."""
        request = control_pb.StopMonitoringRequest()
        return await self._state(self._stub.StopMonitoring, request, RESTART_TIMEOUT_S / 2)

    async def restart(self, idempotency_key: str) -> "control_pb.MonitoringState.ValueType":
        """Stops and begins, once for each key."""
        request = control_pb.RestartMonitoringRequest(idempotency_key=idempotency_key)
        return await self._state(self._stub.RestartMonitoring, request, RESTART_TIMEOUT_S)

    async def pause(self) -> "control_pb.MonitoringState.ValueType":
        """Stops watching; tasks are still answered."""
        return await self._state(self._stub.PauseMonitoring, control_pb.PauseMonitoringRequest())

    async def resume(self) -> "control_pb.MonitoringState.ValueType":
        """Watches again."""
        return await self._state(self._stub.ResumeMonitoring, control_pb.ResumeMonitoringRequest())

    async def check_health(self) -> collector_health_pb2.CheckHealthResponse:
        """Asks how the collector and its parts are."""
        answer = await _call(self._stub.CheckHealth, collector_health_pb2.CheckHealthRequest())
        return cast("collector_health_pb2.CheckHealthResponse", answer)

    async def update_config(
        self,
        changes: Mapping[str, str] | None = None,
        *,
        reset: Sequence[str] = (),
        validate_only: bool = False,
        expected_version: int = 0,
        idempotency_key: str = "",
    ) -> collector_config_pb2.UpdateConfigResponse:
        """Changes settings while it runs, or checks a change.

        Args:
            changes: new values by field, written as on the command line.
            reset: fields that go back to what they would be without updates.
            validate_only: change nothing.
            expected_version: the version that the change is meant for; 0 means any.
            idempotency_key: one key, one update.
        """
        request = collector_config_pb2.UpdateConfigRequest(
            changes=changes,
            reset_fields=reset,
            validate_only=validate_only,
            expected_version=expected_version,
            idempotency_key=idempotency_key,
        )
        answer = await _call(self._stub.UpdateConfig, request)
        return cast("collector_config_pb2.UpdateConfigResponse", answer)

    async def get_config(self) -> collector_config_pb2.GetConfigResponse:
        """Asks for the configuration in force."""
        answer = await _call(self._stub.GetConfig, collector_config_pb2.GetConfigRequest())
        return cast("collector_config_pb2.GetConfigResponse", answer)

    async def stats(self) -> control_pb.GetCollectorStatsResponse:
        """Asks for the counters."""
        answer = await _call(self._stub.GetCollectorStats, control_pb.GetCollectorStatsRequest())
        return cast("control_pb.GetCollectorStatsResponse", answer)

    async def shut_down(
        self, reason: str = "the test asked for it", timeout_s: float | None = None
    ) -> "control_pb.MonitoringState.ValueType":
        """Asks for a drain, which goes on after the answer."""
        request = control_pb.ShutdownCollectorRequest(reason=reason)
        if timeout_s is not None:
            timeout = duration_pb2.Duration()
            timeout.FromNanoseconds(int(timeout_s * 1e9))
            request.timeout.CopyFrom(timeout)
        return await self._state(self._stub.ShutdownCollector, request)

    async def force_shut_down(
        self, reason: str = "the test asked for it"
    ) -> "control_pb.MonitoringState.ValueType":
        """Makes it exit at once."""
        request = control_pb.ForceShutdownCollectorRequest(reason=reason)
        return await self._state(self._stub.ForceShutdownCollector, request)

    async def _state(
        self, method: Callable[..., Awaitable[Any]], request: Any, timeout_s: float = CALL_TIMEOUT_S
    ) -> "control_pb.MonitoringState.ValueType":
        answer = await _call(method, request, timeout_s)
        return cast("control_pb.MonitoringState.ValueType", answer.state)


@contextmanager
def _our_errors() -> Any:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def _call(
    method: Callable[..., Awaitable[Any]], request: Any, timeout_s: float = CALL_TIMEOUT_S
) -> Any:
    with _our_errors():
        return await method(request, timeout=timeout_s)


def _records_of(result: ipc_pb2.DetectionResult) -> list[Record]:
    records: list[Record] = [one for name in _RECORD_FIELDS for one in getattr(result, name)]
    return [*records, result.hash_result] if result.HasField("hash_result") else records
