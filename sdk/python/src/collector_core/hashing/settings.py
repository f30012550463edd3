"""Bounds of hashing, and where files may be hashed unless told otherwise."""

import math
from dataclasses import dataclass

from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["CHUNK_BYTES", "DEFAULT_ROOTS", "HashSettings"]

CHUNK_BYTES = 1 << 20
"""Bytes read between two looks at the bounds: a thread cannot be killed, only asked to stop."""

DEFAULT_ROOTS = (
    "/usr/bin",
    "/usr/sbin",
    "/usr/local/bin",
    "/usr/local/sbin",
    "/bin",
    "/sbin",
    "/opt",
    "/usr/lib",
    "/usr/libexec",
)
"""Where executables live on Linux."""

_MAX_WORKERS = 64


@dataclass(frozen=True, slots=True)
class HashSettings:
    """What one hasher may use; every bound holds for all callers together.

    Raises:
        InvalidConfigError: a value is out of range.
    """

    max_file_bytes: int = 512 << 20
    """Larger files are refused before anything is read."""
    timeout_s: float = 10.0
    """Longest time to read one file, from the moment a worker has it."""
    bytes_per_s: int | None = 64 << 20
    """Most bytes read in a second by all workers together; None for no bound."""
    is_wait_timed: bool = False
    """Whether waiting for ``bytes_per_s`` counts against ``timeout_s``."""
    cache_entries: int = 10_000
    """Digests remembered; 0 remembers none."""
    workers: int = 2
    """Files read at the same time, one thread each."""
    max_pending: int = 1024
    """Files that may wait for a worker; background requests get three quarters of the places."""
    max_descriptors: int = 256
    """Files that may wait or be read through a descriptor of a caller, which is kept open."""
    wants_fuzzy: bool = False
    """Whether to compute a fuzzy hash, too, if this host has a library for it."""
    max_fuzzy_bytes: int = 2 << 20
    """Larger files get no fuzzy hash: it needs the file in memory and cannot be interrupted."""

    def __post_init__(self) -> None:
        self._check("max_file_bytes", self.max_file_bytes, 1)
        self._check("cache_entries", self.cache_entries, 0)
        self._check("workers", self.workers, 1, _MAX_WORKERS)
        self._check("max_pending", self.max_pending, 1)
        self._check("max_descriptors", self.max_descriptors, 1)
        self._check("max_fuzzy_bytes", self.max_fuzzy_bytes, 0)
        if self.bytes_per_s is not None:
            self._check("bytes_per_s", self.bytes_per_s, 1)
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0):
            raise InvalidConfigError(
                f"timeout_s is {self.timeout_s}; give a number of seconds above 0",
                setting="timeout_s",
                value=self.timeout_s,
            )

    @staticmethod
    def _check(name: str, value: int, minimum: int, maximum: int = 1 << 62) -> None:
        if not minimum <= value <= maximum:
            raise InvalidConfigError(
                f"{name} is {value}; give a number from {minimum} to {maximum}",
                setting=name,
                value=value,
                minimum=minimum,
                maximum=maximum,
            )
