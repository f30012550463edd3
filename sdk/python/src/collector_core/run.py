"""Running a collector as a process of its own, with everything operators expect of one."""

import sys
from collections.abc import Sequence

from collector_core.collector import Collector
from collector_core.settings import CollectorSettings
from collector_core.source import EventSource
from daemoneye_mesh.configuration import parse_process_arguments
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.process import run_process

__all__ = ["run"]


def run(collector_id: str, *sources: EventSource, argv: Sequence[str] | None = None) -> None:
    """Runs a collector until SIGTERM or SIGINT, then exits with its status.

    Settings come from flags, the environment and files, see ``--help`` of the resulting program.

    Args:
        collector_id: ``[a-z0-9_-]{1,64}``; the agent must know it, see ``collectors`` in its settings.
        sources: what it watches.
        argv: the flags; those of this process when left out.
    """
    loaded = parse_process_arguments(
        CollectorSettings, collector_id, description=f"The {collector_id} collector.", argv=argv
    )

    async def serve(stop: StopRequest) -> None:
        await Collector(collector_id, sources, loaded.value).run(stop)

    sys.exit(run_process(collector_id, loaded.value, serve))
