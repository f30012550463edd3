"""The end of a collector, step by step, within one budget."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from collector_core.clock import Clock
from collector_core.links import Links
from collector_core.shutdown import Phase, ShutdownCoordinator
from daemoneye_mesh.server import MeshServer

if TYPE_CHECKING:
    from collector_core.running_collector import RunningCollector

__all__ = ["Ending"]

log = logging.getLogger("daemoneye.collector")


@dataclass(frozen=True, slots=True)
class Ending:
    """What is done when a collector stops: told, drained, closed."""

    collector: "RunningCollector"
    server: MeshServer
    links: Links
    tasks: Mapping[str, asyncio.Task[None]]
    """What runs, by name."""
    reason: str

    def plan(self, budget_s: float, clock: Clock) -> ShutdownCoordinator:
        """Returns the steps in their order."""
        shutdown = ShutdownCoordinator(budget_s, clock)
        shutdown.add(Phase.PREPARING, "announce", self.announce)
        shutdown.add(Phase.STOPPING, "deliver", self.deliver)
        shutdown.add(Phase.CLEANUP, "seal the log", self.seal, critical=True)
        shutdown.add(Phase.CLEANUP, "give the lease back", self.deregister)
        shutdown.add(Phase.CLEANUP, "stop serving", self.server.drain)
        return shutdown

    async def announce(self) -> None:
        """Turns NOT_SERVING."""
        self.collector.vitals.health.stopping()
        await self.server.health.drain()

    async def deliver(self) -> None:
        """Closes the sources, and takes what they emitted as far as it gets."""
        self.tasks["begin"].cancel()
        collector = self.collector
        await collector.analyses.close()
        await collector.monitor.stop()
        collector.vitals.note_shedding(collector.gaps)
        collector.gaps.tell_open()  # the next life knows of its own gap only
        await collector.gaps.flush()
        await collector.delivery.flush()
        if self.links.publisher.is_connected:  # else it is in the log, for the next life
            await self.links.publisher.drain()
            await collector.delivery.publish_rest()

    async def seal(self) -> None:
        """Ends what writes to the log, so that whoever opened it can close it."""
        for name in ("delivery", "sync"):
            if name in self.tasks:
                self.tasks[name].cancel()
                await asyncio.wait({self.tasks[name]})

    async def deregister(self) -> None:
        """Gives the lease back."""
        await self.links.registration.deregister(self.reason)

    def conclude(self) -> None:
        """Says what is left."""
        delivery = self.collector.delivery
        if left := delivery.pending_count:
            log.error("%d events had no time to get into the log", left)
        if unpublished := delivery.outbox.pending_count:
            log.info("%d events wait in the log for the next life", unpublished)
        self.collector.vitals.health.stopped()
