"""Forks and execs at a steady rate: ``python -I -S generator.py RATE LIFE_S``.

Every child is another program image that lives for LIFE_S seconds. When standard input closes, it
waits for its children and prints how many there were.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
TICK_S = 0.02


def main() -> None:
    rate, life_s = float(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    started_s, count = time.monotonic(), 0
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], TICK_S)[0]:
        due = int((time.monotonic() - started_s) * rate)
        while count < due:
            os.posix_spawn("/bin/sleep", ["sleep", life_s], {})
            count += 1
        reap(os.WNOHANG)
    reap(0)
    sys.stdout.write(f"{count}\n")


def reap(options: int) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, options)[0]:
            continue


if __name__ == "__main__":
    main()
