"""What is missing of a source, as it is kept and handed around; no I/O.

A range is *open* while somebody may still have its events, and *lost* once nobody has them.
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "REOPENABLE",
    "EpochProgress",
    "Loss",
    "LossChanges",
    "LossReason",
    "LossState",
    "MissingRange",
    "Shortfall",
]


class LossState(StrEnum):
    """Whether events that are missing may still come."""

    OPEN = "open"
    LOST = "lost"


class LossReason(StrEnum):
    """Why a range is missing, as far as the agent can tell by itself."""

    NOT_RECEIVED = "not received"
    BEFORE_SUBSCRIBED = "published before the agent subscribed"
    REFUSED = "refused by the event store"
    MERGED = "many ranges merged into one, some events between were received"
    TOO_MANY = "too many open ranges"
    NO_LOG = "its collector keeps no log"
    AWAY = "collector away"
    LET_GO = "the collector's log let go of them"
    UNKNOWN_EPOCH = "the collector does not know their epoch any more"


REOPENABLE = (LossReason.NOT_RECEIVED, LossReason.BEFORE_SUBSCRIBED, LossReason.AWAY)
"""Reasons that a collector which comes with its log may still prove wrong."""


@dataclass(frozen=True, slots=True)
class Loss:
    """One row of ``event_losses``, or the part of one that was settled; then the id is 0."""

    loss_id: int
    source_id: str
    source_epoch: int
    first_sequence: int
    last_sequence: int
    reason: str
    recorded_ns: int
    state: LossState = LossState.LOST

    @property
    def event_count(self) -> int:
        """How many events the range spans."""
        return self.last_sequence - self.first_sequence + 1


@dataclass(slots=True, eq=False)
class MissingRange:
    """A range of sequences that did not arrive; ``loss_id`` is 0 until it has a row."""

    first: int
    last: int
    reason: str
    recorded_ns: int
    loss_id: int = 0
    state: LossState = LossState.LOST
    is_news: bool = False
    """Whether nobody was told of it yet; a piece cut from a known range is no news."""

    @property
    def is_open(self) -> bool:
        """Whether its events may still come."""
        return self.state is LossState.OPEN


@dataclass(frozen=True, slots=True)
class LossChanges:
    """What changed in the ranges of one source since it was last saved."""

    added: tuple[MissingRange, ...]
    changed: tuple[MissingRange, ...]
    removed_ids: tuple[int, ...]
    settled: tuple[MissingRange, ...]
    """Copies of what was open, and known as that, and is lost now."""


@dataclass(frozen=True, slots=True)
class EpochProgress:
    """How far one epoch of one source is stored, for those who ask for the rest."""

    source_id: str
    source_epoch: int
    contiguous: int = 0
    """Highest sequence up to which nothing is open: all is stored, or lost for good."""
    highest: int = 0
    """Highest sequence that was stored or given up."""
    open_ranges: tuple[tuple[int, int], ...] = ()
    """The first ranges that may still come, as first and last sequence, in order."""
    version: int = 0
    """Rises with every change of the store: what has a higher one is newer."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What is known to be missing from the store as a whole."""

    missing_events: int = 0
    """Events that did not arrive, an upper bound once ranges were merged."""
    open_events: int = 0
    """How many of them may still come."""
    gap_count: int = 0
    """Gaps in collection that are stored."""
    last_gap: str = ""
    """Source, time and reason of the latest gap, for a person."""
