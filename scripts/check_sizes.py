"""Fails when a file grew past its cap: a long file wants to be two.

Caps in lines: Python 500, tests 600, protos 400. Generated code is left out. An exception needs a
reason beside it.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ("sdk/python/src/daemoneye/",)
EXCEPTIONS: dict[str, str] = {}
"""Path to reason."""


def cap_of(path: str) -> int | None:
    """The most lines that ``path`` may have; None when it is not held to any."""
    if path.startswith(GENERATED) or path in EXCEPTIONS:
        return None
    if path.endswith(".proto"):
        return 400
    if path.endswith(".py"):
        return 600 if path.startswith("tests/") else 500
    return None


def main() -> int:
    """Prints every file over its cap; the exit status says whether there was one."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    too_long = 0
    for path in listed:
        cap = cap_of(path)
        if cap is None or not (ROOT / path).is_file():
            continue
        lines = len((ROOT / path).read_text().splitlines())
        if lines > cap:
            too_long += 1
            print(f"{path}: {lines} lines, the cap is {cap}")
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
