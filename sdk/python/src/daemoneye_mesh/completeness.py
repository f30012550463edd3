"""Whether an answer is whole: the domain side of ``daemoneye.common.v1.Completeness``.

Invariant: an answer is complete exactly when it has no degradation.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Degradation", "DegradedReason", "merge_degradations"]


class DegradedReason(StrEnum):
    """Why something is missing; the names of the contract's enum without prefix."""

    POLLING = "POLLING"
    UNPRIVILEGED = "UNPRIVILEGED"
    COLLECTOR_UNAVAILABLE = "COLLECTOR_UNAVAILABLE"
    EVENTS_LOST = "EVENTS_LOST"
    TRUNCATED = "TRUNCATED"
    READ_ERRORS = "READ_ERRORS"
    RULE_FAILED = "RULE_FAILED"
    PAUSED = "PAUSED"
    COLLECTION_GAP = "COLLECTION_GAP"
    OVER_BUDGET = "OVER_BUDGET"
    LOG_UNWRITABLE = "LOG_UNWRITABLE"


@dataclass(frozen=True, slots=True)
class Degradation:
    """One thing that is missing from an answer."""

    reason: DegradedReason
    subject: str
    """Who suffers it: a collector id, a table or a rule id."""
    message: str
    """One sentence for a person."""


def merge_degradations(*groups: Iterable[Degradation]) -> tuple[Degradation, ...]:
    """Returns all degradations once, in order."""
    return tuple(dict.fromkeys(one for group in groups for one in group))
