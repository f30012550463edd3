"""What a hasher did, in numbers."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from collector_core.hashing.errors import HashErrorKind

__all__ = ["HashCounters"]


@dataclass(slots=True)
class HashCounters:
    """Counts since the start of a hasher, and its load now."""

    hashed: int = 0
    """Files read to the end."""
    cache_hits: int = 0
    """Answers without reading."""
    coalesced: int = 0
    """Answers from a reading that somebody else had asked for."""
    changed: int = 0
    """Files that changed while they were read; counted among the unavailable ones, too."""
    cancelled: int = 0
    """Readings called off because nobody waited any more."""
    bytes_read: int = 0
    failures: Counter[HashErrorKind] = field(default_factory=Counter)
    """Failed calls by kind, and background readings that nobody waited for."""
    waiting: int = 0
    """Files that wait for a worker now."""
    running: int = 0
    """Files that are read now."""
    stuck: int = 0
    """Workers that hang in the file system now."""

    def copy(self) -> Self:
        """Returns the counts as they are now."""
        return type(self)(
            self.hashed,
            self.cache_hits,
            self.coalesced,
            self.changed,
            self.cancelled,
            self.bytes_read,
            Counter(self.failures),
            self.waiting,
            self.running,
            self.stuck,
        )
