"""Whatever fails in a collector stands in its health, its degradations and its gaps."""

import asyncio
from typing import Any

import pytest

from collector_core.bus.state import LinkState
from collector_core.capability import SourceCaps
from collector_core.delivery import Pressure
from collector_core.event import Event, EventClass
from collector_core.gap import GapKeeper
from collector_core.health import Status
from collector_core.manual_clock import ManualClock
from collector_core.resources import DegradationLevel, ResourceBudget
from collector_core.settings import CollectorSettings
from collector_core.source import EventSource
from collector_core.source_runner import RunnerLimits, SourceRunner
from collector_core.vitals import Vitals, budget_of
from daemoneye.eventbus.v1 import collection_gap_pb2 as pb
from daemoneye_mesh.completeness import Degradation, DegradedReason

T0_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
STEADY_S = 5.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T0_NS)


@pytest.fixture
def pressure() -> Pressure:
    return Pressure(0.7, 0.5)


@pytest.fixture
async def vitals(pressure: Pressure, clock: ManualClock) -> Vitals:
    made = Vitals("unit", CollectorSettings(), pressure, clock)
    made.health.ready()
    return made


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
async def gaps(vitals: Vitals, told: list[Any], clock: ManualClock) -> GapKeeper:
    async def emit(event: Event) -> None:
        told.append(event.data)

    keeper = GapKeeper(emit, "events.process.gap", clock.wall_ns)
    vitals.follow_gaps(keeper)
    return keeper


def part(vitals: Vitals, name: str) -> tuple[Status, str]:
    found = {one.name: one for one in vitals.health.snapshot().components}[name]
    return found.status, found.message


def degraded(vitals: Vitals) -> list[tuple[DegradedReason, str]]:
    return [(one.reason, one.subject) for one in vitals.degradations(lambda: ())]


async def test_everything_is_well_at_first(vitals: Vitals) -> None:
    assert vitals.health.snapshot().status is Status.OK
    assert not degraded(vitals)


async def test_log_that_cannot_be_written_is_an_error_and_a_degradation_until_it_can(
    vitals: Vitals, clock: ManualClock
) -> None:
    vitals.note_log("no space left on device; make room")
    status, message = part(vitals, "log")
    assert status is Status.RECOVERABLE_ERROR
    assert message.startswith("no space left on device; make room")
    assert degraded(vitals) == [(DegradedReason.LOG_UNWRITABLE, "unit")]
    vitals.note_log("")
    assert not degraded(vitals)
    clock.advance(STEADY_S)
    assert part(vitals, "log") == (Status.OK, "")


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (LinkState.IDLE, Status.STARTING),
        (LinkState.CONNECTING, Status.STARTING),
        (LinkState.READY, Status.OK),
        (LinkState.DRAINING, Status.OK),
        (LinkState.BACKOFF, Status.RECOVERABLE_ERROR),
        (LinkState.CLOSED, Status.STARTING),
    ],
)
async def test_state_of_the_link_to_the_broker_is_that_of_the_bus(
    vitals: Vitals, state: LinkState, status: Status
) -> None:
    vitals.note_bus(state)
    assert part(vitals, "bus")[0] is status


async def test_bus_stays_an_error_while_it_is_tried_again(vitals: Vitals) -> None:
    for state in (LinkState.BACKOFF, LinkState.CONNECTING):
        vitals.note_bus(state)
    assert vitals.health.snapshot().status is Status.RECOVERABLE_ERROR
    assert not degraded(vitals)  # nothing is missing: events wait in the log


async def test_lost_lease_is_an_error_until_there_is_one(
    vitals: Vitals, clock: ManualClock
) -> None:
    vitals.note_registered(True)
    assert part(vitals, "registration") == (Status.OK, "")
    vitals.note_registered(False)
    assert part(vitals, "registration")[0] is Status.RECOVERABLE_ERROR
    vitals.note_registered(True)
    clock.advance(STEADY_S)
    assert part(vitals, "registration")[0] is Status.OK


class Source(EventSource):
    name = "one"
    caps = SourceCaps.PROCESS


