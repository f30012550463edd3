"""Collectors in the loop of a test, and the fixtures of pytest."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from collector_core import Emit, Event, EventClass, EventSource, SourceCaps
from collector_core.testing import (
    CollectorEndedError,
    ConditionTimeoutError,
    FakeMesh,
    InProcessCollector,
    run_in_process,
)
from collector_core.testing.fixtures import collector_harness, fake_mesh
from daemoneye.common.v1.common_pb2 import PerformanceRecord
from daemoneye.eventbus.v1.event_data_pb2 import PerformanceEventData
from daemoneye_mesh.errors import ConflictError, InvalidConfigError

__all__ = ["collector_harness", "fake_mesh"]

TOPIC = "events.performance.utilization"
pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

Run = Callable[..., Awaitable[InProcessCollector]]


class Meter(EventSource):
    """Emits a number whenever it is told one."""

    name = "meter"
    caps = SourceCaps.PERFORMANCE

    def __init__(self, *values: float) -> None:
        self.values: asyncio.Queue[float] = asyncio.Queue()
        for value in values:
            self.values.put_nowait(value)

    async def watch(self, emit: Emit) -> None:
        while True:
            value = await self.values.get()
            record = PerformanceRecord(metric_name="m", value=value, unit="1")
            data = PerformanceEventData(performance=record)
            await emit(Event(TOPIC, data, event_class=EventClass.LIFECYCLE))


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    async with FakeMesh() as mesh:
        yield mesh


async def test_events_of_a_collector_arrive_one_after_the_other(mesh: FakeMesh) -> None:
    async with run_in_process(mesh, "unit", Meter(1, 2, 3)) as harness:
        await harness.wait_ready()
        seen = [await harness.next_event() for _ in range(3)]
    assert [event.data.performance.value for event in seen] == [1, 2, 3]
    assert [event.sequence for event in seen] == [1, 2, 3]
    assert {event.topic for event in seen} == {TOPIC}
    assert mesh.agent.missing() == {}


async def test_patterns_choose_the_events(mesh: FakeMesh) -> None:
    async with run_in_process(mesh, "unit", Meter(1, 2)) as harness:
        await harness.next_event("events.performance.#")
        await harness.next_event("events.performance.#")
        assert len(harness.events("events.+.utilization")) == 2
        assert harness.events("events.process.#") == []
        with pytest.raises(ConditionTimeoutError, match="unit sends an event on"):
            await harness.next_event("events.performance.#", timeout_s=0.05)


async def test_a_collector_that_is_stopped_gives_its_lease_back(mesh: FakeMesh) -> None:
    async with run_in_process(mesh, "unit", Meter()) as harness:
        await harness.wait_ready()
        assert harness.exit_status is None
        assert await harness.stop("enough") == 0
        assert harness.failure is None
    assert [one.reason for one in mesh.agent.departures] == ["enough"]
    assert not mesh.layout.collector_socket("unit").exists()


async def test_the_block_fails_with_a_collector_that_failed(mesh: FakeMesh) -> None:
    async def leave_a_failed_one() -> None:
        async with run_in_process(mesh, "unit", Meter()) as harness:
            await harness.wait_ready()
            mesh.agent.supersede("unit")
            await mesh.until(lambda: harness.exit_status, "it has ended")

    with pytest.raises(ConflictError):
        await leave_a_failed_one()


async def test_a_failure_that_the_test_asked_for_is_the_tests_to_look_at(mesh: FakeMesh) -> None:
    async with run_in_process(mesh, "unit", Meter()) as harness:
        await harness.wait_ready()
        mesh.agent.supersede("unit")
        assert await harness.wait_ended() == 1
        assert isinstance(harness.failure, ConflictError)
        with pytest.raises(CollectorEndedError, match="newer instance"):
            await harness.next_event()


async def test_the_failure_of_the_test_comes_first(mesh: FakeMesh) -> None:
    ended: list[InProcessCollector] = []

    async def fail() -> None:
        async with run_in_process(mesh, "unit", Meter()) as harness:
            await harness.wait_ready()
            ended.append(harness)
            raise RuntimeError("the test failed")

    with pytest.raises(RuntimeError, match="the test failed"):
        await fail()
    assert ended[0].exit_status == 0


async def test_settings_are_those_of_the_test(mesh: FakeMesh) -> None:
    with pytest.raises(InvalidConfigError, match="shed_below_share"):
        async with run_in_process(
            mesh, "unit", Meter(), shed_below_share=0.8, shed_above_share=0.7
        ):
            pass


async def test_the_state_of_a_collector_is_in_the_mesh(mesh: FakeMesh) -> None:
    async with run_in_process(mesh, "unit", Meter(1)) as harness:
        await harness.next_event()
        assert any(mesh.state_dir.rglob("*"))


async def test_a_collector_goes_on_counting_in_its_next_life(mesh: FakeMesh) -> None:
    async with run_in_process(mesh, "unit", Meter(1, 2)) as harness:
        await harness.next_event()
        await harness.next_event()
    async with run_in_process(mesh, "unit", Meter(3)) as harness:
        await mesh.until(lambda: len(harness.events(TOPIC)) == 3, "the third event arrives")
    epochs = {event.epoch for event in harness.events(TOPIC)}
    assert len(epochs) == 1
    assert mesh.agent.missing() == {}
    assert harness.peer.record.conflicts == []


async def test_the_fixture_runs_collectors_in_the_fixtures_mesh(
    fake_mesh: FakeMesh, collector_harness: Run
) -> None:
    first = await collector_harness("one", Meter(1))
    second = await collector_harness("two", Meter(2), health_interval_s=1.0)
    assert (await first.next_event()).source_id == "one"
    assert (await second.next_event()).source_id == "two"
    assert fake_mesh.agent.is_registered("one")
