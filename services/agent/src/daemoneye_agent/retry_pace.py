"""How long to wait before something is tried again; no I/O."""

from collections.abc import Callable

__all__ = ["RetryPace"]

_MAX_DOUBLINGS = 30


class RetryPace:
    """Waits that double up to a bound, with a quarter more or less, until something succeeds.

    Args:
        first_s: the first wait.
        max_s: the longest one.
        jitter: a number from 0 to 1.
    """

    __slots__ = ("_first_s", "_jitter", "_max_s", "attempts", "not_before_s")

    def __init__(self, first_s: float, max_s: float, jitter: Callable[[], float]) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._jitter = jitter
        self.attempts = 0
        """Attempts that came to nothing since the last success."""
        self.not_before_s = 0.0
        """When to try again."""

    def is_due(self, now_s: float) -> bool:
        """Whether it may be tried now."""
        return now_s >= self.not_before_s

    def draw_wait(self) -> float:
        """The wait that belongs to the attempts so far, in seconds."""
        doubled_s = self._first_s * (1 << min(self.attempts, _MAX_DOUBLINGS))
        return min(doubled_s, self._max_s) * (0.75 + self._jitter() / 2)

    def fail(self, now_s: float) -> None:
        """Takes note of an attempt that failed, and waits."""
        self.not_before_s = now_s + self.draw_wait()
        self.attempts += 1

    def stall(self) -> None:
        """Takes note of an attempt that was waited for in vain already."""
        self.attempts += 1

    def reset(self) -> None:
        """Takes note of a success."""
        self.attempts = 0
        self.not_before_s = 0.0
