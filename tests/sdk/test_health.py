import asyncio
import contextlib

import pytest

from collector_core.clock import SuspendWatch
from collector_core.health import HealthMonitor, IllegalTransitionError, Status, StatusMachine
from collector_core.manual_clock import ManualClock
from daemoneye_mesh.errors import OverloadedError, PreconditionError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

STARTING, OK, STOPPED = Status.STARTING, Status.OK, Status.STOPPED
RECOVERABLE, PERMANENT = Status.RECOVERABLE_ERROR, Status.PERMANENT_ERROR
FATAL, STOPPING = Status.FATAL_ERROR, Status.STOPPING


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def health(clock):
    monitor = HealthMonitor(clock)
    monitor.ready()
    return monitor


@pytest.fixture
async def running(clock, health):
    task = asyncio.ensure_future(health.run())
    await clock.settle()
    yield health
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def part(health, name="one"):
    return {one.name: one for one in health.snapshot().components}[name]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (STARTING, {OK, RECOVERABLE, PERMANENT, FATAL, STOPPING}),
        (OK, {RECOVERABLE, PERMANENT, FATAL, STOPPING}),
        (RECOVERABLE, {OK, PERMANENT, FATAL, STOPPING}),
        (PERMANENT, {OK, RECOVERABLE, FATAL, STOPPING}),
        (FATAL, {STOPPING}),
        (STOPPING, {STOPPED}),
        (STOPPED, set()),
    ],
)
def test_status_machine_changes_exactly_as_the_contract_says(clock, before, after):
    allowed = set()
    for status in set(Status) - {before}:
        machine = StatusMachine(clock)
        machine.status = before
        with contextlib.suppress(IllegalTransitionError):
            machine.change_to(status)
            allowed.add(status)
        assert machine.status is (status if status in allowed else before)
    assert allowed == after


def test_refused_change_says_what_may_follow(clock):
    machine = StatusMachine(clock)
    machine.change_to(STOPPING)
    with pytest.raises(IllegalTransitionError, match="cannot become OK; STOPPED may follow") as got:
        machine.change_to(OK)
    assert got.value.metadata == {"before": "STOPPING", "after": "OK", "allowed": "STOPPED"}


def test_status_machine_knows_since_when(clock):
    machine = StatusMachine(clock)
    clock.advance(3)
    change = machine.change_to(OK)
    assert (change.before, change.after, change.at_ns) == (STARTING, OK, clock.wall_ns())
    clock.advance(3)
    assert machine.change_to(OK) is None
    assert machine.since_ns == change.at_ns


def test_status_machine_remembers_the_last_64_changes(clock):
    machine = StatusMachine(clock)
    for _ in range(50):
        machine.change_to(OK)
        machine.change_to(RECOVERABLE)
    assert len(machine.history) == 64
    assert machine.history[-1].after is RECOVERABLE


def test_collector_without_parts_is_ok_once_it_is_ready(clock):
    health = HealthMonitor(clock)
    assert health.status is STARTING
    assert not health.is_serving
    health.ready()
    assert health.status is OK
    assert health.is_serving


@pytest.mark.parametrize(
    ("report", "status", "is_serving"),
    [
        ("recoverable", RECOVERABLE, True),
        ("permanent", PERMANENT, False),
        ("fatal", FATAL, False),
    ],
)
def test_collector_gets_worse_at_once(health, report, status, is_serving):
    one = health.component("one")
    health.component("two").ok()
    one.ok()
    getattr(one, report)("the disk is full; make room")
    assert health.status is status
    assert health.is_serving is is_serving
    assert part(health).message == "the disk is full; make room"


def test_collector_is_as_its_worst_part(health):
    health.component("one").recoverable("a")
    health.component("two").permanent("b")
    health.component("three").ok()
    assert health.status is PERMANENT


def test_part_that_is_still_starting_makes_the_collector_no_worse(health):
    health.component("one")
    assert part(health).status is STARTING
    assert health.snapshot().status is OK


def test_part_is_better_only_after_it_was_for_a_while(clock, health):
    one = health.component("one")
    one.recoverable("no broker; start it")
    one.ok()
    clock.advance(4.9)
    assert (part(health).status, part(health).message) == (RECOVERABLE, "no broker; start it")
    clock.advance(0.1)
    assert (part(health).status, part(health).message) == (OK, "")
    assert health.status is OK


def test_part_that_says_so_often_is_better_at_the_same_time(clock, health):
    one = health.component("one")
    one.permanent("x")
    for _ in range(50):
        one.ok()
        clock.advance(0.099)
    assert health.snapshot().status is PERMANENT
    clock.advance(0.05)
    assert health.snapshot().status is OK


def test_part_that_relapses_waits_anew(clock, health):
    one = health.component("one")
    one.recoverable("x")
    one.ok()
    clock.advance(4)
    one.recoverable("y")
    one.ok()
    clock.advance(4)
    assert part(health).status is RECOVERABLE
    clock.advance(1)
    assert part(health).status is OK


