"""A running collector seen from outside: health, steering and ends, whatever its sources do."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from collector_core import EventSource, SourceCaps
from collector_core.collector import Collector
from collector_core.manual_clock import ManualClock
from collector_core.settings import CollectorSettings
from daemoneye.common.v1 import common_pb2, completeness_pb2
from daemoneye.eventbus.v1 import collection_gap_pb2
from daemoneye.ipc.v1 import collector_control_service_pb2 as pb
from daemoneye.ipc.v1 import (
    collector_control_service_pb2_grpc,
    collector_health_pb2,
    collector_service_pb2,
    collector_service_pb2_grpc,
    ipc_pb2,
)
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import DaemoneyeError, ErrorReason, PreconditionError
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.rpc_status import from_rpc_error

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 20
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "daemoneye.ipc.v1.CollectorService"
ENUMERATE = common_pb2.TASK_TYPE_ENUMERATE_PROCESSES


class Scripted(EventSource):
    """Does in each method what the test says; else it watches and answers tasks with nothing."""

    caps = SourceCaps.PROCESS
    task_types = frozenset({ENUMERATE})
    tables = ()

    def __init__(self, name: str = "one", **behaviour: Callable[[], Any]) -> None:
        self.name = name
        self.behaviour = behaviour
        self.calls: list[str] = []

    async def prepare(self, context: Any) -> None:
        await self._play("prepare")

    async def watch(self, emit: Any) -> None:
        await self._play("watch")
        await asyncio.Event().wait()

    async def stop(self) -> None:
        await self._play("stop")

    async def close(self) -> None:
        await self._play("close")

    async def execute(self, task: Any, report: Any) -> AsyncIterator[Any]:
        await self._play("execute")
        for record in ():
            yield record

    async def _play(self, method: str) -> None:
        self.calls.append(method)
        found = self.behaviour.get(method, str)()
        if asyncio.iscoroutine(found):
            await found


async def hang() -> None:
    await asyncio.Event().wait()


def refuse() -> None:
    raise PreconditionError("no access to the ring; grant it")


class Unit:
    """A collector in a mesh, and the agent's view of it."""

    def __init__(self, mesh_identity: Any, state_dir: Path, running: Any) -> None:
        self.mesh = mesh_identity
        self.socket = mesh_identity.layout.collector_socket("unit")
        self.stop = StopRequest()
        self.collector: Any = None
        self.task: Any = None
        self._state_dir = state_dir
        self._running = running

    def start(self, *sources: Any, clock: Any = None, **settings: Any) -> None:
        chosen = CollectorSettings(
            runtime_dir=self.mesh.layout.root, state_dir=self._state_dir, **settings
        )
        self.collector = Collector("unit", sources, chosen, clock=clock)
        self.task = self._running(self.collector.run(self.stop))

    @property
    def running(self) -> Any:
        return self.collector.running

    async def ended(self) -> None:
        async with asyncio.timeout(GUARD_S):
            await self.task

    async def end(self) -> None:
        self.stop.request("the test is over")
        await self.ended()

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[Any]:
        layout = self.mesh.layout
        source = self.mesh.source(layout.agent, layout.collector("unit"))
        async with open_channel(self.socket, source) as channel:
            yield channel

    async def control(self, method: str, **fields: Any) -> Any:
        """Calls the control service once."""
        async with self.calling() as channel:
            stub = collector_control_service_pb2_grpc.CollectorControlServiceStub(channel)
            module = collector_health_pb2 if method == "CheckHealth" else pb
            request = getattr(module, f"{method}Request")(**fields)
            return await getattr(stub, method)(request, timeout=GUARD_S)

    async def health(self) -> Any:
        return await self.control("CheckHealth")

    async def execute(self) -> list[Any]:
        async with self.calling() as channel:
            stub = collector_service_pb2_grpc.CollectorServiceStub(channel)
            task = ipc_pb2.DetectionTask(task_id="t", task_type=ENUMERATE)
            call = stub.ExecuteTask(
                collector_service_pb2.ExecuteTaskRequest(task=task), timeout=GUARD_S
            )
            return [chunk async for chunk in call]


@pytest.fixture
async def unit(
    *, mesh_identity: Any, broker: Any, registry: Any, serve: Any, running: Any, tmp_path: Path
) -> AsyncIterator[Unit]:
    mesh_identity.enrol(mesh_identity.layout.collector("unit"))
    await serve(broker)
    await serve(registry)
    made = Unit(mesh_identity, tmp_path / "state", running)
    yield made
    if made.task is not None and not made.task.done():
        await made.end()


