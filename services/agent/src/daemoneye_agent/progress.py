"""Which sequences of a source arrived and which are missing; no I/O.

Invariant: for each (source, epoch), the sequences up to ``highest`` are either received or inside
exactly one missing range, and the ranges are sorted and disjoint. A range with the reason
``LossReason.MERGED`` is the one exception: it was made from many to stay within a bound, so events
inside it may have been received. Such a range is never open.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

from daemoneye_agent.loss import (
    REOPENABLE,
    EpochProgress,
    LossChanges,
    LossReason,
    LossState,
    MissingRange,
)

__all__ = ["MAX_TOLD_RANGES", "SourceProgress"]

MAX_TOLD_RANGES = 64
"""Open ranges that ``describe`` names; who asks for them sees the next ones afterwards."""


class SourceProgress:
    """How far one epoch of one source got.

    Args:
        first_reason: the reason of the gap before the first sequence that is seen.
        highest: the highest sequence seen, 0 for an epoch that is new.
        missing: the known gaps, sorted by sequence.
        gap_state: whether what is found missing may still come.
    """

    __slots__ = (
        "_changed",
        "_first_reason",
        "_missing",
        "_removed_ids",
        "_settled",
        "gap_state",
        "highest",
    )

    def __init__(
        self,
        first_reason: str = LossReason.BEFORE_SUBSCRIBED,
        highest: int = 0,
        missing: Iterable[MissingRange] = (),
        gap_state: LossState = LossState.LOST,
    ) -> None:
        self.highest = highest
        self.gap_state = gap_state
        self._first_reason = first_reason
        self._missing = list(missing)
        self._changed: set[MissingRange] = set()
        self._removed_ids: list[int] = []
        self._settled: list[MissingRange] = []

    @property
    def missing(self) -> tuple[MissingRange, ...]:
        """The gaps, sorted by sequence."""
        return tuple(self._missing)

    @property
    def contiguous(self) -> int:
        """The highest sequence below the first one that may still come."""
        return next((gap.first - 1 for gap in self._missing if gap.is_open), self.highest)

    def describe(self, source_id: str, source_epoch: int, version: int) -> EpochProgress:
        """A picture of it, with the first open ranges."""
        is_open = (gap for gap in self._missing if gap.is_open)
        told = tuple((gap.first, gap.last) for gap in islice(is_open, MAX_TOLD_RANGES))
        contiguous = told[0][0] - 1 if told else self.highest
        return EpochProgress(source_id, source_epoch, contiguous, self.highest, told, version)

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
            self._open_unseen(sequence - 1, now_ns)
        self.highest = sequence
        return True

    def give_up(self, first: int, last: int, reason: str, now_ns: int) -> None:
        """Records what is open or was never seen of first..last as lost."""
        self._settle(first, last, reason)
        if last <= self.highest:
            return
        if first > self.highest + 1:
            self._open_unseen(first - 1, now_ns)
        self._append(max(first, self.highest + 1), last, reason, now_ns, LossState.LOST)
        self.highest = last

    def give_up_open(self, reason: str) -> None:
        """Records everything that is open as lost."""
        self._settle(1, self.highest, reason)

    def reopen(self) -> None:
        """Lets what is lost for no better reason than our own be asked for again."""
        for gap in self._missing:
            if not gap.is_open and gap.reason in REOPENABLE:
                gap.state, gap.reason = LossState.OPEN, LossReason.NOT_RECEIVED
                self._changed.add(gap)

    def merge_oldest(self, count: int) -> int:
        """Saves up to ``count`` ranges by merging the oldest ones; returns how many it saved.

        Lost ranges that are neighbours go first; open ranges are given up only when that is not
        enough.
        """
        saved = self._merge(count, spare_open=True)
        return saved + self._merge(count - saved, spare_open=False)

    def take_changes(self) -> LossChanges:
        """Hands over what must be saved and starts counting anew."""
        ordered = sorted(self._changed, key=lambda gap: gap.first)
        changes = LossChanges(
            added=tuple(gap for gap in ordered if not gap.loss_id),
            changed=tuple(gap for gap in ordered if gap.loss_id),
            removed_ids=tuple(self._removed_ids),
            settled=tuple(self._settled),
        )
        self._changed.clear()
        self._removed_ids.clear()
        self._settled.clear()
        return changes

    def _open_unseen(self, last: int, now_ns: int) -> None:
        reason = LossReason.NOT_RECEIVED if self.highest else self._first_reason
        self._append(self.highest + 1, last, reason, now_ns, self.gap_state)

    def _append(self, first: int, last: int, reason: str, now_ns: int, state: LossState) -> None:
        tail = self._missing[-1] if self._missing else None
        # A range that was reported does not grow: what is lost anew must be reported anew.
        if (
            tail
            and tail.is_news
            and (tail.last, tail.reason, tail.state) == (first - 1, reason, state)
        ):
            tail.last = last
            self._changed.add(tail)
            return
        gap = MissingRange(first, last, reason, now_ns, state=state, is_news=True)
        self._missing.append(gap)
        self._changed.add(gap)

    def _repair(self, sequence: int, is_stored: Callable[[int], bool]) -> bool:
        index = bisect_right(self._missing, sequence, key=_first_of) - 1
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
            self._cut(index, sequence)
            self._missing[index + 1].first += 1
        self._changed.add(gap)

    def _settle(self, first: int, last: int, reason: str) -> None:
        index = max(bisect_right(self._missing, first, key=_first_of) - 1, 0)
        while index < len(self._missing) and self._missing[index].first <= last:
            gap = self._missing[index]
            if not gap.is_open or gap.last < first:
                index += 1
            elif gap.first < first:
                self._cut(index, first)
                index += 1
            else:
                if gap.last > last:
                    self._cut(index, last + 1)
                self._mark_lost(gap, reason)
                index += not self._join_previous(index)

    def _cut(self, index: int, at: int) -> None:
        """Makes two ranges of one; the second begins at ``at``."""
        gap = self._missing[index]
        tail = replace(gap, first=at, loss_id=0)
        gap.last = at - 1
        self._missing.insert(index + 1, tail)
        self._changed |= {gap, tail}

    def _mark_lost(self, gap: MissingRange, reason: str) -> None:
        gap.state, gap.reason = LossState.LOST, reason
        self._changed.add(gap)
        if not gap.is_news:
            self._settled.append(replace(gap))

    def _join_previous(self, index: int) -> bool:
        """Makes one range of two that follow each other and were lost alike."""
        before, gap = self._missing[max(index - 1, 0)], self._missing[index]
        alike = (before.state, before.reason, before.is_news) == (
            gap.state,
            gap.reason,
            gap.is_news,
        )
        if before.last != gap.first - 1 or not alike:
            return False
        before.last = gap.last
        self._changed.add(before)
        self._forget(self._missing.pop(index))
        return True

    def _merge(self, count: int, *, spare_open: bool) -> int:
        saved = 0
        kept: list[MissingRange] = []
        for gap in self._missing:
            before = kept[-1] if kept else None
            if before is None or saved == count or (spare_open and (before.is_open or gap.is_open)):
                kept.append(gap)
                continue
            for one in (before, gap):
                if one.is_open:
                    self._mark_lost(one, LossReason.TOO_MANY)
            before.last, before.reason = gap.last, LossReason.MERGED
            self._changed.add(before)
            self._forget(gap)
            saved += 1
        self._missing = kept
        return saved

    def _forget(self, gap: MissingRange) -> None:
        self._changed.discard(gap)
        if gap.loss_id:
            self._removed_ids.append(gap.loss_id)


def _first_of(gap: MissingRange) -> int:
    return gap.first