async def emit_nothing(event: Event) -> None:
    raise AssertionError("no source emits here")


async def test_health_of_a_source_follows_its_runner(vitals: Vitals, clock: ManualClock) -> None:
    runner = SourceRunner(Source(), emit_nothing, RunnerLimits, lambda runner: None)
    vitals.note_source(runner)
    assert part(vitals, "source one") == (Status.OK, "")
    runner.failure = "the ring is gone"
    vitals.note_source(runner)
    status, message = part(vitals, "source one")
    assert status is Status.RECOVERABLE_ERROR
    assert message == "the ring is gone; it is being started again"
    runner.is_lasting = True
    vitals.note_source(runner)
    assert part(vitals, "source one") == (Status.PERMANENT_ERROR, "the ring is gone")
    assert not vitals.health.is_serving
    runner.failure, runner.is_lasting = "", False
    vitals.note_source(runner)
    clock.advance(STEADY_S)
    assert part(vitals, "source one") == (Status.OK, "")


async def test_budget_that_is_exceeded_is_an_error_and_a_degradation(vitals: Vitals) -> None:
    vitals.resources.level = DegradationLevel.NO_HASHING
    vitals.resources.why = "uses too much; raise cpu_budget_share"
    vitals.note_resources()
    assert part(vitals, "resources") == (
        Status.RECOVERABLE_ERROR,
        "uses too much; raise cpu_budget_share",
    )
    assert degraded(vitals) == [(DegradedReason.OVER_BUDGET, "unit")]


async def test_use_that_cannot_be_measured_is_an_error(vitals: Vitals, clock: ManualClock) -> None:
    vitals.resources.failure = "cannot read /proc/self; mount it"
    vitals.note_resources()
    assert part(vitals, "resources")[0] is Status.RECOVERABLE_ERROR
    vitals.resources.failure = ""
    vitals.note_resources()
    clock.advance(STEADY_S)
    assert part(vitals, "resources")[0] is Status.OK


def exceed(vitals: Vitals, level: DegradationLevel) -> None:
    """Measures until the level is reached: the process does use memory."""
    vitals.resources.apply_budget(ResourceBudget(64.0, 1))
    for _ in range(100):
        if vitals.resources.level is level:
            return
        vitals.resources.measure()


async def test_last_level_of_the_budget_thins_out_lossy_events(
    vitals: Vitals, pressure: Pressure
) -> None:
    exceed(vitals, DegradationLevel.NO_ENRICHMENT)
    assert not pressure.is_sampling
    exceed(vitals, DegradationLevel.SAMPLING)
    assert pressure.is_sampling
    assert part(vitals, "resources")[0] is Status.RECOVERABLE_ERROR


async def test_shedding_is_in_health_degradations_and_a_gap_with_the_exact_count(
    *, vitals: Vitals, gaps: GapKeeper, told: list[Any], pressure: Pressure, clock: ManualClock
) -> None:
    pressure.note(1.0)
    for event_class in EventClass:
        pressure.admits(event_class)
    vitals.note_shedding(gaps)
    assert vitals.health.snapshot().is_shedding
    assert degraded(vitals) == [(DegradedReason.COLLECTION_GAP, "unit")]
    await gaps.flush()
    assert not told
    for _ in range(5):
        pressure.admits(EventClass.SAMPLE)
    clock.advance(3)
    pressure.note(0.0)
    vitals.note_shedding(gaps)
    await gaps.flush()
    (gap,) = told
    assert gap.reason == pb.COLLECTION_GAP_REASON_SHED
    assert gap.event_count == 7
    assert gap.ended_at.ToNanoseconds() - gap.started_at.ToNanoseconds() == 3 * SECOND_NS
    assert not vitals.health.snapshot().is_shedding
    assert not degraded(vitals)


async def test_counts_of_all_shed_gaps_add_up_to_what_was_left_out(
    vitals: Vitals, gaps: GapKeeper, told: list[Any], pressure: Pressure
) -> None:
    for fill, count in ((1.0, 3), (1.0, 4), (0.0, 0), (1.0, 5), (0.0, 0)):
        pressure.note(fill)
        for _ in range(count):
            pressure.admits(EventClass.METADATA)
        vitals.note_shedding(gaps)
        gaps.tell_open()
    await gaps.flush()
    assert sum(gap.event_count for gap in told) == pressure.shed_count.total() == 12


