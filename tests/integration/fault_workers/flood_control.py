"""Starts the collector ``flood`` and asks it itself, also while there is no agent."""

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import grpc.aio
from tests.integration.fault_workers import observer

from daemoneye.ipc.v1 import (
    collector_control_service_pb2,
    collector_control_service_pb2_grpc,
    collector_health_pb2,
)
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import DaemoneyeError
from daemoneye_mesh.token import TokenIssuer, load_or_create_key

COLLECTOR_ID = "flood"


class FloodControl:
    """The collector ``flood`` of a mesh."""

    def __init__(self, mesh: Any, file: Path, clock: Callable[[], float]) -> None:
        self._mesh = mesh
        self._file = file
        self._clock = clock

    @classmethod
    async def start(cls, mesh: Any, *flags: str, clock: Callable[[], float] = time.time) -> Self:
        """Starts the process, which emits nothing yet; ``clock`` is the wall clock of the mesh."""
        file = mesh.root / "flood"
        file.write_text("0 0")
        script = str(observer.WORKERS / "flood.py")
        await observer.run_python(mesh, COLLECTOR_ID, script, *flags, FLOOD_FILE=str(file))
        return cls(mesh, file, clock)

    async def until_in_service(self) -> None:
        """Returns when the agent answers for it."""

        async def is_known() -> bool:
            return await self._mesh.collector_stats(COLLECTOR_ID) is not None

        await self._mesh.until(is_known, "the agent knows the collector")

    def ask_for(self, lifecycle: int, sample: int) -> None:
        """Has so many events emitted in all."""
        file = self._file.with_suffix(".new")
        file.write_text(f"{lifecycle} {sample}")
        file.rename(self._file)

    async def emit(self, lifecycle: int, sample: int) -> Any:
        """Has so many events emitted in all, and waits until they are; returns the counters."""
        self.ask_for(lifecycle, sample)
        return await self.until(
            lambda stats, health: (
                stats.emitted_count >= lifecycle + sample and not stats.pending_count
            ),
            f"{lifecycle} and {sample} events are emitted",
        )

    async def until(self, condition: Callable[[Any, Any], bool], what: str) -> Any:
        """Waits until counters and health are as they should be; returns the counters."""

        async def find() -> Any:
            found = await self._ask()
            return found[0] if found is not None and condition(*found) else None

        return await self._mesh.until(find, what)

    async def _ask(self) -> tuple[Any, Any] | None:
        layout = self._mesh.layout
        key = await asyncio.to_thread(load_or_create_key, self._mesh.state_dir / "issuer-key.pem")
        collector = layout.collector(COLLECTOR_ID)
        token = TokenIssuer(key, layout.trust_domain, clock=self._clock).issue(
            layout.agent, collector.spiffe_id, timedelta(minutes=5)
        )
        channel = open_channel(layout.collector_socket(COLLECTOR_ID), lambda: token)
        stub: Any = collector_control_service_pb2_grpc.CollectorControlServiceStub(channel)
        request = collector_control_service_pb2.GetCollectorStatsRequest()
        try:
            stats = await stub.GetCollectorStats(request, timeout=5.0)
            health = await stub.CheckHealth(collector_health_pb2.CheckHealthRequest(), timeout=5.0)
        except (grpc.aio.AioRpcError, DaemoneyeError):
            return None
        finally:
            await channel.close()
        return stats, health
