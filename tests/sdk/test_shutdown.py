import asyncio

import pytest

from collector_core import shutdown as shutdown_module
from collector_core.manual_clock import ManualClock
from collector_core.shutdown import Phase, ShutdownCoordinator, StepOutcome
from daemoneye_mesh.errors import PreconditionError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

PREPARING, STOPPING, CLEANUP = Phase.PREPARING, Phase.STOPPING, Phase.CLEANUP
COMPLETED, FAILED, FORCED = Phase.COMPLETED, Phase.FAILED, Phase.FORCED
GRACE_S = shutdown_module.CANCEL_GRACE_S


class Steps:
    """Steps of every kind, and what they did."""

    def __init__(self, clock):
        self.clock = clock
        self.start_s = clock.monotonic_s()
        self.done = []
        self.released = asyncio.Event()

    def note(self, what):
        self.done.append((what, round(self.clock.monotonic_s() - self.start_s, 3)))

    def lasting(self, name, seconds):
        async def step():
            await self.clock.sleep(seconds)
            self.note(name)

        return step

    def hanging(self, name):
        async def step():
            try:
                await asyncio.Event().wait()
            finally:
                self.note(f"{name} cancelled")

        return step

    def stubborn(self, name):
        async def step():
            while not self.released.is_set():
                try:
                    await self.released.wait()
                except asyncio.CancelledError:
                    self.note(f"{name} ignores it")

        return step

    def failing(self, error):
        async def step():
            raise error

        return step


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def steps(clock):
    made = Steps(clock)
    yield made
    made.released.set()


@pytest.fixture
def shutdown(clock):
    return ShutdownCoordinator(10, clock, forced_s=1)


@pytest.fixture
def phases(shutdown):
    told = []
    shutdown.on_phase(told.append)
    return told


async def run(shutdown, clock, seconds=60):
    task = asyncio.ensure_future(shutdown.run("test"))
    await clock.pass_time(seconds)
    assert task.done()
    return task.result()


def outcomes(report):
    return {step.name: step.outcome for step in report.steps}


async def test_phases_run_in_order_and_the_steps_of_one_together(shutdown, clock, steps, phases):
    shutdown.add(CLEANUP, "log", steps.lasting("log", 1))
    shutdown.add(STOPPING, "sources", steps.lasting("sources", 3))
    shutdown.add(STOPPING, "queue", steps.lasting("queue", 2))
    shutdown.add(PREPARING, "health", steps.lasting("health", 0))
    report = await run(shutdown, clock)
    assert steps.done == [("health", 0), ("queue", 2), ("sources", 3), ("log", 4)]
    assert phases == [Phase.INITIATED, PREPARING, STOPPING, CLEANUP, COMPLETED]
    assert (report.phase, report.duration_s, report.reason) == (COMPLETED, 4, "test")
    assert [(step.name, step.elapsed_s) for step in report.steps] == [
        ("health", 0),
        ("sources", 3),
        ("queue", 2),
        ("log", 1),
    ]
    assert set(outcomes(report).values()) == {StepOutcome.OK}
    assert shutdown.report is report


async def test_shutdown_without_steps_is_complete_at_once(shutdown, clock):
    report = await shutdown.run("test")
    assert (report.phase, report.duration_s, report.steps) == (COMPLETED, 0, ())


async def test_step_that_raises_stops_no_other(shutdown, clock, steps, caplog):
    shutdown.add(PREPARING, "bad", steps.failing(ValueError("secret")))
    shutdown.add(PREPARING, "good", steps.lasting("good", 1))
    shutdown.add(CLEANUP, "log", steps.lasting("log", 1))
    report = await run(shutdown, clock)
    assert outcomes(report) == {
        "bad": StepOutcome.FAILED,
        "good": StepOutcome.OK,
        "log": StepOutcome.OK,
    }
    assert report.phase is COMPLETED
    assert "step bad failed" in caplog.text
    assert "secret" not in str(report)


async def test_step_that_raises_before_its_first_await_is_a_failure_like_any(shutdown, clock):
    def broken():
        raise TypeError("no coroutine at all")

    shutdown.add(STOPPING, "bad", broken)
    assert outcomes(await run(shutdown, clock)) == {"bad": StepOutcome.FAILED}


