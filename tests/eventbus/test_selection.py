"""What the filters of a subscription let through, and the bounds that they are held to."""

import fnmatch
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_eventbus.group import Envelope
from daemoneye_eventbus.selection import CorrelationCriteria, Selection
from daemoneye_mesh.correlation import Correlation
from daemoneye_mesh.errors import Code, ErrorReason

CHILD = Correlation(
    correlation_id="scan-7",
    root_correlation_id="incident-1",
    parent_correlation_id="task-3",
    sequence_number=5,
    workflow_stage="collect",
    tags={"host": "a", "kind": "hash"},
)
ROOT = Correlation(correlation_id="incident-1", root_correlation_id="incident-1")
ENVELOPE = Envelope(topic="events.process.new", source_id="procmond-1", message_type=1)

texts = st.text(st.sampled_from("ab*.[]?!\\^$\n{}é"), max_size=12)
ids = st.text(st.sampled_from("ab*.[]?!\\^$\n{}é"), min_size=1, max_size=12)


def criteria(**wanted: Any) -> CorrelationCriteria:
    return CorrelationCriteria(**wanted)


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        ({"ids": frozenset({"scan-7", "x"})}, True),
        ({"ids": frozenset({"scan"})}, False),
        ({"ids": frozenset({"incident-1"})}, False),
        ({"parent_ids": frozenset({"task-3"})}, True),
        ({"parent_ids": frozenset({"scan-7"})}, False),
        ({"root_ids": frozenset({"incident-1"})}, True),
        ({"root_ids": frozenset({"task-3"})}, False),
        ({"stages": frozenset({"collect", "report"})}, True),
        ({"stages": frozenset({"report"})}, False),
        ({"patterns": ("scan-*",)}, True),
        ({"patterns": ("task-*",)}, True),
        ({"patterns": ("*-1",)}, True),
        ({"patterns": ("nothing", "*can*")}, True),
        ({"patterns": ("scan",)}, False),
        ({"patterns": ("SCAN-*",)}, False),
        ({"patterns": ("",)}, False),
        ({"required_tags": {"host": "a", "kind": "hash"}}, True),
        ({"required_tags": {"host": "a", "kind": "scan"}}, False),
        ({"required_tags": {"absent": ""}}, False),
        ({"any_tags": {"host": "b", "kind": "hash"}}, True),
        ({"any_tags": {"host": "b", "kind": "scan"}}, False),
        ({"min_sequence": 5}, True),
        ({"min_sequence": 6}, False),
        ({"max_sequence": 5}, True),
        ({"max_sequence": 4}, False),
        ({"min_sequence": 5, "max_sequence": 5}, True),
    ],
)
def test_each_criterion_decides_by_its_own_field(wanted: dict[str, Any], passes: bool) -> None:
    assert criteria(**wanted).matches(CHILD) is passes


def test_message_passes_only_when_all_criteria_hold() -> None:
    every: dict[str, Any] = {
        "ids": frozenset({"scan-7"}),
        "patterns": ("task-*",),
        "parent_ids": frozenset({"task-3"}),
        "root_ids": frozenset({"incident-1"}),
        "stages": frozenset({"collect"}),
        "required_tags": {"host": "a"},
        "any_tags": {"kind": "hash"},
        "min_sequence": 1,
        "max_sequence": 9,
    }
    assert criteria(**every).matches(CHILD)
    failing: dict[str, Any] = {
        "ids": frozenset({"x"}),
        "patterns": ("x",),
        "parent_ids": frozenset({"x"}),
        "root_ids": frozenset({"x"}),
        "stages": frozenset({"x"}),
        "required_tags": {"host": "x"},
        "any_tags": {"kind": "x"},
        "min_sequence": 6,
        "max_sequence": 4,
    }
    for name, value in failing.items():
        bounds = {"min_sequence": None} if name == "max_sequence" else {}
        assert not criteria(**{**every, name: value, **bounds}).matches(CHILD), name


