import asyncio
import time

import pytest

from collector_core.bus import (
    BusPublisher,
    LinkState,
    MessageTooLargeError,
    Outbox,
    PublishAssurance,
)
from collector_core.bus.publisher import PACED_BELOW_MESSAGES, WINDOW_BATCHES
from collector_core.event import Sequencer
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_mesh.errors import (
    ErrorReason,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    RateLimitedError,
    UnavailableError,
)

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15


@pytest.fixture
def outbox():
    return Outbox(100_000, 32 << 20)


@pytest.fixture
def publisher(connect, mesh_identity, outbox):
    return BusPublisher(connect(mesh_identity.layout.eventbus_socket), outbox)


@pytest.fixture
def put(outbox, new_event):
    """Numbers events and puts them into the outbox."""
    sequencer = Sequencer("unit", 1)

    async def put_some(count, command=""):
        for _ in range(count):
            await outbox.put(sequencer.encode(new_event(sequencer.sequence + 1, command)))
            sequencer.advance()

    return put_some


async def empty(outbox):
    async with asyncio.timeout(GUARD_S):
        await outbox.wait_empty()


async def test_events_arrive_in_order_and_in_batches(
    broker, serve, publisher, outbox, put, running
):
    await serve(broker)
    await put(5_000)
    running(publisher.run())
    await empty(outbox)
    assert broker.sequences == list(range(1, 5_001))
    assert len(broker.batches) < 50
    assert outbox.published_count == 5_000