def test_part_gets_better_step_by_step_when_it_says_so(clock, health):
    one = health.component("one")
    one.permanent("p")
    one.recoverable("r")
    clock.advance(1)
    one.ok()
    clock.advance(4)
    assert (part(health).status, part(health).message) == (RECOVERABLE, "r")
    clock.advance(5)
    assert part(health).status is OK


def test_part_becomes_what_was_worst_while_it_got_better(clock, health):
    one = health.component("one")
    one.permanent("p")
    one.ok()
    clock.advance(1)
    one.recoverable("r")
    one.ok()
    clock.advance(4)
    assert (part(health).status, part(health).message) == (RECOVERABLE, "r")


def test_permanent_error_stays_until_the_part_says_otherwise(clock, health):
    health.component("one").permanent("x")
    clock.advance(1e6)
    assert health.snapshot().status is PERMANENT


def test_fatal_error_stays_whatever_the_part_says(clock, health):
    one = health.component("one")
    one.fatal("the log is gone; restart")
    one.ok()
    clock.advance(1e6)
    health.remove("one")
    assert health.snapshot().status is FATAL
    assert part(health).message == "the log is gone; restart"


def test_failures_are_counted_and_reports_dated(clock, health):
    one = health.component("one")
    one.recoverable("x")
    began_ns = clock.wall_ns()
    clock.advance(1)
    one.recoverable("y")
    seen = part(health)
    assert (seen.failure_count, seen.since_ns) == (2, began_ns)
    assert (seen.checked_at_ns, seen.message) == (clock.wall_ns(), "y")


def test_message_is_cut_to_a_bound(health):
    health.component("one").recoverable("x" * 10_000)
    assert len(part(health).message) == 512


def test_part_that_is_silent_for_too_long_is_a_recoverable_error(clock, health):
    health.component("one", max_silence_s=10).ok()
    clock.advance(9.9)
    assert part(health).status is OK
    clock.advance(2.1)
    assert part(health).status is RECOVERABLE
    assert part(health).message.startswith("has not reported for 12 s; ")
    clock.advance(8)
    assert part(health).message.startswith("has not reported for 20 s; ")
    assert part(health).failure_count == 1
    assert health.status is RECOVERABLE


def test_part_that_never_reports_is_silent_too(clock, health):
    health.component("one", max_silence_s=10)
    clock.advance(10)
    assert part(health).status is RECOVERABLE


def test_silent_part_that_reports_again_recovers(clock, health):
    one = health.component("one", max_silence_s=10)
    clock.advance(10)
    health.evaluate()
    one.ok()
    clock.advance(5)
    assert part(health).status is OK


def test_each_silence_is_a_failure_of_its_own(clock, health):
    one = health.component("one", max_silence_s=10)
    for _ in range(2):
        clock.advance(11)
        health.evaluate()
        one.ok()
    assert part(health).failure_count == 2


@pytest.mark.parametrize("report", ["permanent", "fatal"])
def test_silence_makes_no_error_milder(clock, health, report):
    one = health.component("one", max_silence_s=10)
    getattr(one, report)("x")
    before = part(health)
    clock.advance(1_000)
    assert part(health) == before


def test_silence_does_not_hide_what_a_part_complained_about(clock, health):
    health.component("one", max_silence_s=10).recoverable("the disk is full; make room")
    clock.advance(100)
    assert part(health).message == "the disk is full; make room"


def test_time_asleep_is_no_silence(clock, health):
    health.component("one", max_silence_s=10).ok()
    clock.advance(4)
    clock.suspend(8 * 3600)
    assert part(health).status is OK
    clock.advance(5)
    assert part(health).status is OK
    clock.advance(1)
    assert part(health).status is RECOVERABLE


async def test_time_stopped_is_no_silence(clock):
    watch = SuspendWatch(clock)
    health = HealthMonitor(clock, watch=watch)
    health.ready()
    ticking = asyncio.ensure_future(watch.run())
    health.component("one", max_silence_s=10).ok()
    await clock.pass_time(4)
    clock.advance(3600)
    assert part(health).status is OK
    await clock.pass_time(4)
    assert part(health).status is OK
    await clock.pass_time(2)
    assert part(health).status is RECOVERABLE
    ticking.cancel()
    await asyncio.wait([ticking])


def test_part_gets_a_grace_after_the_host_slept(clock, health):
    health.component("one", max_silence_s=10).ok()
    clock.advance(9.5)
    clock.suspend(3600)
    health.evaluate()
    assert health.next_change_s == pytest.approx(5)
    clock.advance(4.9)
    assert part(health).status is OK
    clock.advance(0.1)
    assert part(health).status is RECOVERABLE


def test_wall_clock_that_is_set_changes_no_status(clock, health):
    one = health.component("one", max_silence_s=10)
    one.ok()
    clock.step_wall(86_400)
    assert part(health).status is OK
    one.recoverable("x")
    one.ok()
    clock.step_wall(-2 * 86_400)
    assert part(health).status is RECOVERABLE


