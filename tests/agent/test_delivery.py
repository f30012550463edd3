"""What is stored is acknowledged and what is missing sent again, with a store and fake collectors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from daemoneye.ipc.v1 import collector_service_pb2, event_log_pb2, ipc_pb2
from daemoneye_agent.alert import Recorded
from daemoneye_agent.delivery import Delivery
from daemoneye_agent.event import EVENT_INSERT_COLUMNS, EventRow, SqlValue
from daemoneye_agent.log_position import LogPosition
from daemoneye_agent.loss import LossReason, Shortfall
from daemoneye_agent.registry import (
    CollectorRegistry,
    Heartbeat,
    RegistrationRequest,
    ReportedHealth,
)
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.errors import InvalidRequestError, UnavailableError, UnsupportedError

Eventually = Callable[..., Awaitable[None]]
ReplayResponse = collector_service_pb2.ReplayResponse

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


def make_row(sequence: int, source: str = "procmond", epoch: int = 1) -> EventRow:
    values: dict[str, SqlValue] = dict.fromkeys(EVENT_INSERT_COLUMNS)
    values.update(source_id=source, source_epoch=epoch, source_sequence=sequence, time_ns=1)
    return tuple(values[name] for name in EVENT_INSERT_COLUMNS)


@dataclass
class FakeLog:
    """A collector with a log; ``held`` is what it can send again."""

    held: range = range(1, 10_000)
    supports_replay: bool = True
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    asked: list[tuple[int, int, int]] = field(default_factory=list)
    errors: dict[str, Exception] = field(default_factory=dict)
    hang: asyncio.Event | None = None


class FakeClients:
    """Calls to fake logs; what is replayed goes into the store as if it came by the bus."""

    def __init__(self, mesh: "Mesh") -> None:
        self.mesh = mesh
        self.logs: dict[str, FakeLog] = {}

    async def negotiate(self, collector_id: str) -> ipc_pb2.CapabilityResponse:
        log = self.logs[collector_id]
        if error := log.errors.get("negotiate"):
            raise error
        return ipc_pb2.CapabilityResponse(supports_replay=log.supports_replay)

    async def acknowledge(self, collector_id: str, epoch: int, sequence: int) -> int:
        log = self.logs[collector_id]
        if error := log.errors.pop("acknowledge", None):
            raise error
        log.acknowledged.append((epoch, sequence))
        return sequence

    async def replay(self, collector_id: str, epoch: int, first: int, last: int) -> ReplayResponse:
        log = self.logs[collector_id]
        log.asked.append((epoch, first, last))
        if log.hang:
            await log.hang.wait()
        if error := log.errors.pop("replay", None):
            raise error
        sent = [number for number in range(first, last + 1) if number in log.held]
        await self.mesh.ingest(*sent, source=collector_id, epoch=epoch)
        answer = ReplayResponse(from_sequence=max(first, log.held.start), to_sequence=last)
        if not sent:
            answer.to_sequence = 0
        return answer


@dataclass
class Mesh:
    """Everything around one delivery."""

    store: StoreThread
    alerts: list[Recorded] = field(default_factory=list)
    shortfall: Shortfall = field(default_factory=Shortfall)
    is_subscribed: bool = True
    now_s: float = 0.0
    lease_s: float = 0.0
    beats: int = 0

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry(lambda: self.lease_s)
        self.clients = FakeClients(self)
        self.delivery = Delivery(
            store=self.store,
            registry=self.registry,
            clients=self.clients,
            reports=self,
            is_subscribed=lambda: self.is_subscribed,
            clock=lambda: self.now_s,
        )

    def announce(self, alerts: Iterable[Recorded]) -> None:
        self.alerts += alerts

    def note_shortfall(self, shortfall: Shortfall) -> None:
        self.shortfall = shortfall

    async def ingest(self, *sequences: int, source: str = "procmond", epoch: int = 1) -> None:
        rows = [make_row(sequence, source, epoch) for sequence in sequences]
        result = await self.store.run(EventStore.ingest, rows)
        self.delivery.note_progress(result.progress)

    def add(self, name: str = "procmond", **log: Any) -> FakeLog:
        self.clients.logs[name] = FakeLog(**log)
        return self.clients.logs[name]

    def register(self, name: str = "procmond") -> None:
        self.registry.register(RegistrationRequest(name, 1), name)

    def beat(
        self,
        *positions: LogPosition,
        name: str = "procmond",
        health: ReportedHealth = ReportedHealth.HEALTHY,
    ) -> None:
        self.beats += 1
        beat = Heartbeat(name, 1, self.beats, health, log_positions=positions)
        self.registry.heartbeat(beat, name)

    async def losses(self) -> list[tuple[int, int, str, str]]:
        def work(store: EventStore) -> list[Any]:
            return store._connection.execute(
                "SELECT first_sequence, last_sequence, state, reason FROM event_losses"
            ).fetchall()

        return await self.store.run(work)


@pytest.fixture
async def mesh(store: StoreThread) -> Mesh:
    return Mesh(store)


@pytest.fixture
async def run(mesh: Mesh) -> AsyncIterator[Callable[[], None]]:
    """Starts the delivery of the mesh, once."""
    tasks: list[asyncio.Task[None]] = []
    yield lambda: tasks.append(asyncio.get_running_loop().create_task(mesh.delivery.run()))
    for task in tasks:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def log_at(last: int, first: int = 1, epoch: int = 1, acknowledged: int = 0) -> LogPosition:
    return LogPosition(epoch, first, last, acknowledged)


async def test_what_is_stored_is_acknowledged_and_a_gap_sent_again(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    log = mesh.add()
    run()
    await asyncio.sleep(0)
    mesh.register()
    mesh.beat(log_at(0))
    await eventually(lambda: mesh.delivery.is_active("procmond"))
    await mesh.ingest(1, 2, 7)
    await eventually(lambda: log.asked == [(1, 3, 6)])
    await eventually(lambda: (1, 2) in log.acknowledged or (1, 7) in log.acknowledged)
    mesh.now_s += 1
    mesh.delivery.note_opened()
    await eventually(lambda: log.acknowledged[-1] == (1, 7))
    assert await mesh.losses() == []
    assert (mesh.alerts, mesh.delivery.counters.replays) == ([], 1)


async def test_agent_that_comes_back_begins_with_what_it_has_stored(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    await mesh.store.run(EventStore.expect_replay, "procmond", True)
    await mesh.ingest(1, 2, 5)
    log = mesh.add()
    mesh.register()
    mesh.beat(log_at(5))
    run()
    await eventually(lambda: log.asked == [(1, 3, 4)])
    await eventually(lambda: log.acknowledged)
    mesh.now_s += 1
    mesh.delivery.note_opened()
    await eventually(lambda: log.acknowledged[-1] == (1, 5))


async def test_range_lost_before_the_collector_registered_is_opened_and_sent_again(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    await mesh.ingest(9)
    assert [row[2] for row in await mesh.losses()] == ["lost"]
    log = mesh.add()
    run()
    mesh.register()
    mesh.beat(log_at(9))
    await eventually(lambda: log.asked == [(1, 1, 8)])
    await eventually(lambda: log.acknowledged and log.acknowledged[-1] == (1, 9))
    assert await mesh.losses() == []


async def test_what_the_log_does_not_have_is_lost_alerted_and_told(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    log = mesh.add(held=range(5, 100))
    run()
    mesh.register()
    mesh.beat(log_at(0))
    await eventually(lambda: mesh.delivery.is_active("procmond"))
    await mesh.ingest(9)
    await eventually(lambda: mesh.alerts)
    assert await mesh.losses() == [(1, 4, "lost", LossReason.LET_GO)]
    ((alert, is_new),) = mesh.alerts
    assert (alert.rule_id, is_new) == ("events_lost", True)
    await eventually(lambda: mesh.shortfall == Shortfall(4, 0))
    assert mesh.delivery.counters.settled_events == 4
    mesh.now_s += 1
    mesh.delivery.note_opened()
    await eventually(lambda: log.acknowledged[-1] == (1, 9))


async def test_source_without_a_log_settles_what_is_open(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    log = mesh.add(supports_replay=False)
    await mesh.store.run(EventStore.expect_replay, "procmond", True)
    await mesh.ingest(1, 3)
    run()
    mesh.register()
    await eventually(lambda: mesh.alerts)
    assert await mesh.losses() == [(2, 2, "lost", LossReason.NO_LOG)]
    assert (log.asked, log.acknowledged) == ([], [])


@pytest.mark.parametrize("call", ["replay", "acknowledge"])
async def test_collector_that_takes_back_its_offer_keeps_no_log(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually, call: str
) -> None:
    log = mesh.add()
    await mesh.store.run(EventStore.expect_replay, "procmond", True)
    await mesh.ingest(1, 3)
    log.errors[call] = UnsupportedError("no log; ask no more")
    log.held = range(0)
    run()
    mesh.register()
    mesh.beat(log_at(3))
    await eventually(lambda: mesh.alerts)
    (row,) = await mesh.losses()
    assert row[:3] == (2, 2, "lost")


async def test_collector_that_stays_away_is_given_up_and_asked_when_it_is_back(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    log = mesh.add()
    await mesh.store.run(EventStore.expect_replay, "procmond", True)
    await mesh.ingest(1, 3)
    run()
    await eventually(lambda: "procmond" in mesh.delivery._links)
    mesh.now_s += 61
    await eventually(lambda: mesh.alerts)
    assert await mesh.losses() == [(2, 2, "lost", LossReason.AWAY)]
    assert mesh.shortfall == Shortfall(1, 0)
    mesh.register()
    mesh.beat(log_at(3))
    await eventually(lambda: log.asked == [(1, 2, 2)])
    await eventually(lambda: log.acknowledged)
    assert log.acknowledged[0][1] in {1, 3}, "never past what is open"
    assert await mesh.losses() == []


async def test_collector_that_says_it_fails_is_still_told_what_is_stored(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    log = mesh.add()
    run()
    mesh.register()
    mesh.beat(log_at(0), health=ReportedHealth.UNHEALTHY)
    await eventually(lambda: mesh.delivery.is_active("procmond"))
    await mesh.ingest(1)
    await eventually(lambda: log.acknowledged == [(1, 1)])
    mesh.lease_s += 100
    await eventually(lambda: not mesh.delivery.is_active("procmond"))


async def test_collector_that_says_good_bye_is_away(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    mesh.add()
    run()
    mesh.register()
    mesh.beat(log_at(0))
    await eventually(lambda: mesh.delivery.is_active("procmond"))
    mesh.registry.deregister("procmond", 1, "procmond")
    await eventually(lambda: not mesh.delivery.is_active("procmond"))


async def test_epoch_that_the_collector_does_not_know_is_given_up(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    log = mesh.add()
    await mesh.store.run(EventStore.expect_replay, "procmond", True)
    await mesh.ingest(1, 3)
    await mesh.ingest(1, epoch=2)
    log.errors["replay"] = InvalidRequestError("epoch 1 never was")
    run()
    mesh.register()
    mesh.beat(log_at(1, epoch=2))
    await eventually(lambda: mesh.alerts)
    assert await mesh.losses() == [(2, 2, "lost", LossReason.UNKNOWN_EPOCH)]


async def test_tail_that_was_lost_is_asked_for(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    log = mesh.add()
    run()
    mesh.register()
    mesh.beat(log_at(0))
    await eventually(lambda: mesh.delivery.is_active("procmond"))
    await mesh.ingest(1)
    mesh.beat(log_at(4))
    plan = mesh.delivery._links["procmond"].plan
    await eventually(lambda: plan._positions and plan._positions[0].last_sequence == 4)
    mesh.now_s += 3
    await eventually(lambda: log.asked == [(1, 2, 4)])


async def test_hanging_collector_delays_neither_another_nor_its_own_acknowledgements(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    slow = mesh.add("slow", hang=asyncio.Event())
    quick = mesh.add("quick")
    run()
    for name in ("slow", "quick"):
        await mesh.store.run(EventStore.expect_replay, name, True)
        await mesh.ingest(1, 3, source=name)
        mesh.register(name)
        mesh.beat(log_at(3), name=name)
    await eventually(lambda: slow.asked and quick.asked)
    await eventually(lambda: slow.acknowledged and quick.acknowledged)
    assert slow.hang is not None
    slow.hang.set()


async def test_failed_calls_are_tried_again(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually
) -> None:
    log = mesh.add()
    gone = UnavailableError("nobody answers; start it")
    log.errors = {"negotiate": gone, "acknowledge": gone, "replay": gone}
    run()
    await mesh.store.run(EventStore.expect_replay, "procmond", True)
    await mesh.ingest(1, 3)
    mesh.register()
    mesh.beat(log_at(3))
    await eventually(lambda: mesh.delivery._links["procmond"].plan._pace.attempts)
    log.errors.pop("negotiate")

    def is_told_after_a_second_more() -> bool:
        mesh.now_s += 1
        mesh.delivery.note_opened()
        return bool(log.acknowledged) and log.acknowledged[-1] == (1, 3)

    await eventually(is_told_after_a_second_more)
    assert log.errors == {}
    assert len(log.asked) >= 2


async def test_store_that_refuses_is_asked_again(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    from daemoneye_agent.store_file import StoreFailedError

    refusals = [StoreFailedError("event store: the disk is full; free space")]
    settle = EventStore.settle_source

    def refuse_once(store: EventStore, source_id: str, reason: str) -> Any:
        if refusals:
            raise refusals.pop()
        return settle(store, source_id, reason)

    monkeypatch.setattr(EventStore, "settle_source", refuse_once)
    await mesh.store.run(EventStore.expect_replay, "procmond", True)
    await mesh.ingest(1, 3)
    run()
    await eventually(lambda: "procmond" in mesh.delivery._links)
    mesh.now_s += 61
    mesh.delivery.note_opened()
    await eventually(lambda: not refusals)
    mesh.now_s += 5
    mesh.delivery.note_opened()
    await eventually(lambda: mesh.alerts)


async def test_answer_with_absurd_numbers_harms_nobody(
    mesh: Mesh, run: Callable[[], None], eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh.add()
    top = 2**64 - 1
    loss = event_log_pb2.EventLoss(first_sequence=top, last_sequence=top, reason=99)  # type: ignore[arg-type]
    answer = ReplayResponse(from_sequence=top, to_sequence=top, losses=[loss])

    async def replay(*_: object) -> ReplayResponse:
        return answer

    monkeypatch.setattr(mesh.clients, "replay", replay)
    await mesh.store.run(EventStore.expect_replay, "procmond", True)
    await mesh.ingest(1, 5)
    run()
    mesh.register()
    mesh.beat(log_at(5))
    await eventually(lambda: mesh.alerts)
    (row,) = await mesh.losses()
    assert row[:3] == (2, 4, "lost")
