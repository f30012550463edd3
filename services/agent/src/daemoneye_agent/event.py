"""The shape of a stored process event, shared by the service layer, the store and the rules.

Invariant: a row is a plain tuple in the order of ``EVENT_INSERT_COLUMNS``; with the event id in
front it is in the order of ``TABLES["process_events"]``. Tuples, because a busy host sends tens of
thousands of them a second and an object for each would cost more than storing it.
"""

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TypeAlias

from daemoneye_agent.schema import TABLES

__all__ = [
    "EVENT_COLUMNS",
    "EVENT_INSERT_COLUMNS",
    "NS_PER_SECOND",
    "EventRow",
    "SqlValue",
    "format_time",
    "quote_cmdline",
]

SqlValue: TypeAlias = str | int | float | bytes | None
EventRow: TypeAlias = tuple[SqlValue, ...]

NS_PER_SECOND = 1_000_000_000

EVENT_COLUMNS: tuple[str, ...] = TABLES["process_events"].column_names
"""Every column, the event id first: the order of ``IngestResult.accepted``."""

EVENT_INSERT_COLUMNS: tuple[str, ...] = tuple(name for name in EVENT_COLUMNS if name != "event_id")
"""The columns the caller fills, in the order of the tuples it hands to ``EventStore.ingest``."""


def quote_cmdline(argv: Sequence[str]) -> str:
    """Joins arguments so that a shell would split them into the same arguments again."""
    return shlex.join(argv)


def format_time(time_ns: int) -> str:
    """Writes nanoseconds since the Unix epoch as ISO 8601 in UTC, without losing a digit."""
    second, fraction = divmod(time_ns, NS_PER_SECOND)
    return f"{_format_second(second)}.{fraction:09d}Z"


@lru_cache(maxsize=64)  # events of one batch share a handful of seconds
def _format_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
