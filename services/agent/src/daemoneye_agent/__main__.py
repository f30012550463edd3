"""Entry point of ``daemoneye-agent``."""

import sys

from daemoneye_agent.app import serve
from daemoneye_agent.config import AgentSettings
from daemoneye_mesh.configuration import parse_process_arguments
from daemoneye_mesh.process import run_process


def main() -> None:
    """Loads the settings and runs the agent."""
    text = "The agent of the mesh: registry, event store, detection and alerts."
    settings = parse_process_arguments(AgentSettings, "daemoneye-agent", description=text).value
    sys.exit(run_process("daemoneye-agent", settings, lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    main()
