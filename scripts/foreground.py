"""Runs a command as the terminal's foreground job, so that Ctrl-C reaches it and not `make`.

make dies of SIGINT itself, whatever its child returns; with the child in a process group of its own,
Ctrl-C stops the child alone and `make run` ends with the child's status. Without a terminal there is
no Ctrl-C, and the command runs as it is. See tcsetpgrp(3).
"""

import os
import signal
import sys

STDIN = 0


def take_foreground() -> None:
    """Moves this process to a process group of its own, in the foreground of the terminal."""
    os.setpgid(0, 0)
    # A background group that takes the terminal is sent SIGTTOU, which would stop it.
    previous = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(STDIN, os.getpgrp())
    signal.signal(signal.SIGTTOU, previous)


def main() -> None:
    """Takes the foreground where there is one and becomes the command."""
    if os.isatty(STDIN) and os.tcgetpgrp(STDIN) == os.getpgrp():
        take_foreground()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
