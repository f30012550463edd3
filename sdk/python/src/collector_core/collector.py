"""The running collector: sources, outbox, publisher, registration and service in one task group.

Order of a life: serve (NOT_SERVING), prepare the sources, SERVING, watch; on a stop: health, sources,
outbox flushed within a budget, lease given back, socket gone.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence

import grpc.aio

from collector_core.bus import BusPublisher, Outbox
from collector_core.control import CollectorControlServicer
from collector_core.event import Event, Sequencer
from collector_core.monitor import Monitor
from collector_core.registration import CollectorDescription, Registration
from collector_core.service import CollectorServicer
from collector_core.settings import CollectorSettings
from collector_core.source import EventSource
from collector_core.tokens import TokenKeeper
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye.ipc.v1 import (
    collector_control_service_pb2 as control_pb,
)
from daemoneye.ipc.v1 import (
    collector_control_service_pb2_grpc,
    collector_service_pb2_grpc,
    ipc_pb2,
)
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.error_interceptor import unwrap
from daemoneye_mesh.errors import DaemoneyeError
from daemoneye_mesh.identity import Principal
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.token import FileTokenSource, TokenVerifier

__all__ = ["Collector"]

FLUSH_BUDGET_S = 3.0
"""How long a stopping collector waits for its sources, and for the broker to take what is queued."""

MAX_KNOWN_TOPICS = 256
"""Topics remembered as allowed; the rest is looked up each time."""

log = logging.getLogger("daemoneye.collector")


class Collector:
    """A collector made of sources. Make it inside the running loop.

    Args:
        collector_id: ``[a-z0-9_-]{1,64}``, the id of its identity.
        sources: what it watches.
        settings: its settings.
        version: its version, for operators.
    """

    def __init__(
        self,
        collector_id: str,
        sources: Sequence[EventSource],
        settings: CollectorSettings,
        version: str = "0",
    ) -> None:
        self._layout = settings.layout
        self._identity = self._layout.collector(collector_id)
        self._sources = sources
        self._settings = settings
        self._version = version
        self._started_s = time.monotonic()
        self._sequencer = Sequencer(collector_id, epoch=time.time_ns())
        self._turn = asyncio.Lock()
        self._outbox = Outbox(settings.outbox_messages, settings.outbox_bytes)
        self._access = AccessTable.load()
        self._principal = Principal(self._identity, _domain_names(sources))
        self._known_topics: set[str] = set()
        self._monitor = Monitor(sources, self.emit)
        self._service = CollectorServicer(
            collector_id, version, sources, self._monitor.degradations
        )
        self._stop: StopRequest | None = None

    @property
    def state(self) -> control_pb.MonitoringState.ValueType:
        """What the collector does."""
        return self._monitor.state

    async def emit(self, event: Event) -> None:
        """Numbers an event and queues it; waits while the outbox is full.

        Raises:
            InvalidTopicError: the topic breaks the grammar.
            PermissionDeniedError: the topic is outside the domains of this collector's sources.
            MessageTooLargeError: the event is larger than the broker takes.
        """
        self._check_topic(event.topic)
        # Numbers go into the outbox in their order, and a source that is cancelled while it waits
        # leaves no gap behind.
        async with self._turn:
            await self._outbox.put(self._sequencer.encode(event))
            self._sequencer.advance()

    def _check_topic(self, topic: str) -> None:
        # The broker would refuse the whole batch, and with it the events of other sources.
        if topic in self._known_topics:
            return
        self._access.require_publish(self._principal, topic)
        if len(self._known_topics) < MAX_KNOWN_TOPICS:
            self._known_topics.add(topic)

    async def pause(self) -> None:
        """Stops watching; returns when no source watches any more."""
        await self._monitor.pause()

    async def resume(self) -> None:
        """Watches again."""
        await self._monitor.resume()

    def shut_down(self, reason: str) -> None:
        """Asks for a drain."""
        if self._stop is not None:
            self._stop.request(reason)

    def stats(self) -> control_pb.GetCollectorStatsResponse:
        """The counters."""
        stats = control_pb.GetCollectorStatsResponse(
            state=self.state,
            source_epoch=self._sequencer.epoch,
            source_sequence=self._sequencer.sequence,
            emitted_count=self._outbox.accepted_count,
            published_count=self._outbox.published_count,
            dropped_count=dict(self._outbox.refused_count),
            pending_count=self._outbox.pending_count,
            pending_bytes=self._outbox.pending_bytes,
            task_count=dict(self._service.task_count),
        )
        stats.uptime.FromNanoseconds(int((time.monotonic() - self._started_s) * 1e9))
        return stats

    async def run(self, stop: StopRequest) -> None:
        """Runs until ``stop`` is set and everything is drained.

        Raises:
            DaemoneyeError: it cannot serve, a source cannot be prepared, or a newer instance of this
                collector has taken over.
        """
        self._stop = stop
        server = self._build_server()
        token_file = self._settings.token_file or self._layout.token_file(self._identity)
        agent = open_channel(self._layout.agent_socket, FileTokenSource(token_file).token)
        try:
            await server.start()
            await self._run_clients(server, agent, stop)
        except BaseExceptionGroup as failed:
            cause = unwrap(failed)
            if isinstance(cause, DaemoneyeError):
                raise cause from None
            raise
        finally:
            await server.drain(0)
            await agent.close()

    async def _run_clients(
        self, server: MeshServer, agent: grpc.aio.Channel, stop: StopRequest
    ) -> None:
        registry: registry_service_pb2_grpc.RegistryServiceAsyncStub
        registry = registry_service_pb2_grpc.RegistryServiceStub(agent)
        registration = Registration(
            registry, self._describe(), self._monitor.degradations, self._metrics
        )
        tokens = TokenKeeper(registry, (self._layout.broker,))
        bus = open_channel(self._layout.eventbus_socket, tokens.source(self._layout.broker))
        publisher = BusPublisher(bus, self._outbox)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(tokens.run(), name="tokens"),
                    group.create_task(publisher.run(), name="publisher"),
                    group.create_task(self._monitor.run(), name="monitor"),
                    group.create_task(self._announce(server), name="readiness"),
                    group.create_task(registration.run(), name="registration"),
                ]
                await stop.wait()
                await self._drain(server, registration, stop.reason)
                for task in tasks:
                    task.cancel()
        finally:
            await bus.close()

    async def _announce(self, server: MeshServer) -> None:
        await self._monitor.ready.wait()
        await server.set_serving(True)
        log.info("%s is ready", self._identity.name)

    async def _drain(self, server: MeshServer, registration: Registration, reason: str) -> None:
        await server.health.drain()
        try:
            async with asyncio.timeout(FLUSH_BUDGET_S):
                await self._monitor.stop()
                await self._outbox.wait_empty()
        except TimeoutError:
            log.warning(
                "%d events could not be published before the end", self._outbox.pending_count
            )
        await registration.deregister(reason)
        await server.drain()

    def _build_server(self) -> MeshServer:
        verifier = TokenVerifier(
            self._layout.trust_bundle, self._identity.spiffe_id, self._layout.trust_domain
        )
        path = self._layout.collector_socket(self._identity.id)
        server = MeshServer(path, AuthInterceptor(verifier, self._access))
        server.add(
            collector_service_pb2_grpc.add_CollectorServiceServicer_to_server,
            self._service,
            "daemoneye.ipc.v1.CollectorService",
        )
        server.add(
            collector_control_service_pb2_grpc.add_CollectorControlServiceServicer_to_server,
            CollectorControlServicer(self),
            "daemoneye.ipc.v1.CollectorControlService",
        )
        return server

    def _describe(self) -> CollectorDescription:
        return CollectorDescription(
            collector_id=self._identity.id,
            instance_epoch=self._sequencer.epoch,
            version=self._version,
            socket_path=self._layout.collector_socket(self._identity.id),
            domains=sorted({source.caps.domain for source in self._sources}),
            task_types=sorted(self._service.task_types),
            pid=os.getpid(),
            heartbeat_interval_s=self._settings.heartbeat_interval_s,
        )

    def _metrics(self) -> Mapping[str, float]:
        return {
            "events_emitted": self._outbox.accepted_count,
            "events_published": self._outbox.published_count,
            "events_refused": self._outbox.refused_count.total(),
            "events_pending": self._outbox.pending_count,
        }


def _domain_names(sources: Sequence[EventSource]) -> frozenset[str]:
    names = (ipc_pb2.MonitoringDomain.Name(source.caps.domain) for source in sources)
    return frozenset(name.removeprefix("MONITORING_DOMAIN_").lower() for name in names)
