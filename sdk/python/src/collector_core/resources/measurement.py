"""What this process used so far, by the count of the kernel.

Invariant: CPU time is that of all threads since the start of the process, children left out.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from daemoneye_mesh.errors import ErrorReason, PreconditionError

__all__ = ["ResourceSample", "ResourcesUnreadableError", "measure_self"]

PROC_SELF = Path("/proc/self")


class ResourcesUnreadableError(PreconditionError):
    """The kernel does not say what this process uses."""

    default_reason = ErrorReason.FILE_UNUSABLE


@dataclass(frozen=True, slots=True)
class ResourceSample:
    """One look at the counters of the process."""

    at_s: float
    """When, monotonic seconds."""
    cpu_s: float
    """User and system time of all threads so far, seconds."""
    rss_bytes: int
    """Resident memory now."""


def measure_self(directory: Path = PROC_SELF) -> ResourceSample:
    """Reads the counters of this process; takes microseconds, so it may run on the event loop.

    Args:
        directory: where the kernel keeps them.

    Raises:
        ResourcesUnreadableError: they cannot be read or make no sense.
    """
    try:
        cpu_ticks = _parse_cpu_ticks((directory / "stat").read_bytes())
        rss_pages = int((directory / "statm").read_bytes().split()[1])
    except (OSError, ValueError, IndexError) as error:
        raise ResourcesUnreadableError(
            f"cannot read what this process uses from {directory}; mount /proc for it",
            path=directory,
        ) from error
    return ResourceSample(
        at_s=time.monotonic(),
        cpu_s=cpu_ticks / os.sysconf("SC_CLK_TCK"),
        rss_bytes=rss_pages * os.sysconf("SC_PAGE_SIZE"),
    )


def _parse_cpu_ticks(stat: bytes) -> int:
    # The name of a process stands in parentheses and may contain some itself.
    fields = stat[stat.rindex(b")") + 1 :].split()
    return int(fields[11]) + int(fields[12])  # utime, stime: 14 and 15 of proc(5)
