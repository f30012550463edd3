"""The grammar of topics and patterns at both sides of each of its edges."""

import string
from collections.abc import Callable

import pytest

from daemoneye_mesh.topic import (
    DOMAINS,
    MAX_SEGMENTS,
    MAX_TOPIC_BYTES,
    InvalidPatternError,
    InvalidTopicError,
    TopicGrammarError,
    matches,
    validate_pattern,
    validate_topic,
)

Validate = Callable[[str], tuple[str, ...]]
ALLOWED = string.ascii_lowercase + string.digits + "_-"

both = pytest.mark.parametrize("validate", [validate_topic, validate_pattern])


def refuses(validate: Validate, text: str) -> bool:
    error = InvalidTopicError if validate is validate_topic else InvalidPatternError
    try:
        validate(text)
    except error:
        return True
    return False


@both
def test_fifth_segment_is_accepted_and_a_sixth_refused(validate: Validate) -> None:
    assert len(validate("events.a.b.c.d")) == MAX_SEGMENTS
    assert refuses(validate, "events.a.b.c.d.e")


@pytest.mark.parametrize("wildcard", ["+", "#"])
def test_wildcard_counts_as_a_segment_of_the_limit(wildcard: str) -> None:
    assert not refuses(validate_pattern, f"events.a.b.c.{wildcard}")
    assert refuses(validate_pattern, f"events.a.b.c.d.{wildcard}")


@both
@pytest.mark.parametrize(
    "prefix", ["events.", "control.a.", "alerts.a.b.c."], ids=["2", "3", "5 segments"]
)
def test_text_of_255_bytes_is_accepted_and_of_256_refused(validate: Validate, prefix: str) -> None:
    longest = prefix + "x" * (MAX_TOPIC_BYTES - len(prefix))
    assert len(longest.encode()) == 255
    assert not refuses(validate, longest)
    assert refuses(validate, longest + "x")


@pytest.mark.parametrize("wildcard", ["+", "#"])
def test_wildcard_counts_as_a_byte_of_the_limit(wildcard: str) -> None:
    longest = "events." + "x" * (MAX_TOPIC_BYTES - 9) + "." + wildcard
    assert len(longest) == 255
    assert not refuses(validate_pattern, longest)
    assert refuses(validate_pattern, longest.replace("x", "xx", 1))


@both
@pytest.mark.parametrize("place", ["events.{}", "events.{}.a", "events.a{}", "events.{}a"])
def test_each_ascii_character_is_accepted_exactly_when_it_is_in_the_set(
    validate: Validate, place: str
) -> None:
    wildcards = "+#" if validate is validate_pattern and place == "events.{}" else ""
    single = "+" if validate is validate_pattern and place == "events.{}.a" else ""
    # A dot between two characters is the separator, and tested below.
    for character in map(chr, range(128)):
        if character != ".":
            accepted = character in ALLOWED + wildcards + single
            assert refuses(validate, place.format(character)) is not accepted, repr(character)


@both
@pytest.mark.parametrize(
    "character", ["\x7f", "\x80", "\xaa", "\xb2", "\u0430", "\uff41", "\U0001d7ce"]
)
def test_letter_or_digit_beyond_ascii_is_refused(validate: Validate, character: str) -> None:
    assert refuses(validate, "events." + character)


@both
@pytest.mark.parametrize("text", ["", ".", ".events", "events.", "events..a", "events.a..", ".."])
def test_empty_segment_is_refused_wherever_it_stands(validate: Validate, text: str) -> None:
    assert refuses(validate, text)


@both
@pytest.mark.parametrize("segment", ["a", "0", "_", "-"])
def test_segment_of_one_character_is_accepted(validate: Validate, segment: str) -> None:
    assert validate("events." + segment) == ("events", segment)


@both
def test_each_domain_is_accepted_and_its_neighbours_refused(validate: Validate) -> None:
    for domain in DOMAINS:
        assert validate(domain) == (domain,)
        for neighbour in (domain[:-1], domain + "s", domain.upper(), f" {domain}"):
            assert refuses(validate, neighbour)


@both
@pytest.mark.parametrize("domain", ["system", "debug", "system.health.status"])
def test_domains_of_other_systems_are_refused(validate: Validate, domain: str) -> None:
    assert refuses(validate, domain)


@pytest.mark.parametrize(
    ("pattern", "accepted"),
    [
        ("#", True),
        ("events.#", True),
        ("events.a.b.c.#", True),
        ("+.+.+.+.#", True),
        ("#.a", False),
        ("#.#", False),
        ("events.#.a", False),
        ("events.#.+", False),
        ("events.a.b.#.c", False),
    ],
)
def test_rest_wildcard_is_accepted_in_the_last_segment_only(pattern: str, accepted: bool) -> None:
    assert refuses(validate_pattern, pattern) is not accepted


@pytest.mark.parametrize("pattern", ["*", "events.*", "events.*.new", "events.a*"])
def test_star_is_refused_with_a_hint_at_the_wildcards_there_are(pattern: str) -> None:
    with pytest.raises(InvalidPatternError, match=r"use '\+' for one segment or '#' for the rest"):
        validate_pattern(pattern)


@pytest.mark.parametrize("depth", range(1, MAX_SEGMENTS + 1))
def test_rest_wildcard_matches_at_every_depth_there_is(depth: int) -> None:
    topic = ".".join(["events", *"abcd"][:depth])
    assert matches("#", topic)
    assert matches("events.#", topic)


def test_both_kinds_of_error_can_be_caught_as_one() -> None:
    for validate in (validate_topic, validate_pattern):
        with pytest.raises(TopicGrammarError):
            validate("Events")
