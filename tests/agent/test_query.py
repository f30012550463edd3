"""Guarded execution: bounds, deadline, cancellation, and a connection that only reads."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemoneye_agent.query import (
    QueryCancelledError,
    QueryLimits,
    QueryRunner,
    Truncation,
)
from daemoneye_agent.schema import TABLES
from daemoneye_agent.sql import InvalidSqlError, ValidatedQuery, validate
from daemoneye_agent.store_file import StoreFailedError
from daemoneye_mesh.errors import DaemoneyeError, DeadlineError, ErrorReason, OverloadedError

ROWS = 300
DAYS = [f"process_events_2025{month:02}{day:02}" for month in range(1, 13) for day in range(1, 31)]
PARTS = [*DAYS, "process_events_20251230_1"]
ENDLESS = "SELECT count(*) FROM " + ", ".join(f"process_events e{n}" for n in range(5))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "events.db", PARTS)


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("small") / "events.db", PARTS[-3:])


def make_store(path: Path, parts: list[str]) -> Path:
    writer = apsw.Connection(str(path))
    writer.pragma("journal_mode", "wal")
    names = ", ".join(TABLES["process_events"].column_names)
    columns = ", ".join(f"{item.name} {item.type}" for item in TABLES["process_events"].columns)
    for part in parts:
        writer.execute(f"CREATE TABLE {part} ({columns})")
    arms = " UNION ALL ".join(f"SELECT {names} FROM {part}" for part in parts)
    writer.execute(f"CREATE VIEW process_events AS {arms}")
    for table in ("alerts", "event_losses"):
        writer.execute(f"CREATE TABLE {table} ({', '.join(TABLES[table].column_names)})")
    writer.execute("CREATE TABLE secrets (value)")
    writer.executemany(
        f"INSERT INTO {parts[0]} (event_id, pid, name, argv) VALUES (?, ?, ?, ?)",
        [(number, number, f"n{number}", '["a", "b"]') for number in range(ROWS)],
    )
    writer.execute(f"INSERT INTO {parts[-1]} (event_id, pid, name) VALUES (900, 900, 'last')")
    writer.close()
    return path


@pytest.fixture
def runner(store: Path) -> Iterator[QueryRunner]:
    runner = QueryRunner(store)
    yield runner
    runner.close()


@pytest.fixture
def small_runner(small_store: Path) -> Iterator[QueryRunner]:
    runner = QueryRunner(small_store)
    yield runner
    runner.close()


def rows_of(
    runner: QueryRunner, sql: str, **parameters: str | int | None
) -> list[tuple[object, ...]]:
    return [row for batch in runner.run(validate(sql), parameters) for row in batch.rows]


def refusal_of(runner: QueryRunner, query: ValidatedQuery) -> DaemoneyeError:
    with pytest.raises(DaemoneyeError) as caught:
        list(runner.run(query))
    return caught.value


def unchecked(sql: str) -> ValidatedQuery:
    return ValidatedQuery(sql, frozenset(), (), ())


def test_run_reads_every_partition_through_the_view(runner: QueryRunner) -> None:
    assert rows_of(runner, "SELECT count(*) FROM process_events") == [(ROWS + 1,)]
    assert rows_of(runner, "SELECT pid FROM process_events WHERE name = 'last'") == [(900,)]


def test_run_binds_parameters_by_name(runner: QueryRunner) -> None:
    sql = "SELECT pid FROM process_events WHERE name = :name AND pid < :limit"
    assert rows_of(runner, sql, name="n7", limit=10) == [(7,)]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [({}, "name"), ({"name": "x", "other": 1}, "other"), ({"name": ["x"]}, "name")],
)
def test_run_refuses_parameters_that_do_not_fit(
    runner: QueryRunner, parameters: dict[str, object], named: str
) -> None:
    query = validate("SELECT pid FROM process_events WHERE name = :name")
    with pytest.raises(InvalidSqlError, match=named):
        runner.run(query, parameters)  # type: ignore[arg-type]
    assert list(runner.run(query, {"name": "x"}))


def test_run_refuses_a_number_beyond_64_bits(runner: QueryRunner) -> None:
    query = validate("SELECT pid FROM process_events WHERE pid = :pid")
    with pytest.raises(InvalidSqlError, match="64 bits"):
        list(runner.run(query, {"pid": 2**70}))


def test_run_yields_the_columns_when_there_are_no_rows(runner: QueryRunner) -> None:
    (batch,) = runner.run(validate("SELECT pid AS number, name FROM process_events WHERE pid < 0"))
    assert batch.columns == ("number", "name")
    assert batch.rows == ()
    assert batch.truncated is Truncation.NONE


def test_run_cuts_batches_by_rows(runner: QueryRunner) -> None:
    batches = list(runner.run(validate("SELECT pid FROM process_events LIMIT 25"), batch_rows=10))
    assert [len(batch.rows) for batch in batches] == [10, 10, 5]


def test_run_cuts_batches_by_bytes(runner: QueryRunner) -> None:
    limits = QueryLimits(batch_bytes=20)
    batches = list(runner.run(validate("SELECT pid FROM process_events LIMIT 6"), limits=limits))
    assert [len(batch.rows) for batch in batches] == [3, 3, 0]


@pytest.mark.parametrize(
    ("limits", "kept", "reason"),
    [
        (QueryLimits(max_rows=10), 10, Truncation.ROWS),
        (QueryLimits(max_bytes=80), 10, Truncation.BYTES),
        (QueryLimits(max_rows=20, max_bytes=1_000), 20, Truncation.NONE),
    ],
)
def test_run_says_which_bound_cut_the_result(
    runner: QueryRunner, limits: QueryLimits, kept: int, reason: Truncation
) -> None:
    query = validate("SELECT pid FROM process_events LIMIT 20")
    batches = list(runner.run(query, limits=limits))
    assert sum(len(batch.rows) for batch in batches) == kept
    assert batches[-1].truncated is reason


def test_run_stops_at_its_deadline(runner: QueryRunner) -> None:
    with pytest.raises(DeadlineError, match=r"longer than 0\.05 s"):
        list(runner.run(validate(ENDLESS), limits=QueryLimits(deadline_s=0.05)))
    assert rows_of(runner, "SELECT 1") == [(1,)]


def test_run_can_be_cancelled_from_another_thread(runner: QueryRunner) -> None:
    run = runner.run(validate(ENDLESS))
    timer = threading.Timer(0.05, run.cancel)
    timer.start()
    with pytest.raises(QueryCancelledError):
        list(run)
    timer.join()
    assert rows_of(runner, "SELECT 1") == [(1,)]


def test_run_cancelled_before_it_began_does_not_begin(runner: QueryRunner) -> None:
    run = runner.run(validate(ENDLESS))
    run.cancel()
    with pytest.raises(QueryCancelledError):
        next(run)


def test_cancel_after_the_end_leaves_the_next_query_alone(runner: QueryRunner) -> None:
    run = runner.run(validate("SELECT 1"))
    list(run)
    run.cancel()
    assert rows_of(runner, "SELECT 1") == [(1,)]


def test_run_refuses_a_second_query_while_one_is_open(runner: QueryRunner) -> None:
    query = validate("SELECT pid FROM process_events")
    with runner.run(query, batch_rows=1) as run:
        next(run)
        with pytest.raises(OverloadedError, match="another query"):
            runner.run(query)
    assert rows_of(runner, "SELECT 1") == [(1,)]


def test_runner_refuses_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreFailedError):
        QueryRunner(tmp_path / "absent.db")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT value FROM secrets",
        "SELECT count(*) FROM secrets",
        f"SELECT pid FROM {PARTS[0]}",
        "SELECT name FROM sqlite_schema",
        "SELECT * FROM pragma_table_info('alerts')",
        "PRAGMA user_version",
        "PRAGMA query_only = 0",
        "ATTACH ':memory:' AS other",
        "DELETE FROM alerts",
        "INSERT INTO alerts (alert_id) VALUES ('x')",
        "CREATE TEMP TABLE t (x)",
        "SELECT load_extension('x')",
        "SELECT randomblob(10)",
        "SELECT printf('%d', 1)",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
    ],
)
def test_connection_refuses_what_the_validator_would_not_let_through(
    runner: QueryRunner, sql: str
) -> None:
    assert refusal_of(runner, unchecked(sql)).reason is ErrorReason.SQL_FORBIDDEN


@pytest.mark.parametrize(
    ("sql", "reason", "words"),
    [
        (
            "SELECT pid FROM process_events a JOIN process_events b ON a.pid = b.pid",
            ErrorReason.SQL_INVALID,
            "more than once",
        ),
        (
            "SELECT pid FROM process_events WHERE max(pid) > 1",
            ErrorReason.SQL_INVALID,
            "aggregate 'max'",
        ),
        ("SELECT pid FROM process_events WHERE name REGEXP '('", ErrorReason.SQL_INVALID, "RE2"),
        (
            "SELECT pid FROM process_events WHERE name REGEXP '(?=x)'",
            ErrorReason.SQL_INVALID,
            "look-around",
        ),
        ("SELECT octet_length(1, 2) FROM process_events", ErrorReason.SQL_INVALID, "arguments"),
        ("SELECT json_extract('{', '$.a') AS x", ErrorReason.SQL_INVALID, "JSON"),
        ("SELECT CAST(x'ff' AS TEXT) AS x", ErrorReason.SQL_INVALID, "hex"),
        ("SELECT pid AS p, p + 1 FROM process_events", ErrorReason.COLUMN_UNKNOWN, "'p'"),
    ],
)
def test_run_explains_what_only_sqlite_finds(
    runner: QueryRunner, sql: str, reason: ErrorReason, words: str
) -> None:
    with pytest.raises(DaemoneyeError, match=words) as caught:
        list(runner.run(validate(sql)))
    assert caught.value.reason is reason


def nested(levels: int) -> str:
    inner = "1"
    for _ in range(levels):
        inner = f"(SELECT max(pid) FROM process_events WHERE pid = {inner})"
    return f"SELECT {inner} AS x"


def test_run_refuses_a_query_that_would_explode_over_the_partitions(
    runner: QueryRunner, small_runner: QueryRunner
) -> None:
    assert rows_of(runner, nested(1)) == [(1,)]
    assert rows_of(small_runner, nested(3)) == [(1,)]
    with pytest.raises(InvalidSqlError, match="361 partitions") as caught:
        rows_of(runner, nested(3))
    assert caught.value.reason is ErrorReason.SQL_FORBIDDEN
    assert rows_of(runner, "SELECT 1") == [(1,)]


def test_run_allows_a_join_where_nesting_is_too_much(runner: QueryRunner) -> None:
    sql = (
        "SELECT count(*) FROM process_events e"
        " JOIN (SELECT DISTINCT pid FROM process_events WHERE pid < 5) f ON f.pid = e.pid"
    )
    assert rows_of(runner, sql) == [(5,)]


def test_run_bounds_the_size_of_one_value(runner: QueryRunner) -> None:
    sql = "SELECT group_concat(a.argv || b.argv || c.argv) FROM process_events a, process_events b, process_events c"
    refused = refusal_of(runner, validate(sql))
    assert refused.reason is ErrorReason.RESULT_TOO_LARGE


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("'procmond' REGEXP '^proc'", 1),
        ("'procmond' REGEXP 'PROC'", 0),
        ("'procmond' REGEXP '(?i)PROC'", 1),
        ("NULL REGEXP 'x'", None),
        ("'x' REGEXP NULL", None),
        ("15 REGEXP '5$'", 1),
        ("'aö' REGEXP '^a.$'", 1),
    ],
)
def test_regexp_searches_and_keeps_null(
    runner: QueryRunner, condition: str, expected: int | None
) -> None:
    assert rows_of(runner, f"SELECT {condition} AS hit") == [(expected,)]


def test_regexp_takes_linear_time(runner: QueryRunner) -> None:
    sql = "SELECT :text REGEXP '^(a+)+$' AS hit"
    assert rows_of(runner, sql, text="a" * 50_000 + "b") == [(0,)]


EXPRESSIONS = st.recursive(
    st.sampled_from(
        ["pid", "name", "e.uid", "1", "'x'", "NULL", ":p", "(SELECT max(event_id) FROM alerts)"]
    ),
    lambda inner: st.one_of(
        st.builds(
            "({} {} {})".format,
            inner,
            st.sampled_from(["+", "||", "AND", "=", "IS", "GLOB"]),
            inner,
        ),
        st.builds("{}({})".format, st.sampled_from(["lower", "length", "typeof", "abs"]), inner),
        st.builds("coalesce({}, {})".format, inner, inner),
        st.builds("CASE WHEN {} THEN {} END".format, inner, inner),
        st.builds(
            "({} IN (SELECT {} FROM process_events AS e WHERE {}))".format, inner, inner, inner
        ),
    ),
    max_leaves=6,
)


@given(what=EXPRESSIONS, where=EXPRESSIONS, order=EXPRESSIONS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_authorizer_agrees_with_whatever_the_validator_accepts(
    small_runner: QueryRunner, what: str, where: str, order: str
) -> None:
    sql = f"SELECT {what} AS x FROM process_events AS e WHERE {where} ORDER BY {order} LIMIT 3"
    query = validate(sql)
    parameters = dict.fromkeys(query.parameters, 1)
    with suppress(DeadlineError):
        assert list(small_runner.run(query, parameters, limits=QueryLimits(deadline_s=0.2)))