async def test_shedding_that_was_over_before_anybody_looked_is_told(
    vitals: Vitals, gaps: GapKeeper, told: list[Any], pressure: Pressure
) -> None:
    pressure.note(1.0)
    pressure.admits(EventClass.SAMPLE)
    pressure.note(0.0)
    vitals.note_shedding(gaps)
    await gaps.flush()
    assert [gap.event_count for gap in told] == [1]
    vitals.note_shedding(gaps)
    await gaps.flush()
    assert len(told) == 1


async def test_pressure_under_which_nothing_lossy_came_is_a_gap_of_nothing(
    vitals: Vitals, gaps: GapKeeper, told: list[Any], pressure: Pressure
) -> None:
    pressure.note(1.0)
    vitals.note_shedding(gaps)
    pressure.note(0.0)
    vitals.note_shedding(gaps)
    await gaps.flush()
    assert [gap.event_count for gap in told] == [0]


async def test_sleep_of_the_host_is_a_gap(
    vitals: Vitals, gaps: GapKeeper, told: list[Any], clock: ManualClock
) -> None:
    clock.suspend(120)
    vitals.clocks.tick()
    await gaps.flush()
    (gap,) = told
    assert gap.reason == pb.COLLECTION_GAP_REASON_SUSPENDED
    assert gap.started_at.ToNanoseconds() == T0_NS
    assert gap.ended_at.ToNanoseconds() == T0_NS + 120 * SECOND_NS
    assert "the host slept" in gap.message


async def test_stall_of_the_process_is_a_gap_and_no_failure(
    *, vitals: Vitals, gaps: GapKeeper, told: list[Any], clock: ManualClock, running: Any
) -> None:
    vitals.health.component("source one", max_silence_s=10).ok()
    task = running(vitals.clocks.run())
    await clock.settle()
    clock.advance(61)
    await clock.settle()
    await gaps.flush()
    (gap,) = told
    assert gap.reason == pb.COLLECTION_GAP_REASON_SUSPENDED
    assert gap.ended_at.ToNanoseconds() - gap.started_at.ToNanoseconds() == 60 * SECOND_NS
    assert "it was not run" in gap.message
    assert vitals.health.snapshot().status is Status.OK
    task.cancel()
    await asyncio.wait({task})


async def test_step_of_the_wall_clock_is_no_gap(
    vitals: Vitals, gaps: GapKeeper, told: list[Any], clock: ManualClock
) -> None:
    clock.step_wall(-3_600)
    vitals.clocks.tick()
    clock.step_wall(7_200)
    vitals.clocks.tick()
    await gaps.flush()
    assert not told
    assert vitals.health.snapshot().status is Status.OK


async def test_degradations_of_sources_and_collector_stand_together_once(vitals: Vitals) -> None:
    polls = Degradation(DegradedReason.POLLING, "one", "it polls")
    vitals.note_log("no space left on device; make room")
    found = vitals.degradations(lambda: [polls, polls])
    assert [one.reason for one in found] == [DegradedReason.POLLING, DegradedReason.LOG_UNWRITABLE]


async def test_settings_that_are_not_as_they_should_be_are_errors(vitals: Vitals) -> None:
    vitals.note_config(["wal_max_bytes = 1 contradicts other settings; set it anew"], False)
    status, message = part(vitals, "config")
    assert status is Status.RECOVERABLE_ERROR
    assert message.startswith("wal_max_bytes = 1 contradicts")
    vitals.note_config([], True)
    assert part(vitals, "config")[0] is Status.PERMANENT_ERROR


def test_budget_is_that_of_the_settings() -> None:
    settings = CollectorSettings(cpu_budget_share=0.25, rss_budget_bytes=64 << 20)
    assert budget_of(settings) == ResourceBudget(0.25, 64 << 20)
