"""The sources of a collector, together: begun, paused, resumed, stopped.

Invariant: a source that fails or hangs neither stops the others nor the collector; the operations here
return when every source does what was asked for or has failed at it, and none leaves the sources in
different states on purpose.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence

from collector_core.capability import Degrades, Watches, caps_of
from collector_core.event import Emit
from collector_core.source import EventSource, SourceContext
from collector_core.source_runner import RunnerLimits, SourceRunner, Wanted
from daemoneye.ipc.v1 import collector_control_service_pb2 as pb
from daemoneye_mesh.completeness import Degradation, DegradedReason, merge_degradations
from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["MAX_SOURCES", "Monitor", "check_sources"]

MAX_SOURCES = 16

log = logging.getLogger("daemoneye.monitor")


def check_sources(sources: Sequence[EventSource]) -> None:
    """Refuses a set of sources that cannot run together.

    Raises:
        InvalidConfigError: there is none, too many, two have the same name, or none has a domain.
    """
    names = [source.name for source in sources]
    if not 1 <= len(names) <= MAX_SOURCES:
        raise InvalidConfigError(
            f"a collector has 1 to {MAX_SOURCES} sources, not {len(names)}", count=len(names)
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidConfigError(
            f"two sources are called {twice[0]}; give each its own name", name=twice[0]
        )
    if not caps_of(sources).domains:
        raise InvalidConfigError("no source has a domain in its caps; give one of them one")


class Monitor:
    """The sources of one collector.

    Args:
        sources: what to watch; their names differ.
        emit: takes their events.
        limits: times in the life of a source; asked for whenever they are needed.
        on_source: hears of every change of a source.
    """

    def __init__(
        self,
        sources: Sequence[EventSource],
        emit: Emit,
        limits: Callable[[], RunnerLimits] = RunnerLimits,
        on_source: Callable[[SourceRunner], None] = lambda runner: None,
    ) -> None:
        check_sources(sources)
        self.runners = tuple(SourceRunner(source, emit, limits, on_source) for source in sources)
        self._complained: set[str] = set()
        self.state: pb.MonitoringState.ValueType = pb.MONITORING_STATE_STARTING
        """What the sources were told to do."""

    def degradations(self) -> tuple[Degradation, ...]:
        """What the sources cannot see right now."""
        own = [*self._of_state(), *(one for runner in self.runners for one in _of_runner(runner))]
        return merge_degradations(own, *(self._of_source(one.source) for one in self.runners))

    def runner_of(self, source: EventSource) -> SourceRunner:
        """Returns who runs a source."""
        return next(one for one in self.runners if one.source is source)

    async def run(self, context: SourceContext) -> None:
        """Runs the sources until cancelled; they do nothing before ``begin``."""
        async with asyncio.TaskGroup() as group:
            for runner in self.runners:
                group.create_task(runner.run(context), name=f"source {runner.name}")

    async def begin(self) -> None:
        """Prepares the sources and watches."""
        if self.state != pb.MONITORING_STATE_STOPPING:
            await self._move(Wanted.WATCHING, pb.MONITORING_STATE_MONITORING)

    async def pause(self) -> None:
        """Stops watching; the sources stay prepared."""
        if self.state == pb.MONITORING_STATE_MONITORING:
            await self._move(Wanted.PREPARED, pb.MONITORING_STATE_PAUSED)
        await self._settle()

    async def resume(self) -> None:
        """Watches again, after a pause."""
        if self.state == pb.MONITORING_STATE_PAUSED:
            await self._move(Wanted.WATCHING, pb.MONITORING_STATE_MONITORING)

    async def stop_monitoring(self) -> None:
        """Closes the sources; ``begin`` opens them again."""
        if self.state != pb.MONITORING_STATE_STOPPING:
            await self._move(Wanted.CLOSED, pb.MONITORING_STATE_IDLE)

    async def stop(self) -> None:
        """Closes the sources for good."""
        await self._move(Wanted.CLOSED, pb.MONITORING_STATE_STOPPING)

    async def _move(self, wanted: Wanted, state: pb.MonitoringState.ValueType) -> None:
        self.state = state
        for runner in self.runners:
            await runner.want(wanted)
        await self._settle()

    async def _settle(self) -> None:
        await asyncio.gather(*(runner.wait_settled() for runner in self.runners))

    def _of_state(self) -> Iterator[Degradation]:
        names = [one.name for one in self.runners if isinstance(one.source, Watches)]
        if self.state == pb.MONITORING_STATE_PAUSED:
            text = "monitoring is paused; 'daemoneye collectors resume' ends that"
        elif self.state == pb.MONITORING_STATE_IDLE:
            text = "monitoring is stopped; 'daemoneye collectors start' ends that"
        else:
            return
        yield Degradation(DegradedReason.PAUSED, ", ".join(names), text)

    def _of_source(self, source: EventSource) -> Sequence[Degradation]:
        if not isinstance(source, Degrades):
            return ()
        try:
            found = tuple(source.degradations())
            if not all(isinstance(one, Degradation) for one in found):
                raise TypeError("these are no degradations")
        except Exception:
            text = f"source {source.name} cannot say what it does not see"
            if source.name not in self._complained:  # this is asked for each heartbeat
                log.exception("%s", text)
            self._complained.add(source.name)
            return (Degradation(DegradedReason.READ_ERRORS, source.name, text),)
        self._complained.discard(source.name)
        return found


def _of_runner(runner: SourceRunner) -> Iterator[Degradation]:
    if runner.failure:
        text = f"source {runner.name} failed: {runner.failure}"
        yield Degradation(DegradedReason.COLLECTOR_UNAVAILABLE, runner.name, text)
