"""``daemoneye`` and ``python -m daemoneye_cli``."""

import sys

from daemoneye_cli.app import run

__all__ = ["main"]


def main() -> int:
    """Runs the command line of this process and returns its exit status."""
    return int(run(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