async def test_batches_in_flight_are_bounded_and_one_answer_releases_them_all(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    broker.is_held = lambda request: request.batch_id < WINDOW_BATCHES
    await serve(broker)
    running(publisher.run())
    for number in range(WINDOW_BATCHES - 1):
        await put(PACED_BELOW_MESSAGES)
        await eventually(lambda number=number: len(broker.batches) == number + 1)
    assert outbox.in_flight_count == WINDOW_BATCHES - 1
    assert outbox.published_count == 0
    await put(PACED_BELOW_MESSAGES)
    await empty(outbox)
    assert outbox.published_count == WINDOW_BATCHES * PACED_BELOW_MESSAGES
    assert broker.sequences == list(range(1, outbox.published_count + 1))


async def test_no_more_batches_are_in_flight_than_the_window_holds(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    broker.answering.clear()
    await serve(broker)
    running(publisher.run())
    for number in range(WINDOW_BATCHES):
        await put(PACED_BELOW_MESSAGES)
        await eventually(lambda number=number: outbox.in_flight_count == number + 1)
    await put(PACED_BELOW_MESSAGES + 1)
    broker.answering.set()
    await empty(outbox)
    sizes = [len(unpacked) for unpacked in map(broker.unpack, broker.batches)]
    assert sizes == [PACED_BELOW_MESSAGES] * WINDOW_BATCHES + [PACED_BELOW_MESSAGES + 1]


async def test_few_messages_after_a_write_wait_for_more_but_not_for_long(
    *, broker, serve, publisher, outbox, put, running, monkeypatch, eventually
):
    monkeypatch.setattr("collector_core.bus.publisher.PACE_S", 0.2)
    monkeypatch.setattr("collector_core.bus.publisher.PACE_SLACK_S", 0.0)
    await serve(broker)
    running(publisher.run())
    await put(1)
    await eventually(lambda: broker.batches)
    for _ in range(5):
        await put(1)
        await asyncio.sleep(0)
    await empty(outbox)
    assert [len(broker.unpack(batch)) for batch in broker.batches] == [1, 5]


async def test_many_messages_do_not_wait_for_the_pace(
    *, broker, serve, publisher, outbox, put, running, monkeypatch, eventually
):
    monkeypatch.setattr("collector_core.bus.publisher.PACE_S", 1_000.0)
    monkeypatch.setattr("collector_core.bus.publisher.PACE_SLACK_S", 0.0)
    await serve(broker)
    running(publisher.run())
    await put(1)
    await eventually(lambda: broker.batches)
    await put(PACED_BELOW_MESSAGES)
    await empty(outbox)
    assert len(broker.batches) == 2


async def test_batch_ids_rise_within_a_stream(broker, serve, publisher, outbox, put, running):
    await serve(broker)
    await put(9_000)
    running(publisher.run())
    await empty(outbox)
    numbers = [batch.batch_id for batch in broker.batches]
    assert numbers == sorted(set(numbers))


async def test_large_events_go_out_in_requests_of_bounded_size(
    broker, serve, publisher, outbox, put, running
):
    await serve(broker)
    await put(20, "x" * 100_000)
    running(publisher.run())
    await empty(outbox)
    assert max(batch.ByteSize() for batch in broker.batches) < 300_000
    assert broker.sequences == list(range(1, 21))


async def test_unanswered_batches_are_sent_again_when_the_broker_is_back(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    broker.answering.clear()
    first = await serve(broker)
    await put(10)
    running(publisher.run())
    await eventually(lambda: broker.batches)
    await first.drain(0)
    await eventually(lambda: not publisher.is_connected, "the loss is noticed")
    assert outbox.published_count == 0
    await put(10)
    broker.answering.set()
    broker.accepted.clear()  # what the dead broker took died with it
    await serve(broker)
    await empty(outbox)
    assert broker.sequences == list(range(1, 21))
    assert outbox.published_count == 20


async def test_events_wait_for_a_broker_that_comes_later(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    await put(3)
    running(publisher.run())
    assert not publisher.is_connected
    await serve(broker)
    await empty(outbox)
    assert broker.sequences == [1, 2, 3]
    assert publisher.is_connected


async def test_stream_that_the_broker_ends_is_opened_again(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    broker.denial = PermissionDeniedError("not now")
    await serve(broker)
    await put(3)
    task = running(publisher.run())
    await eventually(lambda: broker.streams >= 2, "another try")
    assert not task.done()
    broker.denial = None
    await empty(outbox)
    assert broker.sequences == [1, 2, 3]


async def test_refused_batch_is_counted_and_the_stream_goes_on(
    *, broker, serve, publisher, outbox, put, running, caplog
):
    def refuse_first(request):
        if broker.unpack(request)[0].metadata.source_sequence == 1:
            return InvalidRequestError("bad topic; fix it", reason=ErrorReason.TOPIC_INVALID)
        return None

    broker.refusal = refuse_first
    await serve(broker)
    await put(1)
    running(publisher.run())
    await empty(outbox)
    await put(5)
    await empty(outbox)
    assert outbox.refused_count == {"TOPIC_INVALID": 1}
    assert outbox.published_count == 5
    assert broker.sequences == [2, 3, 4, 5, 6]
    assert broker.streams == 1
    assert "refused 1 events" in caplog.text


async def test_refusal_is_about_its_batch_and_those_before_it_were_accepted(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    broker.is_held = lambda request: True
    await serve(broker)
    running(publisher.run())
    await put(PACED_BELOW_MESSAGES)
    await eventually(lambda: broker.batches)
    broker.refusal = lambda _: InvalidRequestError("bad", reason=ErrorReason.TOPIC_INVALID)
    await put(PACED_BELOW_MESSAGES)
    await empty(outbox)
    assert outbox.published_count == PACED_BELOW_MESSAGES
    assert outbox.refused_count == {"TOPIC_INVALID": PACED_BELOW_MESSAGES}


@pytest.mark.parametrize("hook", ["refusal", "ending"])
async def test_batch_refused_for_a_reason_that_passes_goes_out_again(
    *, broker, serve, publisher, outbox, put, running, hook
):
    def refuse_once(request):
        setattr(broker, hook, lambda _: None)
        return OverloadedError("too much at once; send it again later")

    setattr(broker, hook, refuse_once)
    await serve(broker)
    await put(3)
    running(publisher.run())
    await empty(outbox)
    assert not outbox.refused_count
    assert outbox.published_count == 3
    assert broker.sequences == [1, 2, 3]
    assert broker.streams == 2


async def test_what_was_accepted_before_a_passing_refusal_is_not_sent_again(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    broker.is_held = lambda request: True
    await serve(broker)
    running(publisher.run())
    await put(PACED_BELOW_MESSAGES)
    await eventually(lambda: broker.batches)

    def refuse_once(request):
        broker.refusal = broker.is_held = lambda _: None
        return UnavailableError("nobody acknowledges", reason=ErrorReason.NO_SUBSCRIBER)

    broker.refusal = refuse_once
    await put(PACED_BELOW_MESSAGES)
    await empty(outbox)
    assert broker.sequences == list(range(1, 2 * PACED_BELOW_MESSAGES + 1))
    assert outbox.published_count == 2 * PACED_BELOW_MESSAGES


@pytest.mark.parametrize("hook", ["refusal", "ending"])
async def test_rate_limited_publisher_comes_back_when_it_was_told_to(
    *, broker, serve, publisher, outbox, put, running, hook
):
    times_s = []

    def limit_once(request):
        times_s.append(time.monotonic())
        setattr(broker, hook, lambda _: times_s.append(time.monotonic()))
        return RateLimitedError("too fast; wait", retry_after_s=0.7)

    setattr(broker, hook, limit_once)
    await serve(broker)
    await put(50_000)  # writes are under way when the refusal comes
    running(publisher.run())
    await empty(outbox)
    assert times_s[1] - times_s[0] >= 0.7
    assert broker.sequences == list(range(1, 50_001))
    assert broker.streams == 2


async def test_limits_of_the_broker_are_kept_to(
    *, broker, serve, publisher, outbox, put, running, new_event, caplog
):
    broker.limits = {
        "max_message_bytes": 2_000,
        "max_batch_bytes": 5_000,
        "max_batch_messages": 7,
    }
    await serve(broker)
    await put(100)
    await put(3, "x" * 1_500)
    await put(2, "x" * 4_000)
    running(publisher.run())
    await empty(outbox)
    assert max(batch.ByteSize() for batch in broker.batches) <= 5_000
    assert max(len(broker.unpack(batch)) for batch in broker.batches) == 7
    assert broker.sequences == list(range(1, 104))
    assert outbox.refused_count == {"MESSAGE_TOO_LARGE": 2}
    with pytest.raises(MessageTooLargeError):
        await put(1, "x" * 4_000)


async def test_assurance_is_asked_for(
    *, broker, serve, connect, mesh_identity, outbox, put, running
):
    channel = connect(mesh_identity.layout.eventbus_socket)
    publisher = BusPublisher(channel, outbox, PublishAssurance.ACKNOWLEDGED)
    await serve(broker)
    await put(1)
    running(publisher.run())
    await empty(outbox)
    assert broker.batches[0].assurance == eventbus_pb2.PUBLISH_ASSURANCE_ACKNOWLEDGED


async def test_states_are_told_in_order(
    *, broker, serve, connect, mesh_identity, outbox, put, running
):
    states = []
    channel = connect(mesh_identity.layout.eventbus_socket)
    publisher = BusPublisher(channel, outbox, on_state=states.append)
    assert publisher.state is LinkState.IDLE
    server = await serve(broker)
    task = running(publisher.run())
    async with asyncio.timeout(GUARD_S):
        await publisher.wait_for_state(LinkState.READY)
        await server.drain(0)
        await publisher.wait_for_state(LinkState.BACKOFF, LinkState.CONNECTING)
        await serve(broker)
        await publisher.wait_for_state(LinkState.READY)
        await put(1)
        await publisher.drain()
        assert publisher.state is LinkState.DRAINING
        task.cancel()
        await publisher.wait_for_state(LinkState.IDLE)
    assert states == [
        LinkState.CONNECTING,
        LinkState.READY,
        LinkState.BACKOFF,
        LinkState.CONNECTING,
        LinkState.READY,
        LinkState.DRAINING,
        LinkState.IDLE,
    ]


async def test_answer_to_the_wrong_batch_makes_it_connect_again(
    broker, serve, publisher, outbox, put, running
):
    broker.wrong_answers = 1
    await serve(broker)
    await put(5)
    task = running(publisher.run())
    await empty(outbox)
    assert not task.done()
    assert broker.streams == 2
    assert broker.sequences == [1, 2, 3, 4, 5]


async def test_cancelled_publisher_leaves_what_was_not_answered_in_the_outbox(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    broker.answering.clear()
    await serve(broker)
    await put(4)
    task = running(publisher.run())
    await eventually(lambda: broker.batches)
    task.cancel()
    async with asyncio.timeout(GUARD_S):
        await asyncio.wait([task])
    assert task.cancelled()
    assert outbox.pending_count == 4
    assert not publisher.is_connected
