"""What holds a worker back: cancellation, the time one file may take, and the read budget.

Invariant: between two calls a worker reads at most one chunk, so that it notices within one chunk
that nobody wants the result any more. Written in the worker, looked at from the event loop.
"""

import threading
from collections.abc import Callable

from collector_core.hashing.budget import HashClock, ReadBudget
from collector_core.hashing.errors import HashTimeoutError
from collector_core.hashing.settings import HashSettings

__all__ = ["ChunkHook", "ReadingCancelled", "WorkerGate"]

ChunkHook = Callable[[int], None]
"""Called in a worker with the offset of the chunk that is read next."""


class ReadingCancelled(Exception):  # noqa: N818 -- no failure: nobody wants it any more
    """The reading was called off."""


class WorkerGate:
    """The bounds of one reading."""

    def __init__(
        self,
        settings: HashSettings,
        budget: ReadBudget,
        clock: HashClock,
        on_chunk: ChunkHook | None = None,
    ) -> None:
        self._settings = settings
        self._budget = budget
        self._clock = clock
        self._on_chunk = on_chunk
        self._cancel = threading.Event()
        self._started_s: float | None = None
        self._wait_started_s: float | None = None
        self._waited_s = 0.0
        self.bytes_read = 0
        """Admitted for reading so far."""

    def cancel(self) -> None:
        """Ends the reading at its next chunk, and its waiting at once."""
        self._cancel.set()

    def start(self) -> None:
        """Starts the time of the file."""
        self._started_s = self._clock.monotonic_s()
        self.check()

    def check(self) -> None:
        """Ends the reading if it was cancelled or its time is over.

        Raises:
            ReadingCancelled: nobody wants it any more.
            HashTimeoutError: it took too long.
        """
        if self._cancel.is_set():
            raise ReadingCancelled
        if self.remaining_s() <= 0:
            raise HashTimeoutError(timeout_s=self._settings.timeout_s)

    def admit(self, offset: int, size_bytes: int) -> None:
        """Waits for the budget, then lets ``size_bytes`` be read; raises like ``check``."""
        if self._on_chunk is not None:
            self._on_chunk(offset)
        self.check()
        wait_s = self._budget.reserve(size_bytes)
        if wait_s > 0:
            self._wait(wait_s, size_bytes)
        self.check()
        self.bytes_read += size_bytes

    def remaining_s(self) -> float:
        """Returns how much time the file has left; waiting counts only if the settings say so."""
        if self._started_s is None:
            return self._settings.timeout_s
        # Read in this order: while a wait ends, time may seem to be left for a moment, never lost.
        waiting_since_s, now = self._wait_started_s, self._clock.monotonic_s()
        spent_s = now - self._started_s
        if not self._settings.is_wait_timed:
            spent_s -= self._waited_s
            if waiting_since_s is not None:
                spent_s -= now - waiting_since_s
        return self._settings.timeout_s - spent_s

    def _wait(self, wait_s: float, size_bytes: int) -> None:
        if self._settings.is_wait_timed:
            wait_s = min(wait_s, max(self.remaining_s(), 0.0))
        self._wait_started_s = started_s = self._clock.monotonic_s()
        is_cancelled = self._clock.wait(self._cancel, wait_s)
        self._waited_s += self._clock.monotonic_s() - started_s
        self._wait_started_s = None
        if is_cancelled or self.remaining_s() <= 0:  # check() ends it before anything is read
            self._budget.refund(size_bytes)
