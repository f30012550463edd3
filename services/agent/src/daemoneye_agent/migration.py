"""The layout of the database file and the way from any older layout to this one.

Invariant: ``user_version`` is the number of migrations that have run; a file that is newer than this
program is refused untouched. Columns that ``schema.TABLES`` gains need no migration of their own:
they are added to the tables that lack them, and read NULL for older rows.
"""

from collections.abc import Callable, Iterator, Sequence

import apsw

from daemoneye_agent.schema import TABLES, Table
from daemoneye_mesh.errors import ErrorReason, PreconditionError

__all__ = [
    "APPLICATION_ID",
    "MIGRATIONS",
    "Migration",
    "StoreVersionError",
    "check_version",
    "migrate",
]

APPLICATION_ID = 0x44455945
"""Marks the file as ours ("DEYE"), so that a foreign database is never written to."""

Migration = Callable[[apsw.Connection], None]


class StoreVersionError(PreconditionError):
    """The file was written by a newer version, or by another program."""

    default_reason = ErrorReason.FILE_UNUSABLE


def migrate(connection: apsw.Connection, migrations: Sequence[Migration] | None = None) -> int:
    """Brings the file to the newest layout in one transaction; returns the version it had.

    Raises:
        StoreVersionError: the file is newer than this program, or not an event store.
    """
    steps = MIGRATIONS if migrations is None else tuple(migrations)
    found = check_version(connection, len(steps))
    with connection:
        for step in steps[found:]:
            step(connection)
        for statement in _missing_columns(connection):
            connection.execute(statement)
        connection.pragma("user_version", len(steps))
        connection.pragma("application_id", APPLICATION_ID)
    return found


def check_version(connection: apsw.Connection, known: int) -> int:
    """Reads the layout of a file without writing to it.

    Raises:
        StoreVersionError: the file is newer than ``known``, or not an event store.
    """
    path = connection.filename
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").get
    if tables and connection.pragma("application_id") != APPLICATION_ID:
        raise StoreVersionError(
            f"{path} is a database of another program; give the event store a path of its own",
            path=path,
        )
    found = int(connection.pragma("user_version"))
    if found > known:
        raise StoreVersionError(
            f"event store {path} has layout {found}, this program knows up to {known}; "
            "upgrade the agent or move the file away",
            path=path,
            found=found,
            known=known,
        )
    return found


_SIMPLE_TABLES = (
    "alerts",
    "event_losses",
    "collector_events",
    "collection_gaps",
    "analysis_results",
)


def _missing_columns(connection: apsw.Connection) -> Iterator[str]:
    partitions = [name for (name,) in connection.execute("SELECT name FROM event_partitions")]
    owners = [(name, TABLES[name]) for name in _SIMPLE_TABLES]
    owners += [(name, TABLES["process_events"]) for name in partitions]
    for name, table in owners:
        known = {row[1] for row in connection.execute(f'PRAGMA table_info("{name}")')}
        for column in table.columns:
            if column.name not in known:
                yield f'ALTER TABLE {name} ADD COLUMN "{column.name}" {column.type}'


def _columns(table: Table, key: str) -> str:
    return ", ".join(
        f'"{column.name}" {column.type}' + (" PRIMARY KEY NOT NULL" if column.name == key else "")
        for column in table.columns
    )


def _create_layout(connection: apsw.Connection) -> None:
    for statement in _LAYOUT:
        connection.execute(statement)


_LAYOUT = (
    """CREATE TABLE event_partitions (
        name TEXT PRIMARY KEY NOT NULL, day INTEGER NOT NULL, part INTEGER NOT NULL,
        row_count INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
        first_event_id INTEGER, last_event_id INTEGER,
        oldest_time_ns INTEGER, newest_time_ns INTEGER)""",
    """CREATE TABLE event_sources (
        source_id TEXT NOT NULL, source_epoch INTEGER NOT NULL,
        contiguous INTEGER NOT NULL, highest INTEGER NOT NULL,
        first_seen_ns INTEGER NOT NULL, last_seen_ns INTEGER NOT NULL,
        UNIQUE (source_id, source_epoch))""",
    f"CREATE TABLE event_losses ({_columns(TABLES['event_losses'], 'loss_id')})",
    "CREATE INDEX event_losses_source ON event_losses (source_id, source_epoch, first_sequence)",
    f"CREATE TABLE alerts ({_columns(TABLES['alerts'], 'alert_id')})",
    "CREATE INDEX alerts_dedup ON alerts (dedup_key, last_seen_ns)",
    "CREATE INDEX alerts_last_seen ON alerts (last_seen_ns)",
    """CREATE TABLE rule_states (
        rule_id TEXT PRIMARY KEY NOT NULL, enabled INTEGER NOT NULL, changed_ns INTEGER NOT NULL)""",
    "CREATE TABLE counters (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL)",
)


def _add_delivery(connection: apsw.Connection) -> None:
    """Losses get a state, and events that are not about processes get tables."""
    known = {row[1] for row in connection.execute("PRAGMA table_info(event_losses)")}
    if "state" not in known:
        connection.execute("ALTER TABLE event_losses ADD COLUMN state TEXT")
    # Nobody could replay what was missing until now.
    connection.execute("UPDATE event_losses SET state = 'lost' WHERE state IS NULL")
    for statement in _DELIVERY_LAYOUT:
        connection.execute(statement)


_DELIVERY_LAYOUT = (
    f"CREATE TABLE collector_events ({_columns(TABLES['collector_events'], 'event_id')})",
    "CREATE UNIQUE INDEX collector_events_key ON collector_events "
    "(source_id, source_epoch, source_sequence)",
    "CREATE INDEX collector_events_time ON collector_events (time_ns)",
    f"CREATE TABLE collection_gaps ({_columns(TABLES['collection_gaps'], 'gap_id')})",
    "CREATE UNIQUE INDEX collection_gaps_key ON collection_gaps "
    "(source_id, source_epoch, source_sequence)",
    "CREATE INDEX collection_gaps_time ON collection_gaps (time_ns)",
    "CREATE TABLE replay_sources (source_id TEXT PRIMARY KEY NOT NULL)",
)


def _add_analyses(connection: apsw.Connection) -> None:
    """What became of the requests among the collector events gets a table."""
    for statement in _ANALYSES_LAYOUT:
        connection.execute(statement)


_ANALYSES_LAYOUT = (
    f"CREATE TABLE analysis_results ({_columns(TABLES['analysis_results'], 'result_id')})",
    "CREATE UNIQUE INDEX analysis_results_key ON analysis_results (source_id, trigger_id)",
    "CREATE INDEX analysis_results_finished ON analysis_results (finished_ns)",
    "CREATE INDEX collector_events_triggers ON collector_events (event_id) "
    "WHERE event_type = 'trigger'",
)

MIGRATIONS: tuple[Migration, ...] = (_create_layout, _add_delivery, _add_analyses)
"""Entry i turns layout i into layout i + 1. Append only: files of every layout are out there."""
