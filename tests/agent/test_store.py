"""The file of the event store: private, versioned, set aside when corrupt, bounded."""

import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from daemoneye_agent.event import EVENT_COLUMNS, EVENT_INSERT_COLUMNS, EventRow, SqlValue
from daemoneye_agent.migration import MIGRATIONS, StoreVersionError, migrate
from daemoneye_agent.partition import DropReason, day_of
from daemoneye_agent.schema import TABLES, TableKind
from daemoneye_agent.store import EventStore, StoreLimits, open_reader
from daemoneye_agent.store_file import StoreFailedError, StoreFileError, translate_errors
from daemoneye_mesh.errors import ErrorReason, InvalidConfigError

DAY_NS = 86_400 * 10**9
NOW_NS = 20_700 * DAY_NS + 5 * 3_600 * 10**9


class WallClock:
    def __init__(self) -> None:
        self.now_ns = NOW_NS

    def __call__(self) -> int:
        return self.now_ns


def make_row(sequence: int, time_ns: int = NOW_NS, **other: SqlValue) -> EventRow:
    values: dict[str, SqlValue] = dict.fromkeys(EVENT_INSERT_COLUMNS)
    values.update(
        source_id="procmond", source_epoch=1, source_sequence=sequence, time_ns=time_ns, **other
    )
    return tuple(values[name] for name in EVENT_INSERT_COLUMNS)


@pytest.fixture
def clock() -> WallClock:
    return WallClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.db"


@pytest.fixture
def open_store(path: Path, clock: WallClock) -> Iterator[Callable[..., EventStore]]:
    stores: list[EventStore] = []

    def open_it(**limits: int) -> EventStore:
        for store in stores:
            store.close()
        stores.append(EventStore.open(path, StoreLimits(**limits), clock))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def read(path: Path, sql: str) -> list[tuple[SqlValue, ...]]:
    reader = open_reader(path)
    try:
        return [tuple(row) for row in reader.execute(sql)]
    finally:
        reader.close()