async def test_step_that_cancels_itself_has_failed(shutdown, clock, steps):
    shutdown.add(STOPPING, "bad", steps.failing(asyncio.CancelledError()))
    report = await run(shutdown, clock)
    assert outcomes(report) == {"bad": StepOutcome.FAILED}


async def test_shutdown_has_failed_when_a_critical_step_did(shutdown, clock, steps, phases):
    shutdown.add(STOPPING, "sync", steps.failing(OSError("disk")), critical=True)
    shutdown.add(CLEANUP, "socket", steps.lasting("socket", 1))
    report = await run(shutdown, clock)
    assert report.phase is FAILED
    assert phases[-1] is FAILED
    assert steps.done == [("socket", 1)]


async def test_step_that_hangs_is_cancelled_when_the_budget_ends(
    shutdown, clock, steps, phases, caplog
):
    shutdown.add(STOPPING, "sources", steps.hanging("sources"))
    shutdown.add(CLEANUP, "log", steps.lasting("log", 0.5))
    report = await run(shutdown, clock)
    assert steps.done == [("sources cancelled", 10), ("log", 10.5)]
    assert outcomes(report) == {"sources": StepOutcome.TIMEOUT, "log": StepOutcome.OK}
    assert (report.phase, report.abandoned) == (FORCED, ())
    assert phases == [Phase.INITIATED, PREPARING, STOPPING, FORCED]
    assert "step sources took too long" in caplog.text


async def test_step_that_ignores_its_end_is_left_alone(shutdown, clock, steps, caplog):
    shutdown.add(STOPPING, "thread", steps.stubborn("thread"))
    shutdown.add(CLEANUP, "log", steps.lasting("log", 0.25))
    report = await run(shutdown, clock)
    assert steps.done == [("thread ignores it", 10), ("log", 10 + GRACE_S + 0.25)]
    assert report.abandoned == ("thread",)
    assert outcomes(report)["thread"] is StepOutcome.TIMEOUT
    assert report.phase is FORCED
    assert "step thread cannot be ended" in caplog.text


async def test_step_that_is_left_alone_may_fail_later_without_a_complaint_of_the_loop(
    shutdown, clock, steps, caplog
):
    async def step():
        await steps.stubborn("thread")()
        raise ValueError("too late")

    shutdown.add(STOPPING, "thread", step)
    await run(shutdown, clock)
    steps.released.set()
    await clock.settle()
    assert "step thread failed" in caplog.text


async def test_each_phase_after_the_budget_gets_a_moment(shutdown, clock, steps):
    for phase in (PREPARING, STOPPING, CLEANUP):
        shutdown.add(phase, f"{phase} a", steps.hanging(f"{phase} a"))
        shutdown.add(phase, f"{phase} b", steps.lasting(f"{phase} b", 0.75))
    report = await run(shutdown, clock)
    assert steps.done == [
        ("PREPARING b", 0.75),
        ("PREPARING a cancelled", 10),
        ("STOPPING b", 10.75),
        ("STOPPING a cancelled", 11),
        ("CLEANUP b", 11.75),
        ("CLEANUP a cancelled", 12),
    ]
    assert (report.phase, report.duration_s) == (FORCED, 12)


async def test_worst_case_stays_within_the_stated_bound(shutdown, clock, steps):
    for phase in (PREPARING, STOPPING, CLEANUP):
        shutdown.add(phase, f"{phase}", steps.stubborn(f"{phase}"))
    report = await run(shutdown, clock)
    assert report.duration_s <= 10 + 3 * (1 + GRACE_S)
    assert report.abandoned == ("PREPARING", "STOPPING", "CLEANUP")


async def test_phase_that_begins_shortly_before_the_end_gets_its_moment(shutdown, clock, steps):
    shutdown.add(STOPPING, "queue", steps.lasting("queue", 9.9))
    shutdown.add(CLEANUP, "log", steps.lasting("log", 0.9))
    report = await run(shutdown, clock)
    assert set(outcomes(report).values()) == {StepOutcome.OK}
    assert (report.phase, report.duration_s) == (FORCED, pytest.approx(10.8))


