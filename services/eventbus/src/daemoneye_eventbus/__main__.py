"""Runs the broker: ``daemoneye-eventbus``, or ``python -m daemoneye_eventbus``."""

import asyncio
import sys

from daemoneye_eventbus.app import run
from daemoneye_eventbus.config import PROCESS, EventBusConfig
from daemoneye_mesh.configuration import parse_process_arguments
from daemoneye_mesh.errors import DaemoneyeError


def main() -> int:
    """Returns the exit status: 0 after a drain, 1 when it cannot start, 2 for a bad setting."""
    loaded = parse_process_arguments(EventBusConfig, PROCESS, description="the broker of the mesh")
    try:
        asyncio.run(run(loaded.value))
    except DaemoneyeError as error:
        sys.stderr.write(f"{PROCESS}: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
