"""A correlation is within the bounds of the contract or is not made, and says who goes back to whom."""

from typing import Any

import pytest

from daemoneye_mesh.correlation import (
    MAX_SEQUENCE_NUMBER,
    Correlation,
    InvalidCorrelationError,
    TraceContext,
)
from daemoneye_mesh.errors import Code, ErrorReason

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
TRACE = TraceContext(TRACE_ID, SPAN_ID)
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


def correlation_of(**changes: Any) -> Correlation:
    fields = {"correlation_id": "c", "root_correlation_id": "r", "parent_correlation_id": "p"}
    return Correlation(**{**fields, **changes})


def many_tags(count: int) -> dict[str, str]:
    return {f"key-{number}": "" for number in range(count)}


AT_THE_BOUND = [
    {"correlation_id": "x" * 256},
    {"correlation_id": "é" * 128},
    {"root_correlation_id": "x" * 256},
    {"parent_correlation_id": "x" * 256},
    {"workflow_stage": "x" * 128},
    {"workflow_stage": "€" * 42 + "ab"},
    {"workflow_stage": ""},
    {"sequence_number": MAX_SEQUENCE_NUMBER},
    {"tags": many_tags(64)},
    {"tags": {"k" * 128: "v" * 1024}},
    {"tags": {"": ""}},
    {"trace_id": TRACE_ID},
    {"trace_id": TRACE_ID, "span_id": SPAN_ID},
    {"trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "1"},
]

BEYOND = [
    ({"correlation_id": ""}, "correlation_id", 0, 256),
    ({"correlation_id": "x" * 257}, "correlation_id", 257, 256),
    ({"correlation_id": "é" * 129}, "correlation_id", 258, 256),
    ({"root_correlation_id": ""}, "root_correlation_id", 0, 256),
    ({"root_correlation_id": "x" * 257}, "root_correlation_id", 257, 256),
    ({"parent_correlation_id": ""}, "parent_correlation_id", 0, 256),
    ({"parent_correlation_id": "x" * 257}, "parent_correlation_id", 257, 256),
    ({"workflow_stage": "x" * 129}, "workflow_stage", 129, 128),
    ({"workflow_stage": "€" * 43}, "workflow_stage", 129, 128),
    ({"sequence_number": -1}, "sequence_number", -1, MAX_SEQUENCE_NUMBER),
    ({"sequence_number": 2**64}, "sequence_number", 2**64, MAX_SEQUENCE_NUMBER),
    ({"tags": many_tags(65)}, "tags", 65, 64),
    ({"tags": {"k" * 129: ""}}, "tag key", 129, 128),
    ({"tags": {"k": "v" * 1025}}, "tag value", 1025, 1024),
]

MALFORMED = [
    ({"trace_id": ""}, "trace_id"),
    ({"trace_id": "0" * 32}, "trace_id"),
    ({"trace_id": TRACE_ID.upper()}, "trace_id"),
    ({"trace_id": TRACE_ID[:-1]}, "trace_id"),
    ({"trace_id": TRACE_ID + "\n"}, "trace_id"),
    ({"trace_id": "\u0660" * 31 + "1"}, "trace_id"),
    ({"span_id": SPAN_ID}, "span_id"),
    ({"trace_id": TRACE_ID, "span_id": ""}, "span_id"),
    ({"trace_id": TRACE_ID, "span_id": "0" * 16}, "span_id"),
    ({"trace_id": TRACE_ID, "span_id": SPAN_ID + "0"}, "span_id"),
    ({"correlation_id": "\ud800"}, "correlation_id"),
    ({"tags": {"k": "\udcff"}}, "tag value"),
    ({"parent_correlation_id": None}, "root_correlation_id"),
]


@pytest.mark.parametrize("fields", AT_THE_BOUND)
def test_correlation_at_a_bound_keeps_every_byte(fields: dict[str, Any]) -> None:
    correlation = correlation_of(**fields)
    assert {name: getattr(correlation, name) for name in fields} == fields


@pytest.mark.parametrize(("fields", "name", "size", "limit"), BEYOND)
def test_correlation_beyond_a_bound_is_refused_with_size_and_limit(
    fields: dict[str, Any], name: str, size: int, limit: int
) -> None:
    with pytest.raises(InvalidCorrelationError) as refusal:
        correlation_of(**fields)
    metadata = refusal.value.metadata
    assert (metadata["field"], metadata["size"], metadata["limit"]) == (name, str(size), str(limit))
    assert (refusal.value.code, refusal.value.reason) == (
        Code.INVALID_ARGUMENT,
        ErrorReason.REQUEST_INVALID,
    )


@pytest.mark.parametrize(("fields", "name"), MALFORMED)
def test_malformed_correlation_is_refused_by_field(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidCorrelationError) as refusal:
        correlation_of(**fields)
    assert refusal.value.metadata["field"] == name


def test_refusal_does_not_repeat_the_value() -> None:
    with pytest.raises(InvalidCorrelationError) as refusal:
        correlation_of(correlation_id="secret" * 100)
    assert "secret" not in str(refusal.value)
    assert "secret" not in str(refusal.value.metadata)


def test_tags_cannot_be_changed_behind_the_back_of_a_correlation() -> None:
    tags = {"host": "a"}
    correlation = correlation_of(tags=tags)
    tags["host"] = "x" * 5000
    assert correlation.tags == {"host": "a"}
    with pytest.raises(TypeError):
        correlation.tags["host"] = "b"  # type: ignore[index]


def test_equal_correlations_are_one_key_of_a_table() -> None:
    table = {correlation_of(tags={"a": "1", "b": "2"}): "found"}
    assert table[correlation_of(tags={"b": "2", "a": "1"})] == "found"
    assert correlation_of(tags={"a": "1"}) not in table


def test_begun_work_is_its_own_root() -> None:
    correlation = Correlation.begin("scan", {"host": "a"}, TRACE)
    assert correlation.root_correlation_id == correlation.correlation_id
    assert correlation.parent_correlation_id is None
    assert correlation.sequence_number == 0
    assert (correlation.workflow_stage, correlation.tags) == ("scan", {"host": "a"})
    assert (correlation.trace_id, correlation.span_id) == (TRACE_ID, SPAN_ID)


def test_work_begun_twice_has_two_ids() -> None:
    assert Correlation.begin().correlation_id != Correlation.begin().correlation_id


def test_child_keeps_root_trace_stage_and_tags_and_names_its_parent() -> None:
    parent = Correlation.begin("scan", {"host": "a"}, TRACE).next()
    child = parent.child()
    assert child.root_correlation_id == parent.root_correlation_id
    assert child.parent_correlation_id == parent.correlation_id
    assert child.correlation_id not in (parent.correlation_id, parent.root_correlation_id)
    assert (child.workflow_stage, child.tags) == ("scan", {"host": "a"})
    assert child.sequence_number == 0
    assert child.trace_id == TRACE_ID


def test_child_does_not_pass_its_parents_span_for_its_own() -> None:
    child = Correlation.begin(trace=TRACE).child()
    assert child.span_id is None
    own = TraceContext(TRACE_ID, "b7ad6b7169203331")
    assert child.with_trace(own).traceparent == f"00-{TRACE_ID}-b7ad6b7169203331-00"


def test_grandchild_goes_back_to_the_first_root() -> None:
    root = Correlation.begin()
    child = root.child()
    grandchild = child.child()
    assert grandchild.root_correlation_id == root.correlation_id
    assert grandchild.parent_correlation_id == child.correlation_id


def test_stage_and_tags_of_a_child_win_over_the_inherited() -> None:
    child = Correlation.begin("scan", {"host": "a", "pid": "1"}).child("hash", {"pid": "2"})
    assert child.workflow_stage == "hash"
    assert child.tags == {"host": "a", "pid": "2"}


def test_child_with_too_many_tags_together_is_refused() -> None:
    parent = Correlation.begin(tags=many_tags(64))
    with pytest.raises(InvalidCorrelationError, match="65 entries"):
        parent.child(tags={"one": "more"})


def test_next_counts_on_and_stays_at_the_last_number() -> None:
    correlation = correlation_of(sequence_number=MAX_SEQUENCE_NUMBER - 1)
    assert correlation.next().sequence_number == MAX_SEQUENCE_NUMBER
    assert correlation.next().next().sequence_number == MAX_SEQUENCE_NUMBER
    assert correlation.next().correlation_id == correlation.correlation_id


@pytest.mark.parametrize("fields", [{}, {"trace_id": TRACE_ID}])
def test_correlation_without_a_span_has_no_traceparent(fields: dict[str, str]) -> None:
    assert correlation_of(**fields).traceparent is None


def test_correlation_with_a_span_writes_a_traceparent_that_reads_as_that_span() -> None:
    traceparent = correlation_of().with_trace(TRACE).traceparent
    assert traceparent is not None
    assert TraceContext.parse(traceparent) == TRACE


@pytest.mark.parametrize(
    ("text", "is_sampled"),
    [
        (TRACEPARENT, True),
        (f"00-{TRACE_ID}-{SPAN_ID}-00", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-fe", False),
        (f"00-{TRACE_ID}-{SPAN_ID}-09", True),
        (f"01-{TRACE_ID}-{SPAN_ID}-01", True),
        (f"cc-{TRACE_ID}-{SPAN_ID}-00-what the future brings", False),
        (f"fe-{TRACE_ID}-{SPAN_ID}-01-", True),
    ],
)
def test_traceparent_is_read_as_far_as_version_00_knows_it(text: str, is_sampled: bool) -> None:
    assert TraceContext.parse(text) == TraceContext(TRACE_ID, SPAN_ID, is_sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        TRACEPARENT[:-1],
        TRACEPARENT + "-more",
        TRACEPARENT + "\n",
        " " + TRACEPARENT,
        TRACEPARENT.upper(),
        TRACEPARENT.replace("-", "_"),
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"0-{TRACE_ID}-{SPAN_ID}-01",
        f".0-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-0x",
        f"01-{TRACE_ID}-{SPAN_ID}-011",
        f"01-{TRACE_ID}-{SPAN_ID}-01.more",
        f"01-{TRACE_ID}-{SPAN_ID}",
    ],
)
def test_malformed_traceparent_is_refused(text: str) -> None:
    with pytest.raises(InvalidCorrelationError):
        TraceContext.parse(text)


@pytest.mark.parametrize("is_sampled", [True, False])
def test_trace_context_is_written_as_it_is_read(is_sampled: bool) -> None:
    trace = TraceContext(TRACE_ID, SPAN_ID, is_sampled)
    assert TraceContext.parse(trace.format()) == trace