def test_next_change_is_when_a_part_may_be_better(clock, health):
    one = health.component("one")
    assert health.next_change_s is None
    one.recoverable("x")
    assert health.next_change_s is None
    one.ok()
    assert health.next_change_s == pytest.approx(5)
    clock.advance(2)
    assert health.next_change_s == pytest.approx(3)
    clock.advance(30)
    assert health.next_change_s == 0


def test_next_change_is_when_the_first_part_is_silent(clock, health):
    health.component("one", max_silence_s=30).ok()
    health.component("two", max_silence_s=20).ok()
    assert health.next_change_s == pytest.approx(20)
    clock.advance(25)
    health.evaluate()
    assert health.next_change_s == pytest.approx(5)


async def test_run_evaluates_when_something_is_due(clock, running):
    one = running.component("one", max_silence_s=30)
    one.recoverable("x")
    one.ok()
    await clock.pass_time(5)
    assert running.status is OK
    await clock.pass_time(24.9)
    assert running.status is OK
    await clock.pass_time(0.2)
    assert running.status is RECOVERABLE


async def test_run_learns_of_what_is_due_earlier_than_it_waits_for(clock, running):
    running.component("quiet", max_silence_s=1_000)
    one = running.component("one")
    await clock.settle()
    one.recoverable("x")
    one.ok()
    await clock.pass_time(5)
    assert running.status is OK
    running.component("late", max_silence_s=3)
    await clock.pass_time(3)
    assert running.status is RECOVERABLE


async def test_changes_yield_the_status_and_end_with_stopped(clock, health):
    async def follow():
        return [status async for status in health.changes()]

    following = asyncio.ensure_future(follow())
    await clock.settle()
    health.component("one").recoverable("x")
    await clock.settle()
    health.stopping()
    health.stopped()
    assert await following == [OK, RECOVERABLE, STOPPED]


async def test_wait_for_sees_a_status_that_lasted_no_turn_of_the_loop(clock, health):
    waiting = asyncio.ensure_future(health.wait_for(FATAL, STOPPING))
    await clock.settle()
    health.stopping()
    health.stopped()
    assert await waiting is STOPPING


async def test_wait_for_returns_at_once_when_it_is_so(health):
    assert await health.wait_for(OK) is OK


async def test_wait_for_fails_when_the_collector_stopped_without(clock, health):
    waiting = asyncio.ensure_future(health.wait_for(FATAL))
    await clock.settle()
    health.stopped()
    with pytest.raises(PreconditionError):
        await waiting
    with pytest.raises(PreconditionError):
        await health.wait_for(FATAL)


async def test_wait_for_forgets_a_waiter_that_left(clock, health):
    waiting = asyncio.ensure_future(health.wait_for(FATAL))
    await clock.settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    health.component("one").fatal("x")
    assert health.status is FATAL


def test_listener_that_fails_does_not_break_the_monitor(health, caplog):
    told = []

    def fail(change):
        raise ValueError("broken listener")

    health.on_change(fail)
    health.on_change(told.append)
    health.component("one").recoverable("x")
    assert health.status is RECOVERABLE
    assert [(change.before, change.after) for change in told] == [(OK, RECOVERABLE)]
    assert "a listener to the health of the collector failed" in caplog.text


def test_collector_that_is_not_ready_does_not_serve_whatever_its_parts_say(clock):
    health = HealthMonitor(clock)
    one = health.component("one")
    one.recoverable("x")
    assert health.status is STARTING
    one.permanent("y")
    assert health.status is PERMANENT
    one.ok()
    clock.advance(10)
    assert health.snapshot().status is PERMANENT
    health.ready()
    assert health.status is OK


def test_collector_that_stops_is_told_nothing_else_by_its_parts(clock, health):
    one = health.component("one")
    health.stopping()
    one.fatal("x")
    assert health.status is STOPPING
    health.stopped()
    one.ok()
    health.ready()
    health.stopping()
    health.stopped()
    assert health.snapshot().status is STOPPED


def test_collector_stops_after_a_fatal_error(health):
    health.component("one").fatal("x")
    health.stopping()
    assert [change.after for change in health.history] == [OK, FATAL, STOPPING]


def test_removed_part_counts_no_longer_and_is_not_heard(health):
    one = health.component("one")
    one.permanent("x")
    health.remove("one")
    assert health.status is OK
    one.fatal("y")
    assert health.snapshot().components == ()
    assert health.status is OK
    health.remove("one")


def test_part_is_the_same_by_any_handle_of_its_name(health):
    health.component("one").recoverable("x")
    health.component("one").recoverable("y")
    assert part(health).failure_count == 2


def test_parts_are_sorted_and_shedding_is_said(health):
    for name in ("source b", "bus", "source a"):
        health.component(name).ok()
    health.is_shedding = True
    snapshot = health.snapshot()
    assert [one.name for one in snapshot.components] == ["bus", "source a", "source b"]
    assert snapshot.is_shedding


def test_number_of_parts_is_bounded(health):
    for number in range(256):
        health.component(f"source {number}")
    with pytest.raises(OverloadedError):
        health.component("one too many")
