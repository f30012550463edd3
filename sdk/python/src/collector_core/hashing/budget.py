"""How fast all workers together may read: a token bucket that goes into debt.

Invariant: whatever the number of workers, the bytes granted until a moment exceed rate times elapsed
time by no more than the burst; who is granted bytes waits until the debt of all before is paid.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from collector_core.hashing.settings import CHUNK_BYTES

__all__ = ["HashClock", "ReadBudget"]


def _wait(cancel: threading.Event, timeout_s: float) -> bool:
    return cancel.wait(timeout_s)


@dataclass(frozen=True, slots=True)
class HashClock:
    """The times hashing needs; tests give their own."""

    monotonic_s: Callable[[], float] = time.monotonic
    wall_ns: Callable[[], int] = time.time_ns
    wait: Callable[[threading.Event, float], bool] = _wait
    """Waits in a worker until the event is set or so many seconds passed; True if it was set."""


class ReadBudget:
    """Grants bytes to workers; used from several threads.

    Args:
        bytes_per_s: the rate; None grants everything at once.
        monotonic_s: the clock.
    """

    def __init__(self, bytes_per_s: int | None, monotonic_s: Callable[[], float]) -> None:
        self._rate = bytes_per_s
        self._clock = monotonic_s
        self._lock = threading.Lock()
        self._burst = float(CHUNK_BYTES)
        self._tokens = self._burst
        self._refilled_s = monotonic_s()

    def apply_rate(self, bytes_per_s: int | None) -> None:
        """Grants at another rate from now on; what is owed stays owed."""
        with self._lock:
            self._refill()
            self._rate = bytes_per_s

    def reserve(self, size_bytes: int) -> float:
        """Takes ``size_bytes`` and returns how many seconds to wait before reading them."""
        with self._lock:
            self._refill()
            if self._rate is None:
                return 0.0
            self._tokens -= size_bytes
            return max(-self._tokens / self._rate, 0.0)

    def refund(self, size_bytes: int) -> None:
        """Gives back bytes that were reserved and are not going to be read."""
        with self._lock:
            self._tokens = min(self._tokens + size_bytes, self._burst)

    def _refill(self) -> None:
        now_s = self._clock()
        elapsed_s = max(now_s - self._refilled_s, 0.0)
        self._refilled_s = now_s
        if self._rate is None:
            self._tokens = self._burst
        else:
            self._tokens = min(self._tokens + elapsed_s * self._rate, self._burst)
