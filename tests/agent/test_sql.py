"""The validator: one SELECT of allowed parts passes, everything else is refused by name."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemoneye_agent.schema import TABLES
from daemoneye_agent.sql import InvalidSqlError, validate
from daemoneye_agent.sql_grammar import FUNCTIONS
from daemoneye_mesh.errors import ErrorReason

ACCEPTED = [
    "SELECT 1",
    "SELECT * FROM process_events",
    "select PID, Name FROM Process_Events WHERE PID = 1;",
    "SELECT e.pid FROM process_events AS e JOIN processes p ON p.pid = e.pid",
    "SELECT pid FROM process_events JOIN processes USING (pid)",
    "SELECT * FROM (process_events JOIN processes USING (pid))",
    "WITH c(x) AS (SELECT pid FROM process_events) SELECT x FROM c WHERE x > 1",
    "WITH a AS (SELECT pid FROM processes), b AS (SELECT pid FROM a) SELECT * FROM b",
    "SELECT pid FROM processes UNION ALL SELECT ppid FROM processes ORDER BY pid LIMIT 5 OFFSET 1",
    "SELECT pid AS number FROM processes WHERE number > 1 GROUP BY number HAVING count(*) > 1",
    "SELECT a.value FROM process_events e, json_each(e.argv) AS a WHERE a.value LIKE '-%'",
    "SELECT pid FROM processes p WHERE EXISTS (SELECT 1 FROM alerts a WHERE a.event_id = p.pid)",
    "SELECT (SELECT count(*) FROM alerts WHERE event_id = p.pid) AS n FROM processes AS p",
    "SELECT row_number() OVER (PARTITION BY uid ORDER BY pid) FROM processes",
    "SELECT sum(pid) FILTER (WHERE uid = 0) FROM processes",
    "SELECT pid FROM processes WHERE name REGEXP '^k' AND exe GLOB '/x/*' AND cwd IS NOT NULL",
    "SELECT argv->>'$[0]', json_extract(argv, '$[1]') FROM processes",
    "SELECT strftime('%s', 'now'), datetime(start_time_ns / 1000000000, 'unixepoch') FROM processes",
    "SELECT pid FROM processes WHERE name = :name AND uid = :uid",
    "SELECT pid -- the number\nFROM processes /* all of them */",
    "SELECT pid FROM processes WHERE name = 'DROP TABLE x; -- not a comment ö'",
    "SELECT CASE uid WHEN 0 THEN 'root' ELSE user_name END FROM processes ORDER BY 1 COLLATE NOCASE",
]

FORBIDDEN = [
    "DELETE FROM alerts",
    "PRAGMA user_version",
    "ATTACH 'x' AS y",
    "EXPLAIN SELECT 1",
    "VALUES (1)",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE alerts",
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
    "SELECT pid FROM main.processes",
    "SELECT main.processes.pid FROM processes",
    "SELECT * FROM pragma_table_info('alerts')",
    "SELECT load_extension('x')",
    "SELECT \"load_extension\"('x')",
    "SELECT randomblob(1000000000)",
    "SELECT printf('%1000000000d', 1)",
    "SELECT pid FROM processes ORDER BY writefile('x', 'y')",
    "SELECT pid FROM processes WHERE name MATCH 'x'",
    "SELECT /* a /* b */ 1",
    "SELECT /*+ hint */ 1",
    "WITH processes AS (SELECT 1 AS pid) SELECT pid FROM processes",
    "WITH load_extension(x) AS (SELECT 1) SELECT load_extension('y') FROM processes",
    "SELECT " + "(" * 40 + "1" + ")" * 40,
    "SELECT " + "CASE WHEN 1 THEN " * 40 + "1" + " END" * 40,
    "SELECT " + "NOT " * 5_000 + "1",
    "SELECT 1 FROM " + ", ".join(f"processes AS p{n}" for n in range(17)),
    " UNION ALL ".join(["SELECT 1"] * 17),
    "WITH c0 AS (SELECT pid FROM processes)"
    + "".join(f", c{n} AS (SELECT a.pid FROM c{n - 1} a, c{n - 1} b)" for n in range(1, 8))
    + " SELECT pid FROM c7",
    "SELECT '" + "x" * 33_000 + "'",
]

INVALID = [
    "",
    "   -- nothing\n",
    "SELECT",
    "SELECT FROM processes",
    "SELECT pid FROM processes WHERE",
    "SELECT pid FROM processes WHERE name = 'open",
    'SELECT "open FROM processes',
    "SELECT pid /* open FROM processes",
    "SELECT pid FROM processes WHERE name = ?",
    "SELECT pid FROM processes WHERE name = @name",
    "SELECT pid FROM processes WHERE name = $name",
    "SELECT pid\u00a0FROM processes",
    "SELECT pid FROM processes WHERE \x00 1",
]


@pytest.mark.parametrize("sql", ACCEPTED)
def test_validate_accepts_a_single_select_of_allowed_parts(sql: str) -> None:
    assert validate(sql).sql == sql


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_validate_forbids_what_is_not_offered(sql: str) -> None:
    with pytest.raises(InvalidSqlError) as caught:
        validate(sql)
    assert caught.value.reason is ErrorReason.SQL_FORBIDDEN


@pytest.mark.parametrize("sql", INVALID)
def test_validate_refuses_what_is_not_sql(sql: str) -> None:
    with pytest.raises(InvalidSqlError) as caught:
        validate(sql)
    assert caught.value.reason is ErrorReason.SQL_INVALID
    assert caught.value.metadata["line"]


@pytest.mark.parametrize(
    ("sql", "suggestion"),
    [
        ("SELECT pid FROM proceses", "processes"),
        ("SELECT pid FROM process_event", "process_events"),
        ("SELECT pid FROM process_events_20250101", "process_events"),
        ("SELECT name FROM sqlite_schema", "processes"),
        ("WITH a AS (SELECT * FROM a) SELECT * FROM a", "alerts"),
        ("SELECT 1 WHERE EXISTS (SELECT 1 FROM (SELECT * FROM proceses))", "processes"),
    ],
)
def test_validate_names_the_nearest_table_when_one_is_unknown(sql: str, suggestion: str) -> None:
    with pytest.raises(InvalidSqlError) as caught:
        validate(sql)
    assert caught.value.reason is ErrorReason.TABLE_UNKNOWN
    assert suggestion in caught.value.metadata["suggestions"].split(",")


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT exee FROM processes",
        "SELECT pid FROM processes WHERE exee = 1",
        "SELECT pid FROM processes ORDER BY exee",
        "SELECT pid FROM processes GROUP BY (((exee)))",
        "SELECT pid FROM processes p JOIN alerts a ON p.exee = a.event_id",
        "SELECT pid FROM processes JOIN process_events USING (exee)",
        "SELECT pid FROM processes WHERE pid IN (SELECT exee FROM alerts)",
        "SELECT count(*) FILTER (WHERE exee > 1) FROM processes",
        "SELECT sum(pid) OVER (ORDER BY exee) FROM processes",
        "SELECT pid FROM processes LIMIT exee",
        "SELECT p.pid FROM processes p, json_each(p.exee)",
        "SELECT x.exee FROM (SELECT exe FROM processes) AS x",
        "WITH c AS (SELECT exe FROM processes) SELECT exee FROM c",
        "SELECT exe FROM processes UNION SELECT exe FROM processes ORDER BY exee",
    ],
)
def test_validate_finds_an_unknown_column_wherever_it_stands(sql: str) -> None:
    with pytest.raises(InvalidSqlError) as caught:
        validate(sql)
    assert caught.value.reason is ErrorReason.COLUMN_UNKNOWN
    assert caught.value.metadata["name"] == "exee"


@pytest.mark.parametrize("name", ["rowid", "_rowid_", "oid", "event_id"])
def test_validate_hides_columns_the_schema_does_not_list(name: str) -> None:
    with pytest.raises(InvalidSqlError, match=name):
        validate(f"SELECT {name} FROM processes")


def test_validate_says_where_the_unknown_column_stands() -> None:
    with pytest.raises(InvalidSqlError) as caught:
        validate("SELECT pid\nFROM processes\nWHERE  exee = '/x'")
    assert caught.value.metadata["line"] == "3"
    assert caught.value.metadata["column"] == "8"
    assert caught.value.metadata["near"].startswith("exee")
    assert "exe" in caught.value.metadata["suggestions"].split(",")


def test_validate_refuses_the_table_name_when_it_has_an_alias() -> None:
    with pytest.raises(InvalidSqlError, match="no table or alias 'processes'") as caught:
        validate("SELECT processes.pid FROM processes AS p")
    assert caught.value.reason is ErrorReason.COLUMN_UNKNOWN


def test_validate_reports_tables_parameters_and_columns() -> None:
    query = validate(
        "WITH c AS (SELECT pid, exe FROM processes WHERE name = :name)"
        " SELECT c.*, e.kind AS what, count(*) AS n FROM c JOIN process_events e USING (pid)"
        " WHERE e.uid = :uid OR e.name = :name"
    )
    assert query.tables == {"processes", "process_events"}
    assert query.parameters == ("name", "uid")
    assert query.columns == ("pid", "exe", "what", "n")
    assert query.cte_names == {"c"}


def test_validate_expands_a_star_to_the_columns_of_the_schema() -> None:
    assert validate("SELECT * FROM alerts").columns == TABLES["alerts"].column_names


def test_validate_uses_the_tables_it_is_given() -> None:
    with pytest.raises(InvalidSqlError, match="no table 'processes'"):
        validate("SELECT pid FROM processes", {"alerts": TABLES["alerts"]})


PLACES = [
    "SELECT {} FROM processes",
    "SELECT (({})) FROM processes",
    "SELECT pid FROM processes WHERE pid IN (1, {})",
    "SELECT pid FROM processes WHERE pid BETWEEN 1 AND {}",
    "SELECT pid FROM processes WHERE name LIKE {} ESCAPE '!'",
    "SELECT CAST({} AS TEXT) FROM processes",
    "SELECT x FROM (SELECT {} AS x FROM processes)",
    "SELECT p.pid FROM processes p JOIN alerts a ON {}",
    "WITH c AS (SELECT {} AS x) SELECT x FROM c",
    "SELECT pid FROM processes ORDER BY {}",
    "SELECT pid FROM processes LIMIT {}",
    "SELECT sum(pid) OVER (PARTITION BY {}) FROM processes",
    "SELECT count(*) FILTER (WHERE {}) FROM processes",
    "SELECT pid FROM processes GROUP BY pid HAVING {}",
    "SELECT CASE {} WHEN 1 THEN 2 END FROM processes",
    "SELECT lower(upper({})) FROM processes",
    "SELECT pid FROM processes UNION SELECT {}",
    "SELECT pid FROM processes, json_each({})",
]


@given(
    place=st.sampled_from(PLACES),
    name=st.sampled_from(["load_extension", "readfile", "zeroblob", "fts5", "sqlite_version"]),
    quotes=st.sampled_from(["{}", '"{}"', "[{}]", "`{}`"]),
    gap=st.sampled_from(["", " ", "\n", "/**/", "--\n"]),
)
@settings(max_examples=200, deadline=None)
def test_validate_finds_a_forbidden_function_in_every_place_and_spelling(
    place: str, name: str, quotes: str, gap: str
) -> None:
    with pytest.raises(InvalidSqlError) as caught:
        validate(place.format(f"{quotes.format(name)}{gap}('x')"))
    assert caught.value.reason in (ErrorReason.SQL_FORBIDDEN, ErrorReason.SQL_INVALID)


@given(st.text(alphabet="SELECT FROMpidprocesses()*,;'\"[]`-/:?1=\n ", max_size=80))
@settings(max_examples=300, deadline=None)
def test_validate_answers_any_text_with_a_query_or_its_own_error(text: str) -> None:
    # Anything but a query or an InvalidSqlError escapes and fails the test.
    with suppress(InvalidSqlError):
        assert validate(f"SELECT {text}").tables <= TABLES.keys()


def test_no_function_that_leaves_the_database_or_varies_is_offered() -> None:
    assert FUNCTIONS.isdisjoint(
        {"load_extension", "readfile", "writefile", "random", "randomblob", "zeroblob", "printf"}
    )
