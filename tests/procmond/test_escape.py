import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_procmond.escape import (
    ARGV_LIMIT_BYTES,
    ARGV_LIMIT_COUNT,
    escape_argv,
    escape_text,
)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain", "plain"),
        ("größe/日本".encode(), "größe/日本"),
        (b"a\xffb", "a\\xffb"),
        (b"cut\xe6\x97", "cut\\xe6\\x97"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),
        (b"a\x00b", "a\\x00b"),
        (b"line\nbreak\x1b[31m\x7f", "line\\x0abreak\\x1b[31m\\x7f"),
        ("\u009b31m".encode(), "\\xc2\\x9b31m"),
        (b"C:\\x41", "C:\\x41"),
        (b"", ""),
    ],
)
def test_escape_text_shows_bytes_as_safe_text(raw: bytes, text: str) -> None:
    assert escape_text(raw) == (text, False)


@pytest.mark.parametrize(
    ("raw", "limit_bytes", "text"),
    [
        (b"abcdef", 4, "abcd"),
        (b"ab\xff", 5, "ab"),
        (b"ab\xffc", 6, "ab\\xff"),
        ("aé".encode(), 2, "a"),
        ("a日b".encode(), 4, "a日"),
        (b"abc", 0, ""),
    ],
)
def test_escape_text_never_splits_a_character_or_an_escape(
    raw: bytes, limit_bytes: int, text: str
) -> None:
    assert escape_text(raw, limit_bytes) == (text, True)


@given(st.binary(max_size=300), st.integers(0, 320))
def test_escape_text_is_bounded_utf8_without_controls(raw: bytes, limit_bytes: int) -> None:
    text, is_cut = escape_text(raw, limit_bytes)
    whole, _ = escape_text(raw, 10_000)
    assert len(text.encode("utf-8")) <= limit_bytes
    assert not any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in text)
    assert whole.startswith(text)
    assert is_cut == (text != whole)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200))
def test_escape_text_keeps_printable_text_as_it_is(text: str) -> None:
    assert escape_text(text.encode()) == (text, False)


@pytest.mark.parametrize(
    ("raw", "argv"),
    [
        (b"", ()),
        (b"\0\0\0", ()),
        (b"ls\0-l\0", ("ls", "-l")),
        (b"prog\0\0x\0", ("prog", "", "x")),
        (b"nginx: worker\0\0\0\0", ("nginx: worker",)),
        (b"no terminator", ("no terminator",)),
        (b"a\0\xfe\xff\0", ("a", "\\xfe\\xff")),
    ],
)
def test_escape_argv_splits_at_nul(raw: bytes, argv: tuple[str, ...]) -> None:
    assert escape_argv(raw) == (argv, False)


def test_escape_argv_cuts_many_arguments_and_says_so() -> None:
    argv, is_cut = escape_argv(b"x\0" * (ARGV_LIMIT_COUNT + 1))
    assert len(argv) == ARGV_LIMIT_COUNT
    assert is_cut


def test_escape_argv_takes_just_as_many_arguments_as_allowed() -> None:
    argv, is_cut = escape_argv(b"x\0" * ARGV_LIMIT_COUNT)
    assert len(argv) == ARGV_LIMIT_COUNT
    assert not is_cut


@given(st.binary(max_size=200), st.integers(1, 4))
def test_escape_argv_stays_within_its_bytes(seed: bytes, repeat: int) -> None:
    argv, is_cut = escape_argv(seed * repeat, limit_bytes=100)
    assert sum(len(argument.encode()) for argument in argv) <= 100
    if not is_cut:
        assert len(argv) == (len((seed * repeat).rstrip(b"\0").split(b"\0")) if argv else 0)


def test_escape_argv_cuts_one_huge_argument() -> None:
    argv, is_cut = escape_argv(b"a" * 100_000)
    assert argv == ("a" * ARGV_LIMIT_BYTES,)
    assert is_cut
