"""Publish streams: answers add up and come in order, refusals stop what must not overtake them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from daemoneye.common.v1 import error_pb2
from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_eventbus import service_publishing
from daemoneye_eventbus.errors import BrokerDrainingError, EmptyBatchError
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.service_intake import Accepted
from daemoneye_eventbus.service_publishing import (
    ANSWER_BATCHES,
    ANSWER_MESSAGES,
    MAX_UNREAD_ANSWERS,
    PublishingStream,
)
from daemoneye_mesh.errors import Code, DaemoneyeError, ErrorReason, OverloadedError
from daemoneye_mesh.rpc_status import from_detail

TIMEOUT_S = 10
SERVICE = "/daemoneye.eventbus.v1.EventBusService/"
ACKNOWLEDGED = eventbus_pb2.PUBLISH_ASSURANCE_ACKNOWLEDGED
AT_LEAST_ONCE = 1
DROP_DUPLICATES = 1

Build = Callable[..., bytes]


def encoded_batch(batch_id: int, *messages: bytes, **fields: Any) -> bytes:
    frames = frame_pb2.PublishStreamFrames(batch_id=batch_id, messages=messages, **fields)
    return frames.SerializeToString()


# -- one stream with a fake intake ------------------------------------------------------------------


class FakeIntake:
    """Accepts batches of a message each; refuses or fails at the ids it is told to."""

    def __init__(self, **errors: Exception) -> None:
        self.taken: list[bytes] = []
        self.errors = errors
        self.receipt: Receipt | None = None

    async def accept(
        self, messages: Sequence[bytes], groups: Sequence[bytes], assurance: int
    ) -> Accepted:
        name = messages[0].decode()
        if name in self.errors:
            raise self.errors[name]
        self.taken.append(messages[0])
        return Accepted(len(messages), 2 * len(messages), self.receipt if assurance else None)

    def refuse(self, refusal: DaemoneyeError) -> None:
        self.taken.append(b"undecodable")


def stream_of(requests: AsyncIterator[bytes], intake: FakeIntake) -> PublishingStream:
    return PublishingStream(requests, intake)  # type: ignore[arg-type]


async def some_batches(*names: str, assurance: int = 0) -> AsyncIterator[bytes]:
    for number, name in enumerate(names, 1):
        yield encoded_batch(number, name.encode(), assurance=assurance)


async def endless_batches(assurance: int = 0) -> AsyncIterator[bytes]:
    batch_id = 0
    while True:
        batch_id += 1
        yield encoded_batch(batch_id, b"x", assurance=assurance)


async def settle(taken: list[bytes]) -> None:
    """Gives other tasks turns until nothing more is published."""
    before = -1
    while before != len(taken):
        before = len(taken)
        for _ in range(10):
            await asyncio.sleep(0)


async def collect(
    answers: AsyncIterator[pb.PublishStreamResponse], into: list[pb.PublishStreamResponse]
) -> None:
    async for answer in answers:
        into.append(answer)  # noqa: PERF401 - what came before the end counts


async def test_one_answer_stands_for_several_batches_that_were_accepted() -> None:
    stream = stream_of(some_batches(*"abcdef"), FakeIntake())
    answers = [answer async for answer in stream.answers()]
    assert len(answers) < 6
    assert answers[-1].batch_id == 6
    assert sum(one.accepted_count for one in answers) == 6
    assert sum(one.routed_count for one in answers) == 12


@pytest.mark.parametrize(
    "sizes", [[1] * ANSWER_BATCHES, [ANSWER_MESSAGES], [1, ANSWER_MESSAGES]], ids=str
)
async def test_batches_worth_an_answer_do_not_wait_for_another_one(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_publishing, "ANSWER_DELAY_S", 10 * TIMEOUT_S)

    async def requests() -> AsyncIterator[bytes]:
        for number, size in enumerate(sizes, 1):
            yield encoded_batch(number, *[b"x"] * size)
        await asyncio.Event().wait()

    answers = stream_of(requests(), FakeIntake()).answers()
    async with asyncio.timeout(TIMEOUT_S):
        assert (await anext(answers)).batch_id == len(sizes)
    await answers.aclose()


async def test_accepted_batch_is_answered_although_no_other_one_comes() -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield encoded_batch(1, b"x")
        await asyncio.Event().wait()

    answers = stream_of(requests(), FakeIntake()).answers()
    async with asyncio.timeout(TIMEOUT_S):
        assert (await anext(answers)).batch_id == 1
    await answers.aclose()


async def test_batch_refused_for_good_is_answered_alone_and_the_stream_goes_on() -> None:
    stream = stream_of(some_batches(*"abcd"), FakeIntake(c=EmptyBatchError()))
    answers = [answer async for answer in stream.answers()]
    assert [(one.batch_id, one.HasField("error")) for one in answers] == [
        (2, False),
        (3, True),
        (4, False),
    ]
    assert [one.accepted_count for one in answers] == [2, 0, 1]
    assert from_detail(answers[1].error).reason is ErrorReason.BATCH_EMPTY


async def test_refusal_that_passes_ends_the_stream_and_nothing_after_it_is_published() -> None:
    refusal = OverloadedError("too much; wait", reason=ErrorReason.RATE_LIMITED)
    intake = FakeIntake(c=refusal)
    answers = stream_of(some_batches(*"abcd"), intake).answers()
    assert (await anext(answers)).batch_id == 2
    with pytest.raises(OverloadedError):
        await anext(answers)
    assert intake.taken == [b"a", b"b"]


async def test_batch_to_be_acknowledged_is_answered_when_it_is() -> None:
    intake = FakeIntake()
    intake.receipt = Receipt()
    intake.receipt.expect(1)
    answers = stream_of(some_batches("a", assurance=1), intake).answers()
    answer = asyncio.ensure_future(anext(answers))
    await settle(intake.taken)
    assert intake.taken == [b"a"]
    assert not answer.done()
    intake.receipt.settle(1)
    assert (await answer).accepted_count == 1
    assert await anext(answers, None) is None


async def test_publisher_that_reads_no_answers_has_to_wait() -> None:
    intake = FakeIntake()
    intake.receipt = Receipt()  # nobody is to acknowledge: each batch is answered on its own
    stream = stream_of(endless_batches(assurance=1), intake)
    answers = stream.answers()
    await anext(answers)
    await settle(intake.taken)
    assert len(intake.taken) == MAX_UNREAD_ANSWERS + 1
    await anext(answers)
    await settle(intake.taken)
    assert len(intake.taken) == MAX_UNREAD_ANSWERS + 2
    await answers.aclose()


async def test_drained_stream_answers_what_was_published_before_it_ends() -> None:
    intake = FakeIntake()
    stream = stream_of(endless_batches(), intake)
    answers = stream.answers()
    answered = [await anext(answers)]
    await settle(intake.taken)
    stream.drain()
    with pytest.raises(BrokerDrainingError):
        await collect(answers, answered)
    assert sum(one.accepted_count for one in answered) == len(intake.taken)
    assert answered[-1].batch_id == len(intake.taken)


async def test_request_that_does_not_decode_ends_the_stream_after_what_was_accepted() -> None:
    async def requests() -> AsyncIterator[bytes]:
        yield encoded_batch(1, b"x")
        yield b"\xff\xff"
        yield encoded_batch(2, b"x")

    intake = FakeIntake()
    answers = stream_of(requests(), intake).answers()
    assert (await anext(answers)).batch_id == 1
    with pytest.raises(DaemoneyeError, match="does not decode"):
        await anext(answers)
    assert intake.taken == [b"x", b"undecodable"]


async def test_defect_while_publishing_ends_the_stream_instead_of_hanging() -> None:
    stream = stream_of(some_batches(*"ab"), FakeIntake(a=ZeroDivisionError()))
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(ZeroDivisionError):
            await anext(stream.answers())


# -- over a socket ----------------------------------------------------------------------------------


class Publishing:
    """A publish stream of a collector, with bytes as they are."""

    def __init__(self, bus: Any) -> None:
        channel = bus.channel_of(bus.layout.collector("procmond"), ["process"])
        method = channel.stream_stream(
            SERVICE + "PublishStream", response_deserializer=pb.PublishStreamResponse.FromString
        )
        self.call = method(timeout=TIMEOUT_S)
        self._requests = bus.send_on(self.call)
        self._answers = aiter(self.call)

    def send(self, *encoded: bytes) -> None:
        for one in encoded:
            self._requests.put(one)

    def end(self) -> None:
        self._requests.put(None)

    async def answer(self) -> pb.PublishStreamResponse:
        answer: pb.PublishStreamResponse = await anext(self._answers)
        return answer

    async def answers(self) -> list[pb.PublishStreamResponse]:
        self.end()
        return [answer async for answer in self._answers]


async def test_stream_answers_in_order_and_goes_on_after_a_refusal(
    bus: Any, message: Build, group: Build
) -> None:
    publishing = Publishing(bus)
    publishing.send(
        encoded_batch(1, message()),
        encoded_batch(2, message(), message(topic="events.*")),
        encoded_batch(3),
        encoded_batch(7, message(), groups=[group(count=4)]),
        encoded_batch(7, message()),
        encoded_batch(8, message()),
    )
    answers = await publishing.answers()
    assert [answer.batch_id for answer in answers] == [1, 2, 3, 7, 7, 8]
    assert [answer.accepted_count for answer in answers] == [1, 0, 0, 5, 0, 1]
    assert [answer.error.reason for answer in answers if answer.HasField("error")] == [
        error_pb2.ERROR_REASON_TOPIC_INVALID,
        error_pb2.ERROR_REASON_BATCH_EMPTY,
        error_pb2.ERROR_REASON_REQUEST_INVALID,
    ]
    assert "does not rise" in from_detail(answers[4].error).message


async def test_batch_over_the_rate_ends_the_stream_and_nothing_overtakes_it(
    start_bus: Any, group: Build, refusal_of: Any
) -> None:
    bus = await start_bus(rate_limits=("collector/+ 1/s burst 3",))
    publishing = Publishing(bus)
    publishing.send(*[encoded_batch(one, groups=[group(count=3 - one)]) for one in (1, 2)])
    publishing.send(encoded_batch(3, groups=[group(count=3)]), encoded_batch(4, groups=[group()]))
    accepted_count = 0
    while accepted_count < 3:
        accepted_count += (await publishing.answer()).accepted_count
    refusal = await refusal_of(publishing.answer())
    assert (refusal.code, refusal.reason) == (
        Code.RESOURCE_EXHAUSTED,
        ErrorReason.RATE_LIMITED,
    )
    assert refusal.retry_after_s > 0
    assert (await bus.stats()).published_count == 3


async def test_draining_answers_what_was_published_and_ends_the_stream(
    bus: Any, message: Build, refusal_of: Any
) -> None:
    publishing = Publishing(bus)
    publishing.send(encoded_batch(1, message()))
    assert (await publishing.answer()).accepted_count == 1
    await bus.server.drain()
    refusal = await refusal_of(publishing.answer())
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, ErrorReason.DRAINING)


async def test_batch_without_anybody_to_acknowledge_it_ends_the_stream(
    bus: Any, message: Build, refusal_of: Any
) -> None:
    publishing = Publishing(bus)
    publishing.send(encoded_batch(1, message(), assurance=ACKNOWLEDGED))
    refusal = await refusal_of(publishing.answer())
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, ErrorReason.NO_SUBSCRIBER)


async def test_batch_is_answered_once_everybody_has_acknowledged(bus: Any, group: Build) -> None:
    first = await bus.subscribe("events.#", delivery_guarantee=AT_LEAST_ONCE)
    second = await bus.subscribe("events.#", delivery_guarantee=AT_LEAST_ONCE)
    watching = await bus.subscribe("events.#")
    publishing = Publishing(bus)
    publishing.send(encoded_batch(1, groups=[group(count=3)], assurance=ACKNOWLEDGED))
    answer = asyncio.ensure_future(publishing.answer())
    for stream in (watching, first, second):
        assert (await stream.batch()).position == 3
    assert not (await first.ask(ack=pb.AckDeliveries(position=3))).HasField("error")
    assert not (await second.ask(ack=pb.AckDeliveries(position=2))).HasField("error")
    assert not answer.done()
    second.send(ack=pb.AckDeliveries(position=3))
    assert (await answer).routed_count == 9


async def test_batch_is_refused_when_whoever_should_acknowledge_it_leaves(
    bus: Any, message: Build, refusal_of: Any
) -> None:
    stream = await bus.subscribe("events.#", delivery_guarantee=AT_LEAST_ONCE)
    publishing = Publishing(bus)
    publishing.send(encoded_batch(1, message(), assurance=ACKNOWLEDGED))
    await stream.batch()
    stream.call.cancel()
    refusal = await refusal_of(publishing.answer())
    assert (refusal.code, refusal.reason) == (Code.UNAVAILABLE, ErrorReason.NO_SUBSCRIBER)


async def test_repeat_of_a_batch_waits_for_the_acknowledgement_of_the_first_copy(
    bus: Any, group: Build
) -> None:
    stream = await bus.subscribe(
        "events.#", delivery_guarantee=AT_LEAST_ONCE, duplicate_handling=DROP_DUPLICATES
    )
    batch = encoded_batch(
        1, groups=[group(count=3, source_epoch=1, first_sequence=1)], assurance=ACKNOWLEDGED
    )
    lost = Publishing(bus)
    lost.send(batch)
    assert (await stream.batch()).position == 3
    lost.call.cancel()
    publishing = Publishing(bus)
    publishing.send(batch)
    answer = asyncio.ensure_future(publishing.answer())
    assert not (await stream.ask(ack=pb.AckDeliveries(position=2))).HasField("error")
    assert not answer.done()
    stream.send(ack=pb.AckDeliveries(position=3))
    assert (await answer).accepted_count == 3
    flow = (await bus.stats()).flow
    assert (flow.offered_count, flow.delivered_count, flow.filtered_count) == (6, 3, 3)