@pytest.mark.parametrize("wanted", [{"parent_ids": frozenset({""})}, {"stages": frozenset({""})}])
def test_message_without_the_field_fails_its_criterion(wanted: dict[str, Any]) -> None:
    assert not criteria(**wanted).matches(ROOT)


def test_empty_filter_lets_everything_through() -> None:
    assert criteria().is_empty
    assert criteria().matches(CHILD)
    assert criteria().matches(None)


@pytest.mark.parametrize(
    "wanted",
    [
        {"ids": frozenset({"a"})},
        {"patterns": ("*",)},
        {"parent_ids": frozenset({"a"})},
        {"root_ids": frozenset({"a"})},
        {"stages": frozenset({"a"})},
        {"required_tags": {"a": ""}},
        {"any_tags": {"a": ""}},
        {"min_sequence": 0},
        {"max_sequence": 2**64 - 1},
    ],
)
def test_message_without_correlation_passes_no_filter_but_the_empty_one(
    wanted: dict[str, Any],
) -> None:
    assert not criteria(**wanted).is_empty
    assert not criteria(**wanted).matches(None)


def many(count: int) -> list[str]:
    return [f"id-{number}" for number in range(count)]


def pairs(count: int) -> dict[str, str]:
    return dict.fromkeys(many(count), "v")


@pytest.mark.parametrize(
    ("name", "within", "beyond", "filtered", "limit"),
    [
        ("ids", many(64), many(65), "correlation_ids", "64"),
        ("ids", ["é" * 128], ["é" * 128 + "x"], "correlation_ids", "256"),
        ("patterns", many(16), many(17), "correlation_patterns", "16"),
        ("patterns", ["*" * 256], ["*" * 257], "correlation_patterns", "256"),
        ("parent_ids", many(64), many(65), "parent_correlation_ids", "64"),
        ("parent_ids", ["x" * 256], ["x" * 257], "parent_correlation_ids", "256"),
        ("root_ids", many(64), many(65), "root_correlation_ids", "64"),
        ("root_ids", ["x" * 256], ["x" * 257], "root_correlation_ids", "256"),
        ("stages", many(64), many(65), "workflow_stages", "64"),
        ("stages", ["x" * 256], ["x" * 257], "workflow_stages", "256"),
        ("required_tags", pairs(64), pairs(65), "correlation_tags", "64"),
        ("required_tags", {"k" * 128: ""}, {"k" * 129: ""}, "correlation_tags", "128"),
        ("required_tags", {"k": "v" * 1024}, {"k": "v" * 1025}, "correlation_tags", "1024"),
        ("any_tags", pairs(64), pairs(65), "any_correlation_tags", "64"),
        ("any_tags", {"k" * 128: ""}, {"k" * 129: ""}, "any_correlation_tags", "128"),
        ("any_tags", {"k": "v" * 1024}, {"k": "v" * 1025}, "any_correlation_tags", "1024"),
    ],
)
def test_criterion_is_accepted_at_its_bound_and_refused_beyond(
    name: str, within: Any, beyond: Any, filtered: str, limit: str
) -> None:
    kind = {"patterns": tuple, "required_tags": dict, "any_tags": dict}.get(name, frozenset)
    criteria(**{name: kind(within)})
    with pytest.raises(InvalidSubscriptionError, match=f"filter {filtered} has") as caught:
        criteria(**{name: kind(beyond)})
    error = caught.value
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)
    assert error.metadata["filter"] == filtered
    assert limit in (error.metadata.get("limit"), error.metadata.get("limit_bytes"))
    assert f"use at most {limit}" in error.message


def test_sequence_bounds_may_meet_but_not_cross() -> None:
    criteria(min_sequence=3, max_sequence=3)
    with pytest.raises(InvalidSubscriptionError, match="above max_sequence_number 3") as caught:
        criteria(min_sequence=4, max_sequence=3)
    assert caught.value.metadata == {"min_sequence_number": "4", "max_sequence_number": "3"}