@pytest.fixture
async def cling() -> AsyncIterator[Callable[[], Any]]:
    """Hangs and swallows every cancellation until the test is over."""
    is_over = asyncio.Event()

    async def hang_on() -> None:
        while not is_over.is_set():
            try:
                await is_over.wait()
            except asyncio.CancelledError:
                continue
        raise asyncio.CancelledError

    yield hang_on
    is_over.set()


@pytest.fixture
def watch_health(running: Any) -> Callable[[Path], list[int]]:
    """Follows what grpc.health says, until the collector has gone."""

    def watch(path: Path) -> list[int]:
        seen: list[int] = []

        async def follow() -> None:
            async with open_channel(path) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                request = health_pb2.HealthCheckRequest(service=SERVICE)
                with suppress(grpc.aio.AioRpcError):
                    async for answer in stub.Watch(request, timeout=GUARD_S):
                        seen.append(answer.status)  # noqa: PERF401 -- seen while it comes

        running(follow())
        return seen

    return watch


async def refusal(awaitable: Any) -> DaemoneyeError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await awaitable
    return from_rpc_error(refused.value)


def is_ready(unit: Unit) -> bool:
    return unit.running is not None and unit.running.vitals.health.is_serving


# -- health -----------------------------------------------------------------------------------------


async def test_watch_of_health_follows_a_whole_life(
    unit: Unit, eventually: Any, watch_health: Any
) -> None:
    go = asyncio.Event()
    unit.start(Scripted(prepare=go.wait))
    await eventually(unit.socket.exists)
    seen = watch_health(unit.socket)
    await eventually(lambda: seen == [NOT_SERVING])
    go.set()
    await eventually(lambda: seen == [NOT_SERVING, SERVING])
    await unit.end()
    await eventually(lambda: seen == [NOT_SERVING, SERVING, NOT_SERVING])


async def test_source_that_fails_for_good_takes_the_collector_out_of_service_until_it_is_mended(
    *, unit: Unit, eventually: Any, watch_health: Any
) -> None:
    clock = ManualClock()
    bad, good = Scripted("bad"), Scripted("good")
    unit.start(bad, good, clock=clock)
    await eventually(lambda: is_ready(unit))
    seen = watch_health(unit.socket)
    await eventually(lambda: seen == [SERVING])
    bad.behaviour["prepare"] = refuse
    await unit.control("RestartMonitoring", idempotency_key="one")
    await eventually(lambda: seen == [SERVING, NOT_SERVING])
    answer = await unit.health()
    assert answer.status == collector_health_pb2.COLLECTOR_STATUS_PERMANENT_ERROR
    parts = {one.name: one for one in answer.components}
    assert parts["source bad"].message == "no access to the ring; grant it"
    assert parts["source good"].status == collector_health_pb2.COLLECTOR_STATUS_OK
    assert good.calls[-1] == "watch"
    del bad.behaviour["prepare"]
    await unit.control("RestartMonitoring", idempotency_key="two")
    await clock.pass_time(6)  # it has to be well for a while
    await eventually(lambda: seen == [SERVING, NOT_SERVING, SERVING])


async def test_failure_that_passes_keeps_the_collector_in_service(
    unit: Unit, eventually: Any, registry: Any
) -> None:
    def fail() -> None:
        raise ValueError("secret path")

    bad = Scripted("bad", watch=fail)
    unit.start(bad, Scripted("good"))
    await eventually(lambda: is_ready(unit) and bad.calls.count("watch") >= 1)
    answer = await unit.health()
    assert answer.status == collector_health_pb2.COLLECTOR_STATUS_RECOVERABLE_ERROR
    assert b"secret" not in answer.SerializeToString()
    assert answer.completeness.state == completeness_pb2.COMPLETENESS_STATE_DEGRADED
    assert is_ready(unit)
    await eventually(
        lambda: any(
            beat.status == collector_health_pb2.COLLECTOR_STATUS_RECOVERABLE_ERROR
            for beat in registry.heartbeats
        )
    )


async def test_health_is_told_at_once_while_a_source_hangs(unit: Unit, eventually: Any) -> None:
    unit.start(Scripted("stuck", prepare=hang), Scripted("good"))
    await eventually(lambda: unit.socket.exists() and unit.running is not None)
    answer = await unit.health()
    assert answer.status == collector_health_pb2.COLLECTOR_STATUS_STARTING
    beginning = asyncio.ensure_future(unit.control("BeginMonitoring"))
    answers = await asyncio.gather(*(unit.health() for _ in range(5)))
    assert not beginning.done()
    assert len(answers) == 5
    await unit.end()
    await asyncio.gather(beginning, return_exceptions=True)


