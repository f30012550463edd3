import asyncio
import time

import pytest

from collector_core import clock as clock_module
from collector_core.clock import (
    ClockEvent,
    ClockEventKind,
    SuspendWatch,
    SystemClock,
    sleep_unless,
)
from collector_core.manual_clock import ManualClock

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def watched(clock):
    """A watch and the events it told of."""
    watch, events = SuspendWatch(clock), []
    watch.on_event(events.append)
    return watch, events


@pytest.fixture
async def running(clock, watched):
    """The same while ``run`` ticks."""
    task = asyncio.ensure_future(watched[0].run())
    await clock.settle()
    yield watched
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


def kinds(events):
    return [event.kind for event in events]


def test_system_clock_reads_the_clocks_of_the_kernel():
    clock = SystemClock()
    assert clock.monotonic_s() <= time.monotonic() <= clock.monotonic_s()
    assert clock.boottime_s() <= time.clock_gettime(time.CLOCK_BOOTTIME) <= clock.boottime_s()
    assert clock.wall_ns() <= time.time_ns()
    assert clock.boottime_s() >= clock.monotonic_s() - 1e-3


async def test_watch_is_silent_while_time_passes_as_usual(clock, running):
    watch, events = running
    await clock.pass_time(3_600)
    assert events == []
    assert watch.grace_until() == 0
    assert watch.awake_s() == pytest.approx(clock.boottime_s())


async def test_watch_reports_a_suspend_at_the_next_tick(clock, running):
    watch, events = running
    clock.suspend(8 * 3600)
    await clock.pass_time(1)
    assert events == [
        ClockEvent(ClockEventKind.SUSPENDED, pytest.approx(8 * 3600), clock.wall_ns())
    ]
    assert watch.event_count == {ClockEventKind.SUSPENDED: 1}
    await clock.pass_time(60)
    assert len(events) == 1


async def test_watch_adds_up_suspends_too_short_for_an_event(clock, running):
    _, events = running
    for _ in range(5):
        clock.suspend(0.25)
        await clock.pass_time(1)
    assert kinds(events) == [ClockEventKind.SUSPENDED]
    assert events[0].duration_s == pytest.approx(1.25)


async def test_watch_reports_a_stall_with_the_time_nobody_ran(clock, running):
    _, events = running
    clock.advance(31)
    await clock.settle()
    assert kinds(events) == [ClockEventKind.STALLED]
    assert events[0].duration_s == pytest.approx(30)


async def test_watch_takes_a_tick_that_is_a_little_late_for_usual(clock, running):
    _, events = running
    clock.advance(5.9)
    await clock.settle()
    assert events == []


async def test_stall_is_told_once_when_somebody_asks_before_the_late_tick(clock, running):
    watch, events = running
    before_s = watch.awake_s()
    clock.advance(31)
    assert watch.awake_s() - before_s == pytest.approx(1)
    await clock.settle()
    assert kinds(events) == [ClockEventKind.STALLED]


async def test_watch_that_does_not_tick_takes_no_pause_for_a_stall(clock, watched):
    watch, events = watched
    clock.advance(1_000)
    assert watch.awake_s() == pytest.approx(clock.boottime_s())
    assert events == []


async def test_watch_that_was_cancelled_takes_no_pause_for_a_stall(clock, watched):
    watch, events = watched
    task = asyncio.ensure_future(watch.run())
    await clock.settle()
    task.cancel()
    await asyncio.wait([task])
    clock.advance(1_000)
    watch.tick()
    assert events == []


@pytest.mark.parametrize("step_s", [3.0, -3.0, 86_400.0, -86_400.0])
async def test_watch_reports_a_step_of_the_wall_clock_with_its_direction(clock, running, step_s):
    watch, events = running
    clock.step_wall(step_s)
    await clock.pass_time(30)
    assert kinds(events) == [ClockEventKind.WALL_STEPPED]
    assert events[0].duration_s == pytest.approx(step_s, abs=1e-3)
    assert watch.grace_until() == 0


async def test_watch_adds_up_small_steps_of_the_wall_clock(clock, running):
    _, events = running
    for _ in range(3):
        clock.step_wall(-0.9)
        await clock.pass_time(1)
    assert kinds(events) == [ClockEventKind.WALL_STEPPED]


