"""What a log knows about one epoch: what was given out, acknowledged, lost, and in which files.

Invariant: every sequence past the watermark, up to the last that was given out, is held or lost.
"""

from bisect import bisect_right
from collections.abc import Sequence

from collector_core.wal.loss import LogLoss, LogPosition, LossList
from collector_core.wal.segment import Segment

__all__ = ["EpochBook"]


class EpochBook:
    """One epoch.

    Args:
        epoch: its number.
        last_sequence: the last that was given out.
        acknowledged: the watermark.
        losses: past the watermark.
    """

    def __init__(
        self,
        epoch: int,
        last_sequence: int = 0,
        acknowledged: int = 0,
        losses: LossList | None = None,
    ) -> None:
        self.epoch = epoch
        self.last_sequence = last_sequence
        self.acknowledged = acknowledged
        self.losses = LossList() if losses is None else losses
        self.losses.forget(acknowledged)
        self.segments: list[Segment] = []
        """By first sequence."""

    @property
    def unacknowledged_count(self) -> int:
        """How many events are held and not acknowledged."""
        return self.last_sequence - self.acknowledged - self.losses.count

    @property
    def first_held(self) -> int:
        """The first sequence that is held and not acknowledged; one past the last if none is."""
        parts = self.held(1, self.last_sequence)
        return parts[0][0] if parts else self.last_sequence + 1

    def position(self) -> LogPosition:
        """Returns how far it goes."""
        return LogPosition(
            self.epoch,
            self.first_held,
            self.last_sequence,
            self.acknowledged,
            self.losses.reported(),
        )

    def held(self, first: int, last: int) -> list[tuple[int, int]]:
        """Returns the parts of a range that are neither acknowledged nor lost."""
        return self.losses.held(max(first, self.acknowledged + 1, 1), min(last, self.last_sequence))

    def acknowledge(self, sequence: int) -> None:
        """Moves the watermark up."""
        self.acknowledged = max(self.acknowledged, sequence)
        self.losses.forget(self.acknowledged)

    def lose(self, loss: LogLoss) -> list[LogLoss]:
        """Notes a loss; returns the parts of it that were held until now."""
        added: list[LogLoss] = []
        first = max(loss.first_sequence, self.acknowledged + 1)
        last = min(loss.last_sequence, self.last_sequence)
        if first <= last:
            added = self.losses.add(LogLoss(self.epoch, first, last, loss.reason, loss.lost_at_ns))
        return added

    def add_segment(self, segment: Segment) -> Segment | None:
        """Takes a segment in; returns the one with the same first sequence that it replaces."""
        index = bisect_right(
            self.segments, segment.first_sequence, key=lambda other: other.first_sequence
        )
        if index and self.segments[index - 1].first_sequence == segment.first_sequence:
            replaced = self.segments[index - 1]
            self.segments[index - 1] = segment
            return replaced
        self.segments.insert(index, segment)
        return None

    def last_of(self, index: int) -> int:
        """Returns the last sequence that a segment is asked for: a later one repeats the others."""
        last = self.segments[index].last_sequence
        if index + 1 < len(self.segments):
            last = min(last, self.segments[index + 1].first_sequence - 1)
        return last

    def find(self, first: int, last: int) -> tuple[Segment, Sequence[tuple[int, int]]] | None:
        """Returns the first segment that holds some of a range, and what it holds of it."""
        start = bisect_right(self.segments, first, key=lambda segment: segment.first_sequence)
        for index in range(max(0, start - 1), len(self.segments)):
            segment = self.segments[index]
            if segment.first_sequence > last:
                break
            low, high = max(first, segment.first_sequence), min(last, self.last_of(index))
            if parts := self.held(low, high):
                return segment, parts
        return None

    def release(self, active: Segment | None) -> list[Segment]:
        """Lets go of the oldest segments of which nothing is held; returns them."""
        count = 0
        for index, segment in enumerate(self.segments):
            if segment is active or self.held(segment.first_sequence, self.last_of(index)):
                break
            count += 1
        released = self.segments[:count]
        del self.segments[:count]
        return released
