"""Entry point of ``daemoneye-eventbus``."""

import sys

from daemoneye_eventbus.app import serve
from daemoneye_eventbus.config import EventBusSettings
from daemoneye_mesh.configuration import parse_process_arguments
from daemoneye_mesh.process import run_process


def main() -> None:
    """Loads the settings and runs the broker."""
    text = "The broker of the mesh: carries messages from publishers to subscribers."
    settings = parse_process_arguments(
        EventBusSettings, "daemoneye-eventbus", description=text
    ).value
    sys.exit(run_process("daemoneye-eventbus", settings, lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    main()
