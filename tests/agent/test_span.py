"""Pieces of what is missing: bounded, in turn, not too many for small gaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_agent.retry_pace import RetryPace
from daemoneye_agent.span import MAX_PIECE, Span, intersect, select_piece


@pytest.mark.parametrize(
    ("spans", "after", "piece"),
    [
        ([], 0, None),
        ([(5, 9)], 0, (5, 9)),
        ([(5, 9), (11, 11), (900, 901)], 0, (5, 901)),
        ([(5, 9), (2_000, 2_001)], 0, (5, 9)),
        ([(5, 9), (2_000, 2_001)], 9, (2_000, 2_001)),
        ([(5, 9), (2_000, 2_001)], 2_001, (5, 9)),
        ([(1, 10**9)], 0, (1, MAX_PIECE)),
        ([(1, MAX_PIECE - 5), (MAX_PIECE, 10**9)], 0, (1, MAX_PIECE)),
    ],
)
def test_piece_is_the_next_one_and_bounded(
    spans: list[Span], after: int, piece: Span | None
) -> None:
    assert select_piece(spans, after) == piece


@given(st.tuples(*[st.integers(1, 30)] * 4))
def test_intersection_is_what_both_have(ends: tuple[int, int, int, int]) -> None:
    one, other = (ends[0], ends[1]), (ends[2], ends[3])
    common = set(range(one[0], one[1] + 1)) & set(range(other[0], other[1] + 1))
    found = intersect(one, other)
    assert set(range(found[0], found[1] + 1) if found else ()) == common


def test_waits_double_up_to_the_bound_and_begin_anew_after_a_success() -> None:
    pace = RetryPace(5, 60, lambda: 0.5)
    waits = []
    for _ in range(6):
        pace.fail(100)
        waits.append(pace.not_before_s - 100)
    assert waits == [5, 10, 20, 40, 60, 60]
    assert not pace.is_due(159.9)
    pace.reset()
    assert (pace.is_due(0), pace.draw_wait()) == (True, 5)


@given(st.floats(0, 1), st.integers(0, 10_000))
def test_waits_stay_near_what_they_should_be(jitter: float, attempts: int) -> None:
    pace = RetryPace(5, 60, lambda: jitter)
    pace.attempts = attempts
    assert 3.75 <= pace.draw_wait() <= 75
