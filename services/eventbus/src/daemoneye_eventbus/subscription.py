"""One subscription: what it asked for, what it lets through, and what waits for it.

Invariant: whatever matches a pattern is offered to it once, and then is filtered or goes to its
mailbox; its counters hold both.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum

from daemoneye_eventbus.duplicates import DuplicateWindow, Run
from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.mailbox import Mailbox, MailboxLimits, Retention
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.selection import Selection
from daemoneye_mesh.topic import matches

__all__ = ["DuplicateHandling", "Durability", "HistoryTerms", "Subscription", "SubscriptionTerms"]


class DuplicateHandling(StrEnum):
    """What becomes of a message that was offered before."""

    ALLOW = "allow"
    DROP = "drop"
    MERGE = "merge"


@dataclass(frozen=True, slots=True)
class Durability:
    """For how long, and with which bounds, a subscription outlives its stream."""

    duration_s: float
    bounds: Retention


@dataclass(frozen=True, slots=True)
class HistoryTerms:
    """How much of what is retained comes first; 0 sets no bound."""

    max_age_s: float = 0.0
    max_messages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionTerms:
    """What a subscriber asks for, read and found within bounds.

    Args:
        patterns: with the priority floor of each.
        limits: bounds of the mailbox.
        label: what the subscriber calls itself; names a durable subscription.
        selection: what passes.
        duplicates: what becomes of repeats.
        durability: None for a subscription that ends with its stream.
        consumer_group: empty for none.
        is_ordered: within a consumer group, one member for each source.
        history: None to begin with what comes next.
    """

    patterns: tuple[tuple[str, int], ...]
    limits: MailboxLimits
    label: str = ""
    selection: Selection = field(default_factory=Selection)
    duplicates: DuplicateHandling = DuplicateHandling.ALLOW
    durability: Durability | None = None
    consumer_group: str = ""
    is_ordered: bool = False
    history: HistoryTerms | None = None

    @property
    def acknowledges(self) -> bool:
        """Whether its subscriber acknowledges."""
        return self.limits.acknowledgement is not None


class Subscription:
    """One subscription in the life of the broker.

    Args:
        name: its id.
        identity: the verified identity behind it.
        terms: what it asked for.
        opened_at_ns: since the Unix epoch.
        max_remembered_messages: how many messages are remembered to tell repeats.
        monotonic: clock of its mailbox.
    """

    def __init__(
        self,
        name: str,
        identity: str,
        terms: SubscriptionTerms,
        opened_at_ns: int,
        max_remembered_messages: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = name
        self.identity = identity
        self.terms = terms
        self.opened_at_ns = opened_at_ns
        durability = terms.durability
        bounds = durability.bounds if durability else None
        self.mailbox = Mailbox(terms.limits, bounds, monotonic)
        self.away_since_s: float | None = None
        """Since when nobody reads it; None while its stream stands."""
        is_telling = terms.duplicates is not DuplicateHandling.ALLOW
        self._window = DuplicateWindow(max_remembered_messages) if is_telling else None

    @property
    def label(self) -> str:
        """What the subscriber calls itself; its id when it does not."""
        return self.terms.label or self.id

    @property
    def group_name(self) -> str:
        """Its consumer group, by kind of identity: nobody takes the share of another kind; or empty."""
        name = self.terms.consumer_group
        return f"{self.identity.partition('/')[0]}/{name}" if name else ""

    @property
    def is_attached(self) -> bool:
        """Whether its stream stands."""
        return self.away_since_s is None

    def update(self, terms: SubscriptionTerms) -> None:
        """Takes other patterns and another selection; what waits already stays."""
        self.terms = replace(self.terms, patterns=terms.patterns, selection=terms.selection)

    def floor_of(self, topic: str) -> int | None:
        """The least priority that comes through on a topic; None when no pattern matches it."""
        floors = [floor for pattern, floor in self.terms.patterns if matches(pattern, topic)]
        return min(floors, default=None)

    def lets_through(self, envelope: Envelope, floor: int) -> bool:
        """Whether messages pass the priority floor and the selection."""
        return envelope.priority >= floor and self.terms.selection.accepts(envelope)

    def offer(self, group: Group, floor: int) -> None:
        """Offers the messages of a group that matched a pattern with this floor."""
        if not self.lets_through(group.envelope, floor):
            self.mailbox.filter_out(group.count)
        elif self._window is None:
            self.mailbox.put(group)
        else:
            for run in self._window.sift(group.envelope):
                self._offer_run(self._window, group, run)

    def _offer_run(self, window: DuplicateWindow, group: Group, run: Run) -> None:
        part = _part(group, run.offset, run.count)
        if not run.is_repeat:
            # A copy, since a repeat may let another publisher wait for it here.
            own = part.with_receipt(part.receipt)
            window.remember(own.envelope, self.mailbox.put(own))
            return
        if part.receipt is not None:
            self._follow(window, part, part.receipt)
        if self.terms.duplicates is DuplicateHandling.MERGE:
            self._merge(window, part)
        else:
            self.mailbox.filter_out(part.count)

    def _follow(self, window: DuplicateWindow, repeat: Group, receipt: Receipt) -> None:
        """The publisher never heard what became of the first copies; theirs is the fate it awaits."""
        for offset in range(repeat.count):
            position = window.position_of(repeat.envelope, offset)
            if position is not None:
                self.mailbox.follow(position, receipt)

    def _merge(self, window: DuplicateWindow, repeat: Group) -> None:
        for single in _singles(repeat):
            position = window.position_of(single.envelope, 0)
            if position is None:
                self.mailbox.filter_out(1)
            else:
                self.mailbox.replace(position, single.with_receipt(None))


def _part(group: Group, offset: int, count: int) -> Group:
    if offset:
        _, group = group.split(offset)
    if count < group.count:
        group, _ = group.split(count)
    return group


def _singles(group: Group) -> Iterator[Group]:
    """Yields groups of one message; by halves, since each cut costs what the piece has messages."""
    pieces = [group]
    while pieces:
        piece = pieces.pop()
        if piece.count == 1:
            yield piece
        else:
            pieces.extend(reversed(piece.split(piece.count // 2)))
