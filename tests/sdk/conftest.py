"""A broker and an agent's registry that run in the test's own loop and remember everything."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from collector_core.capability import SourceCaps
from collector_core.event import Event
from collector_core.source import EventSource
from daemoneye.agent.v1 import registry_service_pb2 as registry_pb
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import (
    event_data_pb2,
    eventbus_pb2,
    eventbus_service_pb2,
    eventbus_service_pb2_grpc,
    subscription_control_pb2,
)
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.bus_feature import BusFeature
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import DaemoneyeError
from daemoneye_mesh.group import expand_group
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.rpc_status import to_detail
from daemoneye_mesh.server import MeshServer

COLLECTOR_ID = "unit"


def messages_of(request: Any) -> list[eventbus_pb2.EventBusMessage]:
    """Returns the messages of a batch with full metadata."""
    messages = list(request.messages)
    for group in request.groups:
        assert group.envelope.count == len(group.block.messages)
        frames = expand_group(group.envelope, group.block.SerializeToString())
        messages += map(eventbus_pb2.EventBusMessage.FromString, frames)
    return messages


class FakeBroker(eventbus_service_pb2_grpc.EventBusServiceServicer):
    """Accepts what comes; a test may stop the answers, refuse batches or deny the stream."""

    def __init__(self) -> None:
        self.epoch = "e1"
        self.limits: dict[str, int] = {}
        self.streams = 0
        self.batches: list[Any] = []
        """Every request of a publishing stream, repeats included."""
        self.accepted: list[eventbus_pb2.EventBusMessage] = []
        self.answering = asyncio.Event()
        self.answering.set()
        self.is_held: Callable[[Any], bool] = lambda request: False
        """Whether a batch is answered only with a later one."""
        self.refusal: Callable[[Any], DaemoneyeError | None] = lambda request: None
        self.ending: Callable[[Any], DaemoneyeError | None] = lambda request: None
        """Ends the stream at a batch."""
        self.denial: DaemoneyeError | None = None
        self.wrong_answers = 0
        self.versions: list[Any] = []
        self.subscriptions: list[Any] = []
        self.requests: list[Any] = []
        """What subscribers asked for after opening."""
        self.change: Callable[[Any], DaemoneyeError | None] = lambda request: None
        """Why a request of a subscriber is refused."""
        self.features = [str(feature) for feature in BusFeature]
        """What it says it offers."""
        self.is_silent = False
        """Whether requests of subscribers are left without an answer."""
        self.opened: dict[str, Any] = {}
        """Further fields of the answer to an open request."""
        self.open_subscriptions = 0
        self.deliveries: asyncio.Queue[Any] = asyncio.Queue()

    async def NegotiateVersion(self, request: Any, context: Any) -> Any:
        self.versions.append(request.request)
        answer = eventbus_pb2.VersionNegotiationResponse(
            negotiation_success=True, server_capabilities=self.features
        )
        return eventbus_service_pb2.NegotiateVersionResponse(response=answer, **self.limits)

    async def PublishStream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        self.streams += 1
        if self.denial:
            raise self.denial
        async for request in requests:
            self.batches.append(request)
            await self.answering.wait()
            if ending := self.ending(request):
                raise ending
            answer = eventbus_service_pb2.PublishStreamResponse(batch_id=request.batch_id)
            refused = None
            if self.wrong_answers:
                self.wrong_answers -= 1
                answer.batch_id += 1_000
            elif refused := self.refusal(request):
                answer.error.CopyFrom(to_detail(refused))
            else:
                self.accepted += messages_of(request)
                if self.is_held(request):
                    continue
            yield answer
            if refused is not None and refused.retryable:
                return

    async def Subscribe(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        if self.denial:
            raise self.denial
        self.subscriptions.append((await anext(aiter(requests))).open)
        fields = {"history_complete": True, **self.opened}
        opened = eventbus_service_pb2.SubscriptionOpened(broker_epoch=self.epoch, **fields)
        self.open_subscriptions += 1
        listener = asyncio.create_task(self._listen(requests))
        try:
            yield eventbus_service_pb2.SubscribeResponse(opened=opened)
            while (item := await self.deliveries.get()) is not None:
                if isinstance(item, DaemoneyeError):
                    raise item
                yield item
        finally:
            self.open_subscriptions -= 1
            listener.cancel()

    async def _listen(self, requests: Any) -> None:
        async for request in requests:
            self.requests.append(request)
            if not request.request_id or self.is_silent:
                continue
            changed = subscription_control_pb2.SubscriptionChanged(request_id=request.request_id)
            if refused := self.change(request):
                changed.error.CopyFrom(to_detail(refused))
            elif request.WhichOneof("action") == "flush":
                changed.flushed_count = 7
            self.deliveries.put_nowait(eventbus_service_pb2.SubscribeResponse(changed=changed))
            if request.WhichOneof("action") == "unsubscribe" and not refused:
                self.deliveries.put_nowait(None)

    @property
    def actions(self) -> list[str]:
        """Names of what subscribers asked for after opening."""
        return [request.WhichOneof("action") for request in self.requests]

    def unpack(self, request: Any) -> list[eventbus_pb2.EventBusMessage]:
        """Returns the messages of a batch with full metadata."""
        return messages_of(request)

    @property
    def sequences(self) -> list[int]:
        """Sequences of the accepted messages, in order."""
        return [message.metadata.source_sequence for message in self.accepted]


class FakeRegistry(registry_service_pb2_grpc.RegistryServiceServicer):
    """Grants leases and tokens; a test may take a lease away or refuse to grant one."""

    def __init__(self, issue: Callable[[Identity, str, float], str]) -> None:
        self._issue = issue
        self.interval_s = 0.02
        self.token_ttl_s = 300.0
        self.registrations: list[Any] = []
        self.heartbeats: list[Any] = []
        self.departures: list[Any] = []
        self.tokens: list[tuple[float, str, str]] = []
        """When, for which audience and which token was issued."""
        self.refusal: DaemoneyeError | None = None
        self.loss: DaemoneyeError | None = None
        """Ends the next heartbeat stream, and the lease with it."""
        self._gone = asyncio.Event()

    async def RegisterCollector(self, request: Any, context: Any) -> Any:
        self.registrations.append(request)
        if self.refusal:
            raise self.refusal
        self._gone.clear()
        answer = registry_pb.RegisterCollectorResponse(missed_heartbeat_limit=3)
        answer.heartbeat_interval.FromNanoseconds(int(self.interval_s * 1e9))
        return answer

    async def Heartbeat(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            self.heartbeats.append(request)
            if self.loss:
                loss, self.loss = self.loss, None
                raise loss
            if self._gone.is_set():
                return
            yield registry_pb.HeartbeatResponse(heartbeat_sequence=request.heartbeat_sequence)

    async def DeregisterCollector(self, request: Any, context: Any) -> Any:
        self.departures.append(request)
        self._gone.set()
        return registry_pb.DeregisterCollectorResponse()

    async def IssueToken(self, request: Any, context: Any) -> Any:
        token = self._issue(caller().identity, request.audience, self.token_ttl_s)
        self.tokens.append((time.monotonic(), request.audience, token))
        answer = registry_pb.IssueTokenResponse(token=token)
        answer.expires_at.FromNanoseconds(time.time_ns() + int(self.token_ttl_s * 1e9))
        return answer


@pytest.fixture
async def broker() -> FakeBroker:
    return FakeBroker()


@pytest.fixture
async def registry(mesh_identity: Any) -> FakeRegistry:
    def issue(identity: Identity, audience: str, ttl_s: float) -> str:
        return mesh_identity.token(identity, Identity.parse(audience), max(ttl_s, 1))

    return FakeRegistry(issue)


@pytest.fixture
async def serve(mesh_identity: Any) -> AsyncIterator[Callable[[Any], Awaitable[MeshServer]]]:
    """Serves a fake where the real one would be; drains the server at the end."""
    layout, servers = mesh_identity.layout, []

    async def serve_fake(fake: Any) -> MeshServer:
        is_broker = isinstance(fake, FakeBroker)
        path = layout.eventbus_socket if is_broker else layout.agent_socket
        server = MeshServer(path, mesh_identity.auth(layout.owner_of(path)))
        if is_broker:
            add, name = (
                eventbus_service_pb2_grpc.add_EventBusServiceServicer_to_server,
                "daemoneye.eventbus.v1.EventBusService",
            )
        else:
            add, name = (
                registry_service_pb2_grpc.add_RegistryServiceServicer_to_server,
                "daemoneye.agent.v1.RegistryService",
            )
        server.add(add, fake, name)
        await server.start()
        servers.append(server)
        return server

    yield serve_fake
    for server in servers:
        await server.drain(0)


@pytest.fixture
async def connect(mesh_identity: Any) -> AsyncIterator[Callable[[Path], grpc.aio.Channel]]:
    """Opens channels of the collector ``unit``; closes them at the end."""
    layout, channels = mesh_identity.layout, []

    def connect_to(path: Path) -> grpc.aio.Channel:
        source = mesh_identity.source(layout.collector(COLLECTOR_ID), layout.owner_of(path))
        channels.append(open_channel(path, source))
        return channels[-1]

    yield connect_to
    for channel in channels:
        await channel.close()


@pytest.fixture
async def running() -> AsyncIterator[Callable[[Any], asyncio.Task[Any]]]:
    """Runs coroutines beside a test; whatever still runs is cancelled at the end."""
    tasks: list[asyncio.Task[Any]] = []

    def run(coroutine: Any) -> asyncio.Task[Any]:
        tasks.append(asyncio.create_task(coroutine))
        return tasks[-1]

    yield run
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class ListSource(EventSource):
    """Emits given process ids once per watch and then waits."""

    def __init__(self, name: str = "list", pids: tuple[int, ...] = ()) -> None:
        self.name = name
        self.caps = SourceCaps.PROCESS | SourceCaps.REALTIME
        self.pids = pids
        self.calls: list[str] = []
        self.prepared = asyncio.Event()
        self.prepared.set()

    async def prepare(self, context: Any) -> None:
        await self.prepared.wait()
        self.calls.append("prepare")

    async def watch(self, emit: Any) -> None:
        self.calls.append("watch")
        try:
            for pid in self.pids:
                await emit(make_event(pid))
            await asyncio.Event().wait()
        finally:
            self.calls.append("end")

    async def close(self) -> None:
        self.calls.append("close")


def make_event(pid: int, command: str = "") -> Event:
    record = common_pb2.ProcessRecord(pid=pid, name="x", command_line=[command])
    return Event("events.process.lifecycle", event_data_pb2.ProcessEventData(process=record))


@pytest.fixture
def new_event() -> Callable[..., Event]:
    return make_event


@pytest.fixture
def list_source() -> type[ListSource]:
    return ListSource
