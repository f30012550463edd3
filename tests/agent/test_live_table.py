"""Live tables: SQLite pushes down what only narrows and evaluates the rest itself."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemoneye_agent.event import SqlValue
from daemoneye_agent.live_table import LiveTable
from daemoneye_agent.query import QueryRunner
from daemoneye_agent.schema import TABLES
from daemoneye_agent.sql import validate
from daemoneye_mesh.errors import ErrorReason, OverloadedError, UnavailableError

Row = tuple[SqlValue, ...]
COLUMNS = TABLES["processes"].column_names
NAMES = ("init", "sh", "SH", "sleep")


class FakeCollector:
    """Answers from a fixed list of processes and notes what it was asked."""

    def __init__(self, *, count: int = 40, obeys: bool = True) -> None:
        self.processes: list[dict[str, SqlValue]] = [
            {"pid": pid, "ppid": pid // 2, "name": NAMES[pid % len(NAMES)], "uid": pid % 3}
            for pid in range(1, count + 1)
        ]
        self.obeys = obeys
        self.asked: list[dict[str, SqlValue]] = []
        self.columns: list[frozenset[str]] = []
        self.error: Exception | None = None

    def fetch(self, constraints: Mapping[str, SqlValue], columns: frozenset[str]) -> Iterable[Row]:
        self.asked.append(dict(constraints))
        self.columns.append(columns)
        if self.error is not None:
            raise self.error
        for process in self.processes:
            wanted = all(process[name] == value for name, value in constraints.items())
            if wanted or not self.obeys:
                yield tuple(process.get(name) if name in columns else None for name in COLUMNS)


@pytest.fixture
def collector() -> FakeCollector:
    return FakeCollector()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "events.db"
    writer = apsw.Connection(str(path))
    columns = ", ".join(f"{item.name} {item.type}" for item in TABLES["process_events"].columns)
    writer.execute(f"CREATE TABLE process_events ({columns})")
    writer.executemany(
        "INSERT INTO process_events (event_id, pid) VALUES (?, ?)", [(n, n) for n in range(1, 41)]
    )
    writer.close()
    return path


@pytest.fixture
def runner(store: Path, collector: FakeCollector) -> Iterator[QueryRunner]:
    runner = QueryRunner(store, live=[LiveTable(collector.fetch)])
    yield runner
    runner.close()


def rows_of(runner: QueryRunner, sql: str, **parameters: SqlValue) -> list[Row]:
    return [row for batch in runner.run(validate(sql), parameters) for row in batch.rows]


@pytest.mark.parametrize(
    ("condition", "asked"),
    [
        ("pid = 3", {"pid": 3}),
        ("3 = pid", {"pid": 3}),
        ("name = 'sh'", {"name": "sh"}),
        ("name = 'sh' AND pid = 5 AND uid > 0", {"name": "sh", "pid": 5}),
        ("pid = 1 + 2", {"pid": 3}),
        ("pid IN (3, 4)", {}),
        ("pid > 3", {}),
        ("uid = 0", {}),
        ("name = 'sh' COLLATE NOCASE", {}),
        ("pid = '3'", {}),
        ("pid = 3.0", {}),
        ("name = 3", {}),
        ("pid = NULL", {}),
    ],
)
def test_query_pushes_down_exact_equality_and_nothing_else(
    runner: QueryRunner, collector: FakeCollector, condition: str, asked: dict[str, SqlValue]
) -> None:
    rows_of(runner, f"SELECT pid FROM processes WHERE {condition}")
    assert collector.asked in ([asked], [])
    assert asked == {} or collector.asked


def test_query_pushes_down_the_value_of_a_parameter(
    runner: QueryRunner, collector: FakeCollector
) -> None:
    assert rows_of(runner, "SELECT name FROM processes WHERE pid = :pid", pid=3) == [("sleep",)]
    assert collector.asked == [{"pid": 3}]


def test_query_asks_for_the_columns_it_needs_and_the_identity(
    runner: QueryRunner, collector: FakeCollector
) -> None:
    rows_of(runner, "SELECT name FROM processes WHERE uid = 1 ORDER BY ppid")
    assert collector.columns == [{"name", "uid", "ppid", "pid"}]


def test_query_checks_again_what_a_collector_ignored(store: Path) -> None:
    collector = FakeCollector(obeys=False)
    runner = QueryRunner(store, live=[LiveTable(collector.fetch)])
    assert rows_of(runner, "SELECT pid FROM processes WHERE pid = 3 AND name = 'sleep'") == [(3,)]
    assert rows_of(runner, "SELECT pid FROM processes WHERE pid = 3 AND name = 'sh'") == []
    runner.close()


def test_query_with_or_returns_every_row_once(runner: QueryRunner) -> None:
    sql = "SELECT pid FROM processes WHERE pid = 3 OR pid = 4 OR name = 'sleep' AND uid = 0"
    assert sorted(rows_of(runner, sql)) == [(3,), (4,), (15,), (27,), (39,)]


def test_join_asks_a_bounded_number_of_times(runner: QueryRunner, collector: FakeCollector) -> None:
    sql = "SELECT count(p.name) FROM process_events e CROSS JOIN processes p ON p.pid = e.pid"
    assert rows_of(runner, sql) == [(40,)]
    assert len(collector.asked) <= 9
    assert collector.asked[-1] == {}


def test_one_query_sees_one_snapshot_and_the_next_a_new_one(
    runner: QueryRunner, collector: FakeCollector
) -> None:
    sql = "SELECT count(*) FROM processes a JOIN processes b ON a.pid = b.pid"
    assert rows_of(runner, sql) == [(40,)]
    first = len(collector.asked)
    collector.processes.pop()
    assert rows_of(runner, sql) == [(39,)]
    assert len(collector.asked) == 2 * first


def test_error_of_the_collector_reaches_the_caller_unchanged(
    runner: QueryRunner, collector: FakeCollector
) -> None:
    collector.error = UnavailableError("procmond is not registered; start it", collector="procmond")
    with pytest.raises(UnavailableError) as caught:
        rows_of(runner, "SELECT pid FROM processes")
    assert caught.value is collector.error
    collector.error = None
    assert len(rows_of(runner, "SELECT pid FROM processes")) == 40


def test_table_refuses_more_rows_than_it_may_hold(store: Path, collector: FakeCollector) -> None:
    runner = QueryRunner(store, live=[LiveTable(collector.fetch, max_rows=10)])
    with pytest.raises(OverloadedError, match="narrow it") as caught:
        rows_of(runner, "SELECT pid FROM processes")
    assert caught.value.reason is ErrorReason.RESULT_TOO_LARGE
    assert rows_of(runner, "SELECT name FROM processes WHERE pid = 3") == [("sleep",)]
    runner.close()


CONDITION = st.recursive(
    st.one_of(
        st.builds("pid = {}".format, st.integers(0, 12)),
        st.builds("name = '{}'".format, st.sampled_from(NAMES)),
        st.builds("name = '{}' COLLATE NOCASE".format, st.sampled_from(NAMES)),
        st.builds("pid = '{}'".format, st.integers(0, 12)),
        st.builds("uid < {}".format, st.integers(0, 3)),
        st.builds("pid IN ({}, {})".format, st.integers(0, 12), st.integers(0, 12)),
        st.just("name IS NULL"),
    ),
    lambda inner: st.one_of(
        st.builds("({} AND {})".format, inner, inner),
        st.builds("({} OR {})".format, inner, inner),
        st.builds("(NOT {})".format, inner),
    ),
    max_leaves=5,
)


@given(condition=CONDITION)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_pushed_and_local_evaluation_agree(
    runner: QueryRunner, collector: FakeCollector, condition: str
) -> None:
    pushed = rows_of(runner, f"SELECT pid FROM processes WHERE {condition}")
    assert sorted(pushed) == sorted(_expected(collector, condition))


def _expected(collector: FakeCollector, condition: str) -> list[Row]:
    plain = apsw.Connection(":memory:")
    plain.execute("CREATE TABLE processes (pid INTEGER, name TEXT, uid INTEGER)")
    plain.executemany("INSERT INTO processes VALUES (:pid, :name, :uid)", collector.processes)
    found = plain.execute(f"SELECT pid FROM processes WHERE {condition}").fetchall()
    plain.close()
    return found
