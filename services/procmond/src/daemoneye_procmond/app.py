"""Wiring of procmond."""

from importlib.metadata import version

from collector_core import Collector
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_procmond.config import ProcmondSettings
from daemoneye_procmond.source import COLLECTOR_ID, ProcessSource

__all__ = ["serve"]


async def serve(settings: ProcmondSettings, stop: StopRequest) -> None:
    """Runs the collector until ``stop`` is set and everything is drained."""
    source = ProcessSource(settings)
    collector = Collector(COLLECTOR_ID, [source], settings, version("daemoneye-procmond"))
    await collector.run(stop)
