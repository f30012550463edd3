"""Why a look at the processes may not be whole.

Invariant: the reasons are the names of ``daemoneye.common.v1.DegradedReason`` in lower case.
"""

from enum import StrEnum
from typing import NamedTuple

__all__ = ["CauseReason", "DegradedCause", "coverage_causes"]


class CauseReason(StrEnum):
    """The classes of causes that the process collector meets."""

    UNPRIVILEGED = "unprivileged"
    COLLECTOR_UNAVAILABLE = "collector_unavailable"
    TRUNCATED = "truncated"
    READ_ERRORS = "read_errors"


class DegradedCause(NamedTuple):
    """One cause."""

    reason: str
    message: str
    """One sentence for a person."""


def coverage_causes(
    *, denied_count: int, failed_count: int, is_hidden: bool
) -> tuple[DegradedCause, ...]:
    """The causes that follow from what could not be read."""
    causes: list[DegradedCause] = []
    if is_hidden:
        causes.append(
            DegradedCause(
                CauseReason.UNPRIVILEGED,
                "processes of other users are hidden; mount procfs without hidepid for the collector",
            )
        )
    if denied_count:
        causes.append(
            DegradedCause(
                CauseReason.UNPRIVILEGED,
                f"{denied_count} processes lack fields that need privilege; "
                "run the collector with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
            )
        )
    if failed_count:
        causes.append(
            DegradedCause(
                CauseReason.READ_ERRORS,
                f"{failed_count} processes could not be read; look at the collector's open file limit",
            )
        )
    return tuple(causes)
