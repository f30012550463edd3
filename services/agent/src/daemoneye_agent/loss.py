"""Which sequences of a source arrived and which are missing; no I/O.

Invariant: for each (source, epoch), the sequences up to ``highest`` are either received or inside
exactly one missing range, and the ranges are sorted and disjoint. A range with the reason
``LossReason.MERGED`` is the one exception: it was made from many to stay within a bound, so events
inside it may have been received.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Loss", "LossChanges", "LossReason", "MissingRange", "SourceProgress"]


class LossReason(StrEnum):
    """Why a range is missing, as far as the agent can tell by itself."""

    NOT_RECEIVED = "not received"
    BEFORE_SUBSCRIBED = "published before the agent subscribed"
    REFUSED = "refused by the event store"
    MERGED = "many ranges merged into one, some events between were received"


@dataclass(frozen=True, slots=True)
class Loss:
    """One row of ``event_losses``."""

    loss_id: int
    source_id: str
    source_epoch: int
    first_sequence: int
    last_sequence: int
    reason: str
    recorded_ns: int

    @property
    def event_count(self) -> int:
        """How many events the range spans."""
        return self.last_sequence - self.first_sequence + 1


@dataclass(slots=True, eq=False)
class MissingRange:
    """A range of sequences that did not arrive; ``loss_id`` is 0 until it has a row."""

    first: int
    last: int
    reason: str
    recorded_ns: int
    loss_id: int = 0


@dataclass(frozen=True, slots=True)
class LossChanges:
    """What changed in the ranges of one source since it was last saved."""

    added: tuple[MissingRange, ...]
    changed: tuple[MissingRange, ...]
    removed_ids: tuple[int, ...]


class SourceProgress:
    """How far one epoch of one source got.

    Args:
        first_reason: the reason of the gap before the first sequence that is seen.
        highest: the highest sequence seen, 0 for an epoch that is new.
        missing: the known gaps, sorted by sequence.
    """

    __slots__ = ("_changed", "_first_reason", "_missing", "_removed_ids", "highest")

    def __init__(
        self,
        first_reason: str = LossReason.BEFORE_SUBSCRIBED,
        highest: int = 0,
        missing: Iterable[MissingRange] = (),
    ) -> None:
        self.highest = highest
        self._first_reason = first_reason
        self._missing = list(missing)
        self._changed: set[MissingRange] = set()
        self._removed_ids: list[int] = []

    @property
    def missing(self) -> tuple[MissingRange, ...]:
        """The gaps, sorted by sequence."""
        return tuple(self._missing)

    @property
    def contiguous(self) -> int:
        """The highest sequence up to which nothing is missing."""
        return self._missing[0].first - 1 if self._missing else self.highest

    def admit(self, sequence: int, now_ns: int, is_stored: Callable[[int], bool]) -> bool:
        """Takes note of an arrival; False when the sequence was received before.

        Args:
            sequence: the number that arrived, 1 or more.
            now_ns: wall clock, stamped on a gap that opens.
            is_stored: asked only inside a merged range, where memory does not know.
        """
        if sequence <= self.highest:
            return self._repair(sequence, is_stored)
        if sequence > self.highest + 1:
            self._open_gap(self.highest + 1, sequence - 1, self._gap_reason(), now_ns)
        self.highest = sequence
        return True

    def skip(self, first: int, last: int, reason: str, now_ns: int) -> None:
        """Records first..last as missing, as far as they lie ahead of what was seen."""
        if last <= self.highest:
            return
        if first > self.highest + 1:
            self._open_gap(self.highest + 1, first - 1, self._gap_reason(), now_ns)
        self._open_gap(max(first, self.highest + 1), last, reason, now_ns)
        self.highest = last

    def merge_oldest(self, count: int) -> int:
        """Merges the ``count`` + 1 lowest ranges into one; returns how many ranges that saved."""
        saved = min(count, len(self._missing) - 1)
        if saved <= 0:
            return 0
        head, *rest = self._missing[: saved + 1]
        head.last, head.reason = rest[-1].last, LossReason.MERGED
        self._changed.add(head)
        for gap in rest:
            self._forget(gap)
        del self._missing[1 : saved + 1]
        return saved

    def take_changes(self) -> LossChanges:
        """Hands over what must be saved and starts counting anew."""
        ordered = sorted(self._changed, key=lambda gap: gap.first)
        changes = LossChanges(
            added=tuple(gap for gap in ordered if not gap.loss_id),
            changed=tuple(gap for gap in ordered if gap.loss_id),
            removed_ids=tuple(self._removed_ids),
        )
        self._changed.clear()
        self._removed_ids.clear()
        return changes

    def _gap_reason(self) -> str:
        return LossReason.NOT_RECEIVED if self.highest else self._first_reason

    def _open_gap(self, first: int, last: int, reason: str, now_ns: int) -> None:
        tail = self._missing[-1] if self._missing else None
        # A range that was reported does not grow: what is lost anew must be reported anew.
        if tail and not tail.loss_id and tail.last == first - 1 and tail.reason == reason:
            tail.last = last
            self._changed.add(tail)
            return
        gap = MissingRange(first, last, reason, now_ns)
        self._missing.append(gap)
        self._changed.add(gap)

    def _repair(self, sequence: int, is_stored: Callable[[int], bool]) -> bool:
        index = bisect_right(self._missing, sequence, key=lambda gap: gap.first) - 1
        if index < 0 or sequence > self._missing[index].last:
            return False
        if self._missing[index].reason == LossReason.MERGED and is_stored(sequence):
            return False
        self._shrink(index, sequence)
        return True

    def _shrink(self, index: int, sequence: int) -> None:
        gap = self._missing[index]
        if gap.first == gap.last:
            self._forget(self._missing.pop(index))
            return
        if sequence == gap.first:
            gap.first += 1
        elif sequence == gap.last:
            gap.last -= 1
        elif gap.reason == LossReason.MERGED:
            return  # splitting it would undo the merge that keeps the number of rows bounded
        else:
            self._split(index, sequence)
        self._changed.add(gap)

    def _split(self, index: int, sequence: int) -> None:
        gap = self._missing[index]
        tail = MissingRange(sequence + 1, gap.last, gap.reason, gap.recorded_ns)
        gap.last = sequence - 1
        self._missing.insert(index + 1, tail)
        self._changed.add(tail)

    def _forget(self, gap: MissingRange) -> None:
        self._changed.discard(gap)
        if gap.loss_id:
            self._removed_ids.append(gap.loss_id)