def as_regex(pattern: str) -> str:
    return ".*".join(re.escape(piece) for piece in pattern.split("*"))


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a*b*b", "ab", False),
        ("a*b*b", "abb", True),
        ("ab*ba", "aba", False),
        ("ab*ba", "abba", True),
        ("*a*", "a", True),
        ("*ab*ab*", "aab", False),
        ("**", "a", True),
        ("a.*", "ab", False),
        ("a[b]*", "a[b]c", True),
    ],
)
def test_star_stands_for_any_characters_and_pieces_do_not_overlap(
    pattern: str, text: str, expected: bool
) -> None:
    correlation = Correlation(correlation_id=text, root_correlation_id=text)
    assert criteria(patterns=(pattern,)).matches(correlation) is expected


@given(texts, ids)
def test_pattern_agrees_with_a_regular_expression(pattern: str, text: str) -> None:
    expected = re.fullmatch(as_regex(pattern), text, re.DOTALL) is not None
    found = criteria(patterns=(pattern,)).matches(
        Correlation(correlation_id=text, root_correlation_id=text)
    )
    assert found is expected


@given(
    st.text(st.sampled_from("ab*"), max_size=10),
    st.text(st.sampled_from("ab"), min_size=1, max_size=10),
)
def test_pattern_agrees_with_the_file_name_matcher(pattern: str, text: str) -> None:
    found = criteria(patterns=(pattern,)).matches(
        Correlation(correlation_id=text, root_correlation_id=text)
    )
    assert found is fnmatch.fnmatchcase(text, pattern)


@given(st.lists(texts, min_size=1, max_size=3), ids, ids, ids)
def test_patterns_match_when_one_of_them_matches_one_of_the_three_ids(
    patterns: list[str], own: str, parent: str, root: str
) -> None:
    correlation = Correlation(
        correlation_id=own, parent_correlation_id=parent, root_correlation_id=root
    )
    expected = any(
        re.fullmatch(as_regex(pattern), one, re.DOTALL)
        for pattern in patterns
        for one in (own, parent, root)
    )
    assert criteria(patterns=tuple(patterns)).matches(correlation) is expected


def test_pattern_of_many_stars_that_fails_late_is_decided() -> None:
    hostile = ("*a" * 127 + "*b",)
    # A matcher that tries every way to place the pieces would not come back from this.
    assert not criteria(patterns=hostile).matches(
        Correlation(correlation_id="a" * 256, root_correlation_id="a" * 256)
    )


def test_open_selection_accepts_everything() -> None:
    for selection in (Selection(), Selection(correlation=criteria())):
        assert selection.is_open
        assert selection.accepts(ENVELOPE)
        assert selection.accepts(replace(ENVELOPE, correlation=CHILD, event_type=3, count=9))


@pytest.mark.parametrize(
    "selection",
    [
        Selection(message_types=frozenset({0})),
        Selection(event_types=frozenset({0})),
        Selection(correlation=criteria(min_sequence=0)),
    ],
)
def test_selection_with_a_filter_is_not_open(selection: Selection) -> None:
    assert not selection.is_open


def test_message_type_filter_lets_its_types_through() -> None:
    selection = Selection(message_types=frozenset({0, 5}))
    accepted = [
        kind for kind in range(7) if selection.accepts(replace(ENVELOPE, message_type=kind))
    ]
    assert accepted == [0, 5]


def test_event_type_filter_lets_its_types_through_and_touches_no_other_message() -> None:
    selection = Selection(event_types=frozenset({0, 2}))
    accepted = [
        kind
        for kind in (None, 0, 1, 2, 3)
        if selection.accepts(replace(ENVELOPE, message_type=0, event_type=kind))
    ]
    assert accepted == [None, 0, 2]


def test_message_passes_only_when_every_filter_lets_it_through() -> None:
    selection = Selection(
        frozenset({0}), frozenset({1}), criteria(ids=frozenset({CHILD.correlation_id}))
    )
    passing = replace(ENVELOPE, message_type=0, event_type=1, correlation=CHILD)
    assert selection.accepts(passing)
    assert not selection.accepts(replace(passing, message_type=1))
    assert not selection.accepts(replace(passing, event_type=2))
    assert not selection.accepts(replace(passing, correlation=ROOT))
    assert not selection.accepts(replace(passing, correlation=None))
