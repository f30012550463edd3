"""Digests by version of a file, the least recently used forgotten first.

Invariant: never more entries than the bound.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

from collector_core.hashing.digest import FileKey

__all__ = ["KeyedCache"]

T = TypeVar("T")


class KeyedCache(Generic[T]):
    """A bounded memory of something by file version; for one thread."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[FileKey, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: FileKey) -> T | None:
        """Returns the entry of ``key`` and counts it as used."""
        if (found := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: FileKey, value: T) -> None:
        """Remembers ``value``, at the cost of the entry unused for longest."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def pop(self, key: FileKey) -> T | None:
        """Forgets ``key``; returns what was remembered."""
        return self._entries.pop(key, None)
