"""What else could hold the events: SQLite in two ways, and a file with nothing around them."""

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from collector_core.bus.outbox_group import OutboxGroup
from collector_core.bus.wire import iter_frames

__all__ = ["PlainFile", "SqliteEvents", "SqliteGroups", "Store"]

CHUNK_BYTES = 1 << 20


class Store(Protocol):
    """Holds events."""

    def append(self, groups: Sequence[OutboxGroup]) -> None:
        """Appends one batch."""

    def read(self) -> int:
        """Reads everything back; returns how many events that were."""

    def close(self) -> None:
        """Closes it."""

    def check(self) -> int:
        """Opens it again and looks whether it is intact; returns how many events it has."""


class _Sqlite:
    table: str
    count: str

    def __init__(self, directory: Path, is_synced: bool) -> None:
        self._path = directory / "events.db"
        self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(f"PRAGMA synchronous={'FULL' if is_synced else 'OFF'}")
        self._database.execute(self.table)

    def append(self, groups: Sequence[OutboxGroup]) -> None:
        """Inserts one batch in one transaction."""
        self._database.execute("BEGIN")
        self._insert(groups)
        self._database.execute("COMMIT")

    def close(self) -> None:
        self._database.close()

    def check(self) -> int:
        database = sqlite3.connect(self._path)
        try:
            (verdict,) = database.execute("PRAGMA quick_check").fetchone()
            assert verdict == "ok"
            (count,) = database.execute(self.count).fetchone()
            return int(count)
        finally:
            database.close()

    def _insert(self, groups: Sequence[OutboxGroup]) -> None:
        raise NotImplementedError


class SqliteEvents(_Sqlite):
    """A row an event."""

    table = "CREATE TABLE events (sequence INTEGER PRIMARY KEY, head BLOB, event BLOB)"
    count = "SELECT count(*) FROM events"

    def read(self) -> int:
        rows = self._database.execute("SELECT sequence, head, event FROM events ORDER BY sequence")
        return sum(1 for _ in rows)

    def _insert(self, groups: Sequence[OutboxGroup]) -> None:
        self._database.executemany(
            "INSERT INTO events VALUES (?, ?, ?)",
            (
                (sequence, group.key.head, frame)
                for group in groups
                for sequence, frame in enumerate(iter_frames(group.block), group.first_sequence)
            ),
        )


class SqliteGroups(_Sqlite):
    """A row a group."""

    table = "CREATE TABLE groups (sequence INTEGER PRIMARY KEY, n INTEGER, head BLOB, block BLOB)"
    count = "SELECT sum(n) FROM groups"

    def read(self) -> int:
        rows = self._database.execute("SELECT n, head, block FROM groups ORDER BY sequence")
        return sum(count for count, _, _ in rows)

    def _insert(self, groups: Sequence[OutboxGroup]) -> None:
        self._database.executemany(
            "INSERT INTO groups VALUES (?, ?, ?, ?)",
            [(group.first_sequence, group.count, group.key.head, group.block) for group in groups],
        )


class PlainFile:
    """The blocks one after the other, with nothing that says where one ends."""

    def __init__(self, directory: Path, is_synced: bool) -> None:
        self._path = directory / "events"
        self._is_synced = is_synced
        self._count = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size_bytes = 0

    def append(self, groups: Sequence[OutboxGroup]) -> None:
        self._size_bytes += os.writev(self._descriptor, [group.block for group in groups])
        if self._is_synced:
            os.fdatasync(self._descriptor)
        self._count += sum(group.count for group in groups)

    def read(self) -> int:
        offset = 0
        while chunk := os.pread(self._descriptor, CHUNK_BYTES, offset):
            offset += len(chunk)
        return self._count if offset == self._size_bytes else 0

    def close(self) -> None:
        os.close(self._descriptor)

    def check(self) -> int:
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return self.read()
        finally:
            self.close()
