"""The bounds of the event store, and what it says of itself and of its changes.

Invariant: a ``StoreLimits`` that exists is in range, and the store obeys it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from daemoneye_agent.alert import Recorded
from daemoneye_agent.loss import EpochProgress, Loss
from daemoneye_agent.partition import Partition
from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["Settlement", "StoreLimits", "StoreStats"]


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """The bounds of the store.

    Raises:
        InvalidConfigError: a bound is out of range.
    """

    retention_days: int = 7
    """Events of today and of this many days before are kept, by the UTC day they were seen."""
    max_store_bytes: int = 2 * 1024**3
    max_alerts: int = 100_000
    alert_window_s: int = 3_600
    """An alert seen again later than this after the last time is a new one."""
    max_loss_ranges: int = 10_000
    """Losses kept for each source."""
    max_source_epochs: int = 1_000
    """Epochs remembered for each source; at most as many as ``max_loss_ranges``."""
    max_collector_events: int = 1_000_000
    """Events that are not about processes; they take a quarter of ``max_store_bytes`` at most."""
    max_gaps: int = 100_000
    """Gaps in collection; they take an eighth of ``max_store_bytes`` at most."""
    max_analyses: int = 100_000
    """Results of analyses; they take an eighth of ``max_store_bytes`` at most."""

    def __post_init__(self) -> None:
        # SQLite allows 500 parts in the UNION ALL of the view; days and parts must fit in.
        _check_range("retention_days", self.retention_days, 1, 365)
        _check_range("max_store_bytes", self.max_store_bytes, 1024**2, 2**50)
        _check_range("max_alerts", self.max_alerts, 1, 10_000_000)
        _check_range("alert_window_s", self.alert_window_s, 0, 365 * 86_400)
        _check_range("max_loss_ranges", self.max_loss_ranges, 1, 1_000_000)
        _check_range("max_source_epochs", self.max_source_epochs, 1, self.max_loss_ranges)
        _check_range("max_collector_events", self.max_collector_events, 1, 100_000_000)
        _check_range("max_gaps", self.max_gaps, 1, 10_000_000)
        _check_range("max_analyses", self.max_analyses, 1, 10_000_000)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What settling changed."""

    lost: tuple[Loss, ...] = ()
    """Ranges that are lost now and were not before."""
    alerts: tuple[Recorded, ...] = ()
    """What was raised because of that."""
    progress: tuple[EpochProgress, ...] = ()
    """How far every epoch is that was touched."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What the store holds, and what it did since the file was made."""

    partitions: tuple[Partition, ...]
    """Oldest first."""
    event_count: int
    """Events of every kind, gaps included."""
    oldest_time_ns: int | None
    newest_time_ns: int | None
    used_bytes: int
    file_bytes: int
    alert_count: int
    loss_ranges: int
    lost_events: int
    """Events inside the ranges, open ones included; an upper bound once ranges were merged."""
    counters: Mapping[str, int]
    """See ``store_counters.Counter``; each rises only."""


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidConfigError(
            f"{name} is {value}; use {low} to {high}", name=name, value=value, low=low, high=high
        )
