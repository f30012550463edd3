"""Wiring of the agent: builds the parts, starts them in order, drains them in order."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import grpc.aio

from daemoneye.agent.v1 import (
    alert_service_pb2_grpc,
    collector_admin_service_pb2_grpc,
    query_service_pb2_grpc,
    registry_service_pb2_grpc,
    rule_service_pb2_grpc,
    status_service_pb2_grpc,
)
from daemoneye_agent.bus import AgentBus
from daemoneye_agent.collectors import CollectorClients
from daemoneye_agent.config import AgentSettings
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.delivery import Delivery
from daemoneye_agent.issuer import IdentityIssuer, OwnTokens
from daemoneye_agent.live_processes import LiveProcesses
from daemoneye_agent.loss import EpochProgress
from daemoneye_agent.pipeline import Pipeline
from daemoneye_agent.query import QueryLimits
from daemoneye_agent.query_pool import QueryPool
from daemoneye_agent.registry import CollectorRegistry, CollectorState, Transition
from daemoneye_agent.rulebook import Rulebook, load_rulebook
from daemoneye_agent.service_admin import CollectorAdminServicer
from daemoneye_agent.service_alert import AlertServicer
from daemoneye_agent.service_query import QueryServicer
from daemoneye_agent.service_registry import RegistryServicer
from daemoneye_agent.service_rule import RuleServicer
from daemoneye_agent.service_status import StatusServicer
from daemoneye_agent.store import EventStore, StoreLimits
from daemoneye_agent.store_file import StoreFailedError
from daemoneye_agent.store_thread import StoreThread
from daemoneye_agent.workflow import Workflow
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.directories import prepare_directory
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.token import TokenVerifier

__all__ = ["Agent", "serve"]

STORE_FILE = "events.db"
LEASE_SWEEP_S = 0.5
RETENTION_SWEEP_S = 600.0
FLUSH_BUDGET_S = 2.0
"""How long a stopping agent waits for the broker to take the last alerts."""
ANALYSES_BUDGET_S = 2.0
"""How long a stopping agent waits for analyses under way; the next start asks for the others."""

log = logging.getLogger("daemoneye.agent")


async def serve(settings: AgentSettings, stop: StopRequest) -> None:
    """Runs the agent until ``stop`` is set and everything is drained."""
    layout = settings.layout
    issuer = IdentityIssuer(
        layout,
        await asyncio.to_thread(prepare_directory, settings.state_path, 0o700),
        settings.collector_domains,
        settings.operators,
        timedelta(seconds=settings.token_ttl_s),
    )
    store = StoreThread(lambda: open_store(settings))
    try:
        opened = await store.open()
        if opened.set_aside is not None:
            log.error("the event store was corrupt; it was moved to %s", opened.set_aside)
        rulebook = await store.run(lambda it: load_rulebook(settings.rules_dir, it.rule_states()))
        await Agent(settings, issuer, store, opened.path, rulebook).run(stop)
    finally:
        await store.close()


def open_store(settings: AgentSettings) -> EventStore:
    """Opens the event store of the settings."""
    limits = StoreLimits(
        retention_days=settings.retention_days,
        max_store_bytes=settings.max_store_bytes,
        max_alerts=settings.max_alerts,
    )
    return EventStore.open(settings.state_path / STORE_FILE, limits)


class Agent:
    """The parts of one agent and how they hang together."""

    def __init__(
        self,
        settings: AgentSettings,
        issuer: IdentityIssuer,
        store: StoreThread,
        store_path: Path,
        rulebook: Rulebook,
    ) -> None:
        self._layout = layout = settings.layout
        self._issuer = issuer
        self._store = store
        own = OwnTokens(issuer, layout.agent)
        self._channel: grpc.aio.Channel = open_channel(
            layout.eventbus_socket, lambda: own.token_for(layout.broker)
        )
        self._bus = AgentBus(self._channel)
        self._registry = CollectorRegistry()
        self._clients = CollectorClients(layout, self._registry, own.token_for)
        self._coverage = Coverage(
            self._registry, lambda: self._bus.is_subscribed, lambda: rulebook.failing
        )
        self._pipeline = Pipeline(
            store, rulebook, self._coverage, self._bus.publish, note_progress=self._note_progress
        )
        self._workflow = Workflow(store=store, registry=self._registry, clients=self._clients)
        self._pipeline.on_triggers(self._workflow.note_stored)
        self._delivery = Delivery(
            store=store,
            registry=self._registry,
            clients=self._clients,
            reports=self._pipeline,
            is_subscribed=lambda: self._bus.is_subscribed,
        )
        self._bus.on_opened(self._delivery.note_opened)
        limits = QueryLimits(deadline_s=settings.query_timeout_s)
        self._queries = QueryPool(store_path, limits, self._open_live)
        self._rulebook = rulebook

    async def run(self, stop: StopRequest) -> None:
        """Serves until ``stop`` is set, then drains."""
        self._coverage.note_shortfall(await self._store.run(EventStore.shortfall))
        self._registry.on_change(self._note_change)
        server = self._build_server()
        # Only who holds the socket may write the trust bundle: another agent's would make every token
        # of the running mesh worthless.
        await server.start()
        try:
            await asyncio.to_thread(self._issuer.publish)
            async with asyncio.TaskGroup() as group:
                subscription = group.create_task(self._bus.run(self._pipeline), name="subscription")
                tasks = [
                    group.create_task(self._bus.publisher.run(), name="publisher"),
                    group.create_task(self._delivery.run(), name="delivery"),
                    group.create_task(self._workflow.run(), name="workflow"),
                    group.create_task(self._issuer.run(), name="issuer"),
                    group.create_task(self._sweep_leases(), name="leases"),
                    group.create_task(self._sweep_store(), name="retention"),
                ]
                await server.set_serving(True)
                log.info("agent is ready")
                await stop.wait()
                await server.drain()
                subscription.cancel()
                await asyncio.wait({subscription})  # the batch under way is stored first
                await self._workflow.drain(ANALYSES_BUDGET_S)
                await self._bus.flush(FLUSH_BUDGET_S)
                for task in tasks:
                    task.cancel()
        finally:
            await server.drain(0)
            await self._queries.close()
            await self._clients.close()
            await self._channel.close()

    def _note_progress(self, progress: Sequence[EpochProgress]) -> None:
        self._delivery.note_progress(progress)

    def _note_change(self, change: Transition) -> None:
        is_fine = change.after in {CollectorState.REGISTERED, CollectorState.SERVING}
        level = logging.INFO if is_fine else logging.WARNING
        log.log(level, "%s is %s: %s", change.collector_id, change.after, change.reason)
        if change.after is CollectorState.DEREGISTERED:
            self._coverage.forget(change.collector_id)

    def _open_live(self, timeout_s: float) -> LiveProcesses:
        loop = asyncio.get_running_loop()
        return LiveProcesses(self._clients, self._coverage, loop, timeout_s)

    async def _sweep_leases(self) -> None:
        while True:
            self._registry.expire()
            await asyncio.sleep(LEASE_SWEEP_S)

    async def _sweep_store(self) -> None:
        while True:
            try:
                dropped = await self._store.run(EventStore.enforce_retention)
                while await self._store.run(EventStore.drop_aged):
                    pass  # in pieces, so that new events get in between
                self._coverage.note_shortfall(await self._store.run(EventStore.shortfall))
            except StoreFailedError as error:
                log.error("events are not let go of: %s", error.message)
            else:
                for part in dropped:
                    log.info("dropped partition %s: %s", part.partition.name, part.reason)
            await asyncio.sleep(RETENTION_SWEEP_S)

    def _build_server(self) -> MeshServer:
        layout = self._layout
        verifier = TokenVerifier(layout.trust_bundle, layout.agent.spiffe_id, layout.trust_domain)
        server = MeshServer(layout.agent_socket, AuthInterceptor(verifier, AccessTable.load()))
        registry = RegistryServicer(
            registry=self._registry,
            clients=self._clients,
            coverage=self._coverage,
            issuer=self._issuer,
            broker=layout.broker,
            is_subscribed=lambda: self._bus.is_subscribed,
        )
        status = StatusServicer(
            store=self._store,
            rulebook=self._rulebook,
            pipeline=self._pipeline,
            registry=self._registry,
            coverage=self._coverage,
            bus=self._bus,
        )
        server.on_drain(registry.drain)
        server.add(
            registry_service_pb2_grpc.add_RegistryServiceServicer_to_server,
            registry,
            "daemoneye.agent.v1.RegistryService",
        )
        server.add(
            query_service_pb2_grpc.add_QueryServiceServicer_to_server,
            QueryServicer(self._queries, self._coverage.of_tables),
            "daemoneye.agent.v1.QueryService",
        )
        server.add(
            rule_service_pb2_grpc.add_RuleServiceServicer_to_server,
            RuleServicer(self._store, self._rulebook),
            "daemoneye.agent.v1.RuleService",
        )
        server.add(
            alert_service_pb2_grpc.add_AlertServiceServicer_to_server,
            AlertServicer(self._store),
            "daemoneye.agent.v1.AlertService",
        )
        server.add(
            status_service_pb2_grpc.add_StatusServiceServicer_to_server,
            status,
            "daemoneye.agent.v1.StatusService",
        )
        server.add(
            collector_admin_service_pb2_grpc.add_CollectorAdminServiceServicer_to_server,
            CollectorAdminServicer(self._registry, self._coverage, self._clients),
            "daemoneye.agent.v1.CollectorAdminService",
        )
        return server