def count_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_files_are_private_to_their_owner(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    store.ingest([make_row(1)])
    modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in store.path.parent.iterdir()}
    assert set(modes) == {"events.db", "events.db-wal", "events.db-shm", "events.db.lock"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_mode_of_an_older_file_is_tightened(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    open_store().close()
    path.chmod(0o644)
    open_store()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_directory_that_others_can_write_to_is_refused(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(StoreFileError, match="chmod go-w"):
        open_store()


def test_symlink_in_place_of_the_file_is_refused(
    open_store: Callable[..., EventStore], path: Path, tmp_path: Path
) -> None:
    path.parent.mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(StoreFileError) as caught:
        open_store()
    assert caught.value.reason is ErrorReason.FILE_UNUSABLE
    assert not (tmp_path / "elsewhere.db").exists()


def test_directory_in_place_of_the_file_is_refused(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    path.mkdir(parents=True, mode=0o700)
    path.parent.chmod(0o700)
    with pytest.raises(StoreFileError, match="is a directory"):
        open_store()


def test_second_writer_is_refused_until_the_first_closes(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    store = open_store()
    with pytest.raises(StoreFileError, match="another agent has it open"):
        EventStore.open(path)
    store.close()
    EventStore.open(path).close()


def test_close_may_be_called_twice(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    store.close()
    store.close()


def test_opening_leaks_no_descriptor_when_it_fails(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    store = open_store()
    store._connection.pragma("user_version", len(MIGRATIONS) + 1)
    store.close()
    before = count_descriptors()
    with pytest.raises(StoreVersionError):
        open_store()
    assert count_descriptors() == before


def test_file_of_a_newer_version_is_refused_untouched(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    store = open_store()
    store._connection.pragma("user_version", 99)
    store.close()
    before = path.read_bytes()
    with pytest.raises(StoreVersionError, match="upgrade the agent") as caught:
        open_store()
    assert caught.value.reason is ErrorReason.FILE_UNUSABLE
    assert caught.value.metadata["found"] == "99"
    assert path.read_bytes() == before


def test_database_of_another_program_is_refused(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    path.parent.mkdir(mode=0o700)
    with apsw.Connection(str(path)) as foreign:
        foreign.execute("CREATE TABLE mail (body)")
    foreign.close()
    before = path.read_bytes()
    with pytest.raises(StoreVersionError, match="another program"):
        open_store()
    assert path.read_bytes() == before


def test_migrations_run_forward_once_each(
    path: Path, open_store: Callable[..., EventStore]
) -> None:
    open_store().ingest([make_row(1)])
    open_store().close()
    runs: list[str] = []

    def add_note(connection: apsw.Connection) -> None:
        runs.append("add_note")
        connection.execute("CREATE TABLE note (text)")

    connection = apsw.Connection(str(path))
    try:
        assert migrate(connection, (*MIGRATIONS, add_note)) == len(MIGRATIONS)
        assert migrate(connection, (*MIGRATIONS, add_note)) == len(MIGRATIONS) + 1
        assert connection.execute("SELECT count(*) FROM process_events").get == 1
    finally:
        connection.close()
    assert runs == ["add_note"]


def test_failed_migration_leaves_the_file_as_it_was(
    path: Path, open_store: Callable[..., EventStore]
) -> None:
    open_store().close()

    def fail(connection: apsw.Connection) -> None:
        connection.execute("DROP TABLE alerts")
        raise RuntimeError("power is gone")

    connection = apsw.Connection(str(path))
    try:
        with pytest.raises(RuntimeError):
            migrate(connection, (*MIGRATIONS, fail))
        assert connection.execute("SELECT count(*) FROM alerts").get == 0
        assert connection.pragma("user_version") == len(MIGRATIONS)
    finally:
        connection.close()


def test_column_that_the_schema_gained_reads_null_for_older_rows(
    path: Path, open_store: Callable[..., EventStore]
) -> None:
    store = open_store()
    store.ingest([make_row(1, name="old")])
    [partition] = store.stats().partitions
    store._connection.execute("DROP VIEW process_events")
    for table, column in ((partition.name, "exit_code"), ("alerts", "completeness")):
        store._connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    store = open_store()
    store.ingest([make_row(2, name="new", exit_code=7)])
    assert read(path, "SELECT name, exit_code FROM process_events ORDER BY event_id") == [
        ("old", None),
        ("new", 7),
    ]
    assert store.list_alerts() == ()


@pytest.mark.parametrize("damage", ["header", "page"])
def test_corrupt_file_is_set_aside_and_reported_and_a_new_one_begun(
    open_store: Callable[..., EventStore], path: Path, damage: str
) -> None:
    store = open_store()
    store.ingest([make_row(number, cmdline="x" * 500) for number in range(1, 200)])
    store.close()
    content = bytearray(path.read_bytes())
    start = 0 if damage == "header" else 4096
    content[start : start + 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    store = open_store()
    assert store.set_aside is not None
    assert store.set_aside.name == "events.db.corrupt-20260904T050000Z"
    assert store.set_aside.read_bytes() == content
    assert store.stats().event_count == 0
    assert len(store.ingest([make_row(1)]).accepted) == 1


def test_journal_of_a_corrupt_file_is_set_aside_with_it(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"no database" * 1000)
    journal = path.with_name("events.db-wal")
    journal.write_bytes(b"no journal either")
    store = open_store()
    assert store.set_aside is not None
    kept = store.set_aside.with_name(store.set_aside.name + "-wal")
    assert kept.read_bytes() == b"no journal either"


def test_second_corrupt_file_of_a_second_does_not_overwrite_the_first(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    path.parent.mkdir(mode=0o700)
    names = []
    for content in (b"first" * 1000, b"second" * 1000):
        path.write_bytes(content)
        store = open_store()
        store.close()
        assert store.set_aside is not None
        names.append(store.set_aside)
    assert [name.read_bytes()[:6] for name in names] == [b"firstf", b"second"]


def test_sound_file_is_not_set_aside(open_store: Callable[..., EventStore]) -> None:
    open_store().ingest([make_row(1)])
    store = open_store()
    assert store.set_aside is None
    assert store.stats().event_count == 1


def test_reader_cannot_write(open_store: Callable[..., EventStore], path: Path) -> None:
    open_store().ingest([make_row(1)])
    reader = open_reader(path)
    try:
        for statement in ("DELETE FROM alerts", "CREATE TABLE x (y)", "PRAGMA user_version = 5"):
            with pytest.raises(apsw.ReadOnlyError):
                reader.execute(statement)
    finally:
        reader.close()


def test_reader_of_a_missing_file_says_so_and_makes_none(tmp_path: Path) -> None:
    with pytest.raises(StoreFailedError):
        open_reader(tmp_path / "none.db")
    assert not list(tmp_path.iterdir())


def test_reader_in_another_thread_sees_each_commit(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    store = open_store()
    seen: list[list[tuple[SqlValue, ...]]] = []
    store.ingest([make_row(1)])
    thread = threading.Thread(
        target=lambda: seen.append(read(path, "SELECT count(*) FROM process_events"))
    )
    thread.start()
    thread.join(timeout=10)
    assert seen == [[(1,)]]


def test_every_declared_column_of_stored_tables_can_be_read(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    open_store()
    stored = [name for name, table in TABLES.items() if table.kind is TableKind.STORED]
    assert len(stored) == 6
    for name in stored:
        columns = ", ".join(f'"{column}"' for column in TABLES[name].column_names)
        assert read(path, f"SELECT {columns} FROM {name}") == []


def test_failed_write_changes_nothing_and_may_be_repeated(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    store.expect_replay("procmond", True)
    store.ingest([make_row(1)])
    store._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreFailedError, match="read-only"):
        store.ingest([make_row(2), make_row(5)])
    store._connection.execute("PRAGMA query_only = 0")
    assert store.contiguous("procmond", 1) == 1
    result = store.ingest([make_row(2)])
    assert [row[0] for row in result.accepted] == [2]
    assert (result.losses, result.duplicates) == ((), 0)


def test_disk_error_text_says_what_to_do_and_hides_the_foreign_text() -> None:
    with pytest.raises(StoreFailedError, match="free space") as caught, translate_errors("/x/e.db"):
        raise apsw.FullError("secret detail")
    assert "secret" not in str(caught.value)
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retention_days", 0),
        ("retention_days", 366),
        ("max_store_bytes", 1000),
        ("max_alerts", 0),
        ("alert_window_s", -1),
        ("max_loss_ranges", 0),
        ("max_source_epochs", 10_001),
    ],
)
def test_limit_out_of_range_is_refused(name: str, value: int) -> None:
    with pytest.raises(InvalidConfigError, match=name):
        StoreLimits(**{name: value})


def test_events_are_kept_by_the_day_they_were_seen(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    store = open_store()
    times = [NOW_NS, NOW_NS - DAY_NS, NOW_NS, NOW_NS - DAY_NS]
    result = store.ingest([make_row(n, time_ns) for n, time_ns in enumerate(times, 1)])
    assert [row[0] for row in result.accepted] == [1, 2, 3, 4]
    stats = store.stats()
    assert [(item.name, item.row_count) for item in stats.partitions] == [
        ("process_events_20260903", 2),
        ("process_events_20260904", 2),
    ]
    assert (stats.oldest_time_ns, stats.newest_time_ns) == (NOW_NS - DAY_NS, NOW_NS)
    assert read(path, "SELECT count(*) FROM process_events") == [(4,)]


def test_absurd_times_make_no_partitions_of_their_own(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store(retention_days=3)
    times = [0, -(10**18), 2**62, NOW_NS - 900 * DAY_NS, NOW_NS + 900 * DAY_NS]
    result = store.ingest([make_row(n, time_ns) for n, time_ns in enumerate(times, 1)])
    today = day_of(NOW_NS)
    assert len(result.accepted) == 5
    assert {item.day for item in store.stats().partitions} == {today - 3, today, today + 1}


def test_old_partitions_are_dropped_and_counted(
    open_store: Callable[..., EventStore], path: Path, clock: WallClock
) -> None:
    store = open_store(retention_days=2)
    store.ingest([make_row(1, NOW_NS - 2 * DAY_NS), make_row(2, NOW_NS)])
    assert store.enforce_retention() == ()
    clock.now_ns += DAY_NS
    [dropped] = store.enforce_retention()
    assert (dropped.reason, dropped.partition.row_count) == (DropReason.TOO_OLD, 1)
    assert read(path, "SELECT source_sequence FROM process_events") == [(2,)]
    counters = store.stats().counters
    assert (counters["partitions_dropped"], counters["events_dropped"]) == (1, 1)


def test_ids_and_duplicates_are_known_after_everything_was_dropped(
    open_store: Callable[..., EventStore], clock: WallClock
) -> None:
    store = open_store(retention_days=1)
    store.ingest([make_row(1), make_row(2)])
    clock.now_ns += 30 * DAY_NS
    assert len(store.enforce_retention()) == 1
    store = open_store(retention_days=1)
    result = store.ingest([make_row(2), make_row(3)])
    assert (result.duplicates, [row[0] for row in result.accepted]) == (1, [3])


def test_store_stays_within_its_size_and_keeps_the_newest(
    open_store: Callable[..., EventStore], path: Path
) -> None:
    limit = 1024**2
    store = open_store(max_store_bytes=limit)
    dropped = 0
    for start in range(1, 8001, 200):
        rows = [make_row(n, cmdline="x" * 400) for n in range(start, start + 200)]
        result = store.ingest(rows)
        assert all(item.reason is DropReason.STORE_FULL for item in result.dropped)
        dropped += sum(item.partition.row_count for item in result.dropped)
    stats = store.stats()
    assert dropped > 0
    assert dropped + stats.event_count == 8000
    assert stats.used_bytes < limit * 1.3
    assert stats.counters["events_dropped"] == dropped
    kept = read(path, "SELECT source_sequence FROM process_events ORDER BY 1")
    assert kept == [(number,) for number in range(dropped + 1, 8001)]


def test_smaller_limit_shrinks_the_file(open_store: Callable[..., EventStore]) -> None:
    store = open_store(max_store_bytes=16 * 1024**2)
    for start in range(1, 8001, 1000):
        store.ingest([make_row(n, cmdline="x" * 400) for n in range(start, start + 1000)])
    store = open_store(max_store_bytes=2 * 1024**2)
    before = store.stats().file_bytes
    assert store.enforce_retention()
    store._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    assert store.stats().file_bytes <= 2 * 1024**2 < before


def test_rule_switches_survive_a_restart(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    store.set_rule_enabled("exec-from-tmp", False)
    store.set_rule_enabled("deleted-exe", False)
    store.set_rule_enabled("deleted-exe", True)
    assert open_store().rule_states() == {"exec-from-tmp": False, "deleted-exe": True}


def test_event_id_comes_first_in_the_declared_columns() -> None:
    assert list(EVENT_COLUMNS) == ["event_id", *EVENT_INSERT_COLUMNS]


def test_calls_in_one_transaction_are_kept_together_or_not_at_all(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()

    def ingest_and_fail() -> None:
        with store.transaction():
            assert len(store.ingest([make_row(1)]).accepted) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ingest_and_fail()
    assert store.stats().event_count == 0
    with store.transaction():
        store.ingest([make_row(1)])
        store.set_rule_enabled("shells", False)
    assert store.stats().event_count == 1
    assert store.rule_states() == {"shells": False}


def test_row_at_fault_in_a_transaction_costs_that_row_alone(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    with store.transaction():
        store.ingest([make_row(1)])
        result = store.ingest([make_row(2), make_row(3, pid=2**70), make_row(4)])
    assert (len(result.accepted), result.refused) == (2, 1)
    assert store.stats().event_count == 3
