"""A real broker on a real socket, inside the test's loop, with tokens for whoever a test needs."""

from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye.eventbus.v1.eventbus_service_pb2_grpc import EventBusServiceStub
from daemoneye_eventbus.app import build_server
from daemoneye_eventbus.config import EventBusSettings
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.token import TokenIssuer, write_trust_bundle


class RunningBus:
    """The broker and the means to call it as somebody."""

    def __init__(self, layout: RuntimeLayout) -> None:
        self.layout = layout
        self._issuer = TokenIssuer(ec.generate_private_key(ec.SECP256R1()), layout.trust_domain)
        write_trust_bundle(layout.trust_bundle, [self._issuer.public_key])
        self.server = build_server(layout, EventBusSettings(max_subscriptions=3))
        self._channels: list[grpc.aio.Channel] = []

    def channel_of(self, identity: Identity, domains: Iterable[str] = ()) -> grpc.aio.Channel:
        audience = self.layout.broker.spiffe_id
        token = self._issuer.issue(identity, audience, timedelta(hours=1), domains)
        channel = open_channel(self.layout.eventbus_socket, lambda: token)
        self._channels.append(channel)
        return channel

    def stub_of(self, identity: Identity, domains: Iterable[str] = ()) -> Any:
        return EventBusServiceStub(self.channel_of(identity, domains))

    def collector(self, name: str = "procmond") -> Any:
        return self.stub_of(self.layout.collector(name), ["process"])

    def agent(self) -> Any:
        return self.stub_of(self.layout.agent)

    async def aclose(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.server.drain()


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[RunningBus]:
    root = tmp_path / "run"
    root.mkdir(mode=0o750)
    running = RunningBus(RuntimeLayout(root))
    await running.server.start()
    await running.server.set_serving(True)
    yield running
    await running.aclose()


@pytest.fixture
def message() -> Callable[..., bytes]:
    """Builds one encoded message."""

    def build(topic: str = "events.process.lifecycle", **metadata: object) -> bytes:
        fields = {"source_id": "procmond", "topic": topic, **metadata}
        event = eventbus_pb2.EventBusMessage()
        for name, value in fields.items():
            if name == "headers":
                assert isinstance(value, dict)
                event.metadata.headers.update(value)
            else:
                setattr(event.metadata, name, value)
        event.collection_event.process_event.exit_code = 3
        return event.SerializeToString()

    return build
