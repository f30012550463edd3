"""Runs the sources of a collector: prepared once, watched until paused, restarted when they fail.

Invariant: one source's failure stops neither the others nor the collector; it is logged, counts as a
degradation until the source watches again, and is retried with backoff.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from collector_core.source import Emit, EventSource
from daemoneye.ipc.v1 import collector_control_service_pb2 as pb
from daemoneye_mesh.completeness import Degradation, DegradedReason, merge_degradations
from daemoneye_mesh.error_interceptor import is_cancelled_from_outside
from daemoneye_mesh.errors import DaemoneyeError

__all__ = ["Monitor"]

FIRST_RESTART_DELAY_S = 0.5
MAX_RESTART_DELAY_S = 30.0

log = logging.getLogger("daemoneye.monitor")


class Monitor:
    """The sources of one collector.

    Args:
        sources: what to watch; their names differ.
        emit: takes their events.
        monotonic: clock that says how long a source worked, seconds.
    """

    def __init__(
        self,
        sources: Sequence[EventSource],
        emit: Emit,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._emit = emit
        self._monotonic = monotonic
        self._failed: dict[str, str] = {}
        self._wanted = asyncio.Event()
        self._unwanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._wanted.set()
        self.ready = asyncio.Event()
        """Set once every source is prepared."""
        self.state: pb.MonitoringState.ValueType = pb.MONITORING_STATE_STARTING
        """What the monitor does."""

    def degradations(self) -> tuple[Degradation, ...]:
        """What the sources cannot see right now."""
        failed = [
            Degradation(DegradedReason.COLLECTOR_UNAVAILABLE, name, f"source {name} failed: {why}")
            for name, why in self._failed.items()
        ]
        if self.state == pb.MONITORING_STATE_PAUSED:
            paused = "monitoring is paused; 'daemoneye collectors resume' ends that"
            failed += [
                Degradation(DegradedReason.PAUSED, source.name, paused) for source in self._sources
            ]
        return merge_degradations(failed, *(source.degradations() for source in self._sources))

    async def run(self) -> None:
        """Prepares the sources and watches them until cancelled."""
        async with AsyncExitStack() as opened:
            for source in self._sources:
                await source.prepare()
                opened.push_async_callback(source.close)
            self.ready.set()
            while True:
                await self._wanted.wait()
                await self._watch_all()

    async def pause(self) -> None:
        """Stops watching; returns when no source watches any more."""
        if self.state != pb.MONITORING_STATE_STOPPING:
            self.state = pb.MONITORING_STATE_PAUSED
        self._wanted.clear()
        self._unwanted.set()
        await self._idle.wait()

    async def resume(self) -> None:
        """Watches again; does nothing while the collector stops."""
        if self.state == pb.MONITORING_STATE_PAUSED:
            self._unwanted.clear()
            self._wanted.set()
            self.state = pb.MONITORING_STATE_MONITORING

    async def stop(self) -> None:
        """Stops watching for good."""
        self.state = pb.MONITORING_STATE_STOPPING
        await self.pause()

    async def _watch_all(self) -> None:
        if self.state == pb.MONITORING_STATE_STARTING:
            self.state = pb.MONITORING_STATE_MONITORING
        self._idle.clear()
        try:
            async with asyncio.TaskGroup() as group:
                watches = [
                    group.create_task(self._supervise(source), name=f"source {source.name}")
                    for source in self._sources
                ]
                await self._unwanted.wait()
                for watch in watches:
                    watch.cancel()
        finally:
            self._idle.set()

    async def _supervise(self, source: EventSource) -> None:
        delay_s = FIRST_RESTART_DELAY_S
        while True:
            self._failed.pop(source.name, None)
            started_s = self._monotonic()
            try:
                await source.watch(self._emit)
            except (Exception, asyncio.CancelledError) as error:
                if is_cancelled_from_outside():
                    if isinstance(error, asyncio.CancelledError):
                        raise
                    log.exception("source %s failed while it was stopped", source.name)
                    return
                if self._monotonic() - started_s > MAX_RESTART_DELAY_S:
                    delay_s = FIRST_RESTART_DELAY_S  # it has worked since the last failure
                known = error.message if isinstance(error, DaemoneyeError) else "internal error"
                self._failed[source.name] = known
                log.exception("source %s failed, next try in %.1f s", source.name, delay_s)
            else:
                log.info("source %s ended", source.name)
                return
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_RESTART_DELAY_S)
