"""Letting one in so many through.

Invariant: what is kept depends on counts alone, so the same stream is thinned out the same way, and
every event is counted as kept or as dropped.
"""

__all__ = ["Sampler"]

MAX_KEYS = 1024


class Sampler:
    """Keeps the first of each key and then one in ``keep_one_in``.

    Args:
        keep_one_in: 1 keeps everything.
        max_keys: keys counted on their own; later ones share one count.

    Raises:
        ValueError: ``keep_one_in`` or ``max_keys`` is below 1.
    """

    def __init__(self, keep_one_in: int, max_keys: int = MAX_KEYS) -> None:
        if max_keys < 1:
            raise ValueError(f"max_keys is {max_keys}; give at least 1")
        self._max_keys = max_keys
        self._skipped: dict[str, int] = {}
        """How many of a key were dropped since one was kept."""
        self._skipped_others: int | None = None
        self.keep_one_in = keep_one_in
        self.kept_count = 0
        """Events kept so far."""
        self.dropped_count = 0
        """Events dropped so far."""

    @property
    def keep_one_in(self) -> int:
        """One in how many is kept; may be changed at any time."""
        return self._keep_one_in

    @keep_one_in.setter
    def keep_one_in(self, keep_one_in: int) -> None:
        if keep_one_in < 1:
            raise ValueError(f"keep_one_in is {keep_one_in}; give at least 1, which keeps all")
        self._keep_one_in = keep_one_in

    def keep(self, key: str) -> bool:
        """Whether the next event of ``key`` is kept."""
        is_own = key in self._skipped or len(self._skipped) < self._max_keys
        skipped = self._skipped.get(key) if is_own else self._skipped_others
        is_kept = skipped is None or skipped + 1 >= self._keep_one_in
        now_skipped = 0 if skipped is None or is_kept else skipped + 1
        if is_own:
            self._skipped[key] = now_skipped
        else:
            self._skipped_others = now_skipped
        self.kept_count += is_kept
        self.dropped_count += not is_kept
        return is_kept
