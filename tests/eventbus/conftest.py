"""A real broker on a real socket inside the test's loop, and one without a socket or a real clock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from collector_core.bus.duplex import write
from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2, group_pb2, subscription_control_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_pb2 as sub
from daemoneye.eventbus.v1.eventbus_service_pb2_grpc import EventBusServiceStub
from daemoneye_eventbus.app import Assembly
from daemoneye_eventbus.broker import Broker, BrokerLimits, Opening
from daemoneye_eventbus.config import EventBusSettings
from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.mailbox import Batch, Delivery, MailboxLimits
from daemoneye_eventbus.quota import Quota, QuotaLimits
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.retention import RetentionLimits
from daemoneye_eventbus.subscription import Subscription, SubscriptionTerms
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import DaemoneyeError
from daemoneye_mesh.group import encode_group
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.rpc_status import from_rpc_error
from daemoneye_mesh.token import TokenIssuer, write_trust_bundle

TIMEOUT_S = 10.0
TOPIC = "events.process.lifecycle"


# -- over a socket ----------------------------------------------------------------------------------


async def refusal_of(awaitable: Awaitable[Any]) -> DaemoneyeError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return from_rpc_error(caught.value)


class Requests:
    """The sending side of a stream: sends what it is told to, and ends only when told.

    It is no iterator given to grpc, which answers INTERNAL when the other side ends the stream just
    as a request is sent.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._sending = asyncio.create_task(self._send())

    def put(self, request: bytes | None) -> None:
        """Sends a request; None ends the sending side."""
        self._queue.put_nowait(request)

    async def aclose(self) -> None:
        self._sending.cancel()
        await asyncio.wait([self._sending])

    async def _send(self) -> None:
        while (request := await self._queue.get()) is not None:
            if not await write(self._call, request):
                return
        await self._call.done_writing()


class OpenStream:
    """One ``Subscribe`` stream."""

    def __init__(self, call: Any, requests: Requests) -> None:
        self.call = call
        self._requests = requests
        self._responses = aiter(call)
        self.opened = pb.SubscriptionOpened()

    async def begin(self) -> None:
        first = await self.next()
        assert first.WhichOneof("item") == "opened"
        self.opened = first.opened

    def send(self, request_id: int = 0, **action: Any) -> None:
        request = pb.SubscribeRequest(request_id=request_id, **action)
        self._requests.put(request.SerializeToString())

    def send_nothing_more(self) -> None:
        self._requests.put(None)

    async def next(self) -> pb.SubscribeResponse:
        response: pb.SubscribeResponse = await anext(self._responses)
        return response

    async def batch(self) -> pb.MessageBatch:
        response = await self.next()
        assert response.WhichOneof("item") == "batch", response
        return response.batch

    async def gap(self) -> pb.GapMarker:
        response = await self.next()
        assert response.WhichOneof("item") == "gap", response
        return response.gap

    async def changed(self) -> subscription_control_pb2.SubscriptionChanged:
        """What the next ``changed`` says; deliveries before it are left out."""
        while (response := await self.next()).WhichOneof("item") != "changed":
            pass
        return response.changed

    async def ask(self, **action: Any) -> subscription_control_pb2.SubscriptionChanged:
        self.send(request_id=1, **action)
        return await self.changed()

    async def take(self, count: int) -> list[eventbus_pb2.EventBusMessage]:
        """So many single messages, over as many batches as they come in."""
        taken: list[eventbus_pb2.EventBusMessage] = []
        while len(taken) < count:
            taken += (await self.batch()).messages
        return taken

    async def sequences(self, count: int) -> list[int]:
        return [one.metadata.source_sequence for one in await self.take(count)]

    async def refusal(self) -> DaemoneyeError:
        return await refusal_of(self.next())

    async def is_over(self) -> bool:
        return await anext(self._responses, None) is None


