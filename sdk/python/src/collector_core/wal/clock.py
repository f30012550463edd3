"""The two clocks of a log: one that is right, and one that does not jump."""

import time
from collections.abc import Callable

__all__ = ["LogClock", "boottime_ns"]


def boottime_ns() -> int:
    """Returns the time since the boot, with suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class LogClock:
    """Tells the time of what is written, and how old it is.

    Args:
        unix: Unix time in ns.
        boottime: never goes back, never jumps, in ns.
    """

    def __init__(self, unix: Callable[[], int], boottime: Callable[[], int]) -> None:
        self._unix = unix
        self._boottime = boottime
        self._offset_ns = self.unix_ns() - boottime()

    def unix_ns(self) -> int:
        """Returns Unix time."""
        return max(1, self._unix())

    def age_ns(self) -> int:
        """Returns what Unix time would be had nobody set the clock since the log was opened."""
        return self._boottime() + self._offset_ns

    def monotonic_ns(self) -> int:
        """Returns a time that is good for waits."""
        return self._boottime()