async def test_shedding_is_visible_in_health_and_heartbeats(
    *, unit: Unit, eventually: Any, registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit.start(Scripted())
    await eventually(lambda: is_ready(unit))
    assert not (await unit.health()).is_shedding
    monkeypatch.setattr(unit.running.delivery, "measure_fill", lambda: 0.95)
    await eventually(lambda: unit.running.vitals.health.is_shedding)
    answer = await unit.health()
    assert answer.is_shedding
    reasons = [one.reason for one in answer.completeness.causes]
    assert completeness_pb2.DEGRADED_REASON_COLLECTION_GAP in reasons
    await eventually(lambda: registry.heartbeats[-1].is_shedding)
    monkeypatch.setattr(unit.running.delivery, "measure_fill", lambda: 0.0)
    await eventually(lambda: not unit.running.vitals.health.is_shedding)


async def test_collector_whose_agent_cannot_be_reached_says_so(
    mesh_identity: Any, running: Any, tmp_path: Path, eventually: Any
) -> None:
    mesh_identity.enrol(mesh_identity.layout.collector("unit"))
    unit = Unit(mesh_identity, tmp_path / "state", running)
    unit.start(Scripted())
    await eventually(lambda: is_ready(unit))

    def is_told() -> bool:
        parts = {one.name: one for one in unit.running.health().components}
        error = collector_health_pb2.COLLECTOR_STATUS_RECOVERABLE_ERROR
        return parts["registration"].status == error

    await eventually(is_told)
    assert is_ready(unit)
    await unit.end()


async def test_stall_of_the_process_fakes_no_failure_and_is_told_as_a_gap(
    unit: Unit, eventually: Any, broker: Any
) -> None:
    clock = ManualClock()
    unit.start(Scripted(), clock=clock)
    await eventually(lambda: is_ready(unit))
    await clock.settle()
    clock.advance(120)  # as after SIGSTOP and SIGCONT: whoever sleeps wakes late
    await clock.settle()
    assert unit.running.health().status == collector_health_pb2.COLLECTOR_STATUS_OK
    await eventually(lambda: broker.accepted)
    (gap,) = [one.collection_event.collection_gap for one in broker.accepted]
    assert gap.reason == collection_gap_pb2.COLLECTION_GAP_REASON_SUSPENDED
    assert gap.ended_at.seconds - gap.started_at.seconds == 119
    assert [change.after for change in unit.running.vitals.health.history] == ["OK"]


# -- steering ---------------------------------------------------------------------------------------


async def test_stop_begin_and_restart_close_and_open_the_sources(
    unit: Unit, eventually: Any
) -> None:
    source = Scripted()
    unit.start(source)
    await eventually(lambda: is_ready(unit))
    assert (await unit.control("StopMonitoring")).state == pb.MONITORING_STATE_IDLE
    assert source.calls == ["prepare", "watch", "stop", "close"]
    assert (await unit.control("StopMonitoring")).state == pb.MONITORING_STATE_IDLE
    assert (await unit.control("BeginMonitoring")).state == pb.MONITORING_STATE_MONITORING
    assert (await unit.control("BeginMonitoring")).state == pb.MONITORING_STATE_MONITORING
    assert source.calls.count("prepare") == 2
    restarted = await unit.control("RestartMonitoring", idempotency_key="one")
    assert restarted.state == pb.MONITORING_STATE_MONITORING
    assert source.calls.count("prepare") == 3
    assert source.calls[-1] == "watch"


async def test_tasks_are_refused_while_the_sources_are_stopped(unit: Unit, eventually: Any) -> None:
    source = Scripted()
    unit.start(source)
    await eventually(lambda: is_ready(unit))
    assert (await unit.execute())[-1].is_last
    await unit.control("PauseMonitoring")
    assert (await unit.execute())[-1].is_last
    await unit.control("StopMonitoring")
    error = await refusal(unit.execute())
    assert (error.reason, error.metadata["source"]) == (ErrorReason.STATE_INVALID, "one")
    assert source.calls.count("execute") == 2
    await unit.control("BeginMonitoring")
    assert (await unit.execute())[-1].is_last


@pytest.mark.parametrize("method", ["PauseMonitoring", "ResumeMonitoring"])
async def test_pause_and_resume_are_refused_while_the_sources_are_stopped(
    unit: Unit, eventually: Any, method: str
) -> None:
    unit.start(Scripted())
    await eventually(lambda: is_ready(unit))
    await unit.control("StopMonitoring")
    error = await refusal(unit.control(method))
    assert error.reason is ErrorReason.STATE_INVALID
    assert unit.running.state == pb.MONITORING_STATE_IDLE


async def test_pause_while_a_source_still_prepares_holds_and_its_gap_lasts(
    *, unit: Unit, eventually: Any, broker: Any
) -> None:
    go = asyncio.Event()
    source = Scripted(prepare=go.wait)
    unit.start(source)
    await eventually(lambda: "prepare" in source.calls)
    pausing = asyncio.ensure_future(unit.running.pause())
    await eventually(lambda: unit.running.state == pb.MONITORING_STATE_PAUSED)
    go.set()
    async with asyncio.timeout(GUARD_S):
        await pausing
    await eventually(lambda: is_ready(unit))
    assert "watch" not in source.calls
    assert not broker.accepted
    await unit.control("ResumeMonitoring")
    await eventually(lambda: broker.accepted)
    gap = broker.accepted[0].collection_event.collection_gap
    assert gap.reason == collection_gap_pb2.COLLECTION_GAP_REASON_PAUSED


async def test_resume_that_was_cancelled_ends_the_gap_all_the_same(
    *, unit: Unit, eventually: Any, broker: Any
) -> None:
    stuck = Scripted("stuck", prepare=hang)
    unit.start(stuck, Scripted("good"))
    await eventually(lambda: "prepare" in stuck.calls)
    for ask in (unit.running.pause, unit.running.resume):
        asking = asyncio.ensure_future(ask())
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking})
    assert unit.running.state == pb.MONITORING_STATE_MONITORING
    assert unit.running.gaps.is_waiting  # closed, and to be told


