"""The last messages that the broker accepted, for subscribers that come late.

Invariant: what is retained stays within the bounds in messages, bytes and age, the oldest making
way; nothing here is owed to anybody, so what goes is not a loss and is not counted as one.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from daemoneye_eventbus.group import Group

__all__ = ["OVERHEAD_BYTES", "Retained", "RetentionLimits", "RetentionRing"]


OVERHEAD_BYTES = 640
"""What a group takes beside its encoded messages: with one message a group it is the most of it."""


@dataclass(frozen=True, slots=True)
class RetentionLimits:
    """How much of the past is kept; a bound of 0 keeps nothing."""

    max_messages: int = 262_144
    max_bytes: int = 16 << 20
    """Of messages, and ``OVERHEAD_BYTES`` for each group of them."""
    max_age_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Retained:
    """A group and when it was accepted, on the monotonic clock."""

    group: Group
    accepted_s: float

    def at(self, now_s: float) -> Group | None:
        """Returns the group with what is left of the time it may wait; None when that is over."""
        envelope = self.group.envelope
        if not envelope.ttl_ms:
            return self.group
        left_ms = ceil(envelope.ttl_ms - (now_s - self.accepted_s) * 1_000)
        if left_ms <= 0:
            return None
        return Group(replace(envelope, ttl_ms=left_ms), self.group.content)


class RetentionRing:
    """What is retained, oldest first."""

    def __init__(self, limits: RetentionLimits) -> None:
        self.limits = limits
        self._ring: deque[Retained] = deque()
        self._is_off = not (limits.max_messages and limits.max_bytes and limits.max_age_s)
        self._forgotten_s: float | None = None
        self.message_count = 0
        self.size_bytes = 0

    def append(self, group: Group, now_s: float) -> None:
        """Retains a group that was accepted now."""
        if self._is_off:
            self._forgotten_s = now_s
            return
        self._ring.append(Retained(group.with_receipt(None), now_s))
        self.message_count += group.count
        self.size_bytes += group.size_bytes + OVERHEAD_BYTES
        limits = self.limits
        while self.message_count > limits.max_messages or self.size_bytes > limits.max_bytes:
            self._forget()

    def trim(self, now_s: float) -> None:
        """Forgets what is too old."""
        oldest_s = now_s - self.limits.max_age_s
        while self._ring and self._ring[0].accepted_s < oldest_s:
            self._forget()

    def latest_first(self, since_s: float, now_s: float) -> Iterator[Group]:
        """Yields what was accepted at that time or later and has not expired, the latest first."""
        for retained in reversed(self._ring):
            if retained.accepted_s < since_s:
                return
            group = retained.at(now_s)
            if group is not None:
                yield group

    def reaches_back_to(self, since_s: float) -> bool:
        """Whether nothing accepted at that time or later was forgotten."""
        return self._forgotten_s is None or self._forgotten_s < since_s

    def _forget(self) -> None:
        oldest = self._ring.popleft()
        self._forgotten_s = oldest.accepted_s
        self.message_count -= oldest.group.count
        self.size_bytes -= oldest.group.size_bytes + OVERHEAD_BYTES
