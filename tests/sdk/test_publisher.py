import asyncio

import pytest

from collector_core.event import Sequencer
from collector_core.outbox import Outbox
from collector_core.publisher import HOLD_MESSAGES, WINDOW_BATCHES, BusPublisher
from daemoneye_mesh.errors import (
    ErrorReason,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
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


async def test_what_queued_up_while_an_answer_is_due_goes_out_together(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    broker.answering.clear()
    await serve(broker)
    running(publisher.run())
    await put(1)
    await eventually(lambda: outbox.in_flight_count == 1)
    await put(HOLD_MESSAGES - 1)
    broker.answering.set()
    await empty(outbox)
    assert [len(batch.messages) for batch in broker.batches] == [1, HOLD_MESSAGES - 1]
    assert broker.sequences == list(range(1, HOLD_MESSAGES + 1))


async def test_no_more_batches_are_in_flight_than_the_window_holds(
    *, broker, serve, publisher, outbox, put, running, eventually
):
    broker.answering.clear()
    await serve(broker)
    running(publisher.run())
    for number in range(WINDOW_BATCHES):
        await put(HOLD_MESSAGES)
        await eventually(lambda number=number: outbox.in_flight_count == number + 1)
    await put(HOLD_MESSAGES + 1)
    broker.answering.set()
    await empty(outbox)
    sizes = [len(batch.messages) for batch in broker.batches]
    assert sizes == [HOLD_MESSAGES] * WINDOW_BATCHES + [HOLD_MESSAGES + 1]


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
        if request.messages[0].metadata.source_sequence == 1:
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


async def test_batch_refused_for_a_reason_that_passes_goes_out_again(
    *, broker, serve, publisher, outbox, put, running
):
    def refuse_once(request):
        broker.refusal = lambda _: None
        return OverloadedError("too much at once; send it again later")

    broker.refusal = refuse_once
    await serve(broker)
    await put(3)
    running(publisher.run())
    await empty(outbox)
    assert not outbox.refused_count
    assert outbox.published_count == 3
    assert broker.sequences == [1, 2, 3]
    assert broker.streams == 2


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
