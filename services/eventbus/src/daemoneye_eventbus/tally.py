"""Counters by name that cannot grow without bound.

Invariant: names beyond the bound are added up under ``OTHER``, so the sum over all entries is the
sum over everything counted, whatever names a peer invents.
"""

from dataclasses import dataclass, replace

__all__ = ["OTHER", "Tally", "TallyTable"]

OTHER = "_other"
"""Counts the names that came after the table was full; no topic or identity is spelled so."""


@dataclass(slots=True)
class Tally:
    """What was accepted under one name."""

    messages: int = 0
    size_bytes: int = 0
    offered: int = 0
    """Messages times their subscribers: what went on to mailboxes."""
    unrouted: int = 0
    """Messages that nobody had subscribed to."""

    def add(self, messages: int, size_bytes: int, subscribers: int) -> None:
        """Counts messages that went to this many subscribers each."""
        self.messages += messages
        self.size_bytes += size_bytes
        self.offered += messages * subscribers
        if not subscribers:
            self.unrouted += messages


class TallyTable:
    """Tallies by name.

    Args:
        max_names: names counted on their own; the first come stay.
    """

    def __init__(self, max_names: int) -> None:
        self._max_names = max_names
        self._tallies: dict[str, Tally] = {}
        self._other = Tally()

    def of(self, name: str) -> Tally:
        """Returns the tally to count this name in."""
        tally = self._tallies.get(name)
        if tally is not None:
            return tally
        if len(self._tallies) >= self._max_names:
            return self._other
        return self._tallies.setdefault(name, Tally())

    def snapshot(self) -> dict[str, Tally]:
        """Returns copies of all tallies, with ``OTHER`` last when anything was counted there."""
        copies = {name: replace(tally) for name, tally in self._tallies.items()}
        if self._other.messages:
            copies[OTHER] = replace(self._other)
        return copies
