"""Streams of sound requests in any order: none crashes or hangs the broker, or leaves something.

What comes damaged is in ``test_fuzz``. Here most of it is understood, so that states meet which no
single test thought of: acknowledgements before deliveries, a pause under a full queue, a peer that is
gone in the middle.
"""

import asyncio
import gc
import logging
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import grpc.aio
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from collector_core.bus.duplex import write
from daemoneye.common.v1 import error_pb2
from daemoneye.eventbus.v1 import eventbus_pb2, group_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_pb2 as sub
from daemoneye_mesh.errors import DaemoneyeError, ErrorReason
from daemoneye_mesh.rpc_status import from_detail, from_rpc_error

TIMEOUT_S = 10.0
PATIENCE_S = 0.02
BUS = "/daemoneye.eventbus.v1.EventBusService/"
FOREIGN = re.compile(r"Traceback|Exception|Error\b|<class|\.py\b|object at|daemoneye_|_pb2|upb")
"""What tells the text of an exception."""

Step = tuple[str, bytes]
"""A method and an encoded request for it."""


# -- what is sent -----------------------------------------------------------------------------------

MESSAGE = eventbus_pb2.EventBusMessage(
    metadata={"topic": "control.operator.x", "source_id": "agent", "message_type": 4},
    correlation={"correlation_id": "c1", "root_correlation_id": "c1"},
    control_message={"operation": 1},
)
GROUP = group_pb2.MessageGroup(
    envelope={"topic": "control.operator.y", "source_id": "agent", "count": 2, "message_type": 4},
    block={"messages": [MESSAGE, eventbus_pb2.EventBusMessage()]},
)
CONFIG = sub.SubscriptionConfig(
    topic_patterns=[sub.TopicPattern(pattern="control.#", wildcard_enabled=True)]
)
UNSUBSCRIBE = (BUS + "Subscribe", pb.SubscribeRequest(unsubscribe={}).SerializeToString())
PROBE = pb.PublishRequest(messages=[MESSAGE]).SerializeToString()


