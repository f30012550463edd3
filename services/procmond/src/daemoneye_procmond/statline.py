"""One line of ``/proc/<pid>/stat``, parsed.

Invariant: parsing starts behind the LAST closing parenthesis, because a process chooses its own name
and may put parentheses, blanks and newlines into it. Field numbers in comments are those of proc(5).
"""

from typing import NamedTuple

__all__ = ["PF_KTHREAD", "ExecSignature", "StatLine", "parse_stat"]

PF_KTHREAD = 0x00200000
_FIELD_COUNT_MIN = 22

ExecSignature = tuple[int, int, int]
"""Addresses the kernel lays down anew on each exec: start of code, of stack and of environment."""


# A tuple, not a dataclass: ten thousand of them are made in each scan and a tuple is built in a
# third of the time.
class StatLine(NamedTuple):
    """The fields of one stat line which the collector uses; see proc(5) for their meaning."""

    pid: int
    comm: bytes
    state: str
    ppid: int
    process_group_id: int
    session_id: int
    tty_nr: int
    flags: int
    cpu_ticks: int
    """User and system time in clock ticks."""
    thread_count: int
    start_ticks: int
    rss_pages: int
    start_code: int
    start_stack: int
    env_start: int
    wait_status: int
    """Exit status in the form of waitpid(2); 0 as well when we may not see it."""

    @property
    def is_kernel_thread(self) -> bool:
        """True for a thread of the kernel, which has no executable and no arguments."""
        return bool(self.flags & PF_KTHREAD)

    @property
    def is_suspended(self) -> bool:
        """True while stopped by a signal or by a tracer."""
        return self.state in ("T", "t")

    @property
    def is_exited(self) -> bool:
        """True once every thread has exited.

        A first thread that exits alone reads Z too while the others go on; then more than one is
        counted, and the process lives.
        """
        return self.state in ("Z", "X", "x") and self.thread_count <= 1

    @property
    def signature(self) -> ExecSignature | None:
        """What changes on exec; None when the kernel hides it (no ptrace access) or has none (yet).

        An exec sets the stack first and the rest later, so a part alone is no signature. The start of
        the arguments is left out on purpose: prctl(PR_SET_MM) moves it in processes
        that only rename themselves.
        """
        parts = (self.start_code, self.start_stack, self.env_start)
        return None if min(parts) <= 1 else parts


def parse_stat(raw: bytes) -> StatLine:
    """Parses the content of a stat file.

    Raises:
        ValueError: the content is no stat line.
    """
    opened = raw.find(b"(")
    closed = raw.rfind(b")")
    fields = raw[closed + 1 :].split()
    if opened < 1 or closed < opened or len(fields) < _FIELD_COUNT_MIN:
        raise ValueError("malformed stat line")
    is_whole = len(fields) >= 50
    return StatLine(
        int(raw[:opened]),
        raw[opened + 1 : closed],
        fields[0].decode("ascii"),  # (3) state
        int(fields[1]),  # (4) ppid
        int(fields[2]),  # (5) pgrp
        int(fields[3]),  # (6) session
        int(fields[4]),  # (7) tty_nr
        int(fields[6]),  # (9) flags
        int(fields[11]) + int(fields[12]),  # (14) utime, (15) stime
        int(fields[17]),  # (20) num_threads
        int(fields[19]),  # (22) starttime
        int(fields[21]),  # (24) rss
        int(fields[23]) if is_whole else 0,  # (26) startcode
        int(fields[25]) if is_whole else 0,  # (28) startstack
        int(fields[47]) if is_whole else 0,  # (50) env_start
        int(fields[49]) if is_whole else 0,  # (52) exit_code
    )
