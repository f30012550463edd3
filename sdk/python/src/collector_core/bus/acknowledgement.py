"""Which deliveries are done, so that none is worked on twice where that can be told.

A position counts within one life of a subscription: as long as the same broker keeps it. Invariant:
an acknowledgement never goes to another life than its delivery came from.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from collector_core.bus.items import Delivery
from collector_core.bus.processed import ProcessedMessages
from collector_core.bus.received_group import ReceivedGroup

__all__ = ["AcknowledgementLedger"]

MAX_HANDED = 65_536
"""Deliveries handed out and not acknowledged that are remembered; older ones are forgotten first."""


class _Handed(NamedTuple):
    position: int
    groups: Sequence[ReceivedGroup]

    @property
    def is_done(self) -> bool:
        """Whether there is nothing in it to work on."""
        return not self.groups


class AcknowledgementLedger:
    """What was handed out and what was acknowledged.

    Args:
        processed: remembers acknowledged messages, for the effect of exactly once; None without it.
    """

    def __init__(self, processed: ProcessedMessages | None = None) -> None:
        self._processed = processed
        self._handed: deque[_Handed] = deque(maxlen=MAX_HANDED)
        self._done_position = 0
        self.life = 0
        """Which life of the subscription this is."""
        self.suppressed_count = 0
        """Messages held back because they were acknowledged before."""

    def begin_life(self, life: int) -> None:
        """Notes that the subscription was opened again, in the same life or in another one."""
        if life != self.life:
            self.life = life
            self._done_position = 0
            self._handed.clear()

    def sift(self, delivery: Delivery) -> tuple[Delivery | None, int]:
        """Returns what of a delivery has to be worked on, and the position to tell the broker.

        What is held back was acknowledged already, and that has to be said again, but not before
        everything that was handed out earlier is done: acknowledgements are cumulative.
        """
        if delivery.redelivered and 0 < delivery.position <= self._done_position:
            self.suppressed_count += delivery.count
            return None, self._done_position
        kept = self._without_known(delivery)
        self.suppressed_count += delivery.count - kept.count
        self._handed.append(_Handed(delivery.position, kept.groups))
        return (kept, 0) if kept.groups else (None, self._advance(self._done_position))

    def acknowledge(self, delivery: Delivery) -> int:
        """Notes that everything up to a delivery is done; returns the position to tell the broker.

        The position is 0 when it is not of this life any more: the broker knows nothing of it.
        """
        if delivery.life != self.life:
            self._note(delivery.groups)
            return 0
        return self._advance(max(self._done_position, delivery.position))

    def _without_known(self, delivery: Delivery) -> Delivery:
        if self._processed is None:
            return delivery
        groups = [new for group in delivery.groups for new in self._processed.without_known(group)]
        if groups == delivery.groups:
            return delivery
        return Delivery(groups, delivery.position, delivery.redelivered, delivery.life)

    def _advance(self, position: int) -> int:
        undone = [one.position for one in self._handed if not one.is_done]
        barrier = min((one for one in undone if one > position), default=None)
        done = [one for one in self._handed if barrier is None or one.position < barrier]
        position = max([position, *(one.position for one in done)])
        for one in done:
            self._note(one.groups)
        kept = [one for one in self._handed if one.position > position]
        self._handed = deque(kept, maxlen=MAX_HANDED)
        self._done_position = position
        return position

    def _note(self, groups: Sequence[ReceivedGroup]) -> None:
        if self._processed is not None:
            for group in groups:
                self._processed.note(group.envelope)
