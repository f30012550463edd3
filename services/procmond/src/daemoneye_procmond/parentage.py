"""Records of processes that stopped lately, so that their children still have a parent.

Invariant: bounded in entries, in age and, as texts are cut, in bytes.
"""

from collections import OrderedDict

from daemoneye_procmond.record import ProcessRecord, shorten

__all__ = ["RecentStops"]

_TEXT_LIMIT_BYTES = 1024


class RecentStops:
    """The processes that stopped within the last while, by pid; of two with one pid the later.

    Args:
        limit_count: most processes kept.
        max_age_s: how long they are kept.
    """

    def __init__(self, limit_count: int = 4096, max_age_s: float = 60.0) -> None:
        self._limit_count = limit_count
        self._max_age_s = max_age_s
        self._stopped: OrderedDict[int, tuple[float, ProcessRecord]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stopped)

    def add(self, record: ProcessRecord, now_s: float) -> None:
        """Remembers a process that stopped at ``now_s`` (monotonic)."""
        self._stopped.pop(record.pid, None)
        self._stopped[record.pid] = (now_s, shorten(record, _TEXT_LIMIT_BYTES))
        if len(self._stopped) > self._limit_count:
            self._stopped.popitem(last=False)

    def expire(self, now_s: float) -> None:
        """Forgets what stopped too long before ``now_s``."""
        while self._stopped:
            _pid, (stopped_at_s, _record) = next(iter(self._stopped.items()))
            if now_s - stopped_at_s <= self._max_age_s:
                return
            self._stopped.popitem(last=False)

    def find(self, pid: int, started_by_ticks: int) -> ProcessRecord | None:
        """The process with ``pid`` that ran when a child with these start ticks began."""
        entry = self._stopped.get(pid)
        if entry is None or entry[1].start_ticks > started_by_ticks:
            return None
        return entry[1]
