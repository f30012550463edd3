import asyncio
import io
import json
import logging
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.logs import (
    MAX_TEXT_CHARS,
    bind_correlation,
    configure_logs,
    correlation_id,
)

JWT = "eyJhbGciOiJFUzI1NiIsImtpZCI6ImsifQ.eyJzdWIiOiJzcGlmZmU6Ly9tIn0.c2lnbmF0dXJlLW9m_LXNlY3JldA"
log = logging.getLogger("daemoneye.test")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def root_logger(monkeypatch):
    """Gives each test the root logger as it was, and a terminal that can show colour."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def json_stream(level="debug"):
    stream = io.StringIO()
    configure_logs("procmond", level, stream)
    return stream


def only_line(stream):
    (line,) = stream.getvalue().splitlines()
    return json.loads(line)


def test_json_line_says_when_where_and_what():
    stream = json_stream()
    log.info("scanned %d processes", 7, extra={"count": 7, "path": "/proc"})
    line = only_line(stream)

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("ts"))
    assert line == {
        "level": "info",
        "logger": "daemoneye.test",
        "process": "procmond",
        "pid": os.getpid(),
        "message": "scanned 7 processes",
        "count": 7,
        "path": "/proc",
    }


def test_json_line_holds_the_exception_with_its_traceback():
    stream = json_stream()
    try:
        raise ValueError("broken\x1b[31m")
    except ValueError:
        log.exception("it failed")
    line = only_line(stream)

    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: broken\\x1b[31m")


def test_json_line_takes_any_kind_of_extra():
    class Odd:
        def __str__(self):
            return f"odd\n{JWT}"

    stream = json_stream()
    deep = current = {}
    for _ in range(20):
        current["next"] = current = {}
    log.info(
        "x",
        extra={
            "odd": Odd(),
            "nan": float("nan"),
            "huge": 10**400,
            "items": ({"a"}, b"\xff", None, True),
            "deep": deep,
            "level": "mine",
        },
    )
    line = only_line(stream)

    assert line["odd"] == "odd\\n***"
    assert line["nan"] == "nan"
    assert line["huge"] == 10**400
    assert line["items"] == [["a"], "b'\\xff'", None, True]
    assert line["level"] == "info"
    assert line["extra_level"] == "mine"


@pytest.mark.parametrize(
    "key", ["token", "Authorization", "PASSWORD", "secret", "api_token", "client-secret"]
)
def test_values_under_a_telling_key_are_masked(key):
    stream = json_stream()
    log.info("x", extra={key: "hunter2", "nested": [{key: {"a": "hunter2"}}]})

    assert "hunter2" not in stream.getvalue()
    assert only_line(stream)[key] == "***"


@pytest.mark.parametrize("key", ["token_file", "tokens_issued", "secretary"])
def test_values_under_a_similar_key_are_shown(key):
    stream = json_stream()
    log.info("x", extra={key: "shown"})

    assert only_line(stream)[key] == "shown"


@pytest.mark.parametrize("style", ["json", "text"])
def test_whatever_looks_like_a_token_is_masked_wherever_it_stands(style):
    stream = io.StringIO()
    configure_logs("procmond", "debug", stream, style)
    try:
        raise ValueError(f"bad token {JWT}")
    except ValueError:
        log.exception("got %s", JWT, extra={"metadata": [("x", JWT)], JWT: 1})
    log.info("authorization: Bearer opaque-hunter2, password=hunter2")

    assert "c2lnbmF0dXJl" not in stream.getvalue()
    assert "hunter2" not in stream.getvalue()
    assert "***" in stream.getvalue()


def test_ordinary_names_are_not_taken_for_tokens():
    stream = json_stream()
    log.info("eyjafjallajokull.example, eyJ and eyJa.b")

    assert only_line(stream)["message"] == "eyjafjallajokull.example, eyJ and eyJa.b"


def test_long_messages_are_cut_and_say_so():
    stream = json_stream()
    log.info("x" * (MAX_TEXT_CHARS + 1))

    assert only_line(stream)["message"].endswith(f"... ({MAX_TEXT_CHARS + 1} characters)")


@given(st.text(), st.text(min_size=1))
def test_record_of_any_text_is_one_json_line_without_control_characters(message, value):
    stream = json_stream()
    log.info("%s", message, extra={"value": value})
    line = only_line(stream)

    assert stream.getvalue().endswith("}\n")
    assert stream.getvalue()[:-1].isprintable()
    assert line["message"].isprintable()
    assert line["value"].isprintable()


@given(st.text(), st.text(min_size=1))
def test_record_of_any_text_is_one_text_line_without_control_characters(message, value):
    stream = io.StringIO()
    configure_logs("procmond", "debug", stream, "text")
    log.info("%s", message, extra={"value": value})

    assert stream.getvalue().endswith("\n")
    assert stream.getvalue()[:-1].isprintable()


def test_text_line_reads_like_a_sentence_with_its_fields():
    stream = io.StringIO()
    configure_logs("procmond", "debug", stream, "text")
    with bind_correlation("abc"):
        log.warning("slow scan", extra={"seconds": 1.5, "path": "/a b", "names": ["x"]})

    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3}Z WARNING  procmond daemoneye\.test: slow scan seconds=1\.5 "
        r'path="/a b" names=\["x"\] correlation_id=abc\n',
        stream.getvalue(),
    )


def test_text_traceback_is_indented_so_that_no_line_of_it_can_pass_for_a_record():
    stream = io.StringIO()
    configure_logs("procmond", "debug", stream, "text")
    try:
        raise ValueError("x\n12:00:00.000Z ERROR    agent fake: forged")
    except ValueError:
        log.exception("it failed")
    first, *rest = stream.getvalue().splitlines()

    assert first.endswith("it failed")
    assert rest
    assert all(line.startswith("  | ") for line in rest)


def test_auto_style_is_coloured_text_on_a_terminal_and_json_elsewhere():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        configure_logs("procmond", "info", stream)
        log.info("hello")

    assert "\x1b[32mINFO" in terminal.getvalue()
    assert json.loads(file.getvalue())["message"] == "hello"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_is_left_out_when_the_terminal_does_not_want_it(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    terminal = Terminal()
    configure_logs("procmond", "info", terminal)
    log.info("hello")

    assert "\x1b" not in terminal.getvalue()
    assert "hello" in terminal.getvalue()


def test_colour_never_goes_into_a_file():
    file = io.StringIO()
    configure_logs("procmond", "info", file, "text")
    log.info("hello")

    assert "\x1b" not in file.getvalue()


def test_level_hides_what_is_below_it():
    stream = json_stream("warning")
    log.info("hidden")
    log.warning("shown")

    assert only_line(stream)["message"] == "shown"


@pytest.mark.parametrize(("level", "style"), [("loud", "json"), ("info", "xml")])
def test_unknown_level_or_style_is_refused_with_the_known_ones(level, style):
    with pytest.raises(InvalidConfigError, match="use one of"):
        configure_logs("procmond", level, io.StringIO(), style)


def test_configuring_again_replaces_our_stream_and_no_other(root_logger):
    other = logging.NullHandler()
    root_logger.addHandler(other)
    first, second = json_stream(), json_stream()
    log.info("once")

    assert first.getvalue() == ""
    assert only_line(second)["message"] == "once"
    assert other in root_logger.handlers


def test_correlation_id_is_on_the_lines_of_its_block_alone():
    stream = json_stream()
    with bind_correlation("outer"):
        with bind_correlation("inner"):
            log.info("a")
        log.info("b")
    log.info("c")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]

    assert [line.get("correlation_id") for line in lines] == ["inner", "outer", None]


async def test_correlation_id_belongs_to_a_task_and_its_children():
    async def read():
        await asyncio.sleep(0)
        return correlation_id.get()

    async def bound(name):
        with bind_correlation(name):
            async with asyncio.TaskGroup() as group:
                child = group.create_task(read())
            return child.result()

    assert await asyncio.gather(bound("a"), bound("b"), read()) == ["a", "b", None]


async def test_correlation_block_may_be_closed_by_another_task():
    async def numbers():
        with bind_correlation("abandoned"):
            yield 1
            yield 2

    generator = numbers()
    await asyncio.create_task(anext(generator))
    await asyncio.create_task(generator.aclose())

    assert correlation_id.get() is None
