"""Which messages a subscription was offered before, so that repeats can be told.

A message is told by its source, the epoch of the source and its sequence, or by its source and its
message id where it has no sequence; one with neither is never a repeat. Sequences come in order, so
what is remembered are stretches of them, as a rule one per source: an ordinary group costs a look-up
and an addition, however many messages it has.

What is promised:

- The last ``max_messages`` messages that were offered, repeats included, are remembered at least. A
  stretch is forgotten whole once its latest message is older than that, the longest untouched first.
- A message that was not offered is never taken for a repeat.
- There are never more stretches than ``max_messages`` and the messages of one group, since each
  holds a message that was offered so lately. That bound is reached only when hardly two messages
  are neighbours in a sequence, as with message ids alone.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeAlias

from daemoneye_eventbus.group import Envelope

__all__ = ["DuplicateWindow", "Run"]

_Key: TypeAlias = tuple[str, int | str]
"""A source with an epoch, in which sequences count; or with a message id, which counts from 0."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive messages of a group that are all new, or all repeats."""

    offset: int
    count: int
    is_repeat: bool


class DuplicateWindow:
    """The messages that one subscription was offered lately.

    Args:
        max_messages: how many to remember at least.
    """

    def __init__(self, max_messages: int = 65_536) -> None:
        self._max_messages = max_messages
        self._offered_count = 0
        self._offered = _StretchTable()
        # Its stretches lie within those of the offered and are touched no later, so a position is
        # forgotten no later than its message, and a message that is new again has none.
        self._placed = _StretchTable()

    def sift(self, envelope: Envelope) -> Sequence[Run]:
        """Notes that the messages of a group are offered, and tells the new ones from the repeats.

        Returns:
            Runs in order, which together are the group; as a rule one.
        """
        key = _key_of(envelope)
        if key is None:
            return (Run(0, envelope.count, False),)
        self._offered_count += envelope.count
        first = envelope.first_sequence
        runs = self._offered.note(key, first, envelope.count, 0, self._offered_count)
        oldest = self._offered_count - self._max_messages
        self._offered.forget(oldest)
        self._placed.forget(oldest)
        return runs

    def remember(self, envelope: Envelope, first_position: int) -> None:
        """Notes where messages wait, of which ``sift`` has just said that they are new.

        Args:
            envelope: of these messages alone.
            first_position: in the mailbox; the others follow.
        """
        key = _key_of(envelope)
        if key is not None:
            first = envelope.first_sequence
            distance = first_position - first
            self._placed.note(key, first, envelope.count, distance, self._offered_count)

    def position_of(self, envelope: Envelope, offset: int) -> int | None:
        """Returns where the first copy of a message was put; None when that is not known.

        Args:
            envelope: of its group.
            offset: of the message in the group.
        """
        key = _key_of(envelope)
        if key is None:
            return None
        sequence = envelope.first_sequence + offset
        distance = self._placed.distance_at(key, sequence)
        return None if distance is None else sequence + distance


class _Stretch:
    """Consecutive sequences of one key, ``first`` up to and without ``stop``."""

    __slots__ = ("distance", "first", "key", "stop")

    def __init__(self, key: _Key, first: int, stop: int, distance: int) -> None:
        self.key = key
        self.first = first
        self.stop = stop
        self.distance = distance


_STOP = attrgetter("stop")


class _StretchTable:
    """Stretches of sequences by key, each with a distance that is the same all over it.

    The distance leads from a sequence to the position of its message in the mailbox; neighbours with
    one distance become one stretch. Invariant: the stretches of a key are in order, do not overlap
    and are not empty.
    """

    def __init__(self) -> None:
        self._by_key: dict[_Key, list[_Stretch]] = {}
        self._touched: OrderedDict[_Stretch, int] = OrderedDict()
        """When each was touched last, as a count of messages; the longest untouched first."""

    def note(self, key: _Key, first: int, count: int, distance: int, now: int) -> Sequence[Run]:
        """Adds sequences that are not there yet, and touches those that are."""
        stretches = self._by_key.setdefault(key, [])
        latest = stretches[-1] if stretches else None
        if latest is not None and latest.stop == first and latest.distance == distance:
            latest.stop += count
            self._touch(latest, now)
            return (Run(0, count, False),)
        runs: list[Run] = []
        at, stop = first, first + count
        while at < stop:
            run_stop, is_known = self._note_run(key, at, stop, distance, now)
            runs.append(Run(at - first, run_stop - at, is_known))
            at = run_stop
        return runs

    def _note_run(
        self, key: _Key, first: int, stop: int, distance: int, now: int
    ) -> tuple[int, bool]:
        """Notes the sequences that are all known or all new; returns where they stop, and which."""
        stretches = self._by_key[key]
        index = bisect_right(stretches, first, key=_STOP)
        following = stretches[index] if index < len(stretches) else None
        if following is not None and following.first <= first:
            self._touch(following, now)
            return min(stop, following.stop), True
        if following is not None:
            stop = min(stop, following.first)
        self._touch(self._add(index, _Stretch(key, first, stop, distance)), now)
        return stop, False

    def distance_at(self, key: _Key, sequence: int) -> int | None:
        """Returns the distance of a sequence; None when the sequence is not there."""
        stretches = self._by_key.get(key, [])
        index = bisect_right(stretches, sequence, key=_STOP)
        if index == len(stretches) or stretches[index].first > sequence:
            return None
        return stretches[index].distance

    def forget(self, oldest: int) -> None:
        """Drops the stretches that were not touched since ``oldest``."""
        while self._touched:
            stretch, touched = next(iter(self._touched.items()))
            if touched > oldest:
                return
            self._remove(stretch)

    def _touch(self, stretch: _Stretch, now: int) -> None:
        self._touched[stretch] = now
        self._touched.move_to_end(stretch)

    def _add(self, index: int, added: _Stretch) -> _Stretch:
        """Puts a stretch at its place in order and returns the one that it has become part of."""
        stretches = self._by_key[added.key]
        before = stretches[index - 1] if index else None
        after = stretches[index] if index < len(stretches) else None
        if after and after.first == added.stop and after.distance == added.distance:
            after.first = added.first
            added = after
        else:
            stretches.insert(index, added)
        if before and before.stop == added.first and before.distance == added.distance:
            before.stop = added.stop
            del stretches[index]
            self._touched.pop(added, None)
            added = before
        return added

    def _remove(self, stretch: _Stretch) -> None:
        del self._touched[stretch]
        stretches = self._by_key[stretch.key]
        del stretches[bisect_right(stretches, stretch.first, key=_STOP)]
        if not stretches:
            del self._by_key[stretch.key]


def _key_of(envelope: Envelope) -> _Key | None:
    if envelope.first_sequence:
        return envelope.source_id, envelope.source_epoch
    if envelope.message_id:
        return envelope.source_id, envelope.message_id
    return None