class RunningBus:
    """The broker, the means to call it as somebody, and what tests ask it over and over."""

    def __init__(self, layout: RuntimeLayout, settings: EventBusSettings) -> None:
        self.layout = layout
        self._issuer = TokenIssuer(ec.generate_private_key(ec.SECP256R1()), layout.trust_domain)
        write_trust_bundle(layout.trust_bundle, [self._issuer.public_key])
        assembly = Assembly(layout, settings)
        self.server, self.broker, self.upkeep = assembly.server, assembly.broker, assembly.upkeep
        self._channels: list[grpc.aio.Channel] = []
        self._sending: list[Requests] = []
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.server.start()
        await self.server.set_serving(True)
        self._running = asyncio.create_task(self.upkeep.run(), name="upkeep")

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

    def operator(self, name: str = "local") -> Any:
        return self.stub_of(self.layout.operator(name))

    def send_on(self, call: Any) -> Requests:
        """Returns the sending side of a stream that was called without requests."""
        self._sending.append(Requests(call))
        return self._sending[-1]

    async def publish(
        self, *messages: bytes, groups: Sequence[bytes] = (), assurance: int = 0, source: str = ""
    ) -> pb.PublishResponse:
        """Publishes encoded messages and groups as a collector, with bytes as they are."""
        frames = frame_pb2.PublishFrames(
            messages=messages,
            groups=groups,
            assurance=assurance,  # type: ignore[arg-type] # unknown ones too
        )
        answer: pb.PublishResponse = await self.publish_raw(frames.SerializeToString(), source)
        return answer

    def publish_raw(self, encoded: bytes, source: str = "") -> Any:
        channel = self.channel_of(self.layout.collector(source or "procmond"), ["process"])
        method = "/daemoneye.eventbus.v1.EventBusService/Publish"
        call = channel.unary_unary(method, response_deserializer=pb.PublishResponse.FromString)
        return call(encoded, timeout=TIMEOUT_S)

    async def open(self, request: pb.SubscribeRequest, stub: Any = None) -> OpenStream:
        """Opens a subscription, as the agent unless told otherwise."""
        call = (stub or self.agent()).Subscribe(timeout=TIMEOUT_S)
        requests = self.send_on(call)
        requests.put(request.SerializeToString())
        stream = OpenStream(call, requests)
        await stream.begin()
        return stream

    async def subscribe(self, *patterns: str, **fields: Any) -> OpenStream:
        return await self.open(opening_of(*patterns, **fields))

    async def stats(self) -> pb.GetBusStatsResponse:
        answer: pb.GetBusStatsResponse = await self.agent().GetBusStats(
            pb.GetBusStatsRequest(), timeout=TIMEOUT_S
        )
        return answer

    async def listed(self) -> list[pb.SubscriptionInfo]:
        answer = await self.agent().ListSubscriptions(
            pb.ListSubscriptionsRequest(), timeout=TIMEOUT_S
        )
        return list(answer.subscriptions)

    async def aclose(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        for requests in self._sending:
            await requests.aclose()
        for channel in self._channels:
            await channel.close()
        await self.server.drain(0)


_CONFIG_FIELDS = frozenset(sub.SubscriptionConfig.DESCRIPTOR.fields_by_name)
_QOS_FIELDS = frozenset(sub.QosSettings.DESCRIPTOR.fields_by_name)


def opening_of(*patterns: str, request_id: int = 0, **fields: Any) -> pb.SubscribeRequest:
    """An ``open``; fields of the configuration and of the QoS settings go where they belong."""
    config = {name: fields.pop(name) for name in _CONFIG_FIELDS & fields.keys()}
    qos = {name: fields.pop(name) for name in _QOS_FIELDS & fields.keys()}
    if qos:
        config["qos_settings"] = sub.QosSettings(**qos)
    config.setdefault("topic_patterns", [_pattern(one) for one in patterns])
    opening = pb.OpenSubscription(config=sub.SubscriptionConfig(**config), **fields)
    return pb.SubscribeRequest(open=opening, request_id=request_id)


def _pattern(pattern: str) -> sub.TopicPattern:
    return sub.TopicPattern(pattern=pattern, wildcard_enabled=True)


@pytest.fixture(name="opening_of")
def opening_builder() -> Callable[..., pb.SubscribeRequest]:
    """Builds an ``open`` request."""
    return opening_of


@pytest.fixture(name="refusal_of")
def refusal_getter() -> Callable[[Awaitable[Any]], Awaitable[DaemoneyeError]]:
    """Awaits a call that is to be refused, and returns why."""
    return refusal_of


@pytest.fixture
async def start_bus(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[RunningBus]]]:
    """Starts a broker with other settings than the usual ones."""
    started: list[RunningBus] = []

    async def start(**settings: Any) -> RunningBus:
        root = tmp_path / f"run{len(started)}"
        root.mkdir(mode=0o750)
        running = RunningBus(RuntimeLayout(root), EventBusSettings(**settings))
        started.append(running)
        await running.start()
        return running

    yield start
    for running in started:
        await running.aclose()


@pytest.fixture
async def bus(start_bus: Callable[..., Awaitable[RunningBus]]) -> RunningBus:
    """A broker with the usual settings."""
    return await start_bus()


@pytest.fixture
def message() -> Callable[..., bytes]:
    """Builds one encoded message."""

    def build(topic: str = TOPIC, **metadata: object) -> bytes:
        event = eventbus_pb2.EventBusMessage()
        correlation = metadata.pop("correlation", None)
        if isinstance(correlation, eventbus_pb2.CorrelationMetadata):
            event.correlation.CopyFrom(correlation)
        event_type = metadata.pop("event_type", 0)
        for name, value in {"source_id": "procmond", "topic": topic, **metadata}.items():
            if name == "headers":
                assert isinstance(value, dict)
                event.metadata.headers.update(value)
            else:
                setattr(event.metadata, name, value)
        event.collection_event.event_type = event_type  # type: ignore[assignment]
        event.collection_event.process_event.exit_code = 3
        return event.SerializeToString()

    return build


