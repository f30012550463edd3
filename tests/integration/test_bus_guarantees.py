"""What the bus promises about tasks, patience, absence and its own end, with real processes."""

import signal
from typing import Any

import pytest
from tests.integration.bus_workers.field import BusField, Log

from daemoneye.common.v1 import error_pb2

pytestmark = pytest.mark.integration

ONE_BY_ONE = {"rate": 1_000, "min_burst": 1, "max_burst": 1}
NO_SUBSCRIBER = error_pb2.ErrorReason.Name(error_pb2.ERROR_REASON_NO_SUBSCRIBER).removeprefix(
    "ERROR_REASON_"
)


def numbers_of(log: Log, word: str) -> list[int]:
    """The tasks that a member has journalled under a word."""
    return [int(entry[1]) for entry in log.of(word)]


def numbers_kept(log: Log) -> list[int]:
    """What came to a keeper for the first time, in order."""
    runs = [(int(entry[2]), int(entry[3])) for entry in log.of("new")]
    return [number for first, count in runs for number in range(first, first + count)]


async def until_opened(bus: BusField, log: Log, times: int = 1) -> None:
    await bus.until(
        lambda: log.read() and log.counts["open"] == times, f"{log.path.stem} has subscribed"
    )


async def test_tasks_of_a_killed_member_are_completed_once_by_another(cold_mesh: Any) -> None:
    async with BusField(cold_mesh) as bus:
        await bus.start_broker()
        holder = await bus.start_subscriber("member", "holder", is_holding=True)
        worker = await bus.start_subscriber("member", "worker", is_holding=False)
        for log in (holder, worker):
            await until_opened(bus, log)
        # While the worker is stopped it gets its share, and the holder holds its own: the publisher has
        # a few batches in flight, and no more before somebody acknowledges.
        bus.signal("worker", signal.SIGSTOP)
        await bus.start_publisher(**ONE_BY_ONE, total=100)
        await bus.until(lambda: len(numbers_of(holder, "held")) > 1, "the holder holds tasks")
        await cold_mesh.kill("holder")
        held = numbers_of(holder, "held")
        bus.signal("worker", signal.SIGCONT)

        assert await bus.finish("publisher") == 0, "every task was acknowledged"
        rows = await bus.subscriptions()
        assert {name: row.flow.delivered_count for name, row in rows.items()} == {"worker": 100}
        assert dict((await bus.stats()).flow.dropped_count)["moved"] >= len(held)
        assert sorted(numbers_of(worker, "done")) == list(range(1, 101))
        assert set(held) <= set(numbers_of(worker, "done"))
        await bus.stop("worker")


async def test_publisher_waits_for_somebody_who_acknowledges(cold_mesh: Any) -> None:
    async with BusField(cold_mesh) as bus:
        await bus.start_broker()
        # Somebody who listens at most once is not enough.
        listener = await bus.start_subscriber("watcher", "listener", options={})
        await until_opened(bus, listener)
        await bus.start_publisher(total=50)

        async def is_refused() -> bool:
            return bool((await bus.stats()).refused_count[NO_SUBSCRIBER])

        await bus.until(is_refused, "the publisher was told that nobody acknowledges")
        assert bus.watermark == 0
        assert not listener.of("got"), "what is refused reaches nobody"

        keeper = await bus.start_subscriber("keeper", "keeper")
        assert await bus.finish("publisher") == 0
        assert bus.watermark == 50
        assert numbers_kept(keeper) == list(range(1, 51))
        await bus.until(lambda: listener.count("got") == 50, "the listener has got it too")


async def test_durable_subscriber_gets_what_came_while_it_was_away(cold_mesh: Any) -> None:
    async with BusField(cold_mesh) as bus:
        await bus.start_broker()
        durable = {"options": {"durable_for_s": 60.0}}
        keeper = await bus.start_subscriber("keeper", "keeper", **durable)
        await until_opened(bus, keeper)
        await cold_mesh.kill("keeper")

        async def is_away() -> bool:
            return not (await bus.subscriptions())["keeper"].is_attached

        await bus.until(is_away, "the broker has noticed")
        await bus.start_publisher(total=1_000, assurance="ACCEPTED")
        assert await bus.finish("publisher") == 0
        assert (await bus.subscriptions())["keeper"].flow.pending_count == 1_000

        await bus.start_subscriber("keeper", "keeper", **durable)
        await bus.until(lambda: keeper.count("new") == 1_000, "everything has come")
        assert numbers_kept(keeper) == list(range(1, 1_001))
        assert not keeper.of("gap", "repeat")
        assert [entry[2] for entry in keeper.of("open")] == ["0", "1"], "the second one went on"
        await bus.stop("keeper")


async def test_durable_subscriber_gets_what_a_new_broker_took_before_it_was_back(
    cold_mesh: Any,
) -> None:
    """The broker is killed; somebody else acknowledges before this one subscribes again."""
    async with BusField(cold_mesh) as bus:
        await bus.start_broker()
        durable = {"options": {"durable_for_s": 60.0, "history_s": 60.0}}
        logs = [await bus.start_subscriber("keeper", name, **durable) for name in ("early", "late")]
        for log in logs:
            await until_opened(bus, log)
        bus.signal("late", signal.SIGSTOP)
        await cold_mesh.kill("eventbus")
        await bus.start_broker()
        await until_opened(bus, logs[0], times=2)
        await bus.start_publisher(total=1_000)
        assert await bus.finish("publisher") == 0
        bus.signal("late", signal.SIGCONT)
        for log in logs:
            await bus.until(lambda log=log: log.count("new") == 1_000, "everything has come")
            assert numbers_kept(log) == list(range(1, 1_001))


async def test_broker_that_is_told_to_stop_delivers_what_is_queued(cold_mesh: Any) -> None:
    total, bounds = 5_000, {"options": {"max_queue_messages": 10_000}}
    async with BusField(cold_mesh) as bus:
        await bus.start_broker()
        watcher = await bus.start_subscriber("watcher", "watcher", **bounds)
        await until_opened(bus, watcher)
        bus.signal("watcher", signal.SIGSTOP)
        # More than fits into the connection of somebody who does not read.
        await bus.start_publisher(
            total=total, assurance="ACCEPTED", rate=total, padding_bytes=1_000
        )
        assert await bus.finish("publisher") == 0
        assert (await bus.subscriptions())["watcher"].flow.pending_count > 0
        bus.signal("eventbus", signal.SIGTERM)
        bus.signal("watcher", signal.SIGCONT)
        assert await bus.finish("eventbus") == 0
        assert not bus.layout.eventbus_socket.exists()
        assert not list(bus.layout.root.glob("*.lock"))
        await bus.until(lambda: watcher.count("got") == total, "all that was queued has come")
        assert not watcher.of("gap")


async def test_second_broker_is_refused_and_disturbs_nobody(cold_mesh: Any) -> None:
    async with BusField(cold_mesh) as bus:
        await bus.start_broker()
        keeper = await bus.start_subscriber("keeper", "keeper")
        await bus.start_publisher()
        await bus.until(lambda: keeper.count("new") > 0, "messages flow")
        first = cold_mesh.processes.pop("eventbus")
        await bus.start_broker()
        assert await bus.finish("eventbus") == 1
        cold_mesh.processes["eventbus"] = first
        assert "SOCKET_UNUSABLE" in (cold_mesh.root / "eventbus.log").read_text()
        reached = keeper.count("new")
        await bus.until(lambda: keeper.count("new") > reached, "messages go on to flow")
        await bus.stop("publisher")
        assert keeper.counts["open"] == 1
        assert numbers_kept(keeper) == list(range(1, bus.watermark + 1))
