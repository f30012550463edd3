"""Correlation goes through protobuf without losing anything, and nothing out of bounds comes in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_mesh.correlation import Correlation, InvalidCorrelationError
from daemoneye_mesh.correlation_message import from_message, to_message


def hexadecimal(digits: int) -> st.SearchStrategy[str]:
    return st.integers(1, 16**digits - 1).map(lambda number: f"{number:0{digits}x}")


unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@st.composite
def correlations(draw: st.DrawFn) -> Correlation:
    own_id, parent = draw(ids), draw(st.none() | ids)
    trace_id = draw(st.none() | hexadecimal(32))
    return Correlation(
        correlation_id=own_id,
        root_correlation_id=own_id if parent is None else draw(ids),
        parent_correlation_id=parent,
        trace_id=trace_id,
        span_id=None if trace_id is None else draw(st.none() | hexadecimal(16)),
        sequence_number=draw(st.integers(0, 2**64 - 1)),
        workflow_stage=draw(st.none() | unicode_text),
        tags=draw(st.dictionaries(unicode_text, unicode_text, max_size=64)),
    )


@given(correlations())
def test_correlation_comes_out_of_its_message_as_it_went_in(correlation: Correlation) -> None:
    encoded = to_message(correlation).SerializeToString()
    assert from_message(eventbus_pb2.CorrelationMetadata.FromString(encoded)) == correlation


def is_in_bounds(message: eventbus_pb2.CorrelationMetadata) -> bool:
    """The sentences of the contract, one by one."""
    has = message.HasField
    own_ids = [message.correlation_id, message.root_correlation_id]
    parents = [message.parent_correlation_id] if has("parent_correlation_id") else []
    return (
        all(1 <= len(one.encode()) <= 256 for one in own_ids + parents)
        and (bool(parents) or own_ids[0] == own_ids[1])
        and len(message.workflow_stage.encode()) <= 128
        and len(message.correlation_tags) <= 64
        and (not has("trace_id") or is_hexadecimal(message.trace_id, 32))
        and (not has("span_id") or (has("trace_id") and is_hexadecimal(message.span_id, 16)))
    )


def is_hexadecimal(text: str, digits: int) -> bool:
    return len(text) == digits and set(text) <= set("0123456789abcdef") and set(text) != {"0"}


long_ids = st.sampled_from(["", "a", "b", "é" * 128, "é" * 128 + "x", "x" * 256, "x" * 257])
messages = st.builds(
    eventbus_pb2.CorrelationMetadata,
    correlation_id=st.sampled_from(["a", "b"]) | long_ids,
    root_correlation_id=st.sampled_from(["a", "b"]) | long_ids,
    parent_correlation_id=st.none() | st.just("a") | long_ids,
    trace_id=st.none() | hexadecimal(32) | st.text("0fF", min_size=31, max_size=33),
    span_id=st.none() | hexadecimal(16) | st.text("0fF", min_size=15, max_size=17),
    workflow_stage=st.none() | st.sampled_from(["", "a", "€" * 42 + "ab", "€" * 43, "x" * 129]),
    correlation_tags=st.sampled_from(
        [{}, {"": ""}, *({str(n): "" for n in range(c)} for c in (64, 65))]
    ),
)


@given(messages)
def test_message_is_read_whole_when_in_bounds_and_refused_when_not(
    message: eventbus_pb2.CorrelationMetadata,
) -> None:
    if is_in_bounds(message):
        assert to_message(from_message(message)) == message
    else:
        with pytest.raises(InvalidCorrelationError):
            from_message(message)


def test_message_without_an_id_is_refused() -> None:
    with pytest.raises(InvalidCorrelationError):
        from_message(eventbus_pb2.CorrelationMetadata())


def test_absent_and_empty_fields_are_not_the_same() -> None:
    message = eventbus_pb2.CorrelationMetadata(
        correlation_id="a", root_correlation_id="a", workflow_stage=""
    )
    assert from_message(message).workflow_stage == ""
    message.ClearField("workflow_stage")
    assert from_message(message).workflow_stage is None
    message.parent_correlation_id = ""
    with pytest.raises(InvalidCorrelationError, match="parent_correlation_id is empty"):
        from_message(message)


def test_correlation_outlives_changes_of_its_message() -> None:
    message = eventbus_pb2.CorrelationMetadata(correlation_id="a", root_correlation_id="a")
    message.correlation_tags["host"] = "a"
    correlation = from_message(message)
    message.correlation_tags["host"] = "b"
    assert correlation.tags == {"host": "a"}
