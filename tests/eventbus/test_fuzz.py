"""Whatever comes over the wire, the broker answers as the contract says and goes on serving.

Requests are built from the descriptors of the contract, so new fields are fuzzed without a change here,
then damaged as bytes. After every example the broker must still deliver, its counters must add up,
and nothing of the example may be left behind.
"""

import asyncio
import gc
import logging
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from collector_core.bus.duplex import write
from daemoneye.eventbus.v1 import correlation_service_pb2 as correlation_pb
from daemoneye.eventbus.v1 import eventbus_pb2, group_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_pb2 as sub

TIMEOUT_S = 6.0
BUS = "/daemoneye.eventbus.v1.EventBusService/"
CORRELATION = "/daemoneye.eventbus.v1.CorrelationService/"
PROBE_TOPIC = "alerts.info.probe"
ERROR_PROTO = Path(__file__).parents[2] / "protos/daemoneye/common/v1/error.proto"

# -- what is sent -----------------------------------------------------------------------------------

# Nothing that the texts of exceptions are told by, and no constants of the code under test.
TEXTS = st.text("ab.+#*-_/%0 \x00\n\u00e9\u202e\U0001f600", max_size=12)
LONG_TEXTS = st.builds(lambda text, count: text * count, TEXTS, st.sampled_from([30, 300]))
NUMBERS = st.sampled_from([0, 1, 2, 3, 255, 256, 10_000, 10_001, 2**31 - 1, 2**31])
PLAUSIBLE: dict[str, Sequence[Any]] = {
    "topic": ["control.operator.x", "alerts.high.r1", "events.process.lifecycle", "control"],
    "pattern": ["control.#", "alerts.+.r1", "#", "events.process", "control.#.x"],
    "source_id": ["agent"],
    "subscriber_id": ["", "s1", "s2"],
    "consumer_group": ["", "g1"],
    "correlation_id": ["c1"],
    "root_correlation_id": ["c1"],
    "trace_id": ["0af7651916cd43dd8448eb211c80319c"],
    "span_id": ["b7ad6b7169203331"],
    "block_timeout_ms": [1, 20],
    "ack_timeout_ms": [100, 200],
    "protocol_version": ["", "daemoneye"],
    "count": [1, 2],
}
"""Values that get past the first check."""

