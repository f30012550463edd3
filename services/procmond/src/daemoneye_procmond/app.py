"""Wiring of procmond."""

from importlib.metadata import version

from collector_core import SourceCaps
from collector_core.binary_hash_source import BinaryHashSource
from collector_core.collector import Collector
from daemoneye_mesh.configuration import Loaded
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_procmond.config import ProcmondSettings
from daemoneye_procmond.source import COLLECTOR_ID, ProcessSource

__all__ = ["serve"]


async def serve(settings: Loaded[ProcmondSettings], stop: StopRequest) -> None:
    """Runs the collector until ``stop`` is set and everything is drained."""
    sources = [ProcessSource(settings.value), BinaryHashSource(SourceCaps(0))]
    collector = Collector(COLLECTOR_ID, sources, settings, version("daemoneye-procmond"))
    await collector.run(stop)
