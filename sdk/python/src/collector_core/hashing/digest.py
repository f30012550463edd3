"""What is known about the content of a file, and what identifies a version of it.

Invariant: SHA-256 is always there: it is the identity. Digests are 64 lower-case hexadecimal digits.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from collector_core.hashing.fuzzy import FuzzyState

__all__ = ["FileHash", "FileKey", "HashState", "Pending"]


class HashState(StrEnum):
    """Whether the digest of a file is known."""

    READY = "ready"
    PENDING = "pending"
    PAUSED = "paused"


class FileKey(NamedTuple):
    """Identifies one version of one file on this host.

    With the change time, because a program can set size and modification time back but not that.
    """

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Returns the key of what ``status`` was taken of."""
        return cls(
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )


@dataclass(frozen=True, slots=True)
class FileHash:
    """Digests of one whole file."""

    sha256: str
    blake3: str
    size_bytes: int
    mtime_ns: int
    is_stable: bool
    """False for a file so young that a further change might not show in its times: it is hashed
    again next time. A file that is written through a shared memory map may change without a trace
    in its times until the kernel writes it back; nothing can be told about that here."""
    fuzzy: str | None = None
    """ssdeep text, for similarity; ``fuzzy_state`` says why it is absent."""
    fuzzy_state: FuzzyState = FuzzyState.NOT_WANTED

    @property
    def state(self) -> HashState:
        """Always READY."""
        return HashState.READY


@dataclass(frozen=True, slots=True)
class Pending:
    """The digest is not known yet; ask again later."""

    state: HashState = HashState.PENDING
    """PENDING while it is waited for, PAUSED when hashing is off and nobody works on it."""
