import asyncio

import pytest

from collector_core import monitor as monitor_module
from collector_core.monitor import Monitor
from collector_core.source import EventSource, SourceCaps
from daemoneye.ipc.v1 import collector_control_service_pb2 as pb
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import PreconditionError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 10


class ScriptedSource(EventSource):
    """Fails as often as it is told, then watches; remembers what was called."""

    caps = SourceCaps(domain=ipc_pb2.MONITORING_DOMAIN_PROCESS)

    def __init__(self, name="one", failures=()):
        self.name = name
        self.failures = list(failures)
        self.calls = []
        self.is_watching = False
        self.cannot_see = ()
        self.end = asyncio.Event()
        self.error_on_cancel = None

    async def prepare(self):
        self.calls.append("prepare")

    async def watch(self, emit):
        self.calls.append("watch")
        if self.failures:
            raise self.failures.pop(0)
        self.is_watching = True
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            if self.error_on_cancel:
                raise self.error_on_cancel from None
            raise
        finally:
            self.is_watching = False

    async def close(self):
        self.calls.append("close")

    def degradations(self):
        return self.cannot_see


async def emit(event):
    raise AssertionError("no source emits here")


@pytest.fixture(autouse=True)
def quick_restart(monkeypatch):
    monkeypatch.setattr(monitor_module, "FIRST_RESTART_DELAY_S", 0.001)


async def finish(task):
    task.cancel()
    async with asyncio.timeout(GUARD_S):
        await asyncio.wait([task])
    assert task.cancelled()


async def test_sources_are_prepared_before_any_watches_and_closed_at_the_end(running, eventually):
    order = []

    class Ordered(ScriptedSource):
        async def prepare(self):
            order.append(f"prepare {self.name}")

        async def watch(self, emit):
            order.append(f"watch {self.name}")
            await super().watch(emit)

        async def close(self):
            order.append(f"close {self.name}")

    monitor = Monitor([Ordered("a"), Ordered("b")], emit)
    assert monitor.state == pb.MONITORING_STATE_STARTING
    task = running(monitor.run())
    async with asyncio.timeout(GUARD_S):
        await monitor.ready.wait()
    await eventually(lambda: len(order) == 4)
    assert monitor.state == pb.MONITORING_STATE_MONITORING
    await finish(task)
    assert order[:2] == ["prepare a", "prepare b"]
    assert sorted(order[2:4]) == ["watch a", "watch b"]
    assert order[4:] == ["close b", "close a"]


async def test_source_that_fails_is_restarted_and_does_not_stop_the_others(
    running, eventually, caplog
):
    bad, good = ScriptedSource("bad", [ValueError("secret")] * 3), ScriptedSource("good")
    monitor = Monitor([bad, good], emit)
    task = running(monitor.run())
    await eventually(lambda: bad.is_watching)
    assert bad.calls.count("watch") == 4
    assert good.calls.count("watch") == 1
    assert good.is_watching
    assert caplog.text.count("source bad failed") == 3
    await finish(task)


async def test_failed_source_is_a_degradation_until_it_watches_again(
    running, eventually, monkeypatch
):
    monkeypatch.setattr(monitor_module, "FIRST_RESTART_DELAY_S", 0.2)
    failures = [ValueError("secret path"), PreconditionError("no access to x; grant it")]
    source = ScriptedSource("one", failures)
    monitor = Monitor([source], emit)
    task = running(monitor.run())
    await eventually(monitor.degradations)
    (first,) = monitor.degradations()
    assert first == Degradation(
        DegradedReason.COLLECTOR_UNAVAILABLE, "one", "source one failed: internal error"
    )
    await eventually(lambda: [one for one in monitor.degradations() if "grant it" in one.message])
    await eventually(lambda: source.is_watching)
    assert monitor.degradations() == ()
    await finish(task)


async def test_source_that_failed_before_a_pause_is_whole_again_after_it(
    running, eventually, monkeypatch
):
    monkeypatch.setattr(monitor_module, "FIRST_RESTART_DELAY_S", 600)
    source = ScriptedSource("one", [ValueError()])
    monitor = Monitor([source], emit)
    task = running(monitor.run())
    await eventually(monitor.degradations)
    async with asyncio.timeout(GUARD_S):
        await monitor.pause()
        await monitor.resume()
    await eventually(lambda: source.is_watching)
    assert monitor.degradations() == ()
    await finish(task)


async def test_what_the_sources_cannot_see_is_told(running):
    source = ScriptedSource()
    polls = Degradation(DegradedReason.POLLING, "one", "it polls")
    source.cannot_see = (polls,)
    assert Monitor([source, source], emit).degradations() == (polls,)


