"""Reading one open file into digests, in a thread, so that the result is that of one version.

Invariant: what is returned are the digests of exactly the bytes the file had between two looks at its
size and times that agree; a file that changed, grew or shrank meanwhile gives an error. Nothing is
read beyond the size of the first look, and the position of the descriptor is not used.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable
from typing import Protocol

from blake3 import blake3

from collector_core.hashing.digest import FileHash, FileKey
from collector_core.hashing.errors import (
    FileChangedError,
    FileTooLargeError,
    FileUnavailableError,
    translate_os_error,
)
from collector_core.hashing.fuzzy import FuzzyState, compute_fuzzy, load_fuzzy
from collector_core.hashing.settings import CHUNK_BYTES, HashSettings

__all__ = ["RACY_NS", "Gate", "OpenGate", "Reading", "check_target", "hash_descriptor"]

RACY_NS = 2_000_000_000
"""A file changed within this time may change again without a trace in its times (clock tick)."""


class Gate(Protocol):
    """Lets a worker read on, or raises what ends it."""

    def admit(self, offset: int, size_bytes: int) -> None:
        """Called before each chunk; returns when it may be read."""

    def check(self) -> None:
        """Called where a look at the bounds is due and nothing is read."""


class OpenGate:
    """Lets everything pass."""

    def admit(self, offset: int, size_bytes: int) -> None:
        """Admits."""

    def check(self) -> None:
        """Passes."""


_FREE = OpenGate()


def check_target(status: os.stat_result, max_file_bytes: int) -> FileKey:
    """Returns the key of a file that may be hashed.

    Raises:
        FileUnavailableError: it is no regular file.
        FileTooLargeError: it is larger than ``max_file_bytes``.
    """
    if not stat.S_ISREG(status.st_mode):
        raise FileUnavailableError()
    if status.st_size > max_file_bytes:
        raise FileTooLargeError(max_file_bytes=max_file_bytes)
    return FileKey.of(status)


def hash_descriptor(descriptor: int, settings: HashSettings | None = None) -> FileHash:
    """Hashes the file behind a descriptor that the caller opened for reading, and keeps.

    Blocks, without a limit of time: meant for a thread of the caller. ``FileHasher.hash_fd`` is for
    the event loop.

    Args:
        descriptor: may stand anywhere; it is read from the start and its position stays.
        settings: bounds of size and what to compute.

    Raises:
        FileUnavailableError: it is no regular file or cannot be read.
        FileTooLargeError: it is larger than is hashed.
        FileChangedError: it changed while it was read.
    """
    reading = Reading(settings or HashSettings())
    return reading.digest(descriptor, reading.look(descriptor))


class Reading:
    """One reading of one file: ``look``, then ``digest``.

    Args:
        settings: bounds of size and what to compute.
        gate: asked before each chunk; what it raises ends the reading.
        wall_ns: time of day, for telling young files.
    """

    def __init__(
        self,
        settings: HashSettings,
        gate: Gate = _FREE,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._settings = settings
        self._gate = gate
        self._started_ns = wall_ns()

    def look(self, descriptor: int) -> FileKey:
        """Returns the version that the file is now.

        Raises:
            HashError: it is no regular file, or too large.
        """
        try:
            return check_target(os.fstat(descriptor), self._settings.max_file_bytes)
        except OSError as error:
            raise translate_os_error(error, descriptor) from None

    def digest(self, descriptor: int, key: FileKey) -> FileHash:
        """Reads the version ``key`` of the file, which the last look returned.

        Raises:
            HashError: it cannot be read, or changed meanwhile; or what the gate raises.
        """
        digests = _Digests(self._settings, key.size_bytes)
        try:
            _read(descriptor, key.size_bytes, self._gate, digests)
            has_more = os.pread(descriptor, 1, key.size_bytes)
            after = FileKey.of(os.fstat(descriptor))
        except OSError as error:
            raise translate_os_error(error, descriptor) from None
        if has_more or after != key:
            raise FileChangedError()
        result = digests.finish(key, _is_stable(key, self._started_ns))
        self._gate.check()
        return result


def _read(descriptor: int, size_bytes: int, gate: Gate, digests: "_Digests") -> None:
    view = memoryview(bytearray(min(CHUNK_BYTES, size_bytes)))
    offset = 0
    while offset < size_bytes:
        wanted_bytes = min(len(view), size_bytes - offset)
        gate.admit(offset, wanted_bytes)
        count = os.preadv(descriptor, [view[:wanted_bytes]], offset)
        if not count:
            raise FileChangedError()
        digests.update(view[:count])
        offset += count


def _is_stable(key: FileKey, started_ns: int) -> bool:
    # ctime cannot be set by a program, so one in the future tells of a clock that was set back. A
    # modification time far in the future can be set, and must not keep a file out of the cache.
    is_settled = key.ctime_ns < started_ns - RACY_NS
    return is_settled and abs(key.mtime_ns - started_ns) > RACY_NS


class _Digests:
    """All digests of one file, fed chunk by chunk."""

    def __init__(self, settings: HashSettings, size_bytes: int) -> None:
        self._sha256 = hashlib.sha256()
        self._blake3 = blake3()
        self._function = load_fuzzy() if settings.wants_fuzzy else None
        self._fuzzy_state = self._first_fuzzy_state(settings, size_bytes)
        self._content = bytearray()

    def update(self, chunk: memoryview) -> None:
        self._sha256.update(chunk)
        self._blake3.update(chunk)
        if self._fuzzy_state is FuzzyState.READY:
            self._content += chunk

    def finish(self, key: FileKey, is_stable: bool) -> FileHash:
        fuzzy, state = None, self._fuzzy_state
        if state is FuzzyState.READY:
            fuzzy, state = compute_fuzzy(self._function, bytes(self._content))
        return FileHash(
            sha256=self._sha256.hexdigest(),
            blake3=self._blake3.hexdigest(),
            size_bytes=key.size_bytes,
            mtime_ns=key.mtime_ns,
            is_stable=is_stable,
            fuzzy=fuzzy,
            fuzzy_state=state,
        )

    def _first_fuzzy_state(self, settings: HashSettings, size_bytes: int) -> FuzzyState:
        if not settings.wants_fuzzy:
            return FuzzyState.NOT_WANTED
        if self._function is None:
            return FuzzyState.NO_LIBRARY
        if size_bytes > settings.max_fuzzy_bytes:
            return FuzzyState.TOO_LARGE
        return FuzzyState.READY
