"""Runs a module without the power to overrule the modes of files: ``confined.py MODULE FLAG...``.

Root may write whatever the mode says. For a process started by this, also one of root, a directory
without the right to write is what it is for everybody else.
"""

import ctypes
import os
import sys

PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2


def main() -> None:
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            if libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) != 1:
                continue  # nobody here has it
            if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl(PR_CAPBSET_DROP)")
    os.execv(sys.executable, [sys.executable, "-W", "error", "-m", *sys.argv[1:]])


if __name__ == "__main__":
    main()
