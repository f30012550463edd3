"""Events that a log cannot give any more, as ranges with a reason.

Invariant: the ranges of one ``LossList`` are disjoint and ascending; no sequence is counted twice.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["MAX_LOSSES", "MAX_REPORTED_LOSSES", "LogLoss", "LogPosition", "LossList", "LossReason"]

MAX_LOSSES = 448
"""Ranges that a list holds; beyond, the two with the least between them become one."""

MAX_REPORTED_LOSSES = 64
"""Ranges that a position names."""


class LossReason(StrEnum):
    """Why; the names are those of ``EventLossReason``."""

    LOG_FULL = "log_full"
    LOG_EXPIRED = "log_expired"
    LOG_CORRUPT = "log_corrupt"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class LogLoss:
    """A range that cannot be had any more.

    Args:
        epoch: of the range.
        first_sequence: the first that is gone.
        last_sequence: the last that is gone.
        reason: why.
        lost_at_ns: when it was noticed, Unix time.
    """

    epoch: int
    first_sequence: int
    last_sequence: int
    reason: LossReason
    lost_at_ns: int

    @property
    def count(self) -> int:
        """How many events."""
        return self.last_sequence - self.first_sequence + 1


@dataclass(frozen=True, slots=True)
class LogPosition:
    """How far one epoch goes; see ``event_log.proto``.

    Args:
        epoch: the epoch.
        first_sequence: the first that is still held; ``last_sequence`` + 1 when none is.
        last_sequence: the last that was given out; 0 when none was.
        acknowledged_sequence: the watermark.
        losses: past the watermark, oldest first, at most 64; the last then stands for all that
            follow.
    """

    epoch: int
    first_sequence: int
    last_sequence: int
    acknowledged_sequence: int
    losses: tuple[LogLoss, ...]


class LossList:
    """The losses of one epoch past its watermark.

    Args:
        losses: to begin with.
        max_count: ranges that it holds.
    """

    def __init__(self, losses: Iterable[LogLoss] = (), max_count: int = MAX_LOSSES) -> None:
        self._max_count = max_count
        self._losses: list[LogLoss] = []
        self.count = 0
        """How many events are lost."""
        for loss in losses:
            self.add(loss)

    def __iter__(self) -> Iterator[LogLoss]:
        return iter(self._losses)

    def __len__(self) -> int:
        return len(self._losses)

    def add(self, loss: LogLoss) -> list[LogLoss]:
        """Takes a range in; returns the parts of it that were not lost before."""
        added = [
            replace(loss, first_sequence=first, last_sequence=last)
            for first, last in self.held(loss.first_sequence, loss.last_sequence)
        ]
        for part in added:
            self._insert(part)
        while len(self._losses) > self._max_count:
            added.append(self._coarsen())
        self.count += sum(part.count for part in added)
        return [part for part in added if part.count]

    def forget(self, sequence: int) -> None:
        """Lets go of everything up to a sequence."""
        index = bisect_left(self._losses, sequence + 1, key=lambda loss: loss.last_sequence)
        self.count -= sum(loss.count for loss in self._losses[:index])
        del self._losses[:index]
        if self._losses and self._losses[0].first_sequence <= sequence:
            cut = replace(self._losses[0], first_sequence=sequence + 1)
            self.count -= self._losses[0].count - cut.count
            self._losses[0] = cut

    def between(self, first: int, last: int) -> list[LogLoss]:
        """Returns what is lost of a range."""
        index = bisect_left(self._losses, first, key=lambda loss: loss.last_sequence)
        found: list[LogLoss] = []
        for loss in self._losses[index:]:
            if loss.first_sequence > last:
                break
            low, high = max(first, loss.first_sequence), min(last, loss.last_sequence)
            found.append(replace(loss, first_sequence=low, last_sequence=high))
        return found

    def held(self, first: int, last: int) -> list[tuple[int, int]]:
        """Returns what is not lost of a range, as first and last of each part."""
        parts: list[tuple[int, int]] = []
        for loss in self.between(first, last):
            if loss.first_sequence > first:
                parts.append((first, loss.first_sequence - 1))
            first = loss.last_sequence + 1
        if first <= last:
            parts.append((first, last))
        return parts

    def reported(self) -> tuple[LogLoss, ...]:
        """Returns at most 64 ranges, of which the last stands for all that follow."""
        if len(self._losses) <= MAX_REPORTED_LOSSES:
            return tuple(self._losses)
        named = self._losses[:MAX_REPORTED_LOSSES]
        named[-1] = replace(named[-1], last_sequence=self._losses[-1].last_sequence)
        return tuple(named)

    def _insert(self, loss: LogLoss) -> None:
        losses = self._losses
        index = bisect_left(losses, loss.first_sequence, key=lambda other: other.first_sequence)
        losses.insert(index, loss)
        for left in (index, index - 1):
            if 0 <= left < len(losses) - 1 and _continues(losses[left], losses[left + 1]):
                losses[left : left + 2] = [_join(losses[left], losses[left + 1])]

    def _coarsen(self) -> LogLoss:
        """Joins the two with the least between them; returns what that costs."""
        losses = self._losses
        left = min(
            range(len(losses) - 1),
            key=lambda index: losses[index + 1].first_sequence - losses[index].last_sequence,
        )
        one, other = losses[left], losses[left + 1]
        losses[left : left + 2] = [_join(one, other)]
        return replace(
            one,
            first_sequence=one.last_sequence + 1,
            last_sequence=other.first_sequence - 1,
        )


def _continues(one: LogLoss, other: LogLoss) -> bool:
    return one.reason is other.reason and one.last_sequence + 1 == other.first_sequence


def _join(one: LogLoss, other: LogLoss) -> LogLoss:
    return replace(one, last_sequence=other.last_sequence)
