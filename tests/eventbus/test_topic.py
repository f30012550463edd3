"""The grammar of topics and patterns, its limits from both sides, and matching by reference."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from daemoneye_mesh.errors import Code, ErrorReason
from daemoneye_mesh.topic import (
    MAX_TOPIC_BYTES,
    InvalidPatternError,
    InvalidTopicError,
    TopicGrammarError,
    covers,
    matches,
    validate_pattern,
    validate_topic,
)

SEGMENT = r"[a-z0-9_-]+"
REFERENCE_TOPIC = re.compile(rf"(?:events|control|alerts)(?:\.{SEGMENT}){{0,4}}")
REFERENCE_PATTERN = re.compile(
    rf"#|(?:events|control|alerts|\+)(?:\.(?:{SEGMENT}|\+)){{0,3}}(?:\.(?:{SEGMENT}|\+|#))?"
)

literals = st.sampled_from(["process", "network", "new", "a", "b_c", "d-1", "9"])
domains = st.sampled_from(["events", "control", "alerts"])
topics = st.builds(
    lambda first, rest: ".".join([first, *rest]), domains, st.lists(literals, max_size=4)
)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    first = draw(domains | st.just("+"))
    middle = draw(st.lists(literals | st.just("+"), max_size=3))
    last = draw(st.lists(literals | st.sampled_from(["+", "#"]), max_size=1))
    return draw(st.just("#") | st.just(".".join([first, *middle, *last])))


hostile_text = st.text(st.sampled_from("abz09_-.+#*AZ /\x00\n\xe9é\ud800"), max_size=24)
grammar_text = st.one_of(
    topics,
    patterns(),
    hostile_text,
    st.builds(lambda left, right: left + right, topics | patterns(), hostile_text),
    st.integers(240, 270).map(lambda size: "events." + "x" * (size - 7)),
)


def reference_match(pattern: str, topic: str) -> bool:
    expression = "".join(
        rf"\.{SEGMENT}" if one == "+" else rf"\.{one}" for one in pattern.split(".")
    )
    expression = expression.replace(r"\.#", rf"(?:\.{SEGMENT})*")
    return re.fullmatch(expression, "." + topic) is not None


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("events.process.+", "events.process.new", True),
        ("events.process.+", "events.process", False),
        ("events.#", "events.process.new", True),
        ("events.#", "control.collector.status", False),
        ("control.trigger.+", "control.trigger.request", True),
        ("control.trigger.+", "control.trigger", False),
        ("events.process.new", "events.process.new", True),
        ("events.process.new", "events.process.old", False),
        ("events.+.new", "events.process.new", True),
        ("events.#.process", "events.network.process", InvalidPatternError),
        ("events.process.+", "system.health.status", InvalidTopicError),
        ("events.+.+", "events.process.new", True),
        ("events.+.+", "events.process.lifecycle", True),
        ("events.+.+", "events.process.lifecycle.new", False),
        ("events.+.#", "events.process.lifecycle.new", True),
        ("events.#", "events", True),
        ("events.process.new.#", "events.process.new", True),
        ("events.*.new", "events.process.new", InvalidPatternError),
        ("events.process.+", "events.Process.new", InvalidTopicError),
    ],
)
def test_truth_table_holds(
    pattern: str, topic: str, expected: bool | type[TopicGrammarError]
) -> None:
    if isinstance(expected, bool):
        assert matches(pattern, topic) is expected
        return
    with pytest.raises(expected):
        matches(pattern, topic)


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("#", "alerts", True),
        ("#", "events.a.b.c.d", True),
        ("+", "events", True),
        ("+", "events.a", False),
        ("+.process.new", "events.process.new", True),
        ("+.#", "control", True),
        ("events.+.#", "events", False),
    ],
)
def test_pattern_may_begin_with_a_wildcard(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected


@pytest.mark.parametrize("validate", [validate_topic, validate_pattern])
@pytest.mark.parametrize(
    "text",
    [
        "events",
        "control.collector.instance.procmond-1.task",
        "alerts.high.rule_7",
        "events." + "x" * (MAX_TOPIC_BYTES - 7),
    ],
)
def test_text_within_every_limit_is_accepted(validate: object, text: str) -> None:
    assert callable(validate)
    assert validate(text) == tuple(text.split("."))


@pytest.mark.parametrize(
    ("topic", "position", "character", "said"),
    [
        ("", None, None, "it is empty"),
        ("events." + "x" * (MAX_TOPIC_BYTES - 6), None, None, "256 bytes long; use at most 255"),
        ("events." + "é" * 125, None, None, "257 bytes long"),
        ("events.a.b.c.d.e", 6, None, "6 segments; use at most 5"),
        ("events..new", 2, None, "segment 2 is empty"),
        (".events", 1, None, "segment 1 is empty"),
        ("events.", 2, None, "segment 2 is empty"),
        ("system.health", 1, None, "not a known domain; begin with events, control or alerts"),
        ("eventsx", 1, None, "not a known domain"),
        ("Events.new", 1, "E", "segment 1 has the character 'E'; use only a-z"),
        ("events.pro cess", 2, " ", "character ' '"),
        ("events.a.é", 3, "é", r"segment 3 has the character '\xe9'"),
        ("events.a\n", 2, "\n", r"character '\n'"),
        ("events.\u0663", 2, "\u0663", r"character '\u0663'"),
        ("events.\ud800", 2, "\ud800", r"character '\ud800'"),
        ("events.+", 2, "+", "wildcards are for subscriptions"),
        ("events.#", 2, "#", "wildcards are for subscriptions"),
        ("*", 1, "*", "wildcards are for subscriptions"),
    ],
)
def test_topic_error_names_segment_character_and_remedy(
    topic: str, position: int | None, character: str | None, said: str
) -> None:
    with pytest.raises(InvalidTopicError) as caught:
        validate_topic(topic)
    error = caught.value
    assert (error.position, error.character) == (position, character)
    assert said in error.message
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, ErrorReason.TOPIC_INVALID)


@pytest.mark.parametrize(
    ("pattern", "position", "character", "said"),
    [
        ("", None, None, "it is empty"),
        ("events." + "x" * (MAX_TOPIC_BYTES - 6), None, None, "256 bytes long"),
        ("events.a.b.c.d.#", 6, None, "6 segments"),
        ("events.*.new", 2, "*", "use '+' for one segment or '#' for the rest"),
        ("*", 1, "*", "use '+' for one segment or '#' for the rest"),
        ("events.#.process", 2, "#", "'#' in segment 2 is not the last segment"),
        ("#.events", 1, "#", "'#' in segment 1 is not the last segment"),
        ("events.pro+", 2, "+", "let the wildcard fill its whole segment"),
        ("events.##", 2, "#", "let the wildcard fill its whole segment"),
        ("events.+.", 3, None, "segment 3 is empty"),
        ("system.#", 1, None, "not a known domain"),
        ("events.Process.+", 2, "P", "use only a-z"),
    ],
)
def test_pattern_error_names_segment_character_and_remedy(
    pattern: str, position: int | None, character: str | None, said: str
) -> None:
    with pytest.raises(InvalidPatternError) as caught:
        validate_pattern(pattern)
    error = caught.value
    assert (error.position, error.character) == (position, character)
    assert said in error.message
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, ErrorReason.PATTERN_INVALID)


def test_error_metadata_carries_the_variables_of_the_message() -> None:
    with pytest.raises(InvalidPatternError) as caught:
        validate_pattern("events.*.new")
    assert caught.value.metadata == {
        "pattern": "'events.*.new'",
        "problem": "segment 2 has the character '*'",
        "allowed": "use '+' for one segment or '#' for the rest",
        "position": "2",
        "character": "'*'",
    }


def test_error_shows_only_the_beginning_of_a_huge_topic() -> None:
    with pytest.raises(InvalidTopicError) as caught:
        validate_topic("\n" * 1_000_000)
    assert len(caught.value.message) < 300
    assert all(len(value) < 300 for value in caught.value.metadata.values())


@given(grammar_text)
def test_topic_is_accepted_exactly_when_the_reference_accepts_it(text: str) -> None:
    expected = len(text) <= MAX_TOPIC_BYTES and REFERENCE_TOPIC.fullmatch(text) is not None
    assert is_accepted(validate_topic, text, InvalidTopicError) is expected


@given(grammar_text)
def test_pattern_is_accepted_exactly_when_the_reference_accepts_it(text: str) -> None:
    expected = len(text) <= MAX_TOPIC_BYTES and REFERENCE_PATTERN.fullmatch(text) is not None
    assert is_accepted(validate_pattern, text, InvalidPatternError) is expected


@given(grammar_text)
def test_error_message_is_printable_ascii_whatever_the_text(text: str) -> None:
    for validate in (validate_topic, validate_pattern):
        try:
            validate(text)
        except TopicGrammarError as error:
            said = [error.message, *error.metadata.values()]
            assert all(one.isascii() and one.isprintable() for one in said)


@given(patterns(), topics)
def test_match_agrees_with_the_reference(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) is reference_match(pattern, topic)


@given(patterns(), topics)
def test_pattern_covers_itself_and_every_topic_it_matches(pattern: str, topic: str) -> None:
    assert covers(pattern, pattern)
    assert covers(pattern, topic) is matches(pattern, topic)


@given(patterns(), patterns(), topics)
def test_covering_pattern_matches_all_that_the_covered_one_matches(
    wide: str, narrow: str, topic: str
) -> None:
    assume(covers(wide, narrow))
    assert matches(wide, topic) or not matches(narrow, topic)


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("events.#", "events.process.+", True),
        ("events.#", "events", True),
        ("events.process.#", "events.#", False),
        ("events.+", "events.#", False),
        ("events.process.+", "events.+.+", False),
        ("#", "+.#", True),
        ("events.+.#", "events.process.#", True),
    ],
)
def test_covers_decides_between_patterns(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected


def is_accepted(validate: object, text: str, error: type[TopicGrammarError]) -> bool:
    assert callable(validate)
    try:
        validate(text)
    except error:
        return False
    return True
