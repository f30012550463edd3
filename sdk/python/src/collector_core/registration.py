"""A collector's lease at the agent: registered, kept by heartbeats, taken again when it is lost."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from google.protobuf import duration_pb2

from collector_core.bus.reconnect import SessionBackoff, explain, keep_trying
from daemoneye.agent.v1 import registry_service_pb2 as pb
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_mesh.errors import ConflictError
from daemoneye_mesh.rpc_status import from_rpc_error

__all__ = ["CollectorDescription", "Registration"]

CALL_TIMEOUT_S = 5.0

log = logging.getLogger("daemoneye.registration")


@dataclass(frozen=True, slots=True)
class CollectorDescription:
    """What a collector says of itself when it registers."""

    collector_id: str
    instance_epoch: int
    """Nanoseconds since the Unix epoch at which this instance started."""
    version: str
    socket_path: Path
    domains: Sequence[ipc_pb2.MonitoringDomain.ValueType]
    task_types: Sequence[common_pb2.TaskType.ValueType]
    pid: int
    heartbeat_interval_s: float


class Registration:
    """Registers one instance and keeps its lease.

    Args:
        registry: stub of the agent's registry.
        description: what to register.
        vitals: what the collector says of itself, asked for each heartbeat; identity and sequence
            are filled in here.
        on_change: hears whether the agent holds a lease.
    """

    def __init__(
        self,
        registry: "registry_service_pb2_grpc.RegistryServiceAsyncStub",
        description: CollectorDescription,
        vitals: Callable[[], pb.HeartbeatRequest],
        on_change: Callable[[bool], None] = lambda is_registered: None,
    ) -> None:
        self._registry = registry
        self._description = description
        self._vitals = vitals
        self._on_change = on_change
        self._sequence = 0
        self._is_leaving = False
        self.is_registered = False
        """Whether the agent holds a lease for us right now."""

    async def run(self) -> None:
        """Registers and heartbeats until cancelled, or until the lease was given back.

        Raises:
            ConflictError: a newer instance of this collector has taken over; this one must stop.
        """
        backoff = SessionBackoff()
        while not self._is_leaving:
            interval_s = await keep_trying("register with the agent", self._register)
            backoff.begin()
            try:
                await self._keep_lease(interval_s)
            except grpc.aio.AioRpcError as error:
                known = from_rpc_error(error)
                if isinstance(known, ConflictError):
                    raise known from None
                if not self._is_leaving:
                    log.warning("lease lost, registering again: %s", explain(known))
            finally:
                self._note(False)
            await backoff.pause()

    async def deregister(self, reason: str) -> None:
        """Gives the lease back for good; an agent that cannot be reached finds out by itself."""
        self._is_leaving = True  # the agent ends the heartbeats now: no reason to come back
        if not self.is_registered:
            return
        request = pb.DeregisterCollectorRequest(
            collector_id=self._description.collector_id,
            instance_epoch=self._description.instance_epoch,
            reason=reason,
        )
        try:
            await self._registry.DeregisterCollector(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.info("not deregistered: %s", explain(error))

    async def _register(self) -> float:
        description = self._description
        interval = duration_pb2.Duration()
        interval.FromNanoseconds(int(description.heartbeat_interval_s * 1e9))
        request = pb.RegisterCollectorRequest(
            collector_id=description.collector_id,
            instance_epoch=description.instance_epoch,
            version=description.version,
            socket_path=str(description.socket_path),
            domains=description.domains,
            task_types=description.task_types,
            pid=description.pid,
            heartbeat_interval=interval,
        )
        try:
            lease = await self._registry.RegisterCollector(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            self._note(False)
            raise
        self._note(True)
        log.info("registered with the agent")
        return lease.heartbeat_interval.ToNanoseconds() / 1e9 or description.heartbeat_interval_s

    async def _keep_lease(self, interval_s: float) -> None:
        done = asyncio.Event()
        call = self._registry.Heartbeat(self._heartbeats(interval_s, done))
        try:
            async for _ in call:
                pass
        finally:
            done.set()
            call.cancel()

    async def _heartbeats(
        self, interval_s: float, done: asyncio.Event
    ) -> AsyncIterator[pb.HeartbeatRequest]:
        while not done.is_set():  # gRPC goes on asking after the server has ended the call
            yield self._heartbeat()
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await done.wait()

    def _heartbeat(self) -> pb.HeartbeatRequest:
        self._sequence += 1
        request = self._vitals()
        request.collector_id = self._description.collector_id
        request.instance_epoch = self._description.instance_epoch
        request.heartbeat_sequence = self._sequence
        return request

    def _note(self, is_registered: bool) -> None:
        self.is_registered = is_registered
        if not self._is_leaving:
            self._on_change(is_registered)
