"""Several sources together: whatever one of them does, the others go on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from collector_core.capability import SourceCaps
from collector_core.event import Event
from collector_core.monitor import MAX_SOURCES, Monitor
from collector_core.source import EventSource
from collector_core.source_runner import RunnerLimits, SourceRunner
from daemoneye.ipc.v1 import collector_control_service_pb2 as pb
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import InvalidConfigError, PreconditionError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 10
QUICK = RunnerLimits(
    prepare_s=0.05,
    stop_s=0.05,
    health_interval_s=0.002,
    health_s=0.02,
    first_restart_s=0.001,
    max_restart_s=0.01,
)
SLOW_RESTART = RunnerLimits(first_restart_s=GUARD_S)
CONTEXT: Any = None


class ScriptedSource(EventSource):
    """Does what the test says in each of its methods; remembers what was called."""

    caps = SourceCaps.PROCESS

    def __init__(self, name: str = "one", **behaviour: Callable[[], Any]) -> None:
        self.name = name
        self.behaviour = behaviour
        """For each method what it does: a function, or a coroutine function."""
        self.calls: list[str] = []
        self.is_watching = False

    async def prepare(self, context: Any) -> None:
        await self._play("prepare")

    async def watch(self, emit: Any) -> None:
        self.is_watching = True
        try:
            await self._play("watch")
            await asyncio.Event().wait()
        finally:
            self.is_watching = False

    async def stop(self) -> None:
        await self._play("stop")

    async def close(self) -> None:
        await self._play("close")

    async def health_check(self) -> str:
        return await self._play("health_check") or ""

    def degradations(self) -> Any:
        return self.behaviour.get("degradations", tuple)()

    async def _play(self, method: str) -> Any:
        self.calls.append(method)
        found = self.behaviour.get(method, str)()
        return await found if asyncio.iscoroutine(found) else found


async def emit(event: Event) -> None:
    raise AssertionError("no source emits here")


async def hang() -> None:
    await asyncio.Event().wait()


def fail() -> None:
    raise ValueError("secret path")


def cancel_itself() -> None:
    raise asyncio.CancelledError


@pytest.fixture
def run_monitor(running: Any) -> Callable[..., Monitor]:
    def run(*sources: EventSource, limits: RunnerLimits = QUICK) -> Monitor:
        monitor = Monitor(sources, emit, lambda: limits)
        running(monitor.run(CONTEXT))
        return monitor

    return run


async def within(work: Any) -> None:
    async with asyncio.timeout(GUARD_S):
        await work


async def test_nothing_is_called_before_the_sources_shall_begin(run_monitor: Any) -> None:
    source = ScriptedSource()
    monitor = run_monitor(source)
    await asyncio.sleep(0)
    assert monitor.state == pb.MONITORING_STATE_STARTING
    assert source.calls == []


async def test_begin_prepares_and_watches_and_stop_closes(run_monitor: Any) -> None:
    one, two = ScriptedSource("one"), ScriptedSource("two")
    monitor = run_monitor(one, two, limits=RunnerLimits())
    await within(monitor.begin())
    assert monitor.state == pb.MONITORING_STATE_MONITORING
    assert one.is_watching
    assert two.is_watching
    one.behaviour["stop"] = two.behaviour["stop"] = fail
    await within(monitor.stop())
    assert monitor.state == pb.MONITORING_STATE_STOPPING
    assert one.calls == two.calls == ["prepare", "watch", "stop", "close"]


async def test_cancelling_the_run_closes_the_sources(running: Any) -> None:
    source = ScriptedSource()
    monitor = Monitor([source], emit, lambda: QUICK)
    task = running(monitor.run(CONTEXT))
    await within(monitor.begin())
    task.cancel()
    await within(asyncio.wait({task}))
    assert task.cancelled()
    assert source.calls[-1] == "close"
    assert not source.is_watching


async def test_pause_and_resume_keep_the_sources_prepared(run_monitor: Any) -> None:
    source = ScriptedSource(stop=fail)
    monitor = run_monitor(source)
    await within(monitor.begin())
    for _ in range(3):
        await within(monitor.pause())
        assert not source.is_watching
        assert monitor.state == pb.MONITORING_STATE_PAUSED
        await within(monitor.pause())
        await within(monitor.resume())
        await within(monitor.resume())
        assert monitor.state == pb.MONITORING_STATE_MONITORING
        assert source.is_watching
    assert source.calls.count("prepare") == 1
    assert source.calls.count("watch") == 4
    assert "close" not in source.calls


async def test_stop_monitoring_closes_and_begin_opens_again(run_monitor: Any) -> None:
    source = ScriptedSource()
    monitor = run_monitor(source)
    for _ in range(2):
        await within(monitor.begin())
        assert source.is_watching
        await within(monitor.stop_monitoring())
        assert monitor.state == pb.MONITORING_STATE_IDLE
        assert source.calls[-1] == "close"
    assert source.calls.count("prepare") == 2


@pytest.mark.parametrize("state", ["idle", "starting"])
async def test_pause_and_resume_change_nothing_unless_it_watches(
    run_monitor: Any, state: str
) -> None:
    source = ScriptedSource()
    monitor = run_monitor(source)
    if state == "idle":
        await within(monitor.begin())
        await within(monitor.stop_monitoring())
    before, calls = monitor.state, list(source.calls)
    await within(monitor.pause())
    await within(monitor.resume())
    assert (monitor.state, source.calls) == (before, calls)


async def test_begin_ends_a_pause(run_monitor: Any) -> None:
    source = ScriptedSource()
    monitor = run_monitor(source)
    await within(monitor.begin())
    await within(monitor.pause())
    await within(monitor.begin())
    assert source.is_watching
    assert monitor.state == pb.MONITORING_STATE_MONITORING


async def test_stop_is_for_good(run_monitor: Any) -> None:
    source = ScriptedSource()
    monitor = run_monitor(source)
    await within(monitor.begin())
    await within(monitor.stop())
    for ask in (monitor.resume, monitor.pause, monitor.stop_monitoring, monitor.begin):
        await within(ask())
        assert monitor.state == pb.MONITORING_STATE_STOPPING
    assert not source.is_watching
    assert source.calls.count("watch") == 1


async def test_quick_pause_and_resume_end_in_the_last_wish(
    run_monitor: Any, eventually: Any
) -> None:
    sources = [ScriptedSource(name) for name in ("one", "two", "three")]
    monitor = run_monitor(*sources)
    await within(monitor.begin())
    for _ in range(20):
        await within(asyncio.gather(monitor.pause(), monitor.resume()))
    await eventually(lambda: all(one.is_watching for one in sources))
    assert monitor.state == pb.MONITORING_STATE_MONITORING
    await within(monitor.pause())
    for _ in range(20):
        await within(asyncio.gather(monitor.resume(), monitor.pause()))
    assert not any(one.is_watching for one in sources)
    assert monitor.state == pb.MONITORING_STATE_PAUSED


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


@pytest.mark.parametrize("trouble", [fail, cancel_itself, hang, None])
@pytest.mark.parametrize("method", ["prepare", "watch", "stop", "close", "health_check"])
async def test_source_with_trouble_does_not_affect_the_others(
    *, run_monitor: Any, cling: Any, method: str, trouble: Any
) -> None:
    bad, good = ScriptedSource("bad", **{method: trouble or cling}), ScriptedSource("good")
    monitor = run_monitor(bad, good)
    await within(monitor.begin())
    assert good.is_watching
    await within(monitor.pause())
    assert not good.is_watching
    await within(monitor.resume())
    assert good.is_watching
    await within(monitor.stop_monitoring())
    assert good.calls[-1] == "close"
    assert good.calls.count("prepare") == 1
    assert good.calls.count("watch") == 2


@pytest.mark.parametrize("trouble", [fail, cancel_itself])
@pytest.mark.parametrize("method", ["prepare", "watch"])
async def test_source_that_failed_is_started_again(
    run_monitor: Any, eventually: Any, method: str, trouble: Any
) -> None:
    left = [trouble, trouble, trouble]
    bad = ScriptedSource("bad", **{method: lambda: left.pop()() if left else None})
    monitor = run_monitor(bad, ScriptedSource("good"))
    await within(monitor.begin())
    await eventually(lambda: not left and bad.is_watching)
    assert monitor.runners[0].failure_count == 3
    await eventually(lambda: monitor.degradations() == ())


@pytest.mark.parametrize(
    "answer",
    [
        fail,
        lambda: None,
        lambda: 7,
        lambda: ["polls"],
        lambda: (fail() for _ in range(1)),
    ],
)
async def test_source_that_cannot_say_what_it_does_not_see_is_a_degradation_itself(
    run_monitor: Any, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    polls = Degradation(DegradedReason.POLLING, "good", "it polls")
    bad = ScriptedSource("bad", degradations=answer)
    good = ScriptedSource("good", degradations=lambda: [polls])
    monitor = run_monitor(bad, good)
    await within(monitor.begin())
    told, own = monitor.degradations()
    assert (told.reason, told.subject) == (DegradedReason.READ_ERRORS, "bad")
    assert own == polls
    assert monitor.degradations() == (told, own)
    assert caplog.text.count("source bad cannot say what it does not see") == 1


async def test_same_degradation_of_two_sources_is_told_once(run_monitor: Any) -> None:
    polls = Degradation(DegradedReason.POLLING, "unit", "it polls")
    sources = [ScriptedSource(name, degradations=lambda: (polls,)) for name in ("one", "two")]
    monitor = run_monitor(*sources)
    await within(monitor.begin())
    assert monitor.degradations() == (polls,)


async def test_failed_source_is_a_degradation_that_hides_foreign_texts(run_monitor: Any) -> None:
    def refuse() -> None:
        raise PreconditionError("no access to x; grant it")

    bad, worse = ScriptedSource("bad", watch=fail), ScriptedSource("worse", prepare=refuse)
    monitor = run_monitor(bad, worse, limits=SLOW_RESTART)
    await within(monitor.begin())
    await within(monitor.runners[0].wait_settled())
    found = {one.subject: one for one in monitor.degradations()}
    assert found["bad"].reason is DegradedReason.COLLECTOR_UNAVAILABLE
    assert "secret" not in found["bad"].message
    assert found["worse"].message == "source worse failed: no access to x; grant it"


@pytest.mark.parametrize(
    ("ask", "command"), [("pause", "collectors resume"), ("stop_monitoring", "collectors start")]
)
async def test_every_source_is_degraded_while_it_was_told_not_to_watch(
    run_monitor: Any, ask: str, command: str
) -> None:
    monitor = run_monitor(ScriptedSource("one"), ScriptedSource("two"))
    await within(monitor.begin())
    assert monitor.degradations() == ()
    await within(getattr(monitor, ask)())
    (found,) = monitor.degradations()
    assert (found.reason, found.subject) == (DegradedReason.PAUSED, "one, two")
    assert command in found.message
    await within(monitor.begin())
    assert monitor.degradations() == ()


async def test_begin_returns_when_a_source_has_failed(run_monitor: Any) -> None:
    monitor = run_monitor(ScriptedSource("bad", prepare=fail), limits=SLOW_RESTART)
    await within(monitor.begin())
    assert monitor.runners[0].failure


async def test_pause_waits_for_the_end_of_a_watch_that_is_unwell(
    running: Any, eventually: Any
) -> None:
    source = ScriptedSource(health_check=lambda: "the ring is full; drain it", stop=hang)

    def check_once() -> RunnerLimits:
        was_checked = "health_check" in source.calls
        return RunnerLimits(health_interval_s=GUARD_S if was_checked else 0.001, stop_s=0.05)

    monitor = Monitor([source], emit, check_once)
    running(monitor.run(CONTEXT))
    await within(monitor.begin())
    await eventually(lambda: monitor.runners[0].failure)
    await within(monitor.pause())
    assert not source.is_watching


async def test_source_that_returns_has_ended_and_the_others_go_on(run_monitor: Any) -> None:
    class Ending(ScriptedSource):
        async def watch(self, emit: Any) -> None:
            self.calls.append("watch")

    ending, other = Ending("ending"), ScriptedSource("other")
    monitor = run_monitor(ending, other)
    await within(monitor.begin())
    assert other.is_watching
    assert monitor.degradations() == ()
    assert ending.calls.count("watch") == 1


async def test_source_that_only_answers_is_prepared_and_asked_how_it_is(
    run_monitor: Any, eventually: Any
) -> None:
    class Answering(EventSource):
        name = "answering"
        caps = SourceCaps.PROCESS

        def __init__(self) -> None:
            self.asked_count = 0

        async def prepare(self, context: Any) -> None:
            pass

        async def health_check(self) -> str:
            self.asked_count += 1
            return "the index is broken; rebuild it"

    source = Answering()
    monitor = run_monitor(source, ScriptedSource("other"))
    await within(monitor.begin())
    await eventually(lambda: monitor.runners[0].failure_count > 0)
    assert source.asked_count >= 3
    assert "the index is broken" in str(monitor.runners[0].last_error)


async def test_every_change_of_a_source_is_told(running: Any) -> None:
    told: list[tuple[str, bool]] = []

    def note(runner: SourceRunner) -> None:
        told.append((runner.name, runner.is_watching))

    monitor = Monitor([ScriptedSource("one")], emit, lambda: QUICK, note)
    running(monitor.run(CONTEXT))
    await within(monitor.begin())
    assert told[-1] == ("one", True)
    await within(monitor.stop())
    assert told[-1] == ("one", False)


async def test_runner_of_a_source_is_found() -> None:
    one, two = ScriptedSource("one"), ScriptedSource("two")
    monitor = Monitor([one, two], emit)
    assert monitor.runner_of(two).source is two


class Blind(EventSource):
    name = "blind"
    caps = SourceCaps.REALTIME


@pytest.mark.parametrize(
    ("sources", "text"),
    [
        ([], "1 to 16 sources"),
        ([ScriptedSource(str(number)) for number in range(MAX_SOURCES + 1)], "1 to 16 sources"),
        ([ScriptedSource("a"), ScriptedSource("b"), ScriptedSource("a")], "called a"),
        ([Blind()], "no source has a domain"),
    ],
)
async def test_sources_that_cannot_run_together_are_refused(sources: Any, text: str) -> None:
    with pytest.raises(InvalidConfigError, match=text):
        Monitor(sources, emit)
