"""A collector made of sources: opens what outlives a run, runs, closes it.

Order: settings with what was changed while it ran, log (a second instance stops here), server, then a
``RunningCollector``; what the life before could not see is told first.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType

from collector_core.clock import Clock, SystemClock
from collector_core.control import CollectorControlServicer
from collector_core.delivery.committer import in_thread
from collector_core.gap import Gap, GapReason, LifeMark
from collector_core.hashing import AllowedRoots, FileHasher, HashSettings
from collector_core.live_config import LiveConfig
from collector_core.monitor import check_sources
from collector_core.reconfiguration import trigger_limits_of, wal_limits_of
from collector_core.running_collector import CollectorParts, RunningCollector
from collector_core.settings import CollectorSettings
from collector_core.source import EventSource
from collector_core.trigger import TriggerEngine, TriggerSpec, load_triggers
from collector_core.wal import EventLog
from daemoneye.ipc.v1 import collector_control_service_pb2_grpc, collector_service_pb2_grpc
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor
from daemoneye_mesh.configuration import DEFAULT_ORIGIN, Loaded
from daemoneye_mesh.directories import prepare_directory
from daemoneye_mesh.error_interceptor import unwrap
from daemoneye_mesh.errors import DaemoneyeError
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.setting import describe_settings
from daemoneye_mesh.token import TokenVerifier

__all__ = ["Collector"]

BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger("daemoneye.collector")


class Collector:
    """A collector made of sources.

    Args:
        collector_id: ``[a-z0-9_-]{1,64}``, the id of its identity.
        sources: what it watches.
        settings: its settings; as loaded, they know where each value came from.
        version: its version, for operators.
        clock: where time comes from.

    Raises:
        InvalidConfigError: the sources cannot run together, or the id is malformed.
    """

    def __init__(
        self,
        collector_id: str,
        sources: Sequence[EventSource],
        settings: CollectorSettings | Loaded[CollectorSettings],
        version: str = "0",
        clock: Clock | None = None,
    ) -> None:
        check_sources(sources)
        self._loaded = settings if isinstance(settings, Loaded) else _as_loaded(settings)
        self._layout = self._loaded.value.layout
        self._identity = self._layout.collector(collector_id)
        self._sources = sources
        self._version = version
        self._clock = clock or SystemClock()
        self.running: RunningCollector | None = None
        """Its life, or the last one; None before the first."""

    async def run(self, stop: StopRequest) -> None:
        """Runs until ``stop`` is set and everything is drained.

        Raises:
            DaemoneyeError: it cannot serve, its log cannot be used, no source can ever work, or a newer
                instance of this collector has taken over.
        """
        try:
            async with self._open() as running:
                server = self._build_server(running)
                self.running = running
                try:
                    await server.start()
                    await running.run(server, stop)
                finally:
                    await server.drain(0)
        except BaseExceptionGroup as failed:
            cause = unwrap(failed)
            if isinstance(cause, DaemoneyeError):
                raise cause from None
            raise

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[RunningCollector]:
        directory = self._loaded.value.state_path(self._identity.id)
        await in_thread(lambda: prepare_directory(directory, 0o700))
        config = LiveConfig(self._loaded, directory / "config.json")
        await in_thread(config.load)
        settings = config.current
        if settings.log_level != self._loaded.value.log_level:  # it was changed in an earlier life
            logging.getLogger().setLevel(settings.log_level.upper())
        triggers = await in_thread(lambda: _triggers_of(settings.trigger_file))
        mark = LifeMark(directory / "alive", self._clock.wall_ns)
        event_log = await in_thread(
            lambda: EventLog.open(
                directory / "wal",
                wal_limits_of(settings),
                sync=settings.wal_sync,
                boot_id=read_boot_id(),
                now_ns=self._clock.wall_ns,
            )
        )
        is_clean = False
        try:
            async with _open_hasher(settings) as hasher:
                engine = TriggerEngine(
                    triggers, trigger_limits_of(settings), self._clock.monotonic_s
                )
                parts = CollectorParts(event_log, hasher, engine, mark)
                running = RunningCollector(
                    self._identity, self._sources, config, parts, self._version, self._clock
                )
                if gap := self._gap_before(event_log, mark):
                    running.gaps.tell_until_now(gap)
                yield running
                is_clean = True
        except BaseException as error:
            # Whatever ends it on purpose has left nothing under way.
            is_clean = isinstance(unwrap(error), DaemoneyeError)
            raise
        finally:
            await in_thread(lambda: event_log.close(clean=is_clean))

    def _gap_before(self, event_log: EventLog, mark: LifeMark) -> Gap | None:
        """What the life before could not see, from its end to now."""
        recovery = event_log.recovery
        known = [one for one in (recovery.last_written_ns, mark.read_ns()) if one is not None]
        if recovery.is_new or not known:
            return None
        started_ns = min(max(known), self._clock.wall_ns())
        name = self._identity.id
        if recovery.was_clean:
            return Gap(GapReason.STOPPED, started_ns, started_ns, f"{name} was stopped")
        return Gap(GapReason.KILLED, started_ns, started_ns, f"{name} was killed")

    def _build_server(self, running: RunningCollector) -> MeshServer:
        layout = self._layout
        verifier = TokenVerifier(layout.trust_bundle, self._identity.spiffe_id, layout.trust_domain)
        server = MeshServer(
            layout.collector_socket(self._identity.id),
            AuthInterceptor(verifier, AccessTable.load()),
        )
        server.add(
            collector_service_pb2_grpc.add_CollectorServiceServicer_to_server,
            running.service,
            "daemoneye.ipc.v1.CollectorService",
        )
        server.add(
            collector_control_service_pb2_grpc.add_CollectorControlServiceServicer_to_server,
            CollectorControlServicer(running),
            "daemoneye.ipc.v1.CollectorControlService",
        )
        return server


@asynccontextmanager
async def _open_hasher(settings: CollectorSettings) -> AsyncIterator[FileHasher]:
    bounds = HashSettings(
        max_file_bytes=settings.hash_max_file_bytes,
        timeout_s=settings.hash_timeout_s,
        bytes_per_s=settings.hash_bytes_per_s,
        cache_entries=settings.hash_cache_entries,
        wants_fuzzy=settings.hash_fuzzy,
    )
    # Opened now, before a source may drop the privileges of the process.
    roots = await asyncio.to_thread(AllowedRoots.open, settings.hash_roots)
    with roots:
        async with FileHasher(bounds, roots) as hasher:
            yield hasher


def _triggers_of(path: Path | None) -> Sequence[TriggerSpec]:
    return load_triggers(path) if path else ()


def read_boot_id() -> str:
    """Returns the id of this boot of the host (random(4))."""
    return BOOT_ID_PATH.read_text("ascii").strip()


def _as_loaded(settings: CollectorSettings) -> Loaded[CollectorSettings]:
    described = describe_settings(type(settings))
    origin = MappingProxyType({one.name: DEFAULT_ORIGIN for one in described})
    return Loaded(settings, origin, described)