async def test_critical_step_that_ran_out_of_time_fails_the_shutdown(shutdown, clock, steps):
    shutdown.add(CLEANUP, "sync", steps.hanging("sync"), critical=True)
    report = await run(shutdown, clock)
    assert (report.phase, outcomes(report)) == (FAILED, {"sync": StepOutcome.TIMEOUT})


async def test_hurry_ends_the_budget_at_once(shutdown, clock, steps):
    shutdown.add(STOPPING, "queue", steps.hanging("queue"))
    shutdown.add(CLEANUP, "log", steps.lasting("log", 0.5))
    task = asyncio.ensure_future(shutdown.run("test"))
    await clock.pass_time(3)
    shutdown.hurry()
    await clock.pass_time(0.5)
    assert steps.done == [("queue cancelled", 3), ("log", 3.5)]
    assert (await task).phase is FORCED


async def test_hurry_before_the_start_leaves_each_phase_its_moment(shutdown, clock, steps):
    shutdown.add(STOPPING, "queue", steps.hanging("queue"))
    shutdown.add(CLEANUP, "log", steps.lasting("log", 0.5))
    shutdown.hurry()
    report = await run(shutdown, clock)
    assert steps.done == [("queue cancelled", 1), ("log", 1.5)]
    assert report.phase is FORCED


async def test_hurry_is_no_reason_to_force_what_is_done(shutdown, clock, steps):
    shutdown.add(PREPARING, "health", steps.lasting("health", 1))
    report = await run(shutdown, clock)
    shutdown.hurry()
    assert (report.phase, shutdown.phase) == (COMPLETED, COMPLETED)


async def test_second_run_gets_the_same_report(shutdown, clock, steps):
    shutdown.add(STOPPING, "queue", steps.lasting("queue", 2))
    tasks = [asyncio.ensure_future(shutdown.run(reason)) for reason in ("first", "second")]
    await clock.pass_time(3)
    first, second = [task.result() for task in tasks]
    assert first is second
    assert await shutdown.run("third") is first
    assert first.reason == "first"
    assert steps.done == [("queue", 2)]


async def test_cancelled_shutdown_ends_its_steps_and_still_has_a_report(shutdown, clock, steps):
    shutdown.add(STOPPING, "queue", steps.hanging("queue"))
    shutdown.add(CLEANUP, "log", steps.lasting("log", 0))
    first = asyncio.ensure_future(shutdown.run("first"))
    await clock.settle()
    second = asyncio.ensure_future(shutdown.run("second"))
    await clock.settle()
    first.cancel()
    await clock.settle()
    assert first.cancelled()
    assert steps.done == [("queue cancelled", 0)]
    assert (await second).phase is FAILED


async def test_steps_are_added_before_the_start_and_to_phases_that_run(shutdown, steps):
    for phase in set(Phase) - {PREPARING, STOPPING, CLEANUP}:
        with pytest.raises(ValueError, match="no step runs in phase"):
            shutdown.add(phase, "x", steps.hanging("x"))
    await shutdown.run("test")
    with pytest.raises(PreconditionError):
        shutdown.add(CLEANUP, "x", steps.hanging("x"))


async def test_listener_that_fails_does_not_stop_the_shutdown(shutdown, clock, steps, caplog):
    def fail(phase):
        raise ValueError("broken listener")

    shutdown.on_phase(fail)
    shutdown.add(CLEANUP, "log", steps.lasting("log", 1))
    assert (await run(shutdown, clock)).phase is COMPLETED
    assert "a listener to the shutdown failed" in caplog.text


async def test_wall_clock_that_is_set_changes_no_budget(shutdown, clock, steps):
    shutdown.add(STOPPING, "queue", steps.lasting("queue", 5))
    task = asyncio.ensure_future(shutdown.run("test"))
    await clock.pass_time(1)
    clock.step_wall(86_400)
    await clock.pass_time(4)
    assert (await task).phase is COMPLETED
