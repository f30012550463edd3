"""Wiring of the broker."""

from daemoneye_eventbus.broker import Broker, BrokerLimits
from daemoneye_eventbus.config import EventBusSettings
from daemoneye_eventbus.service import SERVICE_NAME, EventBusService, add_event_bus_to_server
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.token import TokenVerifier

__all__ = ["build_server", "serve"]


async def serve(settings: EventBusSettings, stop: StopRequest) -> None:
    """Serves until ``stop`` is set, then drains.

    Raises:
        InvalidConfigError: the runtime dir is too long for a socket.
        PreconditionError: the runtime dir or the socket cannot be used.
    """
    server = build_server(settings.layout, settings)
    await server.start()
    try:
        await server.set_serving(True)
        await stop.wait()
    finally:
        await server.drain()


def build_server(layout: RuntimeLayout, settings: EventBusSettings) -> MeshServer:
    """Returns the server with the broker behind it, not started; call it inside the loop."""
    limits = BrokerLimits(
        max_subscriptions=settings.max_subscriptions,
        default_mailbox_messages=settings.default_queue_messages,
        max_mailbox_messages=settings.max_queue_messages,
        max_mailbox_bytes=settings.max_queue_bytes,
    )
    access = AccessTable.load()
    verifier = TokenVerifier(layout.trust_bundle, layout.broker.spiffe_id, layout.trust_domain)
    service = EventBusService(Broker(limits), access)
    server = MeshServer(layout.eventbus_socket, AuthInterceptor(verifier, access))
    server.add(add_event_bus_to_server, service, SERVICE_NAME)
    server.on_drain(service.drain)
    return server
