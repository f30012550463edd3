"""The loss equation, added up over subscriptions, ended ones included.

Invariant: offered = delivered + filtered + dropped + pending, whatever ended in between.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from daemoneye_eventbus.mailbox import DropReason, MailboxCounters

__all__ = ["Flow", "FlowSum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What became of everything offered; the fields of ``MailboxCounters``, added up."""

    offered: int = 0
    delivered: int = 0
    filtered: int = 0
    dropped: Mapping[DropReason, int] = field(default_factory=dict)
    pending: int = 0
    pending_bytes: int = 0
    unacknowledged: int = 0
    redelivered: int = 0


class FlowSum:
    """Adds up counters."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._dropped: Counter[DropReason] = Counter()

    def add(self, counters: MailboxCounters | Flow) -> None:
        """Adds one hop."""
        for name in ("offered", "delivered", "filtered", "pending", "pending_bytes"):
            self._sums[name] += getattr(counters, name)
        for name in ("unacknowledged", "redelivered"):
            self._sums[name] += getattr(counters, name)
        self._dropped.update(counters.dropped)

    def recount(self, count: int, was: DropReason, now: DropReason) -> None:
        """Gives dropped messages another reason."""
        self._dropped[was] -= count
        self._dropped[now] += count

    def total(self) -> Flow:
        """Returns the sums."""
        return Flow(dropped=dict(+self._dropped), **self._sums)
