import csv
import io

import pytest

from daemoneye_cli.row_writer import make_unique


def test_query_prints_a_table_and_the_number_of_rows(mesh, daemoneye):
    result = daemoneye("query", "SELECT pid, name FROM processes")
    assert result.code == 0
    assert [line.split() for line in result.out.splitlines()][2:] == [["1", "init"], ["2", "sh"]]
    assert result.err == "2 rows\n"


def test_query_as_json_is_one_document_with_columns_rows_and_completeness(mesh, daemoneye):
    result = daemoneye("query", "SELECT 1", "--format", "json")
    assert result.document == {
        "columns": ["pid", "name"],
        "rows": [{"pid": 1, "name": "init"}, {"pid": 2, "name": "sh"}],
        "row_count": 2,
        "completeness": {"state": "complete", "causes": []},
    }
    assert result.err == ""


def test_query_takes_global_options_before_the_command_too(mesh, daemoneye):
    assert daemoneye("--format", "json", "query", "SELECT 1").document["row_count"] == 2


def test_query_without_rows_still_shows_its_columns(mesh, daemoneye):
    mesh.queries.batches = []
    assert daemoneye("query", "SELECT 1").out.split()[:2] == ["pid", "name"]
    document = daemoneye("query", "SELECT 1", "--format", "json").document
    assert (document["columns"], document["rows"]) == (["pid", "name"], [])


def test_query_keeps_every_kind_of_value_in_json(mesh, daemoneye):
    mesh.queries.columns = ["a", "b", "c", "d", "e", "f"]
    mesh.queries.batches = [[(2**63 - 1, 0.1, "é\x1b[31m", b"\x00\xff", None, float("inf"))]]
    row = daemoneye("query", "SELECT 1", "--format", "json").document["rows"][0]
    assert row == {
        "a": 2**63 - 1,
        "b": 0.1,
        "c": "é\x1b[31m",
        "d": "00ff",
        "e": None,
        "f": "Infinity",
    }


def test_query_never_lets_a_terminal_obey_a_value(mesh, daemoneye):
    mesh.queries.batches = [[(1, "\x1b]0;owned\x07[red]x[/red]")]]
    result = daemoneye("query", "SELECT 1")
    assert "\x1b" not in result.out
    assert "\\x1b]0;owned\\x07[red]x[/red]" in result.out


def test_query_shows_null_apart_from_an_empty_text(mesh, daemoneye):
    mesh.queries.batches = [[(None, "")]]
    assert "NULL" in daemoneye("query", "SELECT 1").out


def test_query_as_csv_can_be_read_back(mesh, daemoneye):
    mesh.queries.batches = [[(1, 'a "quoted", text\nof two lines')]]
    result = daemoneye("query", "SELECT 1", "--format=csv")
    rows = list(csv.reader(io.StringIO(result.out)))
    assert rows == [["pid", "name"], ["1", 'a "quoted", text\nof two lines']]


def test_query_streams_many_rows_in_several_tables(mesh, daemoneye):
    mesh.queries.batches = [[(number, "x") for number in range(700)] for _ in range(3)]
    result = daemoneye("query", "SELECT 1")
    assert result.out.count("pid") == 3
    assert result.err == "2100 rows\n"
    assert sum(line.split()[-1:] == ["x"] for line in result.out.splitlines()) == 2100


def test_query_gives_repeated_columns_names_of_their_own_in_json(mesh, daemoneye):
    mesh.queries.columns = ["pid", "pid"]
    mesh.queries.batches = [[(1, 2)]]
    row = daemoneye("query", "SELECT 1", "--format", "json").document["rows"][0]
    assert row == {"pid": 1, "pid_2": 2}


def test_unique_names_do_not_collide_with_given_ones():
    assert make_unique(["a", "a_2", "a", "a"]) == ["a", "a_2", "a_3", "a_4"]


def test_degraded_query_exits_3_and_says_why_on_standard_error(mesh, fakes, daemoneye):
    mesh.queries.degradations = (fakes.POLLING,)
    result = daemoneye("query", "SELECT 1")
    assert result.code == 3
    assert "degraded: procmond: polling: processes are polled every second" in result.err


def test_degraded_query_says_why_inside_the_document(mesh, fakes, daemoneye):
    mesh.queries.degradations = (fakes.POLLING,)
    result = daemoneye("query", "SELECT 1", "--format", "json")
    assert (result.code, result.err) == (3, "")
    assert result.document["completeness"] == {
        "state": "degraded",
        "causes": [
            {
                "reason": "polling",
                "subject": "procmond",
                "message": "processes are polled every second",
            }
        ],
    }


def test_query_that_ends_without_its_last_part_is_degraded(mesh, daemoneye):
    result = daemoneye("query", "cut", "--format", "json")
    assert result.code == 3
    assert result.document["completeness"]["causes"][0]["reason"] == "read_errors"


def test_refused_query_exits_5_with_the_reason_of_the_agent(mesh, daemoneye):
    result = daemoneye("query", "bad")
    assert (result.code, result.out) == (5, "")
    assert result.err == "error: near 'bad': syntax error; write one SELECT\n"


def test_refused_query_as_json_keeps_standard_output_empty(mesh, daemoneye):
    result = daemoneye("query", "bad", "--format", "json")
    assert (result.code, result.out) == (5, "")
    assert result.error == {
        "code": "INVALID_ARGUMENT",
        "reason": "SQL_INVALID",
        "message": "near 'bad': syntax error; write one SELECT",
        "metadata": {"near": "bad"},
        "exit_status": 5,
    }


def test_query_that_fails_late_still_is_one_valid_document(mesh, daemoneye):
    result = daemoneye("query", "fail late", "--format", "json")
    assert result.code == 5
    document = result.document
    assert (len(document["rows"]), document["completeness"]) == (2, None)
    assert document["error"]["message"] == "a column went away; ask again"


def test_query_never_shows_what_an_exception_of_the_agent_said(mesh, daemoneye):
    result = daemoneye("query", "crash")
    assert result.code == 1
    assert "internal error, incident" in result.err
    assert "shadow" not in result.err + result.out


def test_query_gives_up_at_its_deadline(mesh, daemoneye):
    result = daemoneye("query", "sleep", "--timeout", "0.3")
    assert result.code == 7
    assert "no answer from agent within 0.3 s" in result.err
    assert "hint: allow more time with --timeout" in result.err


def test_query_sends_parameters_and_the_row_limit(mesh, daemoneye):
    daemoneye("query", "SELECT :a", "--param", "a=1", "--param", "b:text=1", "--max-rows", "7")
    request = mesh.queries.requests[0]
    assert (request.parameters["a"].integer, request.parameters["b"].text) == (1, "1")
    assert request.max_rows == 7


def test_query_reads_its_sql_from_standard_input(mesh, daemoneye):
    daemoneye("query", "-", stdin="SELECT 2\n")
    assert mesh.queries.requests[0].sql == "SELECT 2\n"


@pytest.mark.parametrize("argv", [["query", " "], ["query", "S", "--max-rows", "0"], ["query"]])
def test_wrong_usage_of_query_exits_2(daemoneye, argv):
    result = daemoneye(*argv)
    assert (result.code, result.out) == (2, "")
    assert "error: " in result.err


def test_row_that_does_not_fit_its_columns_is_an_error_not_a_guess(mesh, daemoneye):
    mesh.queries.batches = [[(1,)]]
    result = daemoneye("query", "SELECT 1", "--format", "json")
    assert result.code == 1
    assert "a row of 1 values for 2 columns" in result.error["message"]
