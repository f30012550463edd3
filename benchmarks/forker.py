"""Starts many cheap processes: ``python -I -S forker.py COUNT``.

It prints ``ready`` when all run, and ends and reaps them when its standard input closes. The children
only pause; each asks the kernel to be killed when the forker dies, so that none outlives it.
Nothing is imported that need not be: every page costs memory COUNT times.
"""

import ctypes
import gc
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Forks, waits for the end of the input, and cleans up."""
    gc.freeze()
    gc.disable()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    children: list[int] = []
    try:
        for _ in range(int(sys.argv[1])):
            children.append(start_child(libc))  # noqa: PERF401 - fork may fail half-way
        print("ready", flush=True)
        sys.stdin.buffer.read()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


def start_child(libc: ctypes.CDLL) -> int:
    """Forks a child that pauses for good; returns its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    while os.getppid() == parent:
        signal.pause()
    os._exit(0)


if __name__ == "__main__":
    main()
