"""Globs: what they match, and that nobody can make them slow."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core.trigger.glob import MAX_KNOWN_STEPS, MAX_PATTERN_CHARS, Glob, InvalidGlobError


@pytest.mark.parametrize(
    ("pattern", "text", "is_match"),
    [
        ("nc", "nc", True),
        ("nc", "ncat", False),
        ("", "", True),
        ("", "x", False),
        ("*", "", True),
        ("*", "/a/b", True),
        ("/tmp/*", "/tmp/x/y", True),
        ("/tmp/*", "/var/tmp/x", False),
        ("*/tmp/*", "/var/tmp/x", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*ab*cd*", "xxabyycdzz", True),
        ("*ab*cd*", "xxcdyyabzz", False),
        ("python?", "python3", True),
        ("python?", "python", False),
        ("python[23]*", "python3.11", True),
        ("python[23]*", "python4", False),
        ("[!a-z]*", "Xorg", True),
        ("[^a-z]*", "xorg", False),
        ("[a-c]x", "bx", True),
        ("[a-]x", "-x", True),
        ("[]]x", "]x", True),
        ("[[]x", "[x", True),
        ("[*]", "*", True),
        ("[*]", "x", False),
        ("NC", "nc", False),
        ("*ä?", "größte ä€", True),
    ],
)
def test_a_glob_matches_a_whole_text(pattern, text, is_match):
    assert Glob(pattern).matches(text) is is_match


@pytest.mark.parametrize(
    ("pattern", "text", "is_match"),
    [
        ("%--upload%", "curl --UPLOAD x", True),
        ("n_", "NC", True),
        ("n_", "n", False),
        ("100*", "100*", True),
        ("100*", "1000", False),
        ("Ä", "ä", False),
        ("ÄX", "Äx", True),
    ],
)
def test_like_has_the_wildcards_of_sql_and_ignores_ascii_case(pattern, text, is_match):
    assert Glob.like(pattern).matches(text) is is_match


def naive_regex(pattern):
    parts = [".*" if one == "*" else "." if one == "?" else re.escape(one) for one in pattern]
    return re.compile("".join(parts), re.DOTALL)


@given(st.text("ab*?/", max_size=8), st.text("ab/", max_size=10))
def test_a_glob_matches_what_an_equal_regular_expression_does(pattern, text):
    expected = naive_regex(pattern).fullmatch(text) is not None
    assert Glob(pattern).matches(text) is expected


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=10))
def test_both_ways_of_matching_agree(pattern, text):
    written_out = "".join(f"[{one}]" if one in "ab" else one for one in pattern)
    assert Glob(written_out).matches(text) is Glob(pattern).matches(text)


@given(st.text(max_size=30))
def test_any_pattern_is_compiled_or_refused(pattern):
    try:
        glob = Glob(pattern)
    except InvalidGlobError:
        return
    assert glob.matches("some text") in (True, False)


def test_steps_that_are_remembered_are_bounded():
    glob = Glob("?" + "*")
    assert glob.matches("".join(map(chr, range(0x4E00, 0x4E00 + 3 * MAX_KNOWN_STEPS))))
    assert len(glob._matches._steps) <= MAX_KNOWN_STEPS


class CountingText(str):
    """Counts how many characters a matcher looks at."""

    looked_at = 0

    def __iter__(self):
        for character in super().__iter__():
            self.looked_at += 1
            yield character


def test_a_hostile_text_is_read_once_only():
    text = CountingText("a" * 4096)
    assert not Glob("*a?" * 300 + "b").matches(text)
    assert text.looked_at <= 4096


def test_many_stars_do_not_backtrack():
    assert not Glob("*a" * 500 + "b").matches("a" * 4096)


@pytest.mark.parametrize(
    "pattern", ["[a", "x[", "[!]", "[]", "a\0b", "x" * (MAX_PATTERN_CHARS + 1)]
)
def test_a_pattern_that_makes_no_sense_is_refused(pattern):
    with pytest.raises(InvalidGlobError):
        Glob(pattern)
