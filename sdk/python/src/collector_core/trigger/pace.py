"""How often, and for which targets, analyses were asked for.

Invariant: both memories only hold what the engine recorded after an emit; asking them changes
nothing that a later question could notice. Both are bounded.
"""

from collections import OrderedDict
from collections.abc import Hashable

__all__ = ["Allowance", "RecentTargets"]

MINUTE_S = 60.0


class RecentTargets:
    """Remembers targets for a while."""

    def __init__(self) -> None:
        self._recorded_s: OrderedDict[Hashable, float] = OrderedDict()
        self.forgotten = 0
        """Targets that were forgotten early because there were too many."""

    def __len__(self) -> int:
        return len(self._recorded_s)

    def holds(self, key: Hashable, now_s: float, dedup_s: float) -> bool:
        """Whether a target was recorded less than ``dedup_s`` ago."""
        recorded_s = self._recorded_s.get(key)
        return recorded_s is not None and now_s - recorded_s < dedup_s

    def record(self, key: Hashable, now_s: float, dedup_s: float, limit: int) -> None:
        """Remembers a target from now on, and lets go of old ones."""
        self._recorded_s[key] = now_s
        self._recorded_s.move_to_end(key)
        while self._recorded_s:
            oldest_s = next(iter(self._recorded_s.values()))
            is_over = now_s - oldest_s >= dedup_s
            if not is_over and len(self._recorded_s) <= limit:
                return
            self._recorded_s.popitem(last=False)
            self.forgotten += not is_over


class Allowance:
    """A token bucket: a minute's worth at most, filled evenly.

    Args:
        per_minute: what it allows a minute.
        now_s: the time; it begins full.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self._per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def has_room(self, reserved: int, now_s: float) -> bool:
        """Whether one more may be taken once what is reserved has been."""
        self._fill(now_s)
        return self._level - reserved >= 1

    def take(self, now_s: float) -> None:
        """Takes one; what was reserved before the rate was lowered may go below zero."""
        self._fill(now_s)
        self._level -= 1

    def change(self, per_minute: int, now_s: float) -> None:
        """Allows more or less from now on."""
        self._fill(now_s)
        self._per_minute = per_minute
        self._level = min(self._level, per_minute)

    def _fill(self, now_s: float) -> None:
        passed_s = max(now_s - self._at_s, 0.0)
        self._level = min(self._level + passed_s * self._per_minute / MINUTE_S, self._per_minute)
        self._at_s = now_s
