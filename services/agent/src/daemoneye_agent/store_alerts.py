"""The alerts table and the switches of the rules.

Invariant: an alert is on disk before anybody hears of it, and at most ``max_alerts`` are kept; the
ones that were seen last the longest ago make room, and are counted.
"""

from dataclasses import replace
from typing import Any
from uuid import uuid4

import apsw

from daemoneye_agent.alert import Alert, AlertDraft, Severity
from daemoneye_agent.schema import TABLES
from daemoneye_mesh.errors import InvalidRequestError, NotFoundError

__all__ = ["AlertTable", "RuleSwitches"]

_NAMES = TABLES["alerts"].column_names
_COLUMNS = ", ".join(f'"{name}"' for name in _NAMES)
_SELECT = f"SELECT {_COLUMNS} FROM alerts "  # noqa: S608 - the names are our own
_INSERT = f"INSERT INTO alerts ({_COLUMNS}) VALUES ({', '.join('?' * len(_NAMES))})"  # noqa: S608
_MAX_LISTED = 10_000


class AlertTable:
    """Alerts of one database. The methods that write expect an open transaction."""

    def __init__(self, connection: apsw.Connection, *, max_alerts: int, window_ns: int) -> None:
        self._connection = connection
        self._max_alerts = max_alerts
        self._window_ns = window_ns

    def record(self, draft: AlertDraft) -> tuple[Alert, bool]:
        """Adds an alert, or counts it with an equal one seen within the window.

        The first sighting keeps its row, event and texts: they are the evidence that was published.

        Returns:
            The alert as it stands now, and whether it is new.
        """
        known = self._find_open(draft)
        return (self._count(known, draft), False) if known else (self._insert(draft), True)

    def trim(self) -> int:
        """Removes the alerts above the bound; returns how many."""
        excess = self.count() - self._max_alerts
        if excess <= 0:
            return 0
        self._connection.execute(
            "DELETE FROM alerts WHERE rowid IN "
            "(SELECT rowid FROM alerts ORDER BY last_seen_ns, rowid LIMIT ?)",
            (excess,),
        )
        return excess

    def count(self) -> int:
        """How many alerts are kept."""
        return int(self._connection.execute("SELECT count(*) FROM alerts").get)

    def get(self, alert_id: str) -> Alert:
        """One alert.

        Raises:
            NotFoundError: it never existed, or made room for newer ones.
        """
        found = self._select("WHERE alert_id = ?", (alert_id,))
        if not found:
            raise NotFoundError(
                f"no alert {alert_id!r}; list the alerts to see what is kept", alert_id=alert_id
            )
        return found[0]

    def list(
        self, since_ns: int, floor: Severity, rule_id: str | None, limit: int
    ) -> tuple[Alert, ...]:
        """Alerts, the one seen last first.

        Raises:
            InvalidRequestError: the limit is out of range.
        """
        if not 1 <= limit <= _MAX_LISTED:
            raise InvalidRequestError(
                f"limit {limit} is out of range; use 1 to {_MAX_LISTED}", limit=limit
            )
        severities = [str(severity) for severity in floor.and_above()]
        marks = ", ".join("?" * len(severities))
        return self._select(
            f"WHERE last_seen_ns >= ? AND severity IN ({marks}) AND rule_id = ifnull(?, rule_id) "
            "ORDER BY last_seen_ns DESC, rowid DESC LIMIT ?",
            (since_ns, *severities, rule_id, limit),
        )

    def _select(self, tail: str, values: tuple[str | int | None, ...]) -> tuple[Alert, ...]:
        rows = self._connection.execute(_SELECT + tail, values)
        return tuple(_alert(*row) for row in rows)

    def _find_open(self, draft: AlertDraft) -> Alert | None:
        # A late sighting belongs to the alert it falls into, hence the bound on both ends.
        found = self._select(
            "WHERE dedup_key = ? AND last_seen_ns >= ? AND first_seen_ns <= ? "
            "ORDER BY last_seen_ns DESC LIMIT 1",
            (draft.dedup_key, draft.seen_ns - self._window_ns, draft.seen_ns + self._window_ns),
        )
        return found[0] if found else None

    def _count(self, known: Alert, draft: AlertDraft) -> Alert:
        alert = replace(
            known,
            count=known.count + 1,
            first_seen_ns=min(known.first_seen_ns, draft.seen_ns),
            last_seen_ns=max(known.last_seen_ns, draft.seen_ns),
        )
        self._connection.execute(
            "UPDATE alerts SET count = ?, first_seen_ns = ?, last_seen_ns = ? WHERE alert_id = ?",
            (alert.count, alert.first_seen_ns, alert.last_seen_ns, alert.alert_id),
        )
        return alert

    def _insert(self, draft: AlertDraft) -> Alert:
        alert = Alert(
            alert_id=uuid4().hex,
            rule_id=draft.rule_id,
            severity=draft.severity,
            title=draft.title,
            description=draft.description,
            dedup_key=draft.dedup_key,
            count=1,
            first_seen_ns=draft.seen_ns,
            last_seen_ns=draft.seen_ns,
            event_id=draft.event_id,
            row=draft.row,
            completeness=draft.completeness,
        )
        values = tuple(_bindable(getattr(alert, name)) for name in _NAMES)
        self._connection.execute(_INSERT, values)
        return alert


class RuleSwitches:
    """Which rules an operator switched on or off; rules without a row keep their own default."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def set(self, rule_id: str, enabled: bool, now_ns: int) -> None:
        """Remembers the switch of one rule."""
        self._connection.execute(
            "INSERT OR REPLACE INTO rule_states (rule_id, enabled, changed_ns) VALUES (?, ?, ?)",
            (rule_id, int(enabled), now_ns),
        )

    def read(self) -> dict[str, bool]:
        """Every switch that was ever set, by rule id."""
        rows = self._connection.execute("SELECT rule_id, enabled FROM rule_states")
        return {rule_id: bool(enabled) for rule_id, enabled in rows}


def _alert(*columns: Any) -> Alert:
    alert_id, rule_id, severity, *rest = columns
    return Alert(alert_id, rule_id, Severity(severity), *rest)


def _bindable(value: str | int | None) -> str | int | None:
    return str(value) if isinstance(value, Severity) else value
