"""One part of a collector and how it is.

Invariant: a part gets worse at once and better only after it has not been that bad for a while; a
fatal error stays, and a permanent one until the part itself says that it is better.
"""

from collections.abc import Callable
from dataclasses import dataclass

from collector_core.health.status import Status

__all__ = ["Component", "ComponentRecord"]

MAX_MESSAGE_LENGTH = 512


@dataclass(frozen=True, slots=True)
class _Word:
    """What a part said last, or the worst that it said since ``since_s``."""

    status: Status
    message: str
    since_s: float


class ComponentRecord:
    """What is known about one part; knows no clock.

    Times in seconds are those of ``SuspendWatch.awake_s``.

    Args:
        name: its name.
        max_silence_s: how long it may go without a report; None when it reports as it likes.
        now_s: when it was added.
        at_ns: the same as nanoseconds since the Unix epoch.
    """

    def __init__(self, name: str, max_silence_s: float | None, now_s: float, at_ns: int) -> None:
        self.name = name
        self.max_silence_s = max_silence_s
        self.status = Status.STARTING
        self.message = ""
        self.since_ns = at_ns
        self.checked_at_ns = at_ns
        self.failure_count = 0
        self._heard_s = now_s
        self._is_silent = False
        self._latest = _Word(Status.STARTING, "", now_s)
        self._calmer: _Word | None = None

    def report(self, status: Status, message: str, now_s: float, at_ns: int) -> None:
        """Takes down what the part says about itself."""
        self._heard_s, self.checked_at_ns = now_s, at_ns
        self._is_silent = False
        self.failure_count += status is not Status.OK
        self._take(_Word(status, message[:MAX_MESSAGE_LENGTH], now_s), at_ns)

    def review(self, now_s: float, steady_s: float, at_ns: int, is_grace: bool) -> None:
        """Lets time do its work: silence becomes an error, calm becomes an improvement."""
        silence_due_s = self._silence_due_s()
        if silence_due_s is not None and now_s >= silence_due_s and not is_grace:
            self._note_silence(now_s, at_ns)
        calmer = self._calmer
        if calmer is None or now_s < calmer.since_s + steady_s:
            return
        self._set(calmer, at_ns)
        latest = self._latest
        is_better_still = latest.status.severity < self.status.severity
        self._calmer = _Word(latest.status, latest.message, now_s) if is_better_still else None

    def due_in_s(self, now_s: float, steady_s: float, grace_s: float) -> float | None:
        """Seconds until ``review`` may change something; None when only a report can."""
        dues: list[float] = []
        if self._calmer is not None:
            dues.append(self._calmer.since_s + steady_s - now_s)
        silence_due_s = self._silence_due_s()
        if silence_due_s is not None and not self._is_silent:
            dues.append(max(silence_due_s - now_s, grace_s))
        return min(dues, default=None)

    def _silence_due_s(self) -> float | None:
        """When silence counts; never for a part whose last own word is an error."""
        if self.max_silence_s is None or (self._latest.status.severity and not self._is_silent):
            return None
        return self._heard_s + self.max_silence_s

    def _note_silence(self, now_s: float, at_ns: int) -> None:
        self.failure_count += not self._is_silent
        self._is_silent = True
        silent_s = now_s - self._heard_s
        message = (
            f"has not reported for {silent_s:.0f} s; look into the log of the collector, "
            "restart it if this stays"
        )
        self._take(_Word(Status.RECOVERABLE_ERROR, message, now_s), at_ns)

    def _take(self, word: _Word, at_ns: int) -> None:
        if self.status is Status.FATAL_ERROR:
            return
        self._latest = word
        if word.status.severity >= self.status.severity:
            self._calmer = None
            self._set(word, at_ns)
        elif self._calmer is None:
            self._calmer = word
        elif word.status.severity >= self._calmer.status.severity:
            self._calmer = _Word(word.status, word.message, self._calmer.since_s)

    def _set(self, word: _Word, at_ns: int) -> None:
        if word.status is not self.status:
            self.since_ns = at_ns
        self.status, self.message = word.status, word.message


class Component:
    """How a part of a collector reports; made by ``HealthMonitor.component``.

    Call it on the event loop. A message is one sentence for a person: what is wrong and what to do.
    """

    def __init__(self, name: str, report: Callable[[Status, str], None]) -> None:
        self.name = name
        """Its name."""
        self._report = report

    def ok(self) -> None:
        """It works; cheap enough to be said often."""
        self._report(Status.OK, "")

    def recoverable(self, message: str) -> None:
        """Something fails and is being tried again."""
        self._report(Status.RECOVERABLE_ERROR, message)

    def permanent(self, message: str) -> None:
        """Something fails until somebody mends it."""
        self._report(Status.PERMANENT_ERROR, message)

    def fatal(self, message: str) -> None:
        """It cannot go on and the collector will exit; nothing it says later changes that."""
        self._report(Status.FATAL_ERROR, message)