_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def values_of(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return messages_of(field.message_type, depth - 1)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        known = st.sampled_from([value.number for value in field.enum_type.values])
        return known | st.sampled_from([-1, 99, 2**31 - 1])
    if kind in _RANGES:
        least, most = _RANGES[kind]
        plain = st.integers(least, most) | st.sampled_from([least, most]) | NUMBERS
        wild = plain.filter(lambda number: least <= number <= most)
    elif kind == FieldDescriptor.CPPTYPE_STRING:
        is_text = field.type == FieldDescriptor.TYPE_STRING
        wild = (TEXTS | LONG_TEXTS) if is_text else st.binary(max_size=16)
    elif kind == FieldDescriptor.CPPTYPE_BOOL:
        wild = st.booleans()
    else:
        wild = st.floats(width=32)
    if field.name in PLAUSIBLE:
        return st.sampled_from(PLAUSIBLE[field.name]) | wild
    return wild


@st.composite
def messages_of(draw: st.DrawFn, descriptor: Descriptor, depth: int = 4) -> Message:
    """Any message of a type, with up to five of its fields set."""
    message: Message = GetMessageClass(descriptor)()
    fields = [one for one in descriptor.fields if depth > 0 or one.message_type is None]
    chosen = st.lists(st.sampled_from(fields), max_size=5, unique_by=lambda one: one.number)
    for field in draw(chosen) if fields else ():
        fill(draw, message, field, depth)
    return message


def fill(draw: st.DrawFn, message: Message, field: FieldDescriptor, depth: int) -> None:
    target = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = (values_of(entry.fields_by_name[one], depth) for one in ("key", "value"))
        for name, content in draw(st.dictionaries(key, value, max_size=3)).items():
            if isinstance(content, Message):
                target[name].CopyFrom(content)
            else:
                target[name] = content
    elif field.is_repeated:
        target.extend(draw(st.lists(values_of(field, depth), max_size=3)))
    elif entry is not None:
        target.CopyFrom(draw(values_of(field, depth)))
    else:
        setattr(message, field.name, draw(values_of(field, depth)))


EXTRAS = [
    b"\xff",
    b"\x00",  # field number 0
    b"\x0a\x02\xff\xfe",  # no UTF-8 where a text may be
    b"\x0a\xff\xff\xff\xff\x07",  # 2 GiB to come
    b"\x08" + b"\xff" * 11,  # a number without end
    b"\x0b" * 300,  # groups in groups without end
    b"\xfa\xff\x07\x03abc",  # an unknown field
    b"\xf9\xff\x07" + b"\x01" * 8,  # another, of fixed size
    b"\x0d\x01\x02\x03\x04",  # field 1 of another wire type
]


def nest(number: int, depth: int) -> bytes:
    """Field ``number`` within itself."""
    encoded = b""
    for _ in range(depth):
        size = len(encoded)
        encoded = bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + encoded
    return encoded


EXTRAS += [nest(number, 150) for number in (1, 2, 3)]


@st.composite
def damaged(draw: st.DrawFn, encoded: bytes) -> bytes:
    """The same bytes after up to three accidents."""
    for _ in range(draw(st.integers(0, 3))):
        first, second = sorted(draw(st.tuples(*[st.integers(0, len(encoded))] * 2)))
        head, middle, tail = encoded[:first], encoded[first:second], encoded[second:]
        match draw(st.sampled_from(["flip", "cut", "omit", "repeat", "swap", "insert", "append"])):
            case "flip" if middle:
                flipped = middle[0] ^ 1 << draw(st.integers(0, 7))
                encoded = head + bytes([flipped]) + middle[1:] + tail
            case "cut":
                encoded = head
            case "omit":
                encoded = head + tail
            case "repeat":
                encoded = head + middle + middle + tail
            case "swap":
                encoded = tail + middle + head
            case "insert":
                encoded = head + draw(st.sampled_from(EXTRAS)) + middle + tail
            case _:
                encoded = encoded + draw(st.sampled_from(EXTRAS))
    return encoded


def requests_like(*sound: Message) -> st.SearchStrategy[bytes]:
    """Requests of one type: sound ones with any fields on top, or any at all; whole or damaged."""
    generated = messages_of(sound[0].DESCRIPTOR)

    def merge(base: Message, other: Message) -> bytes:
        merged = type(base)()
        merged.CopyFrom(base)
        merged.MergeFrom(other)
        return merged.SerializeToString()

    near = st.builds(merge, st.sampled_from(sound), generated)
    whole = near | generated.map(lambda one: one.SerializeToString())
    plain = st.sampled_from([one.SerializeToString() for one in sound])
    return plain | whole | (plain | whole).flatmap(damaged) | st.binary(max_size=40)


MESSAGE = eventbus_pb2.EventBusMessage(
    metadata={"topic": "control.operator.x", "source_id": "agent", "message_type": 4},
    correlation={"correlation_id": "c1", "root_correlation_id": "c1"},
    control_message={"operation": 1},
)
GROUP = group_pb2.MessageGroup(
    envelope={"topic": "control.operator.y", "source_id": "agent", "count": 2, "message_type": 4},
    block={"messages": [MESSAGE, eventbus_pb2.EventBusMessage()]},
)
PUBLISH = pb.PublishRequest(messages=[MESSAGE], groups=[GROUP])
CONFIG = sub.SubscriptionConfig(
    topic_patterns=[sub.TopicPattern(pattern="control.#", wildcard_enabled=True)]
)
UNARY: dict[str, tuple[Message, ...]] = {
    BUS + "Publish": (PUBLISH,),
    BUS + "NegotiateVersion": (
        pb.NegotiateVersionRequest(request={"supported_versions": [{"major": 1}]}),
    ),
    BUS + "GetBusStats": (pb.GetBusStatsRequest(),),
    BUS + "ListSubscriptions": (pb.ListSubscriptionsRequest(),),
    CORRELATION + "ListWorkflows": (correlation_pb.ListWorkflowsRequest(limit=3),),
    CORRELATION + "GetWorkflow": (
        correlation_pb.GetWorkflowRequest(root_correlation_id="c1", max_steps=3),
    ),
}

# -- what is expected -------------------------------------------------------------------------------

FOREIGN = re.compile(r"Traceback|Exception|Error\b|<class|\.py\b|object at|daemoneye_|_pb2|upb")
"""What tells the text of an exception; the fuzz itself sends none of it."""


def codes_by_reason() -> dict[str, str]:
    """The code that goes with each reason, as the contract says it."""
    text = ERROR_PROTO.read_text(encoding="utf-8")
    found = re.findall(r"// \[(\w+)\].*\n(?: *//.*\n)* *ERROR_REASON_(\w+) =", text)
    return {reason: code for code, reason in found}


CODES = codes_by_reason()


def verify_refusal(code: str, reason: str, text: str, metadata: Iterable[str]) -> None:
    assert code == CODES[reason] != "INTERNAL", (code, reason, text)
    for shown in (text, *metadata):
        assert not FOREIGN.search(shown), shown
    event(reason)


def verify_error(error: grpc.aio.AioRpcError) -> None:
    status = rpc_status.from_call(error)  # type: ignore[arg-type] # has what it reads
    assert status is not None, (error.code(), error.details())
    info = error_details_pb2.ErrorInfo()
    ours = [one for one in status.details if one.Unpack(info)]
    assert len(ours) == 1
    assert info.domain == "daemoneye"
    verify_refusal(error.code().name, info.reason, status.message, info.metadata.values())


def verify_flow(flow: pb.FlowCounters) -> None:
    dropped = sum(flow.dropped_count.values())
    known = flow.delivered_count + flow.filtered_count + dropped + flow.pending_count
    assert flow.offered_count == known, flow


class Complaints(logging.Handler):
    """Keeps what should never be logged, whatever peers send."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))

    def verify(self) -> None:
        found, self.found = self.found, []
        assert not found


async def read_all(call: Any) -> list[bytes]:
    answers = []
    try:
        async for answer in call:
            answers.append(answer)  # noqa: PERF401 -- kept when an error follows
    except grpc.aio.AioRpcError as error:
        if not call.cancelled():
            verify_error(error)
    except asyncio.CancelledError:
        assert call.cancelled()
    return answers


class Wire:
    """A broker, one peer that calls it with bytes, and a bystander who must not notice."""

    def __init__(self, bus: Any) -> None:
        self.broker = bus.broker
        self.name = bus.layout.agent.name
        self.channel: grpc.aio.Channel = bus.channel_of(bus.layout.agent)
        self.complaints = Complaints()
        self._probes = 0
        self._bystander: Any = None
        self._before: tuple[int, int] = (0, 0)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def begin(self) -> None:
        config = sub.SubscriptionConfig(topic_patterns=[sub.TopicPattern(pattern=PROBE_TOPIC)])
        opening = pb.SubscribeRequest(open=pb.OpenSubscription(config=config))
        self._bystander = self.channel.stream_stream(BUS + "Subscribe")()
        await self._bystander.write(opening.SerializeToString())
        await self._bystander.read()
        await self.serve_probe()
        self._tasks = asyncio.all_tasks()
        self._before = self.count(await self.stats())

    async def call(self, method: str, encoded: bytes) -> bytes | None:
        """Calls a method and returns its answer; None when it refuses as the contract says."""
        try:
            answer: bytes = await self.channel.unary_unary(method)(encoded, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            verify_error(error)
            return None
        return answer

    async def talk(
        self, method: str, requests: Iterable[bytes], *, is_left: bool = False
    ) -> list[bytes]:
        """Sends requests on a stream and returns what it answered.

        Args:
            method: of the stream; its request side is closed after the last request.
            requests: one after the other.
            is_left: leave when all is sent, as peers do that die; else the server has to end it.
        """
        call = self.channel.stream_stream(method)(timeout=TIMEOUT_S)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read_all(call))
            for request in requests:
                if not await write(call, request):
                    break
            if is_left:
                call.cancel()
            else:
                await call.done_writing()
        return reading.result()

    async def stats(self) -> pb.GetBusStatsResponse:
        answer = await self.call(BUS + "GetBusStats", b"")
        assert answer is not None
        return pb.GetBusStatsResponse.FromString(answer)

    async def serve_probe(self) -> None:
        """Publishes a message and waits until the bystander has it."""
        self._probes += 1
        metadata = {"topic": PROBE_TOPIC, "source_id": "agent", "timestamp": self._probes}
        probe = eventbus_pb2.EventBusMessage(metadata=metadata)
        request = pb.PublishRequest(messages=[probe])
        assert await self.call(BUS + "Publish", request.SerializeToString())
        while True:
            answer = pb.SubscribeResponse.FromString(await self._bystander.read())
            times = [one.metadata.timestamp for one in answer.batch.messages]
            if self._probes in times:
                return

    def count(self, stats: pb.GetBusStatsResponse) -> tuple[int, int]:
        """Streams and subscriptions of the peer."""
        own = next(one for one in stats.identities if one.identity == self.name)
        return own.stream_count, own.subscription_count

    async def verify(self) -> pb.GetBusStatsResponse:
        """Waits until nothing is left of an example, and looks whether all is well."""
        await self.serve_probe()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while self.count(stats := await self.stats()) != self._before:
                    self._end_durable()
                while self.leftover():  # noqa: ASYNC110 -- tasks end by themselves
                    await asyncio.sleep(0)
        except TimeoutError:
            pytest.fail(f"left behind: {self.count(stats)} {self.leftover()}")
        verify_flow(stats.flow)
        listed = await self.call(BUS + "ListSubscriptions", b"")
        assert listed is not None
        for one in pb.ListSubscriptionsResponse.FromString(listed).subscriptions:
            verify_flow(one.flow)
        self.complaints.verify()
        return stats

    def leftover(self) -> set[asyncio.Task[Any]]:
        """Tasks that an example made."""
        made = asyncio.all_tasks() - self._tasks - {asyncio.current_task()}
        return {one for one in made if "AioServer._request" not in repr(one)}

    def _end_durable(self) -> None:
        """Ends what waits for its subscriber to come back, as time would."""
        for one in self.broker.subscriptions():
            if not one.is_attached:
                self.broker.end(one)


@pytest.fixture
async def wire(bus: Any) -> AsyncIterator[Wire]:
    running = Wire(bus)
    logging.getLogger().addHandler(running.complaints)
    try:
        await running.begin()
        yield running
        gc.collect()  # a task whose exception nobody asked for complains when it goes
        running.complaints.verify()
    finally:
        logging.getLogger().removeHandler(running.complaints)


def fuzzed(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# -- tests ------------------------------------------------------------------------------------------

OPENING = pb.SubscribeRequest(open=pb.OpenSubscription(config=CONFIG))
UNSUBSCRIBE = pb.SubscribeRequest(unsubscribe={}).SerializeToString()
BATCH = pb.PublishStreamRequest(batch_id=1, messages=[MESSAGE], groups=[GROUP])


def test_every_method_of_the_broker_is_fuzzed() -> None:
    services = (
        pb.DESCRIPTOR.services_by_name["EventBusService"],
        correlation_pb.DESCRIPTOR.services_by_name["CorrelationService"],
    )
    methods = {f"/{one.full_name}/{name}" for one in services for name in one.methods_by_name}
    assert methods == {*UNARY, BUS + "PublishStream", BUS + "Subscribe"}


@pytest.mark.parametrize("method", UNARY)
@fuzzed(50)
@given(data=st.data())
async def test_calls_are_answered_whatever_they_ask(
    wire: Wire, method: str, data: st.DataObject
) -> None:
    encoded = data.draw(requests_like(*UNARY[method]))
    await wire.call(method, encoded)
    await wire.verify()


@fuzzed(60)
@given(
    requests=st.lists(requests_like(BATCH), max_size=4),
    is_left=st.booleans(),
)
@example(requests=[b"\xff"], is_left=False)
async def test_publishing_streams_end_whatever_they_carry(
    wire: Wire, requests: list[bytes], is_left: bool
) -> None:
    await wire.talk(
        BUS + "PublishStream",
        requests,
        is_left=is_left,
    )
    await wire.verify()


@fuzzed(100)
@given(
    requests=st.lists(requests_like(OPENING), min_size=1, max_size=3),
    is_left=st.booleans(),
)
@example(requests=[b"\xff"], is_left=False)
@example(requests=[OPENING.SerializeToString(), b"\xff"], is_left=False)
async def test_subscriptions_end_whatever_they_ask(
    wire: Wire, requests: list[bytes], is_left: bool
) -> None:
    await wire.talk(BUS + "Subscribe", [*requests, UNSUBSCRIBE], is_left=is_left)
    await wire.verify()
