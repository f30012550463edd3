"""Calls from the agent to its collectors: tasks and control, over one channel each.

Invariant: a collector is called only while it holds a lease, at the socket it registered, and that
socket is the one its identity owns.
"""

import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import grpc.aio

from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import (
    collector_control_service_pb2,
    collector_control_service_pb2_grpc,
    collector_service_pb2,
    collector_service_pb2_grpc,
    ipc_pb2,
)
from daemoneye_agent.registry import Collector, CollectorRegistry, CollectorState
from daemoneye_mesh.channel import correlation_metadata, open_channel
from daemoneye_mesh.errors import (
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
    UnsupportedError,
)
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.rpc_status import from_rpc_error

__all__ = ["CollectorClients"]

CONTROL_TIMEOUT_S = 5.0

_ANSWERS = (InvalidRequestError, OverloadedError, PreconditionError, UnsupportedError)
"""What a collector may say about the task itself; all else is between it and the agent."""

_GONE = {CollectorState.UNAVAILABLE, CollectorState.DEREGISTERED}

log = logging.getLogger("daemoneye.collectors")


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

    async def pause(self, collector_id: str) -> None:
        """Makes a collector stop watching.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = collector_control_service_pb2.PauseMonitoringRequest()
        with self._translated(collector_id):
            await stub.PauseMonitoring(
                request, timeout=CONTROL_TIMEOUT_S, metadata=correlation_metadata()
            )

    async def resume(self, collector_id: str) -> None:
        """Makes a collector watch again.

        Raises:
            DaemoneyeError: what the collector answered, or that it cannot be reached.
        """
        stub = self._control(collector_id)
        request = collector_control_service_pb2.ResumeMonitoringRequest()
        with self._translated(collector_id):
            await stub.ResumeMonitoring(
                request, timeout=CONTROL_TIMEOUT_S, metadata=correlation_metadata()
            )

    async def close(self) -> None:
        """Closes all channels."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    async def _execute(
        self, collector_id: str, task: ipc_pb2.DetectionTask, timeout_s: float
    ) -> AsyncGenerator[collector_service_pb2.ExecuteTaskResponse, None]:
        stub: collector_service_pb2_grpc.CollectorServiceAsyncStub
        stub = collector_service_pb2_grpc.CollectorServiceStub(self._channel(collector_id))
        call = stub.ExecuteTask(
            collector_service_pb2.ExecuteTaskRequest(task=task),
            timeout=timeout_s,
            metadata=correlation_metadata(),
        )
        expected_index = 0
        is_whole = False
        try:
            with self._translated(collector_id):
                async for chunk in call:
                    _check_chunk(collector_id, task, chunk, expected_index)
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

    @contextmanager
    def _translated(self, collector_id: str) -> Iterator[None]:
        """Raises what a collector answered as an error that our own caller may see.

        What the transport says is foreign text, and a collector that does not accept the agent's
        token has nothing to tell about the token of whoever asked us.
        """
        try:
            yield
        except grpc.aio.AioRpcError as error:
            known = from_rpc_error(error)
            if isinstance(known, _ANSWERS):
                raise known from None
            log.warning("call to %s failed: %s", collector_id, known.message)
            if isinstance(known, DeadlineError):
                raise DeadlineError(
                    f"collector {collector_id} did not answer in time; try again",
                    collector_id=collector_id,
                ) from None
            raise UnavailableError(
                f"collector {collector_id} cannot be asked; see the agent's log and 'daemoneye"
                " collectors'",
                collector_id=collector_id,
            ) from None

    def _control(
        self, collector_id: str
    ) -> "collector_control_service_pb2_grpc.CollectorControlServiceAsyncStub":
        return collector_control_service_pb2_grpc.CollectorControlServiceStub(
            self._channel(collector_id)
        )

    def _channel(self, collector_id: str) -> grpc.aio.Channel:
        collector = self._find(collector_id)
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
        if collector.state in _GONE:
            raise PreconditionError(
                f"collector {collector_id} is {collector.state}; see 'daemoneye collectors'",
                collector_id=collector_id,
                state=collector.state,
            )
        return collector


def _check_chunk(
    collector_id: str,
    task: ipc_pb2.DetectionTask,
    chunk: collector_service_pb2.ExecuteTaskResponse,
    expected_index: int,
) -> None:
    if chunk.result.task_id != task.task_id or chunk.chunk_index != expected_index:
        raise UnavailableError(
            f"collector {collector_id} mixed up the parts of its answer (MUST-COL-20); update it",
            collector_id=collector_id,
        )
    if not chunk.result.success:
        log.warning("%s failed at a task: %s", collector_id, chunk.result.error_message[:512])
        raise UnavailableError(
            f"collector {collector_id} failed at the task; its log says why",
            collector_id=collector_id,
        )
