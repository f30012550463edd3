"""The tables an operator and a rule may name: one source for store, validator, engine and documents.

Invariant: a column that is not listed here is not queryable, and every listed column is filled by the
event store (all but ``processes``) or by a collector (``processes``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from daemoneye_mesh.process_table import PROCESS_COLUMNS, Column, ColumnType, columns

__all__ = ["PROCESS_COLUMNS", "TABLES", "Column", "ColumnType", "Table", "TableKind"]


class TableKind(StrEnum):
    """Where the rows of a table come from."""

    STORED = "stored"
    """Rows are in the event store; rules over them run on each ingested batch."""
    LIVE = "live"
    """Rows are asked of a collector when the query runs."""


@dataclass(frozen=True, slots=True)
class Table:
    """One queryable table."""

    name: str
    kind: TableKind
    description: str
    columns: tuple[Column, ...]

    @property
    def column_names(self) -> tuple[str, ...]:
        """The names of the columns, in declared order."""
        return tuple(column.name for column in self.columns)


_EVENT_HEAD = columns(
    ("event_id", "INTEGER", "row id in the event store, rising in order of arrival"),
    ("source_id", "TEXT", "collector that saw it"),
    ("source_epoch", "INTEGER", "life of the collector's sequence"),
    ("source_sequence", "INTEGER", "gapless number within the epoch"),
    ("time_ns", "INTEGER", "when the collector saw it, nanoseconds since the Unix epoch"),
    ("time", "TEXT", "the same in ISO 8601, UTC"),
    ("kind", "TEXT", "inventory, start, exec, stop, modified, suspend or resume"),
)

_EVENT_TAIL = columns(
    ("parent_name", "TEXT", "command name of the parent; NULL when it is not known"),
    ("parent_exe", "TEXT", "executable of the parent"),
    ("parent_cmdline", "TEXT", "arguments of the parent, quoted and joined"),
    ("previous_name", "TEXT", "exec and modified: command name before"),
    ("previous_exe", "TEXT", "exec and modified: executable before"),
    ("previous_cmdline", "TEXT", "exec and modified: arguments before"),
    ("changed_fields", "TEXT", "modified: columns that changed, joined by a comma"),
    ("exit_code", "INTEGER", "stop: exit status; NULL when it was not seen"),
)

_ALERT_COLUMNS = columns(
    ("alert_id", "TEXT", "unique id"),
    ("rule_id", "TEXT", "rule that raised it"),
    ("severity", "TEXT", "info, low, medium, high or critical"),
    ("title", "TEXT", "title of the rule"),
    ("description", "TEXT", "what was seen"),
    ("dedup_key", "TEXT", "alerts with an equal key are one alert with a higher count"),
    ("count", "INTEGER", "how often it was seen"),
    ("first_seen_ns", "INTEGER", "first time, nanoseconds since the Unix epoch"),
    ("last_seen_ns", "INTEGER", "latest time, nanoseconds since the Unix epoch"),
    ("event_id", "INTEGER", "first event that matched"),
    ("row", "TEXT", "the row the rule returned first, as JSON"),
    ("completeness", "TEXT", "complete, or degraded with the reasons"),
)

_LOSS_COLUMNS = columns(
    ("loss_id", "INTEGER", "row id"),
    ("source_id", "TEXT", "collector whose events are missing"),
    ("source_epoch", "INTEGER", "epoch of the missing range"),
    ("first_sequence", "INTEGER", "first missing sequence"),
    ("last_sequence", "INTEGER", "last missing sequence"),
    ("reason", "TEXT", "why they are missing, as far as it is known"),
    ("recorded_ns", "INTEGER", "when the agent noticed, nanoseconds since the Unix epoch"),
    ("state", "TEXT", "open while they may still be replayed, lost when nobody has them any more"),
)

_COLLECTOR_EVENT_COLUMNS = columns(
    (
        "event_id",
        "INTEGER",
        "row id, unique over all events of the store, rising in order of arrival",
    ),
    ("source_id", "TEXT", "collector that saw it"),
    ("source_epoch", "INTEGER", "life of the collector's sequence"),
    ("source_sequence", "INTEGER", "gapless number within the epoch"),
    ("time_ns", "INTEGER", "when the collector saw it, nanoseconds since the Unix epoch"),
    ("time", "TEXT", "the same in ISO 8601, UTC"),
    ("topic", "TEXT", "topic it was published on"),
    ("event_type", "TEXT", "network, filesystem, performance, trigger, or unknown with its number"),
    (
        "data",
        "TEXT",
        "the event as JSON, fields named as in the contract; 64-bit numbers are strings",
    ),
)

_GAP_COLUMNS = columns(
    (
        "gap_id",
        "INTEGER",
        "row id, unique over all events of the store, rising in order of arrival",
    ),
    ("source_id", "TEXT", "collector that did not see everything"),
    ("source_epoch", "INTEGER", "life of the collector's sequence"),
    ("source_sequence", "INTEGER", "gapless number within the epoch"),
    ("time_ns", "INTEGER", "when the collector said so, nanoseconds since the Unix epoch"),
    ("reason", "TEXT", "killed, stopped, paused, source_failed, shed, suspended or unspecified"),
    ("source_name", "TEXT", "source inside of the collector; empty when it is the whole collector"),
    (
        "started_ns",
        "INTEGER",
        "when it began, nanoseconds since the Unix epoch; NULL when not said",
    ),
    ("ended_ns", "INTEGER", "when it ended, nanoseconds since the Unix epoch; NULL when not said"),
    ("event_count", "INTEGER", "events that were left out; NULL when nobody can know"),
    ("message", "TEXT", "what happened, as one sentence"),
)

_ANALYSIS_COLUMNS = columns(
    ("result_id", "INTEGER", "row id, rising in the order in which requests were finished"),
    ("trigger_id", "TEXT", "id of the request, as who asked chose it"),
    ("source_id", "TEXT", "collector that asked"),
    ("target_collector", "TEXT", "collector that was to be asked"),
    (
        "analysis_type",
        "TEXT",
        "binary_hash, memory_analysis, yara_scan, network_analysis, behavioral_analysis or custom",
    ),
    ("custom_type", "TEXT", "name of a custom analysis; else empty"),
    ("priority", "TEXT", "low, normal, high or critical"),
    ("requested_ns", "INTEGER", "when it was asked for, nanoseconds since the Unix epoch"),
    ("finished_ns", "INTEGER", "when its outcome was known, nanoseconds since the Unix epoch"),
    ("outcome", "TEXT", "done, failed, undeliverable or refused"),
    ("error_kind", "TEXT", "why it is not done; NULL when it is"),
    ("sha256", "TEXT", "digest that was found, lower-case hexadecimal"),
    ("blake3", "TEXT", "digest that was found, lower-case hexadecimal"),
    (
        "findings",
        "TEXT",
        "JSON: what was found by name, further digests by algorithm; NULL unless done",
    ),
    ("confidence", "REAL", "how sure who looked is, from 0 to 1; NULL unless done"),
    ("boot_id", "TEXT", "boot of the process to look at; NULL when only a file is meant"),
    ("pid", "INTEGER", "process to look at"),
    ("start_ticks", "INTEGER", "start of that process in clock ticks since boot"),
    ("path", "TEXT", "file to look at; NULL when only a process is meant"),
)


def _index(*tables: Table) -> Mapping[str, Table]:
    return {table.name: table for table in tables}


TABLES: Mapping[str, Table] = _index(
    Table(
        "process_events",
        TableKind.STORED,
        "what happened to processes, one row an event",
        _EVENT_HEAD + PROCESS_COLUMNS + _EVENT_TAIL,
    ),
    Table("alerts", TableKind.STORED, "alerts raised by rules", _ALERT_COLUMNS),
    Table("event_losses", TableKind.STORED, "ranges of events that did not arrive", _LOSS_COLUMNS),
    Table(
        "collection_gaps",
        TableKind.STORED,
        "times in which a collector did not see everything",
        _GAP_COLUMNS,
    ),
    Table(
        "collector_events",
        TableKind.STORED,
        "events that are not about processes: network, filesystem, performance, triggers",
        _COLLECTOR_EVENT_COLUMNS,
    ),
    Table(
        "analysis_results",
        TableKind.STORED,
        "what became of the analyses that collectors asked for",
        _ANALYSIS_COLUMNS,
    ),
    Table("processes", TableKind.LIVE, "the processes that run right now", PROCESS_COLUMNS),
)
