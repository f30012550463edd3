"""Whether events of lossy classes are left out, and how many were; no I/O.

Invariant: lifecycle events are always kept; samples go before metadata; whoever began to leave events
out goes on until the pressure has fallen below the lower mark, so that it does not flutter.
"""

from collections import Counter

from collector_core.event import EventClass
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["KEEP_ONE_IN", "Pressure"]

KEEP_ONE_IN = 10
"""Of the lossy events, when the collector is over its budget."""


class Pressure:
    """The gate in front of the intake.

    Args:
        high: fill of the buffers, 0 to 1, above which samples are left out; metadata half-way from
            there to full.
        low: fill below which everything is kept again.
    """

    def __init__(self, high: float, low: float) -> None:
        self.apply_marks(high, low)
        self._shed: frozenset[EventClass] = frozenset()
        self._seen: Counter[EventClass] = Counter()
        self.is_sampling = False
        """Whether only one in ``KEEP_ONE_IN`` of the lossy events is kept, to save resources."""
        self.shed_count: Counter[EventClass] = Counter()
        """Events left out, by class."""
        self.fill = 0.0
        """The pressure that was noted last."""

    @property
    def is_shedding(self) -> bool:
        """Whether events are being left out."""
        return bool(self._shed) or self.is_sampling

    def apply_marks(self, high: float, low: float) -> None:
        """Changes the marks.

        Raises:
            InvalidRequestError: the lower mark is not below the upper one.
        """
        if not low < high:
            raise InvalidRequestError(f"mark {low} must be below mark {high}", low=low, high=high)
        self._high, self._low = high, low

    def note(self, fill: float) -> None:
        """Takes over how full the buffers are, 0 to 1."""
        self.fill = fill
        if fill < self._low:
            self._shed = frozenset()
        elif fill >= (self._high + 1) / 2:
            self._shed = frozenset({EventClass.SAMPLE, EventClass.METADATA})
        elif fill >= self._high:
            self._shed |= {EventClass.SAMPLE}

    def admits(self, event_class: EventClass) -> bool:
        """Decides about one event, and counts it when it is left out."""
        if event_class is EventClass.LIFECYCLE:
            return True
        if event_class not in self._shed:
            if not self.is_sampling:
                return True
            self._seen[event_class] += 1
            if self._seen[event_class] % KEEP_ONE_IN == 1:
                return True
        self.shed_count[event_class] += 1
        return False
