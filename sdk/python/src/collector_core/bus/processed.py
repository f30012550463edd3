"""Which messages were worked on: a subscriber's own memory, past acknowledgements that were lost.

Promise: of each of the ``MAX_SOURCES`` sources heard last, every acknowledged sequence within its
``MAX_INTERVALS`` latest runs without a hole is remembered, and the ``MAX_MESSAGE_IDS`` latest messages
without a sequence. A source that numbers without gaps, as it must, is one run however long it lasts.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator

from collector_core.bus.received_group import ReceivedGroup
from daemoneye.eventbus.v1 import group_pb2

__all__ = ["ProcessedMessages"]

MAX_SOURCES = 1_024
MAX_INTERVALS = 256
MAX_MESSAGE_IDS = 65_536


class ProcessedMessages:
    """Messages by (source, epoch, sequence), or by (source, message id)."""

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[str, int], _Runs] = OrderedDict()
        self._ids: OrderedDict[tuple[str, str], None] = OrderedDict()

    def note(self, envelope: group_pb2.GroupEnvelope) -> None:
        """Remembers the messages of a group."""
        if envelope.first_sequence:
            source = envelope.source_id, envelope.source_epoch
            runs = self._runs.setdefault(source, _Runs())
            self._runs.move_to_end(source)
            runs.add(envelope.first_sequence, envelope.first_sequence + envelope.count)
            if len(self._runs) > MAX_SOURCES:
                self._runs.popitem(last=False)
        elif envelope.message_id:
            self._ids[envelope.source_id, envelope.message_id] = None
            if len(self._ids) > MAX_MESSAGE_IDS:
                self._ids.popitem(last=False)

    def without_known(self, group: ReceivedGroup) -> list[ReceivedGroup]:
        """Returns what of a group is new; the group itself where all of it is."""
        envelope = group.envelope
        if not envelope.first_sequence:
            is_known = (envelope.source_id, envelope.message_id) in self._ids
            return [] if is_known and envelope.message_id else [group]
        runs = self._runs.get((envelope.source_id, envelope.source_epoch))
        first, end = envelope.first_sequence, envelope.first_sequence + envelope.count
        spans = list(runs.holes(first, end)) if runs is not None else [(first, end)]
        if spans == [(first, end)]:
            return [group]
        return group.pick((begin - first, stop - begin) for begin, stop in spans)


class _Runs:
    """Half-open intervals of sequences: sorted, apart from each other, the latest of them."""

    __slots__ = ("_begins", "_ends")

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, begin: int, end: int) -> None:
        """Adds an interval."""
        if self._ends and begin == self._ends[-1]:  # the usual case
            self._ends[-1] = end
            return
        low = bisect_right(self._ends, begin - 1)
        high = bisect_right(self._begins, end)
        if low < high:
            begin = min(begin, self._begins[low])
            end = max(end, self._ends[high - 1])
        self._begins[low:high] = [begin]
        self._ends[low:high] = [end]
        if len(self._begins) > MAX_INTERVALS:
            del self._begins[0], self._ends[0]

    def holes(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yields what of an interval is not here."""
        index = bisect_right(self._ends, begin)
        while begin < end:
            next_begin = self._begins[index] if index < len(self._begins) else end
            if begin < next_begin:
                yield begin, min(end, next_begin)
            if index >= len(self._begins):
                return
            begin = max(begin, self._ends[index])
            index += 1
