"""A collector while it runs: the parts in one task group, and what others may ask of it.

Order of a life: serve (NOT_SERVING), begin to watch, SERVING; on a stop within one budget: NOT_SERVING,
sources closed, what they emitted in the log, what is in the log published as far as the broker takes it,
lease given back, log closed, socket gone.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from collector_core.analysis_service import AnalysisRunner
from collector_core.capability import Watches, caps_of
from collector_core.clock import Clock
from collector_core.delivery import Delivery, DeliveryBounds, Pressure
from collector_core.ending import Ending
from collector_core.event import Event
from collector_core.gap import GapKeeper, GapReason, LifeMark
from collector_core.hashing import FileHasher
from collector_core.links import Links, open_links
from collector_core.live_config import LiveConfig
from collector_core.monitor import Monitor
from collector_core.reconfiguration import Followers, follow_settings, wal_limits_of
from collector_core.registration import CollectorDescription
from collector_core.report import Report
from collector_core.resources import DegradationLevel
from collector_core.service import CollectorServicer
from collector_core.settings import CollectorSettings
from collector_core.shutdown import ShutdownCoordinator
from collector_core.source import EventSource, SourceContext
from collector_core.source_runner import RunnerLimits, SourceRunner
from collector_core.trigger import TriggerEngine
from collector_core.vitals import Vitals
from collector_core.wal import EventLog, SyncPolicy
from daemoneye.agent.v1 import registry_service_pb2
from daemoneye.ipc.v1 import collector_control_service_pb2 as control_pb
from daemoneye.ipc.v1 import collector_health_pb2
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.completeness import Degradation
from daemoneye_mesh.errors import PreconditionError
from daemoneye_mesh.identity import Identity, Principal
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.server import MeshServer

__all__ = ["CollectorParts", "RunningCollector"]

MAX_KNOWN_TOPICS = 256
"""Topics remembered as allowed; the rest is looked up each time."""

MAX_SOURCE_STOP_S = 1.0
SOURCE_STOP_SHARE = 1 / 8
"""Of the time for a whole stop. A source that hangs wherever it can costs six of these: being asked,
cancelled and closed, each twice. What it has emitted still gets out in the rest."""

log = logging.getLogger("daemoneye.collector")


@dataclass(frozen=True, slots=True)
class CollectorParts:
    """What was opened for one life of a collector, and is closed by whoever opened it."""

    event_log: EventLog
    hasher: FileHasher
    triggers: TriggerEngine
    mark: LifeMark
    """Says when the collector was last alive."""


class RunningCollector:
    """One life of a collector. Make it inside the running loop.

    Args:
        identity: who it is.
        sources: what it watches.
        config: its settings, which may change.
        parts: what was opened for it.
        version: its version.
        clock: where time comes from.
    """

    def __init__(
        self,
        identity: Identity,
        sources: Sequence[EventSource],
        config: LiveConfig[CollectorSettings],
        parts: CollectorParts,
        version: str,
        clock: Clock,
    ) -> None:
        settings = config.current
        self._identity = identity
        self._sources = sources
        self._announced = caps_of(sources)
        self._parts = parts
        self._version = version
        self._clock = clock
        self._instance_epoch = clock.wall_ns()
        self._access = AccessTable.load()
        self._principal = Principal(identity, self._announced.domain_names)
        self._known_topics: set[str] = set()
        self._stop = StopRequest()
        self._has_begun = asyncio.Event()
        self._budget_s: float | None = None
        self._is_forced = False
        self._shutdown: ShutdownCoordinator | None = None
        self.config = config
        """The settings."""
        pressure = Pressure(settings.shed_above_share, settings.shed_below_share)
        self.vitals = Vitals(identity.id, settings, pressure, clock)
        """What it says of itself."""
        self.delivery = Delivery(
            identity.id,
            parts.event_log,
            DeliveryBounds(
                wal_limits_of(settings), settings.outbox_messages, settings.outbox_bytes
            ),
            pressure,
            self.vitals.note_log,
        )
        """The way of its events."""
        self.monitor = Monitor(sources, self.emit, self._runner_limits, self._note_source)
        """Its sources."""
        self.gaps = GapKeeper(self.delivery.put, f"events.{self.domain}.gap", clock.wall_ns)
        """Times in which it did not see everything."""
        self.vitals.follow_gaps(self.gaps)
        self.vitals.resources.on_level(self._note_level)
        self.analyses = AnalysisRunner(sources, settings.analysis_concurrency, clock.monotonic_s)
        self.service = CollectorServicer(
            identity.id,
            version,
            self.monitor.runners,
            self.delivery,
            self.analyses,
            self.degradations,
        )
        """Answers for its sources."""
        self._report = Report(
            self.delivery, self.vitals, config, self.degradations, clock.monotonic_s
        )
        follow_settings(
            config,
            sources,
            Followers(self.delivery, self.vitals.resources, parts.hasher, parts.triggers),
        )

    @property
    def domain(self) -> str:
        """The domain in which it speaks about itself."""
        return min(self._announced.domain_names)

    @property
    def state(self) -> control_pb.MonitoringState.ValueType:
        """What it does."""
        return self.monitor.state

    async def emit(self, event: Event) -> None:
        """Takes an event on its way; waits while the collector cannot take more.

        Raises:
            InvalidTopicError: the topic breaks the grammar.
            PermissionDeniedError: the topic is outside the domains of this collector's sources.
            MessageTooLargeError: the event is larger than the broker takes.
        """
        # The broker would refuse the whole batch, and with it the events of other sources.
        if event.topic not in self._known_topics:
            self._access.require_publish(self._principal, event.topic)
            if len(self._known_topics) < MAX_KNOWN_TOPICS:
                self._known_topics.add(event.topic)
        if self.gaps.is_waiting:  # what was not seen stands before what is seen after it
            await self.gaps.flush()
        await self.delivery.put(event)
        self._parts.triggers.examine(event)

    # -- what the control service asks for --------------------------------------------------------

    async def begin(self) -> None:
        """Prepares the sources and watches."""
        try:
            await self.monitor.begin()
        finally:
            self._close_gaps()

    async def stop_monitoring(self) -> None:
        """Stops watching and closes the sources."""
        self._open_gap(GapReason.STOPPED, "was told to stop watching")
        await self.monitor.stop_monitoring()

    async def restart(self) -> None:
        """Stops and begins."""
        await self.stop_monitoring()
        await self.begin()

    async def pause(self) -> None:
        """Stops watching; returns when no source watches any more."""
        if self.state == control_pb.MONITORING_STATE_IDLE:
            raise PreconditionError(
                "the sources are stopped, not watching; begin before you pause", state="IDLE"
            )
        self._open_gap(GapReason.PAUSED, "was paused")
        await self.monitor.pause()

    async def resume(self) -> None:
        """Watches again after a pause."""
        if self.state == control_pb.MONITORING_STATE_IDLE:
            raise PreconditionError(
                "the sources are stopped, not paused; use BeginMonitoring", state="IDLE"
            )
        try:
            await self.monitor.resume()
        finally:
            self._close_gaps()

    def shut_down(self, reason: str, timeout_s: float | None = None) -> None:
        """Asks for a drain."""
        if timeout_s is not None and not self._stop.is_set:
            self._budget_s = timeout_s
        self._stop.request(reason)

    def force_shut_down(self, reason: str) -> None:
        """Asks for the end without a drain: the log is closed, and that is all."""
        self._is_forced = True
        if self._shutdown is not None:
            self._shutdown.hurry()
        self._stop.request(reason)

    def health(self) -> collector_health_pb2.CheckHealthResponse:
        """How it and its parts are."""
        return self._report.health()

    def stats(self) -> control_pb.GetCollectorStatsResponse:
        """The counters."""
        return self._report.stats(self.state, self.service.task_count, self.analyses.counts)

    def degradations(self) -> Sequence[Degradation]:
        """What it cannot see right now."""
        return self.vitals.degradations(self.monitor.degradations)

    # -- its life ---------------------------------------------------------------------------------

    async def run(self, server: MeshServer, stop: StopRequest) -> None:
        """Runs until ``stop`` is set and everything is drained.

        Raises:
            DaemoneyeError: no source can ever work, or a newer instance has taken over.
        """
        if self._stop.is_set:  # asked for in the moment between serving and now
            stop.request(self._stop.reason)
        self._stop = stop
        links = open_links(
            self._identity,
            self.config.current,
            self._describe(),
            self._heartbeat,
            self.delivery,
            self.vitals,
        )
        async with links as opened, asyncio.TaskGroup() as group:
            tasks = {
                name: group.create_task(_run(part), name=name)
                for name, part in self._tasks(opened, server).items()
            }
            await stop.wait()
            await self._shut_down(Ending(self, server, opened, tasks, stop.reason))
            for task in tasks.values():
                task.cancel()

    def _tasks(self, links: Links, server: MeshServer) -> dict[str, Callable[[], Awaitable[None]]]:
        """What runs until the end, by name."""
        tasks: dict[str, Callable[[], Awaitable[None]]] = {
            "tokens": links.tokens.run,
            "publisher": links.publisher.run,
            "registration": links.registration.run,
            "delivery": self.delivery.run,
            "gaps": self._tell_gaps,
            "mark": self._mark_life,
            "clocks": self.vitals.clocks.run,
            "health": self.vitals.health.run,
            "resources": self.vitals.resources.run,
            "triggers": lambda: self._parts.triggers.run(self.emit),
            "monitor": lambda: self.monitor.run(self._context()),
            "serving": lambda: self._show_health(server),
            "vitals": self._watch_vitals,
            "begin": self._begin,
        }
        if self.config.current.wal_sync is SyncPolicy.INTERVAL:
            tasks["sync"] = self._sync
        return tasks

    async def _begin(self) -> None:
        """Watches from the start; a collector of which no source can ever work ends."""
        await self.begin()
        seeing = [one for one in self.monitor.runners if caps_of((one.source,)).domains]
        errors = [one.last_error for one in seeing if one.is_lasting and one.last_error]
        if len(errors) == len(seeing):
            raise errors[0]
        self.vitals.health.ready()
        self._has_begun.set()
        log.info("%s is ready", self._identity.name)

    async def _tell_gaps(self) -> None:
        # Told sooner, the gap before this life would end before anything is watched again.
        await self._has_begun.wait()
        await self.gaps.run()

    async def _mark_life(self) -> None:
        # A gap before this life that is not in the log yet must be found again by the next one.
        await self._has_begun.wait()
        await self.gaps.flush()
        await self.delivery.flush()
        await self._parts.mark.run()

    async def _show_health(self, server: MeshServer) -> None:
        async for _ in self.vitals.health.changes():
            if not self._stop.is_set:
                await server.set_serving(self.vitals.health.is_serving)

    async def _watch_vitals(self) -> None:
        while True:
            self.vitals.note_shedding(self.gaps)
            self.vitals.note_resources()
            self.vitals.note_config(self.config.problems, self.config.is_inconsistent)
            await self._clock.sleep(1.0)

    async def _sync(self) -> None:
        await self.delivery.sync_every(lambda: self.config.current.wal_sync_interval_s)

    async def _shut_down(self, ending: Ending) -> None:
        budget_s = self._budget_s or self.config.current.shutdown_timeout_s
        self._shutdown = ending.plan(budget_s, self._clock)
        if self._is_forced:
            self._shutdown.hurry()
        await self._shutdown.run(self._stop.reason)
        ending.conclude()

    def _runner_limits(self) -> RunnerLimits:
        settings = self.config.current
        budget_s = self._budget_s or settings.shutdown_timeout_s
        return RunnerLimits(
            prepare_s=settings.prepare_timeout_s,
            stop_s=min(MAX_SOURCE_STOP_S, budget_s * SOURCE_STOP_SHARE),
            health_interval_s=settings.health_interval_s,
        )

    # -- what it says of itself -------------------------------------------------------------------

    def _note_source(self, runner: SourceRunner) -> None:
        self.vitals.note_source(runner)
        if not isinstance(runner.source, Watches):
            return  # it has no events that could be missing
        if runner.failure and not runner.is_watching:
            message = f"source {runner.name} failed: {runner.failure}"
            self.gaps.open(GapReason.SOURCE_FAILED, runner.name, message)
        elif runner.is_watching:
            self.gaps.close(GapReason.SOURCE_FAILED, runner.name)

    def _note_level(self, level: DegradationLevel) -> None:
        if level >= DegradationLevel.NO_HASHING:
            self._parts.hasher.pause()
        else:
            self._parts.hasher.resume()

    def _open_gap(self, reason: GapReason, what: str) -> None:
        if self.state == control_pb.MONITORING_STATE_MONITORING:
            self.gaps.open(reason, "", f"{self._identity.id} {what}")

    def _close_gaps(self) -> None:
        # Another wish may have come meanwhile, and whoever was waiting may have been cancelled.
        if self.state == control_pb.MONITORING_STATE_MONITORING:
            self.gaps.close(GapReason.PAUSED, "")
            self.gaps.close(GapReason.STOPPED, "")

    def _heartbeat(self) -> registry_service_pb2.HeartbeatRequest:
        beat = self._report.heartbeat()
        hashes, triggers = self._parts.hasher.counters, self._parts.triggers
        beat.metrics["files_hashed"] = hashes.hashed
        beat.metrics["hash_cache_hits"] = hashes.cache_hits
        beat.metrics["hash_failures"] = hashes.failures.total()
        beat.metrics["triggers_emitted"] = triggers.emitted
        beat.metrics["triggers_refused"] = triggers.refused.total()
        return beat

    def _context(self) -> SourceContext:
        return SourceContext(lambda: self.config.current, self._parts.hasher, self.vitals.resources)

    def _describe(self) -> CollectorDescription:
        return CollectorDescription(
            collector_id=self._identity.id,
            instance_epoch=self._instance_epoch,
            version=self._version,
            socket_path=self.config.current.layout.collector_socket(self._identity.id),
            domains=self._announced.domains,
            task_types=sorted(self._announced.task_types),
            pid=os.getpid(),
            heartbeat_interval_s=self.config.current.heartbeat_interval_s,
        )


async def _run(part: Callable[[], Awaitable[None]]) -> None:
    await part()
