"""Events on their way through the log: in order, once in each life, and again on demand."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from collector_core.bus.wire import iter_frames
from collector_core.delivery import Delivery, DeliveryBounds, Pressure
from collector_core.event import Event, EventClass
from collector_core.wal import EventLog, LogUnwritableError, WalLimits
from daemoneye.eventbus.v1 import event_data_pb2
from daemoneye_mesh.errors import InvalidRequestError, OverloadedError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

LIMITS = WalLimits(max_bytes=64 << 20, segment_bytes=1 << 20)
ROOMY = DeliveryBounds(LIMITS, outbox_messages=100_000, outbox_bytes=32 << 20)
TIGHT = DeliveryBounds(LIMITS, outbox_messages=2_500, outbox_bytes=1 << 20)
GUARD_S = 20


@pytest.fixture
def open_log(tmp_path: Path) -> Iterator[Callable[[], EventLog]]:
    opened: list[EventLog] = []

    def open_it() -> EventLog:
        opened.append(EventLog.open(tmp_path / "wal", LIMITS, boot_id="boot"))
        return opened[-1]

    yield open_it
    for event_log in opened:
        event_log.close()


@asynccontextmanager
async def running(
    event_log: EventLog, bounds: DeliveryBounds = ROOMY, trouble: Any = lambda text: None
) -> AsyncIterator[Delivery]:
    delivery = Delivery("unit", event_log, bounds, Pressure(0.7, 0.5), trouble)
    task = asyncio.create_task(delivery.run())
    try:
        async with asyncio.timeout(GUARD_S):
            yield delivery
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def event(name: str = "x", event_class: EventClass = EventClass.LIFECYCLE) -> Event:
    data = event_data_pb2.ProcessEventData()
    data.process.name = name
    return Event("events.process.lifecycle", data, event_class=event_class)


async def put(delivery: Delivery, count: int) -> None:
    for _ in range(count):
        await delivery.put(event())


async def publish(delivery: Delivery, count: int) -> list[int]:
    """Plays the publisher: takes and settles until so many events have passed."""
    sequences: list[int] = []
    while len(sequences) < count:
        await delivery.outbox.wait_waiting(1)
        batch = delivery.outbox.take(2_000, 256 << 10)
        assert batch is not None
        for group in batch.groups:
            assert group.count == sum(1 for _ in iter_frames(group.block))
            sequences += range(group.first_sequence, group.next_sequence)
        delivery.outbox.settle(batch.batch_id)
    return sequences


async def ask_for_each(delivery: Delivery, sequences: range) -> None:
    for sequence in sequences:
        await delivery.replay(delivery.epoch, sequence, sequence)


async def test_events_are_published_in_order_once_they_are_in_the_log(open_log: Any) -> None:
    event_log = open_log()
    async with running(event_log) as delivery:
        await put(delivery, 500)
        assert await publish(delivery, 500) == list(range(1, 501))
        assert event_log.last_sequence == 500
        assert delivery.emitted_count == delivery.logged_count == 500


async def test_events_beyond_the_outbox_are_read_from_disk_in_order(open_log: Any) -> None:
    async with running(open_log(), TIGHT) as delivery:
        await put(delivery, 10_000)
        await delivery.flush()
        assert delivery.outbox.pending_count <= TIGHT.outbox_messages
        assert await publish(delivery, 10_000) == list(range(1, 10_001))


async def test_next_life_publishes_what_was_not_acknowledged(open_log: Any) -> None:
    first = open_log()
    async with running(first) as delivery:
        await put(delivery, 100)
        await publish(delivery, 100)
        await delivery.acknowledge(first.epoch, 40)
    first.close()
    second = open_log()
    async with running(second) as delivery:
        await put(delivery, 10)
        assert second.epoch == first.epoch
        assert await publish(delivery, 70) == list(range(41, 111))


async def test_replay_publishes_a_range_again(open_log: Any) -> None:
    event_log = open_log()
    async with running(event_log) as delivery:
        await put(delivery, 100)
        await publish(delivery, 100)
        answer = await delivery.replay(event_log.epoch, 20, 29)
        assert (answer.first_sequence, answer.last_sequence, answer.losses) == (20, 29, ())
        assert await publish(delivery, 10) == list(range(20, 30))
        assert delivery.replayed_count == 10


async def test_replay_says_what_was_acknowledged_and_is_gone(open_log: Any) -> None:
    event_log = open_log()
    async with running(event_log) as delivery:
        await put(delivery, 100)
        await publish(delivery, 100)
        await delivery.acknowledge(event_log.epoch, 50)
        answer = await delivery.replay(event_log.epoch, 1, 0)
        assert (answer.first_sequence, answer.last_sequence) == (51, 100)
        assert await publish(delivery, 50) == list(range(51, 101))


@pytest.mark.parametrize(("first", "last"), [(0, 5), (7, 6)])
async def test_replay_refuses_what_is_no_range(open_log: Any, first: int, last: int) -> None:
    event_log = open_log()
    async with running(event_log) as delivery:
        with pytest.raises(InvalidRequestError, match="no range"):
            await delivery.replay(event_log.epoch, first, last)


async def test_replay_of_a_foreign_epoch_is_refused(open_log: Any) -> None:
    event_log = open_log()
    async with running(event_log) as delivery:
        with pytest.raises(InvalidRequestError, match="not in the log"):
            await delivery.replay(event_log.epoch + 1, 1, 2)


async def test_too_many_replays_are_refused(open_log: Any) -> None:
    event_log = open_log()
    async with running(event_log, DeliveryBounds(LIMITS, 1_000, 2 << 20)) as delivery:
        await put(delivery, 2_000)
        await delivery.flush()
        with pytest.raises(OverloadedError, match="ask again later"):
            await ask_for_each(delivery, range(100, 300))
        await publish(delivery, 2_000)


async def test_log_that_cannot_be_written_makes_events_wait(
    open_log: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr("collector_core.delivery.committer.RETRY_S", 0.01)
    event_log, troubles = open_log(), []
    is_full = True
    append = event_log.append

    def fail_while_full(groups: Any) -> None:
        if is_full:
            raise LogUnwritableError("no space left on device; make room")
        append(groups)

    monkeypatch.setattr(event_log, "append", fail_while_full)
    async with running(event_log, trouble=troubles.append) as delivery:
        delivery._committer._retry_s = 0.01
        await put(delivery, 100)
        await eventually(lambda: troubles)
        assert delivery.pending_count == 100
        assert delivery.outbox.pending_count == 0
        is_full = False
        assert await publish(delivery, 100) == list(range(1, 101))
        assert troubles == ["no space left on device; make room", ""]


async def test_cancelled_source_leaves_no_hole_in_the_sequence(open_log: Any) -> None:
    async with running(open_log()) as delivery:
        tasks = [asyncio.create_task(delivery.put(event(str(number)))) for number in range(50)]
        for task in tasks[::3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        kept = delivery.emitted_count
        assert await publish(delivery, kept) == list(range(1, kept + 1))


async def test_pressure_leaves_out_lossy_events_and_counts_them(open_log: Any) -> None:
    async with running(open_log()) as delivery:
        delivery.pressure.note(0.9)
        await delivery.put(event("a", EventClass.SAMPLE))
        await delivery.put(event("b", EventClass.METADATA))
        await delivery.put(event("c"))
        assert await publish(delivery, 1) == [1]
        assert delivery.dropped_count == {"shed_sample": 1, "shed_metadata": 1}
        assert delivery.emitted_count == 3 == delivery.logged_count + 2


async def test_refused_events_are_losses_of_the_log(open_log: Any, eventually: Any) -> None:
    event_log = open_log()
    async with running(event_log) as delivery:
        await put(delivery, 10)
        await delivery.flush()
        await delivery.outbox.wait_waiting(1)
        batch = delivery.outbox.take(1_000, 1 << 20)
        assert batch is not None
        delivery.outbox.settle(batch.batch_id, "TOPIC_INVALID")
        await eventually(lambda: event_log.lost_count.total() == batch.count)
        answer = await delivery.replay(event_log.epoch, 1, 0)
        assert [(one.first_sequence, one.reason) for one in answer.losses] == [(1, "refused")]


async def test_sync_that_fails_is_told_and_tried_again(
    open_log: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    event_log, troubles = open_log(), []
    is_failing = True

    def fail_or_not() -> None:
        if is_failing:
            raise LogUnwritableError("no space left on device; make room")

    monkeypatch.setattr(event_log, "sync", fail_or_not)
    async with running(event_log, trouble=troubles.append) as delivery:
        syncing = asyncio.create_task(delivery.sync_every(lambda: 0.001))
        await eventually(lambda: troubles)
        assert delivery.trouble == "no space left on device; make room"
        is_failing = False
        await eventually(lambda: delivery.trouble == "")
        assert troubles == ["no space left on device; make room", ""]
        syncing.cancel()


async def test_log_that_cannot_be_read_is_told_and_read_again(
    open_log: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr("collector_core.delivery.feeder.RETRY_S", 0.001)
    event_log, troubles = open_log(), []
    read, failures = event_log.read, [LogUnwritableError("damaged; make room")] * 2

    def fail_twice(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return read(*args)

    async with running(event_log, trouble=troubles.append) as delivery:
        await put(delivery, 10)
        await publish(delivery, 10)
        monkeypatch.setattr(event_log, "read", fail_twice)
        await delivery.replay(event_log.epoch, 3, 5)
        assert await publish(delivery, 3) == [3, 4, 5]
        await eventually(lambda: troubles == ["damaged; make room", ""])


async def test_bounds_that_cannot_be_applied_leave_the_old_ones(
    open_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    event_log = open_log()

    def refuse(limits: WalLimits) -> None:
        raise LogUnwritableError("no space left on device; make room")

    async with running(event_log) as delivery:
        await put(delivery, 100)
        await delivery.flush()
        before = delivery.measure_fill()
        monkeypatch.setattr(event_log, "apply_limits", refuse)
        with pytest.raises(LogUnwritableError):
            await delivery.apply_limits(WalLimits(max_bytes=4 << 20, segment_bytes=1 << 20))
        assert delivery.measure_fill() == before
