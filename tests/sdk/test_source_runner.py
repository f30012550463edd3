"""A source through its life: whatever it does, the others go on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from collector_core import EventSource, SourceCaps
from collector_core.source_runner import RunnerLimits, SourceRunner, Wanted
from daemoneye_mesh.errors import InvalidConfigError, UnavailableError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 10
QUICK = RunnerLimits(
    prepare_s=0.05,
    stop_s=0.05,
    health_interval_s=0.005,
    health_s=0.05,
    first_restart_s=0.001,
    max_restart_s=0.01,
)
PATIENT = replace(QUICK, prepare_s=GUARD_S, health_interval_s=GUARD_S)


class ScriptedSource(EventSource):
    """Does what the test says in each of its methods; remembers what was called."""

    name = "scripted"
    caps = SourceCaps.PROCESS

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.script: dict[str, list[Any]] = {}
        """For each method what its next calls do: raise an exception, or run a coroutine function."""

    async def prepare(self, context: Any) -> None:
        await self._play("prepare")

    async def watch(self, emit: Any) -> None:
        if not await self._play("watch"):
            await asyncio.Event().wait()

    async def stop(self) -> None:
        await self._play("stop")

    async def close(self) -> None:
        await self._play("close")

    async def health_check(self) -> str:
        return await self._play("health_check") or ""

    async def _play(self, method: str) -> Any:
        self.calls.append(method)
        steps = self.script.get(method)
        step = steps.pop(0) if steps else None
        if isinstance(step, Exception):
            raise step
        return await step() if callable(step) else step


async def hang() -> None:
    await asyncio.Event().wait()


async def swallow_cancellation(end: asyncio.Event) -> bool:
    while not end.is_set():
        try:
            await end.wait()
        except asyncio.CancelledError:
            continue
    return True


async def emit(event: Any) -> None:
    raise AssertionError("no source emits here")


@pytest.fixture
async def run_source() -> AsyncIterator[Callable[..., SourceRunner]]:
    tasks: list[asyncio.Task[None]] = []

    def run(source: EventSource, limits: RunnerLimits = PATIENT) -> SourceRunner:
        runner = SourceRunner(source, emit, lambda: limits, lambda runner: None)
        context: Any = None
        tasks.append(asyncio.create_task(runner.run(context)))
        return runner

    yield run
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def settle(runner: SourceRunner, wanted: Wanted) -> None:
    async with asyncio.timeout(GUARD_S):
        await runner.want(wanted)
        await runner.wait_settled()


async def test_source_is_prepared_watched_stopped_and_closed_in_this_order(run_source: Any) -> None:
    source = ScriptedSource()
    runner = run_source(source)
    await settle(runner, Wanted.WATCHING)
    assert source.calls == ["prepare", "watch"]
    assert (runner.is_prepared, runner.is_watching) == (True, True)
    source.script["stop"] = [RuntimeError("no")]
    await settle(runner, Wanted.CLOSED)
    assert source.calls == ["prepare", "watch", "stop", "close"]
    assert (runner.is_prepared, runner.is_watching) == (False, False)


async def test_pause_ends_the_watch_and_leaves_the_source_prepared(run_source: Any) -> None:
    source = ScriptedSource()
    source.script["stop"] = [RuntimeError("cancel me instead")] * 2
    runner = run_source(source)
    await settle(runner, Wanted.WATCHING)
    await settle(runner, Wanted.PREPARED)
    assert (runner.is_prepared, runner.is_watching) == (True, False)
    await settle(runner, Wanted.WATCHING)
    assert source.calls == ["prepare", "watch", "stop", "watch"]


async def test_source_that_fails_at_prepare_is_tried_again(
    run_source: Any, eventually: Any
) -> None:
    source = ScriptedSource()
    source.script["prepare"] = [
        UnavailableError("not yet; wait"),
        UnavailableError("not yet; wait"),
    ]
    runner = run_source(source, replace(PATIENT, first_restart_s=0.001))
    await runner.want(Wanted.WATCHING)
    await eventually(lambda: runner.is_watching)
    assert source.calls.count("prepare") == 3
    assert runner.failure == ""
    assert runner.failure_count == 2


async def test_source_that_fails_while_it_watches_is_closed_and_prepared_again(
    run_source: Any, eventually: Any
) -> None:
    source = ScriptedSource()
    source.script["watch"] = [UnavailableError("the kernel is away; wait")]
    runner = run_source(source, replace(PATIENT, first_restart_s=0.001))
    await runner.want(Wanted.WATCHING)
    await eventually(lambda: source.calls.count("watch") == 2)
    assert source.calls == ["prepare", "watch", "close", "prepare", "watch"]


async def test_source_that_hangs_in_prepare_counts_as_failed(run_source: Any) -> None:
    source = ScriptedSource()
    source.script["prepare"] = [hang]
    runner = run_source(source, replace(QUICK, first_restart_s=GUARD_S))
    await settle(runner, Wanted.WATCHING)
    assert runner.failure == "prepare took longer than 0.05 s"
    assert not runner.is_lasting


async def test_source_that_wants_a_setting_changed_has_failed_for_good(run_source: Any) -> None:
    source = ScriptedSource()
    source.script["prepare"] = [InvalidConfigError("no such directory; correct proc_dir")]
    runner = run_source(source, replace(PATIENT, first_restart_s=GUARD_S))
    await settle(runner, Wanted.WATCHING)
    assert runner.is_lasting
    assert isinstance(runner.last_error, InvalidConfigError)


async def test_foreign_errors_are_not_told_to_anybody(run_source: Any) -> None:
    source = ScriptedSource()
    source.script["prepare"] = [ValueError("secret of the host")]
    runner = run_source(source, replace(PATIENT, first_restart_s=GUARD_S))
    await settle(runner, Wanted.WATCHING)
    assert "secret" not in runner.failure
    assert "ValueError" in runner.failure


async def test_watch_that_does_not_end_is_abandoned_and_never_doubled(
    run_source: Any, eventually: Any
) -> None:
    source, end = ScriptedSource(), asyncio.Event()
    source.script["watch"] = [lambda: swallow_cancellation(end)]
    runner = run_source(source, QUICK)
    await settle(runner, Wanted.WATCHING)
    await runner.want(Wanted.PREPARED)
    await eventually(lambda: "abandoned" in runner.failure or "hangs" in runner.failure)
    await runner.want(Wanted.WATCHING)
    await eventually(lambda: "hangs" in runner.failure)
    assert source.calls.count("watch") == 1
    end.set()
    await eventually(lambda: runner.is_watching)
    assert source.calls.count("watch") == 2


async def test_stop_that_ends_the_watch_spares_the_cancellation(run_source: Any) -> None:
    source, told = ScriptedSource(), asyncio.Event()

    async def watch() -> bool:
        await told.wait()
        source.calls.append("ended by itself")
        return True

    async def stop() -> None:
        told.set()

    source.script["watch"], source.script["stop"] = [watch], [stop]
    runner = run_source(source)
    await settle(runner, Wanted.WATCHING)
    await settle(runner, Wanted.CLOSED)
    assert source.calls == ["prepare", "watch", "stop", "ended by itself", "close"]


async def test_source_that_is_unwell_says_so_and_is_started_again(
    run_source: Any, eventually: Any
) -> None:
    source = ScriptedSource()
    source.script["health_check"] = [lambda: say("the ring is full; drain it")] * 3
    runner = run_source(source, QUICK)
    await runner.want(Wanted.WATCHING)
    await eventually(lambda: source.calls.count("prepare") == 2)
    assert runner.failure_count == 1
    assert "the ring is full" in str(runner.last_error)


async def test_source_that_is_unwell_once_goes_on(run_source: Any, eventually: Any) -> None:
    source = ScriptedSource()
    source.script["health_check"] = [lambda: say("hiccup; wait"), hang, lambda: say("")]
    runner = run_source(source, QUICK)
    await runner.want(Wanted.WATCHING)
    await eventually(lambda: source.calls.count("health_check") >= 5)
    assert source.calls.count("watch") == 1
    assert runner.failure == ""


async def test_watch_that_returns_is_not_started_again(run_source: Any, eventually: Any) -> None:
    source = ScriptedSource()
    source.script["watch"] = [lambda: say("done")]
    runner = run_source(source, replace(QUICK, health_interval_s=0.001))
    await runner.want(Wanted.WATCHING)
    await eventually(lambda: source.calls.count("health_check") >= 3)
    assert source.calls.count("watch") == 1


async def test_source_that_fails_at_close_is_closed_all_the_same(run_source: Any) -> None:
    source = ScriptedSource()
    source.script["close"] = [RuntimeError("boom")]
    runner = run_source(source, QUICK)
    await settle(runner, Wanted.WATCHING)
    await settle(runner, Wanted.CLOSED)
    assert not runner.is_prepared
    await settle(runner, Wanted.WATCHING)
    assert runner.is_watching


async def test_prepare_is_called_off_when_the_source_shall_be_closed(
    run_source: Any, eventually: Any
) -> None:
    source = ScriptedSource()
    source.script["prepare"] = [hang]
    runner = run_source(source)
    await runner.want(Wanted.WATCHING)
    await eventually(lambda: source.calls == ["prepare"])
    await settle(runner, Wanted.CLOSED)
    assert source.calls == ["prepare", "close"]
    assert (runner.failure, runner.failure_count) == ("", 0)
    await settle(runner, Wanted.WATCHING)
    assert runner.is_watching


@pytest.mark.parametrize("turns", range(16))
async def test_run_that_is_cancelled_at_any_moment_leaves_no_watch_behind(turns: int) -> None:
    source, context = ScriptedSource(), None
    runner = SourceRunner(source, emit, lambda: QUICK, lambda runner: None)
    task = asyncio.ensure_future(runner.run(context))  # type: ignore[arg-type]
    await runner.want(Wanted.WATCHING)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(GUARD_S):
        await asyncio.wait({task})
    assert task.cancelled()
    assert not source.calls or source.calls[-1] == "close"


async def say(text: str) -> str:
    return text
