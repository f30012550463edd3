import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_cli.errors import UsageError
from daemoneye_cli.parameter import parse_parameter, parse_parameters


def parsed(assignment):
    name, value = parse_parameter(assignment)
    kind = value.WhichOneof("kind")
    return name, kind, getattr(value, kind) if kind else None


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("a=1", ("a", "integer", 1)),
        ("a=-1", ("a", "integer", -1)),
        ("a=9223372036854775807", ("a", "integer", 2**63 - 1)),
        ("a=9223372036854775808", ("a", "text", "9223372036854775808")),
        ("a=007", ("a", "text", "007")),
        ("a=1e5", ("a", "text", "1e5")),
        ("a=-0", ("a", "text", "-0")),
        ("a=1.5", ("a", "real", 1.5)),
        ("a=", ("a", "text", "")),
        ("a=b=c", ("a", "text", "b=c")),
        ("a:text=1", ("a", "text", "1")),
        ("a:integer=007", ("a", "integer", 7)),
        ("a:real=1", ("a", "real", 1.0)),
        ("a:blob=00ff", ("a", "blob", b"\x00\xff")),
        ("a:null=", ("a", None, None)),
        ("a=two\nlines", ("a", "text", "two\nlines")),
    ],
)
def test_parameter_has_the_guessed_or_the_given_type(assignment, expected):
    assert parsed(assignment) == expected


@pytest.mark.parametrize(
    "assignment",
    [
        *("a", "=1", ":a=1", "1a=1", "a-b=1"),
        *("a:int=1", "a:integer=x", "a:real=x", "a:blob=0", "a:null=x"),
        "a:integer=9223372036854775808",
    ],
)
def test_malformed_parameter_is_refused_with_advice(assignment):
    with pytest.raises(UsageError):
        parse_parameter(assignment)


def test_parameter_given_twice_is_refused():
    with pytest.raises(UsageError, match="given twice"):
        parse_parameters(["a=1", "a=2"])


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_every_integer_of_sqlite_is_guessed_as_itself(number):
    assert parsed(f"a={number}") == ("a", "integer", number)


@given(st.text(st.characters(codec="utf-8")))
def test_every_text_can_be_forced(text):
    assert parsed(f"a:text={text}") == ("a", "text", text)
