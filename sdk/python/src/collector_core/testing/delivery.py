"""The agent's half of delivery for one collector, in memory: each event once, and what is missing.

Invariant: an event with a place in a sequence is stored once however often it comes; a sequence is
stored, settled as never coming, or missing, and never two of these.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from collector_core.testing.seen_event import SeenEvent
from daemoneye.ipc.v1 import event_log_pb2

__all__ = ["Conflict", "DeliveryRecord", "SequenceRange"]


@dataclass(frozen=True, slots=True, order=True)
class SequenceRange:
    """Sequences of one epoch, both ends included."""

    epoch: int
    first: int
    last: int

    @property
    def count(self) -> int:
        """How many sequences it has."""
        return self.last - self.first + 1

    def contains(self, other: "SequenceRange") -> bool:
        """Whether all of another range is in this one."""
        return self.epoch == other.epoch and self.first <= other.first <= other.last <= self.last


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two events that a collector gave the same place."""

    stored: SeenEvent
    repeated: SeenEvent


class _Known:
    """A set of whole numbers from 1, kept as ranges that neither touch nor overlap."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def add(self, first: int, last: int) -> None:
        start = bisect_left(self._lasts, first - 1)
        end = start
        while end < len(self._firsts) and self._firsts[end] <= last + 1:
            first, last = min(first, self._firsts[end]), max(last, self._lasts[end])
            end += 1
        self._firsts[start:end] = [first]
        self._lasts[start:end] = [last]

    def __contains__(self, number: int) -> bool:
        index = bisect_left(self._lasts, number)
        return index < len(self._lasts) and self._firsts[index] <= number

    @property
    def contiguous(self) -> int:
        """The highest number up to which all are in."""
        return self._lasts[0] if self._firsts and self._firsts[0] == 1 else 0

    @property
    def highest(self) -> int:
        return self._lasts[-1] if self._lasts else 0

    def holes(self, last: int) -> list[tuple[int, int]]:
        """Ranges up to ``last`` that are not in."""
        edges = [0, *self._lasts]
        firsts = [*self._firsts, max(last, self.highest) + 1]
        pairs = zip(edges, firsts, strict=True)
        holes = [(before + 1, min(after - 1, last)) for before, after in pairs]
        return [(first, until) for first, until in holes if first <= until]


class DeliveryRecord:
    """What the agent has of one collector."""

    def __init__(self) -> None:
        self.events: list[SeenEvent] = []
        """Each event once, in the order in which it came first."""
        self.repeat_count = 0
        """Events that came again."""
        self.conflicts: list[Conflict] = []
        """Repeats that say something else than what was stored: a defect of the collector."""
        self.settled: list[SequenceRange] = []
        """What will never come, as the collector said when it was asked for a replay."""
        self._by_key: dict[tuple[str, int, int], SeenEvent] = {}
        self._known: dict[int, _Known] = {}
        self._given_out: dict[int, int] = {}

    def store(self, event: SeenEvent) -> bool:
        """Stores an event; returns whether it is new."""
        if not event.sequence:  # has no place in a sequence, so nothing can tell a repeat
            self.events.append(event)
            return True
        stored = self._by_key.setdefault(event.key, event)
        if stored is not event:
            self.repeat_count += 1
            if stored.message.collection_event != event.message.collection_event:
                self.conflicts.append(Conflict(stored, event))
            return False
        self.events.append(event)
        self._of(event.epoch).add(event.sequence, event.sequence)
        return True

    def learn(self, positions: Iterable[event_log_pb2.LogPosition]) -> None:
        """Takes from a heartbeat how far the log of the collector goes."""
        for position in positions:
            known = self._given_out.get(position.source_epoch, 0)
            self._given_out[position.source_epoch] = max(known, position.last_sequence)
            if position.source_epoch not in self._known and position.acknowledged_sequence:
                # Stored by an agent before us, and gone from the log since.
                self._of(position.source_epoch).add(1, position.acknowledged_sequence)

    def settle(self, settled: SequenceRange) -> None:
        """Marks sequences as never coming; those that were stored stay stored."""
        self.settled.append(settled)
        self._of(settled.epoch).add(settled.first, settled.last)

    def contiguous(self, epoch: int) -> int:
        """The highest sequence of an epoch up to which nothing is missing."""
        known = self._known.get(epoch)
        return known.contiguous if known else 0

    @property
    def epochs(self) -> list[int]:
        """The epochs that are known, ascending."""
        return sorted({*self._known, *self._given_out})

    def missing(self) -> list[SequenceRange]:
        """What was given out, as later events or heartbeats tell, and is neither here nor settled."""
        return [
            SequenceRange(epoch, first, last)
            for epoch in self.epochs
            for first, last in self._holes(epoch)
        ]

    def _holes(self, epoch: int) -> list[tuple[int, int]]:
        known = self._of(epoch)
        return known.holes(max(known.highest, self._given_out.get(epoch, 0)))

    def _of(self, epoch: int) -> _Known:
        return self._known.setdefault(epoch, _Known())
