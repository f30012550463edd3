"""Calls from the agent to its collectors: tasks, control and their logs, over one channel each.

Invariant: a collector is called only after it registered and until it deregistered, at the socket it
registered, and that socket is the one its identity owns. Tasks go to collectors in service alone; one
that failed or fell silent can still be asked how it is, mended, and told what is stored.
"""

import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import grpc.aio

from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import (
    analysis_pb2,
    collector_config_pb2,
    collector_control_service_pb2_grpc,
    collector_health_pb2,
    collector_service_pb2,
    collector_service_pb2_grpc,
    ipc_pb2,
)
from daemoneye.ipc.v1 import collector_control_service_pb2 as control_pb2
from daemoneye_agent.collector_answer import check_chunk, check_state, translated
from daemoneye_agent.registry import Collector, CollectorRegistry, CollectorState
from daemoneye_mesh.channel import correlation_metadata, open_channel
from daemoneye_mesh.errors import (
    InvalidRequestError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.limits import PROTOCOL_VERSION

__all__ = ["CollectorClients"]

CONTROL_TIMEOUT_S = 5.0
CONFIG_TIMEOUT_S = 10.0
SOURCES_TIMEOUT_S = 30.0
RESTART_TIMEOUT_S = 60.0
REPLAY_TIMEOUT_S = 30.0

Request = TypeVar("Request")
Response = TypeVar("Response")


class CollectorClients:
    """Channels to the registered collectors.

    Args:
        layout: where their sockets must lie.
        registry: the leases.
        token_for: gives the agent's token for an audience.
    """

    def __init__(
        self,
        layout: RuntimeLayout,
        registry: CollectorRegistry,
        token_for: Callable[[Identity], str],
    ) -> None:
        self._layout = layout
        self._registry = registry
        self._token_for = token_for
        self._channels: dict[str, grpc.aio.Channel] = {}

    def check_socket(self, collector_id: str, socket_path: str) -> None:
        """Refuses a registration whose socket is not the one of its identity.

        Raises:
            InvalidRequestError: another path; the agent would hand its tasks to somebody else.
        """
        expected = self._layout.collector_socket(collector_id)
        if Path(socket_path) != expected:
            raise InvalidRequestError(
                f"collector {collector_id} listens on {socket_path!r}; it must listen on {expected}",
                field="socket_path",
                socket_path=socket_path,
                expected=expected,
            )

    async def enumerate_processes(
        self, collector_id: str, wanted: common_pb2.ProcessFilter, timeout_s: float
    ) -> AsyncGenerator[collector_service_pb2.ExecuteTaskResponse, None]:
        """Runs ENUMERATE_PROCESSES and yields its chunks.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        task = ipc_pb2.DetectionTask(
            task_id=uuid.uuid4().hex,
            task_type=common_pb2.TASK_TYPE_ENUMERATE_PROCESSES,
            process_filter=wanted,
        )
        async with aclosing(self._execute(collector_id, task, timeout_s)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def begin(self, collector_id: str) -> None:
        """Makes a collector prepare its sources and watch; within 30 s.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = control_pb2.BeginMonitoringRequest()
        answer = await self._ask(collector_id, stub.BeginMonitoring, request, SOURCES_TIMEOUT_S)
        check_state(collector_id, answer.state, control_pb2.MONITORING_STATE_MONITORING)

    async def stop(self, collector_id: str) -> None:
        """Makes a collector stop watching and close its sources; within 30 s.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = control_pb2.StopMonitoringRequest()
        answer = await self._ask(collector_id, stub.StopMonitoring, request, SOURCES_TIMEOUT_S)
        check_state(collector_id, answer.state, control_pb2.MONITORING_STATE_IDLE)

    async def restart(self, collector_id: str, idempotency_key: str) -> None:
        """Stops and begins, once for each key of 1 to 64 bytes; within 60 s.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = control_pb2.RestartMonitoringRequest(idempotency_key=idempotency_key)
        answer = await self._ask(collector_id, stub.RestartMonitoring, request, RESTART_TIMEOUT_S)
        check_state(collector_id, answer.state, control_pb2.MONITORING_STATE_MONITORING)

    async def pause(self, collector_id: str) -> None:
        """Makes a collector stop watching; its sources stay open; within 5 s.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = control_pb2.PauseMonitoringRequest()
        answer = await self._ask(collector_id, stub.PauseMonitoring, request, CONTROL_TIMEOUT_S)
        check_state(collector_id, answer.state, control_pb2.MONITORING_STATE_PAUSED)

    async def resume(self, collector_id: str) -> None:
        """Makes a collector watch again; within 5 s.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = control_pb2.ResumeMonitoringRequest()
        answer = await self._ask(collector_id, stub.ResumeMonitoring, request, CONTROL_TIMEOUT_S)
        check_state(collector_id, answer.state, control_pb2.MONITORING_STATE_MONITORING)

    async def check(self, collector_id: str) -> collector_health_pb2.CheckHealthResponse:
        """Asks a collector how it and its parts are; within 5 s.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = collector_health_pb2.CheckHealthRequest()
        return await self._ask(collector_id, stub.CheckHealth, request, CONTROL_TIMEOUT_S)

    async def get_config(self, collector_id: str) -> collector_config_pb2.GetConfigResponse:
        """Reads the configuration of a collector; within 5 s.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = collector_config_pb2.GetConfigRequest()
        return await self._ask(collector_id, stub.GetConfig, request, CONTROL_TIMEOUT_S)

    async def update_config(
        self, collector_id: str, update: collector_config_pb2.UpdateConfigRequest
    ) -> collector_config_pb2.UpdateConfigResponse:
        """Changes the configuration of a running collector, or checks a change; within 10 s.

        Raises:
            InvalidRequestError: a field is unknown, out of range or not to be changed now.
            ConflictError: another version is in force than the one expected.
            InternalError: it could not be applied; what was in force before is in force again.
            DaemoneyeError: what else the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        return await self._ask(collector_id, stub.UpdateConfig, update, CONFIG_TIMEOUT_S)

    async def counters(self, collector_id: str) -> control_pb2.GetCollectorStatsResponse:
        """Reads the counters of a collector; within 5 s.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = control_pb2.GetCollectorStatsRequest()
        return await self._ask(collector_id, stub.GetCollectorStats, request, CONTROL_TIMEOUT_S)

    async def end(
        self, collector_id: str, reason: str, *, force: bool = False, timeout_s: float | None = None
    ) -> None:
        """Makes the process of a collector drain and exit, or exit at once; answered within 5 s.

        Args:
            collector_id: which one.
            reason: why, for its log.
            force: whether it exits at once, without a drain.
            timeout_s: most seconds for the drain; None for the collector's own setting. It has no
                meaning with ``force``.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        if force:
            forced = control_pb2.ForceShutdownCollectorRequest(reason=reason)
            method = stub.ForceShutdownCollector
            state = (await self._ask(collector_id, method, forced, CONTROL_TIMEOUT_S)).state
        else:
            asked = control_pb2.ShutdownCollectorRequest(reason=reason)
            if timeout_s is not None:
                asked.timeout.FromNanoseconds(round(timeout_s * 1e9))
            answer = await self._ask(collector_id, stub.ShutdownCollector, asked, CONTROL_TIMEOUT_S)
            state = answer.state
        check_state(collector_id, state, control_pb2.MONITORING_STATE_STOPPING)

    async def negotiate(self, collector_id: str) -> ipc_pb2.CapabilityResponse:
        """Agrees on a protocol version and learns what a collector offers; within 5 s.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._service(collector_id)
        request = ipc_pb2.CapabilityRequest(
            client_id=self._layout.agent.spiffe_id,
            client_version=version("daemoneye-agent"),
            min_protocol_version=PROTOCOL_VERSION,
            max_protocol_version=PROTOCOL_VERSION,
        )
        method = stub.NegotiateCapabilities
        return await self._ask(collector_id, method, request, CONTROL_TIMEOUT_S)

    async def acknowledge(self, collector_id: str, epoch: int, sequence: int) -> int:
        """Tells a collector that all up to ``sequence`` of ``epoch`` is stored; within 5 s.

        Returns:
            The watermark as the collector now holds it; never less than before.

        Raises:
            UnsupportedError: the collector keeps no log.
            DaemoneyeError: what else the collector answered, or that it cannot be reached.
        """
        stub = self._service(collector_id)
        request = collector_service_pb2.AcknowledgeRequest(
            source_epoch=epoch, source_sequence=sequence
        )
        answer = await self._ask(collector_id, stub.Acknowledge, request, CONTROL_TIMEOUT_S)
        return answer.source_sequence

    async def replay(
        self, collector_id: str, epoch: int, first: int, last: int
    ) -> collector_service_pb2.ReplayResponse:
        """Makes a collector publish a range of ``epoch`` again; within 30 s.

        Args:
            collector_id: which one.
            epoch: epoch of the sequences.
            first: first sequence wanted.
            last: last sequence wanted; 0 means up to now.

        Raises:
            UnsupportedError: the collector keeps no log.
            OverloadedError: it replays too many ranges already; ask again later.
            DaemoneyeError: what else the collector answered, or that it cannot be reached.
        """
        stub = self._service(collector_id)
        request = collector_service_pb2.ReplayRequest(
            source_epoch=epoch, from_sequence=first, to_sequence=last
        )
        return await self._ask(collector_id, stub.Replay, request, REPLAY_TIMEOUT_S)

    async def analyze(
        self, collector_id: str, request: analysis_pb2.AnalyzeRequest, timeout_s: float
    ) -> analysis_pb2.AnalyzeResponse:
        """Makes a collector carry out one analysis; one that fails is an answer, not an error.

        Raises:
            UnsupportedError: the collector does not offer it.
            DaemoneyeError: what else the collector answered, or that it cannot be reached.
        """
        stub = self._service(collector_id, for_task=True)
        return await self._ask(collector_id, stub.Analyze, request, timeout_s)

    async def close(self) -> None:
        """Closes all channels."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    async def _execute(
        self, collector_id: str, task: ipc_pb2.DetectionTask, timeout_s: float
    ) -> AsyncGenerator[collector_service_pb2.ExecuteTaskResponse, None]:
        stub = self._service(collector_id, for_task=True)
        call = stub.ExecuteTask(
            collector_service_pb2.ExecuteTaskRequest(task=task),
            timeout=timeout_s,
            metadata=correlation_metadata(),
        )
        expected_index = 0
        is_whole = False
        try:
            with translated(collector_id):
                async for chunk in call:
                    check_chunk(collector_id, task, chunk, expected_index)
                    expected_index += 1
                    is_whole = chunk.is_last
                    yield chunk
        finally:
            call.cancel()
        if not is_whole:
            raise UnavailableError(
                f"collector {collector_id} ended its answer early; try again",
                collector_id=collector_id,
            )

    async def _ask(
        self,
        collector_id: str,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        timeout_s: float,
    ) -> Response:
        with translated(collector_id):
            return await method(request, timeout=timeout_s, metadata=correlation_metadata())

    def _control(
        self, collector_id: str
    ) -> "collector_control_service_pb2_grpc.CollectorControlServiceAsyncStub":
        channel = self._channel(self._find(collector_id))
        return collector_control_service_pb2_grpc.CollectorControlServiceStub(channel)

    def _service(
        self, collector_id: str, *, for_task: bool = False
    ) -> "collector_service_pb2_grpc.CollectorServiceAsyncStub":
        collector = self._find(collector_id)
        if for_task:
            _require_in_service(collector)
        return collector_service_pb2_grpc.CollectorServiceStub(self._channel(collector))

    def _channel(self, collector: Collector) -> grpc.aio.Channel:
        name = collector.registration.collector_id
        channel = self._channels.get(name)
        if channel is None:
            identity = self._layout.collector(name)
            channel = open_channel(
                self._layout.collector_socket(name), lambda: self._token_for(identity)
            )
            self._channels[name] = channel
        return channel

    def _find(self, collector_id: str) -> Collector:
        collector = self._registry.get(collector_id)
        if collector is None:
            raise NotFoundError(
                f"there is no collector {collector_id!r}; 'daemoneye collectors' lists them",
                collector_id=collector_id,
            )
        if collector.state is CollectorState.DEREGISTERED:
            raise _unusable(collector)
        return collector


def _require_in_service(collector: Collector) -> None:
    if collector.state is CollectorState.UNAVAILABLE:
        raise _unusable(collector)


def _unusable(collector: Collector) -> PreconditionError:
    collector_id = collector.registration.collector_id
    return PreconditionError(
        f"collector {collector_id} is {collector.state}; see 'daemoneye collectors'",
        collector_id=collector_id,
        state=collector.state,
    )
