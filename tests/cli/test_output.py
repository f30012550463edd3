import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from daemoneye.agent.v1 import status_service_pb2
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_cli.document import to_document
from daemoneye_cli.errors import UsageError
from daemoneye_cli.output import Column, Format, Output, Styled, encode_json
from daemoneye_cli.text import format_duration, format_iso, format_size, parse_since, printable

NOW_NS = 1_700_000_000_000_000_000


class Terminal(io.StringIO):
    def isatty(self):
        return True


def output(stream, answer_format=Format.TABLE, environ=None, is_colour_wanted=True):
    return Output(
        answer_format,
        is_colour_wanted=is_colour_wanted,
        stdout=stream,
        stderr=stream,
        environ=environ or {},
    )


@pytest.fixture
def terminal(monkeypatch):
    """A terminal with colours, whatever this test run has."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_colour_reaches_a_terminal(terminal):
    output(terminal).print_line(Text("x", style="red"))
    assert "\x1b[" in terminal.getvalue()


@pytest.mark.parametrize(
    ("environ", "is_colour_wanted"),
    [({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, True), ({}, False)],
)
def test_no_escape_sequence_is_written_when_colour_is_not_wanted(
    terminal, environ, is_colour_wanted
):
    written = output(terminal, environ=environ, is_colour_wanted=is_colour_wanted)
    written.print_line(Text("x", style="bold red"))
    written.print_table([Column("a", "a")], [[Styled("y", "red")]])
    written.remark("z", style="red")
    assert "\x1b" not in terminal.getvalue()


def test_no_escape_sequence_is_written_to_a_pipe():
    stream = io.StringIO()
    output(stream).print_line(Text("x", style="bold red"))
    assert stream.getvalue() == "x\n"


def test_wide_table_is_not_folded_in_a_pipe():
    stream = io.StringIO()
    output(stream).print_table([Column("a", "a")], [["x" * 500]])
    assert "x" * 500 in stream.getvalue()


def test_csv_on_a_terminal_cannot_forge_escape_sequences(terminal):
    output(terminal, Format.CSV).write_csv(["\x1b[2J"])
    assert "\x1b" not in terminal.getvalue()


def test_csv_in_a_pipe_keeps_every_character():
    stream = io.StringIO()
    output(stream, Format.CSV).write_csv(["\x1b[2J", None, True, 1.5, ["a"]])
    assert stream.getvalue() == '\x1b[2J,,true,1.5,"[""a""]"\n'


@given(st.text())
def test_printable_text_has_nothing_that_a_terminal_obeys(text):
    assert printable(text).isprintable()


@given(st.recursive(st.floats() | st.text() | st.none(), st.lists))
def test_json_is_always_ascii_and_without_numbers_that_json_lacks(value):
    text = encode_json({"value": value})
    assert text.isascii()
    assert "NaN" not in text.replace('"NaN"', "")


def test_document_has_every_field_and_null_for_the_absent():
    record = common_pb2.ProcessRecord(pid=7, uid=0)
    document = to_document(record)
    assert document.keys() == set(record.DESCRIPTOR.fields_by_name)
    assert (document["pid"], document["uid"], document["gid"]) == (7, 0, None)
    assert document["command_line"] == []


def test_document_has_maps_enums_and_durations_as_people_write_them():
    status = status_service_pb2.GetStatusResponse()
    status.ingest.refused_count["unknown"] = 2
    status.uptime.FromMilliseconds(1500)
    document = to_document(status)
    assert document["ingest"]["refused_count"] == {"unknown": 2}
    assert document["uptime"] == 1.5
    assert to_document(eventbus_pb2.AlertPayload(severity=4))["severity"] == "critical"
    assert to_document(eventbus_pb2.AlertPayload(severity=99))["severity"] == "99"


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("30s", NOW_NS - 30 * 10**9),
        ("2h", NOW_NS - 7200 * 10**9),
        ("999999999w", 0),
        ("2023-11-14T22:13:20Z", NOW_NS),
        ("2023-11-14T23:13:20.5+01:00", NOW_NS + 500_000_000),
    ],
)
def test_since_takes_an_age_or_a_time(text, expected_ns):
    assert parse_since(text, NOW_NS) == expected_ns


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "1y", "yesterday", "2023-13-01"])
def test_since_refuses_anything_else(text):
    with pytest.raises(UsageError, match="is no time"):
        parse_since(text, NOW_NS)


@pytest.mark.parametrize("time_ns", [-(2**63), 0, 2**63 - 1])
def test_time_beyond_the_calendar_is_clamped(time_ns):
    assert format_iso(time_ns).endswith("Z")


def test_durations_and_sizes_have_units():
    assert [format_duration(one) for one in (1.25, 61, 3600, 90_000)] == [
        "1.2s",
        "1m 1s",
        "1h",
        "1d 1h",
    ]
    assert [format_size(one) for one in (1, 2048, 5 * 2**30)] == ["1 B", "2.0 KiB", "5.0 GiB"]
