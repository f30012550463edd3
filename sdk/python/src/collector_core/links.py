"""The connections of a collector: to the agent for its lease and tokens, to the broker for its events."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from collector_core.bus import BusPublisher
from collector_core.delivery import Delivery
from collector_core.registration import CollectorDescription, Registration
from collector_core.settings import CollectorSettings
from collector_core.tokens import TokenKeeper
from collector_core.vitals import Vitals
from daemoneye.agent.v1 import registry_service_pb2 as pb
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.token import FileTokenSource

__all__ = ["Links", "open_links"]


@dataclass(frozen=True, slots=True)
class Links:
    """What runs over the connections."""

    registration: Registration
    tokens: TokenKeeper
    publisher: BusPublisher


@asynccontextmanager
async def open_links(
    identity: Identity,
    settings: CollectorSettings,
    description: CollectorDescription,
    heartbeat: Callable[[], pb.HeartbeatRequest],
    delivery: Delivery,
    vitals: Vitals,
) -> AsyncIterator[Links]:
    """Opens the connections of a collector; closes them at the end of the block."""
    layout = settings.layout
    token_file = settings.token_file or layout.token_file(identity)
    agent = open_channel(layout.agent_socket, FileTokenSource(token_file).token)
    try:
        registry: registry_service_pb2_grpc.RegistryServiceAsyncStub
        registry = registry_service_pb2_grpc.RegistryServiceStub(agent)
        tokens = TokenKeeper(registry, (layout.broker,))
        bus = open_channel(layout.eventbus_socket, tokens.source(layout.broker))
        try:
            yield Links(
                Registration(registry, description, heartbeat, vitals.note_registered),
                tokens,
                BusPublisher(bus, delivery.outbox, on_state=vitals.note_bus),
            )
        finally:
            await bus.close()
    finally:
        await agent.close()