def sampled(**choices: Sequence[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields, each with one of its values."""
    fields = {name: st.sampled_from(values) for name, values in choices.items()}
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def openings(draw: st.DrawFn) -> pb.OpenSubscription:
    """Openings of every kind of subscription that pass."""
    acknowledges, blocks, lasts = draw(st.tuples(*[st.booleans()] * 3))
    qos = draw(sampled(ordered_delivery=[True], duplicate_handling=[0, 1, 2]))
    config = draw(sampled(subscriber_id=["s1", "s2"], **{} if lasts else {"consumer_group": ["g"]}))
    options = draw(
        sampled(
            grouped=[True],
            initial_credit=[0, 1, 3],
            history=[{}, {"max_messages": 1}, {"max_age_ms": 1}],
        )
    )
    options |= draw(
        sampled(block_timeout_ms=[1, 20]) if blocks else sampled(overflow_policy=[1, 2, 3])
    )
    if blocks:
        options["overflow_policy"] = pb.OVERFLOW_POLICY_BLOCK
    if acknowledges:
        qos |= draw(sampled(max_queue_depth=[2, 5]))
        qos["delivery_guarantee"] = draw(st.sampled_from([1, 2]))
        options |= draw(sampled(ack_timeout_ms=[100], max_unacknowledged_messages=[1, 2]))
    else:
        qos |= draw(sampled(max_queue_depth=[1, 2, 5]))
    if lasts:
        config.setdefault("subscriber_id", "s1")
        qos["retention_policy"] = {"retention_duration_ms": 1_000, "max_retained_messages": 2}
    chosen = draw(st.sampled_from(["control.#", "control.operator.+", "alerts.#"]))
    pattern = {"pattern": chosen, "wildcard_enabled": True, **draw(sampled(priority=[0, 1]))}
    return pb.OpenSubscription(
        config={"topic_patterns": [pattern], "qos_settings": qos, **config}, **options
    )


ACTIONS = st.one_of(
    openings().map(lambda one: {"open": one}),
    st.sampled_from([0, 1, 2, 3, 2**63, 2**64 - 1]).map(lambda one: {"ack": {"position": one}}),
    st.sampled_from([0, 1, 2, 2**32 - 1]).map(lambda one: {"credit": {"messages": one}}),
    st.sampled_from([{"pause": {}}, {"resume": {}}, {"flush": {}}, {"unsubscribe": {}}, {}]),
    st.sampled_from(
        [CONFIG, sub.SubscriptionConfig(), sub.SubscriptionConfig(subscriber_id="x")]
    ).map(lambda one: {"update": {"config": one}}),
)
REQUEST_IDS = st.sampled_from([0, 1, 1, 2, 2**64 - 1])


def batches(kind: type[Message], *, numbered: bool) -> st.SearchStrategy[Message]:
    """Batches of messages and groups, most of them as they should be, some of which lie."""

    def build(messages: int, counts: list[int], sequence: int, fields: dict[str, Any]) -> Message:
        batch = kind(messages=[MESSAGE] * messages, groups=[GROUP] * len(counts), **fields)
        for number, one in enumerate(batch.messages):
            one.metadata.source_epoch = 1
            one.metadata.source_sequence = min(sequence + number, 2**64 - 1)
        for group, count in zip(batch.groups, counts, strict=True):
            group.envelope.count = count
            group.envelope.source_epoch, group.envelope.first_sequence = 1, sequence
        return batch

    ids = {"batch_id": [0, 1, 2, 3, 4, 2**64 - 1]} if numbered else {}
    return st.builds(
        build,
        st.integers(0, 3),
        st.lists(st.sampled_from([2, 2, 2, 2, 0, 1, 3, 2**32 - 1]), max_size=2),
        st.integers(0, 4) | st.just(2**64 - 2),
        sampled(assurance=[0, 1, 2, 9], **ids),
    )


def on(method: str, requests: st.SearchStrategy[Message]) -> st.SearchStrategy[Step]:
    return requests.map(lambda one: (method, one.SerializeToString()))


CHANGES = st.builds(
    lambda action, number: pb.SubscribeRequest(request_id=number, **action), ACTIONS, REQUEST_IDS
)
PUBLISHING = on(BUS + "Publish", batches(pb.PublishRequest, numbered=False))


# -- what is expected -------------------------------------------------------------------------------


def verify_refusal(refusal: DaemoneyeError) -> None:
    assert refusal.reason not in (ErrorReason.INTERNAL, ErrorReason.DEADLINE_EXCEEDED), refusal
    assert not FOREIGN.search(refusal.message), refusal
    event(refusal.reason)


def verify_detail(detail: error_pb2.ErrorDetail) -> None:
    verify_refusal(from_detail(detail))


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
            verify_refusal(from_rpc_error(error))
    except asyncio.CancelledError:
        assert call.cancelled()
    return answers


class Peer:
    """Whoever sends, as the agent, which may do everything."""

    def __init__(self, bus: Any) -> None:
        self.broker = bus.broker
        self.name = bus.layout.agent.name
        self.channel: grpc.aio.Channel = bus.channel_of(bus.layout.agent)
        self.complaints = Complaints()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def begin(self) -> None:
        await self.call(BUS + "Publish", PROBE)
        self._tasks = asyncio.all_tasks()

    async def call(self, method: str, encoded: bytes) -> bytes:
        """Calls a method and returns its answer; nothing when it refuses."""
        try:
            answer: bytes = await self.channel.unary_unary(method)(encoded, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            verify_refusal(from_rpc_error(error))
            return b""
        return answer

    async def talk(
        self, method: str, steps: Iterable[Step], *, is_left: bool = False
    ) -> list[bytes]:
        """Goes through the steps with a stream open and returns what it answered.

        Args:
            method: of the stream; its request side is closed after the last step.
            steps: a method and a request for it; those for this method go on the stream.
            is_left: leave when all is sent, as peers do that die; else the server has to end it.
        """
        call = self.channel.stream_stream(method)(timeout=TIMEOUT_S)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read_all(call))
            for name, request in steps:
                if name != method:
                    # It may wait for an acknowledgement, which a later step or the end gives.
                    beside = group.create_task(self.call(name, request))
                    await asyncio.wait([beside], timeout=PATIENCE_S)
                    await self.verify_flows()
                elif not await write(call, request):
                    break
            if is_left:
                call.cancel()
            else:
                await call.done_writing()
            answers = await reading
            self._end_durable()
        return answers

    async def published(self) -> int:
        """Messages accepted from this peer so far."""
        return (await self._identity()).published_count

    async def verify(self) -> None:
        """Waits until nothing is left of an example, and looks whether all is well."""
        assert await self.call(BUS + "Publish", PROBE)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while (left := await self._identity()).stream_count or left.subscription_count:
                    self._end_durable()
                while self.leftover():  # noqa: ASYNC110 -- tasks end by themselves
                    await asyncio.sleep(0)
        except TimeoutError:
            pytest.fail(f"left behind: {left} {self.leftover()}")
        verify_flow((await self._stats()).flow)
        self.complaints.verify()

    def leftover(self) -> set[asyncio.Task[Any]]:
        """Tasks that an example made."""
        made = asyncio.all_tasks() - self._tasks - {asyncio.current_task()}
        return {one for one in made if "AioServer._request" not in repr(one)}

    def _end_durable(self) -> None:
        """Ends what waits for its subscriber to come back, as time would."""
        for one in self.broker.subscriptions():
            if not one.is_attached:
                self.broker.end(one)

    async def verify_flows(self) -> None:
        """Whether the counters of every subscription add up while it stands."""
        listed = await self.call(BUS + "ListSubscriptions", b"")
        for one in pb.ListSubscriptionsResponse.FromString(listed).subscriptions:
            verify_flow(one.flow)

    async def _stats(self) -> pb.GetBusStatsResponse:
        return pb.GetBusStatsResponse.FromString(await self.call(BUS + "GetBusStats", b""))

    async def _identity(self) -> Any:
        return next(one for one in (await self._stats()).identities if one.identity == self.name)


@pytest.fixture
async def peer(bus: Any) -> AsyncIterator[Peer]:
    running = Peer(bus)
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


@fuzzed(250)
@given(
    opening=openings(),
    steps=st.lists(on(BUS + "Subscribe", CHANGES) | PUBLISHING, max_size=10),
    is_opened=st.sampled_from([True, True, True, False]),
    is_left=st.booleans(),
)
@example(  # a group that is larger than the whole queue of who wants to block
    opening=pb.OpenSubscription(
        config={
            "topic_patterns": CONFIG.topic_patterns,
            "qos_settings": {"max_queue_depth": 1},
        },
        overflow_policy=pb.OVERFLOW_POLICY_BLOCK,
        block_timeout_ms=1,
    ),
    steps=[(BUS + "Publish", pb.PublishRequest(groups=[GROUP]).SerializeToString())],
    is_opened=True,
    is_left=False,
)
async def test_subscription_survives_requests_in_any_order(
    peer: Peer, opening: pb.OpenSubscription, steps: list[Step], is_opened: bool, is_left: bool
) -> None:
    if is_opened:
        steps = [(BUS + "Subscribe", pb.SubscribeRequest(open=opening).SerializeToString()), *steps]
    encoded = await peer.talk(BUS + "Subscribe", [*steps, UNSUBSCRIBE], is_left=is_left)
    answers = [pb.SubscribeResponse.FromString(one) for one in encoded]
    kinds = [one.WhichOneof("item") for one in answers]
    for kind in {*kinds}:
        event(kind)
    assert [index for index, kind in enumerate(kinds) if kind == "opened"] == [0] * bool(kinds)
    for one in answers:
        if one.changed.HasField("error"):
            verify_detail(one.changed.error)
    await peer.verify()


@fuzzed(150)
@given(
    batches_=st.lists(batches(pb.PublishStreamRequest, numbered=True), max_size=6),
    is_left=st.booleans(),
)
async def test_publishing_stream_answers_exactly_what_it_took(
    peer: Peer, batches_: list[pb.PublishStreamRequest], is_left: bool
) -> None:
    before = await peer.published()
    method = BUS + "PublishStream"
    steps = [(method, one.SerializeToString()) for one in batches_]
    encoded = await peer.talk(method, steps, is_left=is_left)
    answers = [pb.PublishStreamResponse.FromString(one) for one in encoded]
    assert {one.batch_id for one in answers} <= {one.batch_id for one in batches_}
    for one in answers:
        if one.HasField("error"):
            verify_detail(one.error)
    accepted = sum(one.accepted_count for one in answers)
    await peer.verify()
    taken = await peer.published() - before - 1  # the probe
    assert taken >= accepted if is_left else taken == accepted