async def test_failed_source_that_only_answers_is_no_gap(
    unit: Unit, eventually: Any, broker: Any
) -> None:
    class Answering(EventSource):
        name = "answering"
        caps = SourceCaps.PROCESS

        async def prepare(self, context: Any) -> None:
            raise ValueError

    unit.start(Answering(), Scripted("good"))
    await eventually(lambda: is_ready(unit) and broker.streams)
    await unit.end()
    assert not broker.accepted


# -- ends -------------------------------------------------------------------------------------------


async def test_shutdown_within_a_time_of_its_own(
    unit: Unit, eventually: Any, broker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    unit.start(Scripted(), shutdown_timeout_s=300.0)
    await eventually(lambda: is_ready(unit))
    request = {"reason": "upgrade", "timeout": {"nanos": 500_000_000}}
    with caplog.at_level("INFO", "daemoneye.shutdown"):
        answer = await unit.control("ShutdownCollector", **request)
        assert answer.state == pb.MONITORING_STATE_STOPPING
        await unit.ended()
    assert "shutdown: upgrade, at most 0.5 s" in caplog.text
    assert not unit.socket.exists()


async def test_forced_shutdown_waits_for_nobody(
    *, unit: Unit, eventually: Any, broker: Any, cling: Any
) -> None:
    broker.answering.clear()
    unit.start(Scripted(stop=hang, close=hang), Scripted("stuck", watch=cling))
    await eventually(lambda: is_ready(unit))
    await unit.control("ForceShutdownCollector", reason="now")
    await unit.ended()
    assert unit.stop.reason == "now"
    assert not unit.socket.exists()
    broker.answering.set()


async def test_force_cuts_a_drain_short(
    *, unit: Unit, eventually: Any, broker: Any, list_source: Any
) -> None:
    broker.answering.clear()
    unit.start(list_source("one", pids=(1, 2, 3)), shutdown_timeout_s=300.0)
    await eventually(lambda: broker.batches)
    unit.stop.request("upgrade")
    await eventually(lambda: unit.running.state == pb.MONITORING_STATE_STOPPING)
    await asyncio.sleep(0)
    assert not unit.task.done()
    unit.running.force_shut_down("now")
    await unit.ended()
    assert unit.running.delivery.log.lost_count.total() == 0
    broker.answering.set()


@pytest.mark.parametrize("method", ["prepare", "watch", "stop", "close"])
@pytest.mark.parametrize("way", ["hang", "cling"])
async def test_source_that_hangs_does_not_hold_the_end_up_beyond_its_budget(
    *, unit: Unit, eventually: Any, registry: Any, cling: Any, method: str, way: str
) -> None:
    behaviour = {method: cling if way == "cling" else hang}
    unit.start(Scripted("stuck", **behaviour), Scripted("good"), shutdown_timeout_s=1.0)
    begun = "prepare" if method == "prepare" else "watch"
    await eventually(lambda: unit.running is not None and registry.heartbeats)
    await eventually(lambda: begun in unit.running.monitor.runners[0].source.calls)
    unit.stop.request("stop")
    async with asyncio.timeout(1.0 + 3 * 1.5):  # the budget, and what each phase gets beyond it
        await unit.task
    assert not unit.socket.exists()
    assert registry.departures
    assert unit.running.monitor.runners[1].source.calls[-1] == "close"
