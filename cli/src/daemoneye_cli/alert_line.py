"""Alerts as one line, as a table row and as a document."""

from rich.text import Text

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_cli.document import Document, to_document
from daemoneye_cli.output import Column, Styled
from daemoneye_cli.text import format_clock, format_iso, printable

__all__ = [
    "ALERT_COLUMNS",
    "SEVERITIES",
    "alert_document",
    "alert_lines",
    "severity_name",
    "severity_style",
]

SEVERITIES: dict[str, eventbus_pb2.AlertSeverity.ValueType] = {
    "info": eventbus_pb2.ALERT_SEVERITY_INFO,
    "low": eventbus_pb2.ALERT_SEVERITY_LOW,
    "medium": eventbus_pb2.ALERT_SEVERITY_MEDIUM,
    "high": eventbus_pb2.ALERT_SEVERITY_HIGH,
    "critical": eventbus_pb2.ALERT_SEVERITY_CRITICAL,
}
_NAMES: dict[int, str] = {number: name for name, number in SEVERITIES.items()}
_STYLES = {
    "info": "cyan",
    "low": "blue",
    "medium": "yellow",
    "high": "bold red",
    "critical": "bold white on red",
}

ALERT_COLUMNS = (
    Column("last_seen", "last seen"),
    Column("severity", "severity"),
    Column("rule_id", "rule"),
    Column("title", "title"),
    Column("count", "count", "right"),
    Column("alert_id", "id"),
)


def severity_name(severity: int) -> str:
    """Returns the name of a severity; its number when it is unknown."""
    return _NAMES.get(severity, str(severity))


def severity_style(name: str) -> Styled:
    """Returns the name in its colour."""
    return Styled(name, _STYLES.get(name, ""))


def alert_document(alert: eventbus_pb2.AlertPayload) -> Document:
    """Returns the document of an alert, its times in ISO 8601 too."""
    document = to_document(alert)
    return {
        **document,
        "severity": severity_style(severity_name(alert.severity)),
        "first_seen": format_iso(alert.first_seen_ns, digits=3),
        "last_seen": format_iso(alert.last_seen_ns, digits=3),
    }


def alert_lines(alert: eventbus_pb2.AlertPayload) -> tuple[Text, ...]:
    """Returns what stands out in a live view: severity, rule and title, then what was seen."""
    name = severity_name(alert.severity)
    style = _STYLES.get(name, "")
    line = Text(format_clock(alert.last_seen_ns), style="dim")
    line.append(f" ALERT {name.upper()} ", style=f"not dim {style}")
    line.append(f" {printable(alert.rule_id)}: {printable(alert.title)}", style="not dim bold")
    if alert.count > 1:
        line.append(f" (seen {alert.count} times)", style="not dim")
        return (line,)
    what = _describe_row(alert) or "; ".join(alert.affected_resources)
    what = what or _first_line(alert.description)
    return (line, Text(f"{'':13}{printable(what)}", style=style)) if what else (line,)


def _describe_row(alert: eventbus_pb2.AlertPayload) -> str:
    """Returns the process that matched, as far as the row of the rule names it."""
    row = alert.metadata
    program = row.get("cmdline") or row.get("exe") or row.get("name") or ""
    if "pid" not in row:
        return program
    by = f"  by {row['user_name']}" if row.get("user_name") else ""
    parent = f"  from {row['parent_name']}" if row.get("parent_name") else ""
    return f"pid {row['pid']}  {program}{by}{parent}"


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
