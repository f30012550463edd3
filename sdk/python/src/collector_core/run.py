"""Running a collector as a process of its own, with everything operators expect of one."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from collector_core.collector import Collector
from collector_core.settings import CollectorSettings
from collector_core.source import EventSource
from daemoneye_mesh.configuration import Loaded, parse_process_arguments
from daemoneye_mesh.lifecycle import StopRequest
from daemoneye_mesh.process import run_process

__all__ = ["run", "run_with_settings"]

S = TypeVar("S", bound=CollectorSettings)


def run(collector_id: str, *sources: EventSource, argv: Sequence[str] | None = None) -> None:
    """Runs a collector until SIGTERM or SIGINT, then exits with its status.

    Settings come from flags, the environment and files, see ``--help`` of the resulting program.

    Args:
        collector_id: ``[a-z0-9_-]{1,64}``; the agent must know it, see ``collectors`` in its settings.
        sources: what it watches.
        argv: the flags; those of this process when left out.
    """
    run_with_settings(
        CollectorSettings,
        collector_id,
        lambda settings: sources,
        description=f"The {collector_id} collector.",
        argv=argv,
    )


def run_with_settings(
    settings: type[S],
    collector_id: str,
    make_sources: Callable[[S], Sequence[EventSource]],
    *,
    description: str,
    version: str = "0",
    argv: Sequence[str] | None = None,
) -> None:
    """Runs a collector that has settings of its own, as ``run`` does.

    Args:
        settings: a frozen dataclass that extends ``CollectorSettings``.
        collector_id: as for ``run``.
        make_sources: makes the sources, once the settings are known.
        description: what the collector is, for ``--help``.
        version: its version, for operators.
        argv: the flags; those of this process when left out.
    """
    loaded: Loaded[S] = parse_process_arguments(
        settings, collector_id, description=description, argv=argv
    )

    async def serve(stop: StopRequest) -> None:
        sources = make_sources(loaded.value)
        await Collector(collector_id, sources, loaded, version).run(stop)

    sys.exit(run_process(collector_id, loaded.value, serve))
