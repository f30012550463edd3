"""Digests of files: SHA-256 as the identity, BLAKE3 beside it, ssdeep where a library is installed.

Open the ``AllowedRoots`` before privileges are dropped, give them to one ``FileHasher`` and ask it:
``hash_path`` and ``hash_fd`` wait, ``request`` and ``lookup`` do not and may say ``Pending``.
"""

from collector_core.hashing.binary_hash import BinaryHashAnalyzer
from collector_core.hashing.budget import HashClock
from collector_core.hashing.counters import HashCounters
from collector_core.hashing.digest import FileHash, FileKey, HashState, Pending
from collector_core.hashing.errors import (
    FileChangedError,
    FileTooLargeError,
    FileUnavailableError,
    HashCapacityError,
    HashError,
    HashErrorKind,
    HashFailedError,
    HashingPausedError,
    HashingStoppedError,
    HashTimeoutError,
    InvalidPathError,
    PathNotAllowedError,
)
from collector_core.hashing.fuzzy import FuzzyState
from collector_core.hashing.hasher import FileHasher
from collector_core.hashing.reading import hash_descriptor
from collector_core.hashing.roots import AllowedRoots
from collector_core.hashing.settings import DEFAULT_ROOTS, HashSettings

__all__ = [
    "DEFAULT_ROOTS",
    "AllowedRoots",
    "BinaryHashAnalyzer",
    "FileChangedError",
    "FileHash",
    "FileHasher",
    "FileKey",
    "FileTooLargeError",
    "FileUnavailableError",
    "FuzzyState",
    "HashCapacityError",
    "HashClock",
    "HashCounters",
    "HashError",
    "HashErrorKind",
    "HashFailedError",
    "HashSettings",
    "HashState",
    "HashTimeoutError",
    "HashingPausedError",
    "HashingStoppedError",
    "InvalidPathError",
    "PathNotAllowedError",
    "Pending",
    "hash_descriptor",
]