async def test_pause_cancels_the_watch_and_resume_starts_it(running, eventually):
    source = ScriptedSource()
    monitor = Monitor([source], emit)
    task = running(monitor.run())
    await eventually(lambda: source.is_watching)
    for _ in range(3):
        async with asyncio.timeout(GUARD_S):
            await monitor.pause()
            assert not source.is_watching
            assert monitor.state == pb.MONITORING_STATE_PAUSED
            await monitor.pause()
            await monitor.resume()
        assert monitor.state == pb.MONITORING_STATE_MONITORING
        await eventually(lambda: source.is_watching)
        await monitor.resume()
    assert source.calls == ["prepare", "watch", "watch", "watch", "watch"]
    await finish(task)


async def test_pause_before_the_first_watch_is_kept(running, eventually):
    source = ScriptedSource()
    monitor = Monitor([source], emit)
    async with asyncio.timeout(GUARD_S):
        await monitor.pause()
        task = running(monitor.run())
        await monitor.ready.wait()
        assert (source.calls, monitor.state) == (["prepare"], pb.MONITORING_STATE_PAUSED)
        await monitor.resume()
    await eventually(lambda: source.is_watching)
    await finish(task)


async def test_quick_pause_and_resume_end_in_the_last_wish(running, eventually):
    source = ScriptedSource()
    monitor = Monitor([source], emit)
    task = running(monitor.run())
    await eventually(lambda: source.is_watching)
    async with asyncio.timeout(GUARD_S):
        for _ in range(20):
            await asyncio.gather(monitor.pause(), monitor.resume())
        await monitor.resume()
        await eventually(lambda: source.is_watching)
        for _ in range(20):
            await asyncio.gather(monitor.resume(), monitor.pause())
    assert not source.is_watching
    assert monitor.state == pb.MONITORING_STATE_PAUSED
    await finish(task)


async def test_source_that_fails_while_it_is_paused_does_not_hold_the_pause_up(
    running, eventually, caplog
):
    source = ScriptedSource()
    source.error_on_cancel = ValueError("broken cleanup")
    monitor = Monitor([source], emit)
    task = running(monitor.run())
    await eventually(lambda: source.is_watching)
    async with asyncio.timeout(GUARD_S):
        await monitor.pause()
    assert "while it was stopped" in caplog.text
    await monitor.resume()
    await eventually(lambda: source.is_watching)
    await finish(task)


async def test_source_that_cancels_itself_is_restarted(running, eventually):
    source = ScriptedSource("one", [asyncio.CancelledError()])
    monitor = Monitor([source], emit)
    task = running(monitor.run())
    await eventually(lambda: source.is_watching)
    assert source.calls.count("watch") == 2
    await finish(task)


async def test_source_that_returns_has_ended_and_the_monitor_goes_on(running, eventually):
    ending, other = ScriptedSource("ending"), ScriptedSource("other")
    ending.end.set()
    monitor = Monitor([ending, other], emit)
    task = running(monitor.run())
    await eventually(lambda: other.is_watching)
    assert ending.calls == ["prepare", "watch"]
    assert monitor.degradations() == ()
    await finish(task)


async def test_stop_is_for_good(running, eventually):
    source = ScriptedSource()
    monitor = Monitor([source], emit)
    task = running(monitor.run())
    await eventually(lambda: source.is_watching)
    async with asyncio.timeout(GUARD_S):
        await monitor.stop()
    assert not source.is_watching
    for ask in (monitor.resume, monitor.pause, monitor.resume):
        await ask()
        assert monitor.state == pb.MONITORING_STATE_STOPPING
    assert source.calls.count("watch") == 1
    await finish(task)


async def test_source_that_cannot_be_prepared_ends_the_run_and_closes_the_others(running):
    class Broken(ScriptedSource):
        async def prepare(self):
            raise PreconditionError("no /proc; mount it")

    first = ScriptedSource("first")
    monitor = Monitor([first, Broken("broken")], emit)
    with pytest.raises(PreconditionError, match="no /proc"):
        await monitor.run()
    assert first.calls == ["prepare", "close"]
    assert not monitor.ready.is_set()


async def test_backoff_grows_with_each_failure_and_starts_anew_after_long_work(monkeypatch):
    """Reads the delays that are slept; a fake clock says how long the source worked."""
    now_s, worked_s, delays = 0.0, [0, 0, 0, 100, 0], []

    class Working(ScriptedSource):
        async def watch(self, emit):
            nonlocal now_s
            if not worked_s:
                return
            now_s += worked_s.pop(0)
            raise ValueError

    async def sleep(delay_s):
        delays.append(delay_s)

    monkeypatch.setattr(monitor_module, "FIRST_RESTART_DELAY_S", 0.5)
    monkeypatch.setattr(monitor_module.asyncio, "sleep", sleep)
    monitor = Monitor([Working()], emit, monotonic=lambda: now_s)
    await monitor._supervise(monitor._sources[0])
    monkeypatch.undo()
    assert delays == [0.5, 1.0, 2.0, 0.5, 1.0]
