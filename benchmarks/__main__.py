"""Runs the named benchmarks, or all, and writes benchmarks/results/<name>.json for each.

Exit statuses: 0 all measured something, 1 one of them failed, 2 unknown name. A bar that does not
hold is reported and fails nothing: a figure depends on the machine.
"""

import argparse
import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks import bus, bus_scale, enumeration, wal
from benchmarks.document import render_document
from benchmarks.occupation import Occupation
from benchmarks.report import RESULTS_DIR, Outcome, describe_machine, render, write_result

BENCHMARKS: dict[str, Callable[[bool], Awaitable[Outcome]]] = {
    "bus": bus.measure,
    "bus-scale": bus_scale.measure,
    "enumeration": enumeration.measure,
    "wal": wal.measure,
}
EXIT_FAILED, EXIT_UNKNOWN = 1, 2
TIMEOUT_S = 900.0
QUICK_TIMEOUT_S = 120.0
"""Past this a benchmark hangs; it is no bar."""
BUSY_CORES = 0.1
"""More than this of other work, and the figures say little."""


def main() -> int:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and exit")
    parser.add_argument("--render", type=Path, metavar="FILE", help="write results into a document")
    arguments = parser.parse_args()
    if arguments.render:
        text = arguments.render.read_text()
        arguments.render.write_text(render_document(text, RESULTS_DIR))
        return 0
    if arguments.list:
        print("\n".join(BENCHMARKS))
        return 0
    names = arguments.names or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
        return EXIT_UNKNOWN
    quick = os.environ.get("QUICK", "0") not in ("", "0")
    failed = [name for name in names if not run_one(name, quick)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return EXIT_FAILED if failed else 0


def run_one(name: str, quick: bool) -> bool:
    """Runs one benchmark; returns whether it measured something."""
    print(f"{name}: measuring{' (quick)' if quick else ''} …", flush=True)
    begun = Occupation.now()
    try:
        outcome = asyncio.run(_measure(name, quick))
        busy = Occupation.now().others_since(begun)
        settings = {"quick": quick, "cores_busy_with_others": round(busy, 2), **outcome.settings}
        machine = describe_machine()
        write_result(RESULTS_DIR, name, machine, settings, outcome)
    except asyncio.CancelledError:
        sys.exit(EXIT_FAILED)  # terminated: everything is cleaned up by now
    except Exception:
        traceback.print_exc()
        return False
    print(render(name, machine, outcome), flush=True)
    if busy > BUSY_CORES:
        print(
            f"  note: others kept {busy:.2f} cores busy meanwhile; repeat it on a quiet machine\n"
        )
    return True


async def _measure(name: str, quick: bool) -> Outcome:
    ours = asyncio.current_task()
    assert ours is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ours.cancel)
    async with asyncio.timeout(QUICK_TIMEOUT_S if quick else TIMEOUT_S):
        return await BENCHMARKS[name](quick)


if __name__ == "__main__":
    sys.exit(main())