@pytest.fixture
def group(message: Callable[..., bytes]) -> Callable[..., bytes]:
    """Builds one encoded group, of bare messages unless told otherwise."""

    def build(
        topic: str = TOPIC, count: int = 1, frames: Sequence[bytes] | None = None, **fields: Any
    ) -> bytes:
        bare = eventbus_pb2.EventBusMessage()
        bare.collection_event.process_event.exit_code = 3
        if frames is None:
            frames = [bare.SerializeToString()] * count
        fields = {"source_id": "procmond", "topic": topic, **fields}
        claimed = fields.pop("claimed", None)
        envelope = group_pb2.GroupEnvelope(**fields)
        encoded = encode_group(envelope, frames)
        if claimed is None:
            return encoded
        lie = frame_pb2.GroupFrame.FromString(encoded)
        lie.envelope.count = claimed
        return lie.SerializeToString()

    return build


# -- without a socket -------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_by(self, seconds: float) -> None:
        self.now_s += seconds


class Numbers:
    """Messages that are numbers, ten bytes each."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)
        self.size_bytes = 10 * len(self.numbers)

    def split(self, count: int) -> "tuple[Numbers, Numbers]":
        return Numbers(self.numbers[:count]), Numbers(self.numbers[count:])


class Desk:
    """A broker with a clock of its own, and short words for what tests do with it."""

    def __init__(self, broker: Broker, clock: Clock) -> None:
        self.broker = broker
        self.clock = clock

    def open(self, *patterns: str, identity: str = "agent/agent", **terms: Any) -> Opening:
        """Subscribes; a plain pattern has no floor, and fields of the limits may stand among terms."""
        limits = MailboxLimits(1_000, 100_000)
        names = [name for name in MailboxLimits.__slots__ if name in terms]
        limits = replace(limits, **{name: terms.pop(name) for name in names})
        floors = tuple((one, 0) for one in patterns) or terms.pop("floors")
        asked = SubscriptionTerms(patterns=floors, limits=limits, **terms)
        return self.broker.subscribe(identity, asked)

    def subscribe(self, *patterns: str, **terms: Any) -> Subscription:
        return self.open(*patterns, **terms).subscription

    def group(self, topic: str, *numbers: int, **envelope: Any) -> Group:
        """A group of numbers, by default in the sequence of their numbers."""
        fields = {"source_id": "procmond", "first_sequence": numbers[0], **envelope}
        return Group(Envelope(topic=topic, count=len(numbers), **fields), Numbers(numbers))

    async def publish(
        self, topic: str, *numbers: int, receipt: Receipt | None = None, **envelope: Any
    ) -> int:
        group = self.group(topic, *numbers, **envelope)
        return await self.broker.publish("collector/procmond", [group], receipt)

    async def next(self, subscription: Subscription, count: int = 1_000) -> Delivery | None:
        """What a subscription would get at once; None when it would have to wait."""
        taking = asyncio.ensure_future(subscription.mailbox.take(count, 1_000_000))
        await asyncio.sleep(0)
        if taking.done():
            return taking.result()
        taking.cancel()
        await asyncio.wait([taking])
        return None

    async def numbers(self, subscription: Subscription, count: int = 1_000) -> list[int]:
        """The numbers of the next batch; none when there is nothing to take."""
        delivery = await self.next(subscription, count)
        if delivery is None:
            return []
        assert isinstance(delivery, Batch), delivery
        contents = [group.content for group in delivery.groups]
        return [one for content in contents for one in getattr(content, "numbers")]  # noqa: B009


def balance_of(counters: Any) -> int:
    """Offered messages that nothing became of: 0 as long as the broker keeps its books."""
    known = counters.delivered + counters.filtered + sum(counters.dropped.values())
    return int(counters.offered - known - counters.pending)


@pytest.fixture(name="balance_of", scope="session")
def balance_getter() -> Callable[[Any], int]:
    """Says how far counters are from adding up."""
    return balance_of


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture(scope="session")
def make_desk() -> Callable[..., Desk]:
    """Makes a broker with these limits."""

    def make(
        retention: RetentionLimits | None = None, quota: QuotaLimits | None = None, **limits: int
    ) -> Desk:
        clock = Clock()
        bounds = BrokerLimits(**{"max_message_bytes": 10, **limits})
        broker = Broker(bounds, retention, Quota(quota), monotonic=clock, wall_ns=lambda: 7)
        return Desk(broker, clock)

    return make


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    """A broker with the usual limits."""
    return make_desk()
