"""Wires the broker process together and runs it until it is told to stop."""

from daemoneye_eventbus.broker import Broker, BrokerLimits
from daemoneye_eventbus.config import PROCESS, EventBusConfig
from daemoneye_eventbus.service import SERVICE_NAME, EventBusService, add_event_bus_to_server
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor
from daemoneye_mesh.directories import locate_runtime_dir, prepare_directory
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.lifecycle import StopRequest, watch_signals
from daemoneye_mesh.logs import configure_logs
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.token import TokenVerifier

__all__ = ["build_server", "run"]

RUNTIME_DIR_MODE = 0o750


async def run(config: EventBusConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        InvalidConfigError: the runtime dir is too long for a socket.
        PreconditionError: the runtime dir or the socket cannot be used.
    """
    configure_logs(PROCESS, config.log_level, style=config.log_style)
    root = config.runtime_dir or locate_runtime_dir()
    layout = RuntimeLayout(prepare_directory(root, RUNTIME_DIR_MODE), config.trust_domain)
    server = build_server(layout, config)
    stop = StopRequest()
    with watch_signals(stop):
        await server.start()
        try:
            await server.set_serving(True)
            await stop.wait()
        finally:
            await server.drain()


def build_server(layout: RuntimeLayout, config: EventBusConfig) -> MeshServer:
    """Returns the server with the broker behind it, not started; call it inside the loop."""
    limits = BrokerLimits(
        max_subscriptions=config.max_subscriptions,
        default_mailbox_messages=config.default_queue_messages,
        max_mailbox_messages=config.max_queue_messages,
        max_mailbox_bytes=config.max_queue_bytes,
    )
    access = AccessTable.load()
    verifier = TokenVerifier(layout.trust_bundle, layout.broker.spiffe_id, layout.trust_domain)
    service = EventBusService(Broker(limits), access)
    server = MeshServer(layout.eventbus_socket, AuthInterceptor(verifier, access))
    server.add(add_event_bus_to_server, service, SERVICE_NAME)
    server.on_drain(service.drain)
    return server
