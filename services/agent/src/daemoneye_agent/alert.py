"""Alerts: what a rule raises and what the store keeps; no I/O.

Invariant: an ``AlertDraft`` that exists can be stored and published: its rule id is a topic segment
and its texts are bounded.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from daemoneye_agent.event import SqlValue
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

__all__ = [
    "COMPLETE",
    "Alert",
    "AlertDraft",
    "AlertInvalidError",
    "Recorded",
    "Severity",
    "build_dedup_key",
    "render_row",
]

COMPLETE = "complete"
"""``completeness`` of an alert whose rule saw everything there was to see."""

_RULE_ID = re.compile(r"[a-z0-9_-]{1,64}")
_MAX_KEY_CHARS = 512
_MAX_TITLE_CHARS = 512
_MAX_TEXT_CHARS = 8_192
_MAX_ROW_BYTES = 256 * 1024
_MAX_CELL_CHARS = 4_096


class Severity(StrEnum):
    """How bad it is; ``info < low < medium < high < critical``."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info up to 4 for critical."""
        return _RANKS[self]

    def and_above(self) -> tuple["Severity", ...]:
        """This severity and every worse one."""
        return tuple(Severity)[self.rank :]

    # StrEnum would otherwise compare the words, and "critical" < "info" is never meant.
    def __lt__(self, other: str) -> bool:
        return self.rank < Severity(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Severity(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Severity(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Severity(other).rank


_RANKS = {severity: rank for rank, severity in enumerate(Severity)}


class AlertInvalidError(InvalidRequestError):
    """A rule raised an alert that cannot be kept or published."""

    default_reason = ErrorReason.RULE_INVALID


@dataclass(frozen=True, slots=True)
class AlertDraft:
    """An alert as a rule raises it, before it is grouped with earlier ones."""

    rule_id: str
    severity: Severity
    title: str
    description: str
    dedup_key: str
    """Alerts with an equal key within the window are one alert with a higher count."""
    seen_ns: int
    """When it was seen, nanoseconds since the Unix epoch."""
    event_id: int | None = None
    """The event that matched."""
    row: str = "{}"
    """The row the rule returned, as JSON; see ``render_row``."""
    completeness: str = COMPLETE

    def __post_init__(self) -> None:
        if not _RULE_ID.fullmatch(self.rule_id):
            raise AlertInvalidError(
                f"rule id {self.rule_id!r} cannot be part of a topic; use 1 to 64 of a-z 0-9 _ -",
                rule_id=self.rule_id,
            )
        _check_length("title", self.title, _MAX_TITLE_CHARS)
        _check_length("description", self.description, _MAX_TEXT_CHARS)
        _check_length("dedup_key", self.dedup_key, _MAX_KEY_CHARS)
        _check_length("completeness", self.completeness, _MAX_TEXT_CHARS)
        _check_length("row", self.row, _MAX_ROW_BYTES)


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert as it is kept; the order of the fields is that of ``TABLES["alerts"]``."""

    alert_id: str
    rule_id: str
    severity: Severity
    title: str
    description: str
    dedup_key: str
    count: int
    first_seen_ns: int
    last_seen_ns: int
    event_id: int | None
    row: str
    completeness: str

    @property
    def topic(self) -> str:
        """Where it is published."""
        return f"alerts.{self.severity}.{self.rule_id}"


Recorded: TypeAlias = tuple[Alert, bool]
"""An alert as it is kept now, and whether it is new."""


def build_dedup_key(rule_id: str, *parts: SqlValue) -> str:
    """Makes a key that is equal exactly when the rule and all parts are equal.

    Long keys are hashed, because a part may be a command line of any length.
    """
    text = json.dumps([rule_id, *(_jsonable(part) for part in parts)], ensure_ascii=True)
    if len(text) <= _MAX_KEY_CHARS:
        return text
    return f"{rule_id}:{hashlib.blake2b(text.encode(), digest_size=32).hexdigest()}"


def render_row(row: Mapping[str, SqlValue]) -> str:
    """Writes a row as JSON that fits an alert; what is cut says how much was cut."""
    for limit in (_MAX_CELL_CHARS, _MAX_CELL_CHARS // 16, 16):
        cells = {name: _cut(_jsonable(value), limit) for name, value in row.items()}
        text = json.dumps(cells, ensure_ascii=False)
        if len(text) <= _MAX_ROW_BYTES:
            return text
    return json.dumps({"cut": f"{len(row)} columns did not fit"})


def _jsonable(value: SqlValue) -> str | int | float | None:
    return value.hex() if isinstance(value, bytes) else value


def _cut(value: str | int | float | None, limit: int) -> str | int | float | None:
    if not isinstance(value, str) or len(value) <= limit:
        return value
    return f"{value[:limit]}… [{len(value) - limit} characters cut]"


def _check_length(field: str, text: str, limit: int) -> None:
    if len(text) > limit:
        raise AlertInvalidError(
            f"{field} of an alert has {len(text)} characters, the limit is {limit}; shorten it",
            field=field,
            length=len(text),
            limit=limit,
        )
