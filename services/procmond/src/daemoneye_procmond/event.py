"""What happens to a process, as the tracker tells it.

Invariant: for one identity there is one inventory or start, then changes, then at most one stop.
"""

from dataclasses import dataclass
from enum import StrEnum

from daemoneye_procmond.record import ProcessRecord

__all__ = ["EventKind", "ProcessEvent"]


class EventKind(StrEnum):
    """The kinds of events."""

    INVENTORY = "inventory"
    """It was there before we looked."""
    START = "start"
    EXEC = "exec"
    """The same process runs another program image."""
    STOP = "stop"
    MODIFIED = "modified"
    SUSPEND = "suspend"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """One thing that happened to one process."""

    kind: EventKind
    record: ProcessRecord
    """The process after it; for a stop the last that was known."""
    observed_at_ns: int
    """When the collector saw it, nanoseconds since the Unix epoch."""
    previous: ProcessRecord | None = None
    """The process before an exec or a modification."""
    changed_fields: tuple[str, ...] = ()
    """Watched columns that an exec or a modification changed."""
    parent: ProcessRecord | None = None
    """The parent; None when it is not known."""
    exit_code: int | None = None
    """Of a stop: the exit status, or minus the signal number; None when it was not seen."""
