"""What goes into the tracker and what it asks for.

Invariant: plain values without behaviour of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from daemoneye_procmond.statline import StatLine

__all__ = ["Coverage", "Observation", "ScanPlan", "TrackerLimits"]


@dataclass(frozen=True, slots=True)
class TrackerLimits:
    """Bounds of the table."""

    process_count: int = 65_536
    text_bytes: int = 64 * 1024 * 1024
    """Over it, records are kept with their long texts cut; events still carry them whole."""
    recheck_count: int = 200
    """How many known processes are read again in each scan."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one scan saw."""

    stats: Sequence[StatLine]
    observed_at_ns: int
    monotonic_s: float
    unreadable_pids: frozenset[int] = frozenset()
    """Listed, but nothing could be read: still there as far as one can say."""
    is_complete: bool = True
    """False when the listing broke off; then absence says nothing."""


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """What to read before the observation can be applied."""

    observation: Observation
    gone: tuple[int, ...]
    """Pids whose process is gone, or replaced by another one."""
    new: tuple[StatLine, ...]
    changed: tuple[StatLine, ...]
    recheck: tuple[StatLine, ...]
    overflow: tuple[StatLine, ...]
    """New processes for which the table has no room, oldest first."""

    @property
    def overflow_count(self) -> int:
        """How many new processes are left out."""
        return len(self.overflow)

    @property
    def wanted(self) -> tuple[StatLine, ...]:
        """The processes to read."""
        return self.new + self.changed + self.recheck


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what is tracked could be read."""

    process_count: int
    denied_count: int
    """Records that lack a field for want of privilege."""
    incomplete_count: int
    """Records that lack a field for another reason."""
    shortened_count: int
    """Records kept with their long texts cut to stay within the byte bound."""
