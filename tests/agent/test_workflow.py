"""Stored requests reach who can answer them, once each, with a real store and fake collectors."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from daemoneye.common.v1 import analysis_pb2, common_pb2
from daemoneye.eventbus.v1 import event_data_pb2
from daemoneye.ipc.v1 import analysis_pb2 as pb
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_agent.collector_event import CollectorEventRow
from daemoneye_agent.registry import CollectorRegistry, RegistrationRequest
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_file import StoreFailedError
from daemoneye_agent.store_thread import StoreThread
from daemoneye_agent.workflow import ANALYSIS_TIMEOUT_S, MAX_AGE_NS, PAGE, Workflow
from daemoneye_agent.workflow_queue import MAX_ACTIVE, MAX_ORDERS, PATIENCE_S
from daemoneye_mesh.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
    UnsupportedError,
)

Eventually = Callable[..., Awaitable[None]]

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

NOW_NS = 1_790_000_000 * 10**9
HASH = analysis_pb2.ANALYSIS_TYPE_BINARY_HASH
SHA256 = "a" * 64


def build_data(trigger_id: str, target: str = "scanner", **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "trigger_id": trigger_id,
        "target_collector": target,
        "priority": 5,
        "analysis_type": HASH,
        "target": analysis_pb2.AnalysisTarget(path="/bin/x"),
    }
    return event_data_pb2.TriggerEventData(**{**fields, **changes})


def build_row(
    sequence: int, data: Any, source: str = "procmond", time_ns: int = NOW_NS
) -> CollectorEventRow:
    text = json.dumps(MessageToDict(data, preserving_proto_field_name=True))
    topic = "events.process.trigger"
    return CollectorEventRow(source, 1, sequence, time_ns, "t", topic, "trigger", text)


@dataclass
class FakeCollector:
    """What a collector offers and how it answers."""

    limit: int = 4
    analyses: tuple[int, ...] = (HASH,)
    failure: int | None = None
    errors: list[Exception] = field(default_factory=list)
    gate: asyncio.Event | None = None
    asked: list[str] = field(default_factory=list)
    running: int = 0
    most_running: int = 0


class FakeClients:
    """Calls to fake collectors."""

    def __init__(self) -> None:
        self.collectors: dict[str, FakeCollector] = {}
        self.timeouts: set[float] = set()

    async def negotiate(self, collector_id: str) -> ipc_pb2.CapabilityResponse:
        one = self.collectors[collector_id]
        return ipc_pb2.CapabilityResponse(
            supported_analyses=one.analyses,  # type: ignore[arg-type]
            max_concurrent_analyses=one.limit,
        )

    async def analyze(
        self, collector_id: str, request: pb.AnalyzeRequest, timeout_s: float
    ) -> pb.AnalyzeResponse:
        one = self.collectors[collector_id]
        one.asked.append(request.trigger_id)
        self.timeouts.add(timeout_s)
        one.running += 1
        one.most_running = max(one.most_running, one.running)
        try:
            await (one.gate.wait() if one.gate else asyncio.sleep(0))
        finally:
            one.running -= 1
        if one.errors:
            raise one.errors.pop(0)
        answer = pb.AnalyzeResponse(trigger_id=request.trigger_id)
        if one.failure is not None:
            answer.failure.kind = one.failure  # type: ignore[assignment]
            return answer
        answer.result.confidence = 1.0
        answer.result.hashes.append(
            common_pb2.HashResult(algorithm="sha256", hash_value=SHA256, success=True)
        )
        return answer


@dataclass
class Mesh:
    """Everything around one dispatcher."""

    store: StoreThread
    now_s: float = 0.0
    sequence: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clients = FakeClients()
        self.registry = CollectorRegistry(lambda: 0.0)
        self.workflow = self.make_workflow()

    def make_workflow(self) -> Workflow:
        return Workflow(
            store=self.store,
            registry=self.registry,
            clients=self.clients,
            clock=lambda: self.now_s,
            wall_ns=lambda: NOW_NS,
            jitter=lambda: 0.5,
        )

    def add(self, name: str = "scanner", epoch: int = 1, **fields: Any) -> FakeCollector:
        self.clients.collectors[name] = FakeCollector(**fields)
        self.registry.register(RegistrationRequest(name, epoch), name)
        return self.clients.collectors[name]

    async def ingest(self, *data: Any, source: str = "procmond", time_ns: int = NOW_NS) -> None:
        rows = []
        for one in data:
            self.sequence += 1
            rows.append(build_row(self.sequence, one, source, time_ns))
        await self.store.run(EventStore.ingest, rows)
        self.workflow.note_stored()

    def run(self) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(self.workflow.run()))

    async def end(self) -> None:
        while self.tasks:
            task = self.tasks.pop()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def results(self, columns: str = "trigger_id, outcome, error_kind") -> list[Any]:
        def work(store: EventStore) -> list[Any]:
            sql = f"SELECT {columns} FROM analysis_results ORDER BY result_id"
            return store._connection.execute(sql).fetchall()

        return await self.store.run(work)

    async def settled(self) -> int:
        return await self.store.run(lambda store: store.settled_trigger)


@pytest.fixture
async def mesh(store: StoreThread) -> AsyncIterator[Mesh]:
    mesh = Mesh(store)
    yield mesh
    for one in mesh.clients.collectors.values():
        if one.gate:
            one.gate.set()
    await mesh.end()


@pytest.fixture
def until(mesh: Mesh, eventually: Eventually) -> Callable[[int], Awaitable[list[Any]]]:
    """Waits until so many requests are over and returns the results."""

    async def wait(count: int) -> list[Any]:
        counters = mesh.workflow.counters
        await eventually(lambda: counters.recorded.total() == count, "all is recorded")
        return await mesh.results()

    return wait


Until = Callable[[int], Awaitable[list[Any]]]


async def test_a_request_is_passed_on_and_the_answer_kept(
    mesh: Mesh, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "daemoneye.workflow")
    scanner = mesh.add()
    mesh.run()
    await mesh.ingest(build_data("t1"))
    assert await until(1) == [("t1", "done", None)]
    assert await mesh.results("sha256, finished_ns") == [(SHA256, NOW_NS)]
    assert scanner.asked == ["t1"]
    assert mesh.clients.timeouts == {ANALYSIS_TIMEOUT_S}
    (line,) = [one for one in caplog.records if "t1" in one.message]
    assert (line.levelname, line.message.rpartition(": ")[2]) == ("INFO", "done")


async def test_a_collector_may_ask_itself(mesh: Mesh, until: Until) -> None:
    mesh.add("procmond")
    mesh.run()
    await mesh.ingest(build_data("t1", "procmond"))
    assert await until(1) == [("t1", "done", None)]


async def test_an_id_that_comes_again_is_not_done_again(
    mesh: Mesh, until: Until, eventually: Eventually
) -> None:
    scanner = mesh.add()
    mesh.run()
    await mesh.ingest(build_data("t1"), build_data("t1"))
    await until(1)
    await mesh.ingest(build_data("t1"), build_data("t2"))
    assert await until(2) == [("t1", "done", None), ("t2", "done", None)]
    assert scanner.asked == ["t1", "t2"]
    assert mesh.workflow.counters.duplicates == 1


async def test_no_more_at_once_than_the_target_offers_and_the_urgent_first(
    mesh: Mesh, until: Until
) -> None:
    scanner = mesh.add(limit=2)
    await mesh.ingest(*(build_data(f"t{number}", priority=number) for number in (1, 5, 8, 10)))
    mesh.run()
    await until(4)
    assert scanner.asked == ["t10", "t8", "t5", "t1"]
    assert scanner.most_running == 2


async def test_all_targets_together_are_bounded(
    mesh: Mesh, until: Until, eventually: Eventually
) -> None:
    gate = asyncio.Event()
    names = [f"scanner{number}" for number in range(6)]
    for name in names:
        mesh.add(name, gate=gate)
    data = [build_data(f"{name}-{number}", name) for name in names for number in range(4)]
    await mesh.ingest(*data)
    mesh.run()

    def running() -> int:
        return sum(one.running for one in mesh.clients.collectors.values())

    await eventually(lambda: running() == MAX_ACTIVE, "as many run as may")
    gate.set()
    await until(24)
    assert mesh.workflow.counters.attempts == 24


async def test_a_failure_is_kept_with_its_kind(
    mesh: Mesh, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    mesh.add(failure=analysis_pb2.ANALYSIS_ERROR_KIND_PATH_NOT_ALLOWED)
    mesh.run()
    await mesh.ingest(build_data("t1"))
    assert await until(1) == [("t1", "failed", "path_not_allowed")]
    assert [one.levelname for one in caplog.records if "t1" in one.message] == ["WARNING"]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequestError("it makes no sense"), "invalid_request"),
        (DeadlineError("it takes too long"), "timeout"),
    ],
)
async def test_a_call_that_would_fail_again_is_not_repeated(
    mesh: Mesh, until: Until, error: Exception, kind: str
) -> None:
    scanner = mesh.add(errors=[error])
    mesh.run()
    await mesh.ingest(build_data("t1"))
    assert await until(1) == [("t1", "failed", kind)]
    assert scanner.asked == ["t1"]


@pytest.mark.parametrize(
    "error", [UnavailableError("it is away"), OverloadedError("it has too much to do")]
)
async def test_a_call_that_may_succeed_later_is_repeated(
    mesh: Mesh, until: Until, eventually: Eventually, error: Exception
) -> None:
    scanner = mesh.add(errors=[error])
    mesh.run()
    await mesh.ingest(build_data("t1"))
    await eventually(lambda: not scanner.errors, "it was tried")
    mesh.now_s += 1
    assert await until(1) == [("t1", "done", None)]
    assert scanner.asked == ["t1", "t1"]


async def test_a_collector_without_capacity_is_asked_again_and_its_answer_kept_in_the_end(
    mesh: Mesh, until: Until, eventually: Eventually
) -> None:
    scanner = mesh.add(failure=analysis_pb2.ANALYSIS_ERROR_KIND_RESOURCE_EXHAUSTED)
    mesh.run()
    await mesh.ingest(build_data("t1"))
    await eventually(lambda: scanner.asked == ["t1"] and not scanner.running, "it was tried")
    mesh.now_s += 1
    await eventually(lambda: scanner.asked == ["t1", "t1"], "it is tried again")
    mesh.now_s += PATIENCE_S
    assert await until(1) == [("t1", "failed", "resource_exhausted")]


async def test_nobody_of_that_name_is_undeliverable_after_five_minutes(
    mesh: Mesh, until: Until, eventually: Eventually
) -> None:
    mesh.run()
    await mesh.ingest(build_data("t1", "nobody"))
    await eventually(lambda: mesh.workflow.counters.taken == 1, "it was read")
    assert await mesh.results() == []
    await asyncio.wait_for(fail_for_long(mesh, eventually), 10)
    assert await until(1) == [("t1", "undeliverable", "not_registered")]
    assert mesh.workflow.counters.attempts == 0


async def fail_for_long(mesh: Mesh, eventually: Eventually) -> None:
    """Lets the clock run until a target that is away was waited for long enough."""

    def is_over() -> bool:
        mesh.now_s += PATIENCE_S
        return mesh.workflow.counters.recorded.total() > 0

    await eventually(is_over, "it is given up")


async def test_a_target_that_registers_is_asked_at_once(
    mesh: Mesh, until: Until, eventually: Eventually
) -> None:
    mesh.run()
    await mesh.ingest(build_data("t1"))
    await eventually(lambda: mesh.workflow.counters.taken == 1, "it was read")
    mesh.add()
    assert await until(1) == [("t1", "done", None)]


async def test_an_analysis_that_is_not_offered_is_never_asked_for(
    mesh: Mesh, until: Until, eventually: Eventually
) -> None:
    scanner = mesh.add(analyses=(analysis_pb2.ANALYSIS_TYPE_YARA_SCAN,))
    mesh.run()
    await mesh.ingest(build_data("t1"))
    await fail_for_long(mesh, eventually)
    assert await until(1) == [("t1", "undeliverable", "not_offered")]
    assert scanner.asked == []


async def test_a_collector_that_says_less_than_it_negotiated_is_believed(
    mesh: Mesh, until: Until, eventually: Eventually
) -> None:
    scanner = mesh.add(errors=[UnsupportedError("not here")] * 1_000)
    mesh.run()
    await mesh.ingest(build_data("t1"))
    await eventually(lambda: len(scanner.errors) < 1_000, "it was tried")
    await fail_for_long(mesh, eventually)
    assert await until(1) == [("t1", "undeliverable", "not_offered")]


async def test_what_the_contract_forbids_is_refused_and_kept(mesh: Mesh, until: Until) -> None:
    mesh.add()
    mesh.run()
    await mesh.ingest(build_data("t1", "../agent"), build_data("t2"))
    assert sorted(await until(2)) == [("t1", "refused", "request_invalid"), ("t2", "done", None)]


async def test_more_than_may_wait_is_refused_and_kept(mesh: Mesh, until: Until) -> None:
    await mesh.ingest(*(build_data(f"t{number}", "away") for number in range(MAX_ORDERS + 3)))
    mesh.run()
    results = await until(3)
    assert results == [(f"t{MAX_ORDERS + number}", "refused", "queue_full") for number in range(3)]


async def test_what_was_cut_off_is_found_again_at_the_next_start(
    mesh: Mesh, eventually: Eventually
) -> None:
    scanner = mesh.add(gate=asyncio.Event(), limit=1)
    mesh.run()
    await mesh.ingest(build_data("t1"), build_data("t2"))
    await eventually(lambda: scanner.running == 1, "it runs")
    await mesh.end()
    assert await mesh.results() == []
    assert scanner.gate is not None
    scanner.gate.set()
    mesh.workflow = mesh.make_workflow()
    mesh.run()
    await eventually(lambda: mesh.workflow.counters.recorded.total() == 2, "both are done")
    assert sorted(await mesh.results()) == [("t1", "done", None), ("t2", "done", None)]
    assert await mesh.settled() > 0


async def test_what_was_done_in_an_earlier_life_is_not_looked_at_again(
    mesh: Mesh, until: Until, eventually: Eventually
) -> None:
    scanner = mesh.add()
    await mesh.ingest(*(build_data(f"t{number}") for number in range(2 * PAGE)))
    mesh.run()
    await until(2 * PAGE)
    await mesh.end()
    await mesh.store.run(lambda store: store._connection.execute("DELETE FROM analysis_results"))
    mesh.workflow = mesh.make_workflow()
    mesh.run()
    await mesh.ingest(build_data("new"))
    await eventually(lambda: mesh.workflow.counters.recorded.total() == 1, "the new one is done")
    assert await mesh.results() == [("new", "done", None)]
    assert len(scanner.asked) == 2 * PAGE + 1


async def test_a_request_that_waited_an_hour_for_the_agent_is_not_passed_on(
    mesh: Mesh, until: Until, eventually: Eventually
) -> None:
    mesh.add()
    old_ns = NOW_NS - MAX_AGE_NS - 1
    await mesh.ingest(build_data("old"), time_ns=old_ns)
    mesh.run()
    assert await until(1) == [("old", "undeliverable", "expired")]
    await mesh.ingest(build_data("late"), time_ns=old_ns)
    assert (await until(2))[1] == ("late", "done", None), "it came while the agent was there"


async def test_a_store_that_refuses_holds_up_new_calls_and_loses_nothing(
    mesh: Mesh, until: Until, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = 2
    record = EventStore.record_analyses

    def refuse(store: EventStore, *values: Any) -> tuple[bool, ...]:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise StoreFailedError("event store: the disk is full; free space")
        return record(store, *values)

    monkeypatch.setattr(EventStore, "record_analyses", refuse)
    scanner = mesh.add(limit=1)
    await mesh.ingest(build_data("t1"), build_data("t2"))
    mesh.run()
    await eventually(lambda: refusals == 1, "the store refused")
    assert scanner.asked == ["t1"]
    mesh.now_s += 60
    await eventually(lambda: refusals == 0, "it was tried again")
    mesh.now_s += 60
    assert await until(2) == [("t1", "done", None), ("t2", "done", None)]
    assert scanner.asked == ["t1", "t2"]


async def test_a_drain_waits_for_what_is_under_way_and_begins_nothing(
    mesh: Mesh, eventually: Eventually
) -> None:
    scanner = mesh.add(gate=asyncio.Event(), limit=1)
    mesh.run()
    await mesh.ingest(build_data("t1"), build_data("t2"))
    await eventually(lambda: scanner.running == 1, "it runs")
    assert scanner.gate is not None
    draining = asyncio.ensure_future(mesh.workflow.drain(10))
    scanner.gate.set()
    await draining
    assert await mesh.results() == [("t1", "done", None)]
    assert scanner.asked == ["t1"]


async def test_a_drain_ends_with_its_budget(mesh: Mesh, eventually: Eventually) -> None:
    scanner = mesh.add(gate=asyncio.Event())
    mesh.run()
    await mesh.ingest(build_data("t1"))
    await eventually(lambda: scanner.running == 1, "it runs")
    await mesh.workflow.drain(0.01)
    assert scanner.running == 1
    await mesh.end()
    assert scanner.running == 0
    assert await mesh.results() == []
