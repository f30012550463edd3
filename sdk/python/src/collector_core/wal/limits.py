"""How much a log keeps, and when it calls something written."""

from dataclasses import dataclass
from enum import StrEnum

from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["SyncPolicy", "WalLimits"]

MIN_SEGMENT_BYTES = 4 << 10


class SyncPolicy(StrEnum):
    """When an append returns."""

    COMMIT = "commit"
    """When it is on stable storage: survives a loss of power."""
    INTERVAL = "interval"
    """When the kernel has it: survives the end of the process; the holder calls ``sync``."""


@dataclass(frozen=True, slots=True)
class WalLimits:
    """Bounds of a log.

    Args:
        max_bytes: of all its segments; at least two segments.
        max_age_s: of its newest event in a segment; older segments go, acknowledged or not.
        segment_bytes: after which a segment is full; the last append may go beyond.

    Raises:
        InvalidConfigError: a bound is out of range.
    """

    max_bytes: int = 512 << 20
    max_age_s: float = 7 * 86400.0
    segment_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if self.segment_bytes < MIN_SEGMENT_BYTES:
            raise InvalidConfigError(
                f"segments of {self.segment_bytes} bytes are too small;"
                f" give at least {MIN_SEGMENT_BYTES}",
                segment_bytes=self.segment_bytes,
                least_bytes=MIN_SEGMENT_BYTES,
            )
        if self.max_bytes < 2 * self.segment_bytes:
            raise InvalidConfigError(
                f"a log of {self.max_bytes} bytes has no room for two segments of"
                f" {self.segment_bytes}; raise its size or make segments smaller",
                max_bytes=self.max_bytes,
                segment_bytes=self.segment_bytes,
            )
        if not self.max_age_s > 0:
            raise InvalidConfigError(
                f"a log that keeps events for {self.max_age_s} s keeps none; give a positive age",
                max_age_s=self.max_age_s,
            )
