"""Ranges of sequences: what two have in common, and which piece of many to ask for; no I/O."""

from collections.abc import Sequence
from typing import TypeAlias

__all__ = ["MAX_BRIDGED", "MAX_PIECE", "Span", "intersect", "select_piece"]

Span: TypeAlias = tuple[int, int]
"""First and last sequence."""

MAX_PIECE = 50_000
"""Sequences that are asked for in one go."""
MAX_BRIDGED = 1_000
"""Sequences between two ranges that are rather sent again than asked around."""


def intersect(one: Span, other: Span) -> Span | None:
    """Returns what both have; None when that is nothing."""
    first, last = max(one[0], other[0]), min(one[1], other[1])
    return (first, last) if first <= last else None


def select_piece(spans: Sequence[Span], after: int = 0) -> Span | None:
    """Returns the next piece to ask for; None when there are no spans.

    Args:
        spans: what is wanted, sorted.
        after: what begins behind this sequence comes first; when there is none, the first of all.
    """
    if not spans:
        return None
    start = next((index for index, span in enumerate(spans) if span[0] > after), 0)
    first, last = spans[start]
    for following in spans[start + 1 :]:
        if following[0] - last > MAX_BRIDGED or last - first >= MAX_PIECE:
            break
        last = following[1]
    return first, min(last, first + MAX_PIECE - 1)
