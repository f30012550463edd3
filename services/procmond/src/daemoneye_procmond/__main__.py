"""Entry point of ``procmond``."""

import sys

from daemoneye_mesh.configuration import parse_process_arguments
from daemoneye_mesh.process import run_process
from daemoneye_procmond.app import serve
from daemoneye_procmond.config import ProcmondSettings


def main() -> None:
    """Loads the settings and runs the collector."""
    text = "The process collector: sees every process of this host."
    loaded = parse_process_arguments(ProcmondSettings, "procmond", description=text)
    sys.exit(run_process("procmond", loaded.value, lambda stop: serve(loaded, stop)))


if __name__ == "__main__":
    main()