async def test_watch_tells_a_suspend_and_a_stall_in_one_tick_apart(clock, running):
    watch, events = running
    clock.suspend(100)
    clock.advance(11)
    await clock.settle()
    assert kinds(events) == [ClockEventKind.SUSPENDED, ClockEventKind.STALLED]
    assert [event.duration_s for event in events] == [pytest.approx(100), pytest.approx(10)]
    assert watch.awake_s() == pytest.approx(clock.boottime_s() - 110)


@pytest.mark.parametrize("absence", ["suspend", "advance"])
async def test_absence_grants_a_grace_on_the_boottime_clock(clock, running, absence):
    watch, _ = running
    getattr(clock, absence)(100)
    watch.tick()
    assert watch.grace_until() == pytest.approx(clock.boottime_s() + clock_module.GRACE_S)


async def test_listener_that_fails_does_not_keep_the_news_from_others(clock, watched, caplog):
    watch, events = watched

    def fail(event):
        raise ValueError("broken listener")

    watch = SuspendWatch(clock)
    watch.on_event(fail)
    watch.on_event(events.append)
    clock.suspend(10)
    watch.tick()
    assert kinds(events) == [ClockEventKind.SUSPENDED]
    assert "a listener to the clocks failed" in caplog.text


def test_clocks_that_were_not_read_at_one_moment_are_read_again():
    class StoppedOnce(ManualClock):
        """Is stopped for a while between two clocks, once."""

        stops = 0

        def monotonic_s(self):
            now_s = super().monotonic_s()
            if self.stops:
                self.stops -= 1
                self.suspend(10)
            return now_s

    clock = StoppedOnce()
    watch, events = SuspendWatch(clock), []
    watch.on_event(events.append)
    clock.stops = 1
    watch.tick()
    watch.tick()
    assert kinds(events) == [ClockEventKind.SUSPENDED]
    assert events[0].duration_s == pytest.approx(10)


async def test_sleep_unless_ends_with_the_event(clock):
    event = asyncio.Event()
    task = asyncio.ensure_future(sleep_unless(clock, 100, event))
    await clock.pass_time(99)
    assert not task.done()
    event.set()
    await clock.settle()
    assert task.done()


async def test_sleep_unless_ends_after_its_delay(clock):
    task = asyncio.ensure_future(sleep_unless(clock, 100, asyncio.Event()))
    await clock.pass_time(99.9)
    assert not task.done()
    await clock.pass_time(0.1)
    assert task.done()


async def test_sleep_unless_without_a_delay_waits_for_the_event_alone(clock):
    event = asyncio.Event()
    task = asyncio.ensure_future(sleep_unless(clock, None, event))
    await clock.pass_time(1e9)
    assert not task.done()
    event.set()
    await task


async def test_sleep_unless_leaves_nothing_behind_when_it_is_cancelled(clock):
    task = asyncio.ensure_future(sleep_unless(clock, 100, asyncio.Event()))
    await clock.settle()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_manual_clock_wakes_sleepers_in_the_order_of_their_times():
    clock, woken = ManualClock(), []

    async def sleep_twice(name, delay_s):
        for _ in range(2):
            await clock.sleep(delay_s)
            woken.append((name, clock.monotonic_s()))

    start_s = clock.monotonic_s()
    tasks = [asyncio.ensure_future(sleep_twice(*one)) for one in (("a", 3), ("b", 2))]
    await clock.pass_time(10)
    assert woken == [("b", start_s + 2), ("a", start_s + 3), ("b", start_s + 4), ("a", start_s + 6)]
    assert all(task.done() for task in tasks)
    assert clock.monotonic_s() == start_s + 10


def test_manual_clock_keeps_its_clocks_apart():
    clock = ManualClock(wall_ns=5_000_000_000)
    monotonic_s, boottime_s = clock.monotonic_s(), clock.boottime_s()
    clock.suspend(7)
    clock.advance(2)
    clock.step_wall(-1)
    assert clock.monotonic_s() == monotonic_s + 2
    assert clock.boottime_s() == boottime_s + 9
    assert clock.wall_ns() == 13_000_000_000
