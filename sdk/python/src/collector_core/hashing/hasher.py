"""Digests of files for a collector: cached, coalesced, bounded, and never in the way of the loop.

Invariants: a digest is only given for the version of the file that it was computed of; every failure
is one of the closed kinds of ``HashError``; "not known yet" is an answer.

Used from one event loop. Its threads start with the first file, with the privileges the process has
by then.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Self

from collector_core.hashing.budget import HashClock
from collector_core.hashing.cache import KeyedCache
from collector_core.hashing.counters import HashCounters
from collector_core.hashing.digest import FileHash, FileKey, HashState, Pending
from collector_core.hashing.errors import (
    FileChangedError,
    HashCapacityError,
    HashError,
    HashingPausedError,
    HashingStoppedError,
    HashTimeoutError,
    PathNotAllowedError,
)
from collector_core.hashing.fuzzy import FuzzyState, load_fuzzy
from collector_core.hashing.gate import ChunkHook
from collector_core.hashing.job import HashJob, Outcome
from collector_core.hashing.jobs import STOP_S, HashJobs
from collector_core.hashing.roots import AllowedRoots, TargetPath, split_path
from collector_core.hashing.settings import HashSettings
from collector_core.hashing.target import DescriptorTarget, PathTarget, Target, look_at
from collector_core.hashing.worker import WorkerThreads

__all__ = ["FileHasher"]

FAILURE_MEMORY_S = 60.0
"""How long a background failure is told again instead of trying again."""
_REMEMBERED = 1024
_ATTEMPTS = 3
"""How often a path is looked at again because another file was put there meanwhile."""


class FileHasher:
    """Hashes files beneath allowed roots, and files that the caller opened.

    Args:
        settings: bounds, for all callers together.
        roots: where paths may lie; without them only descriptors are hashed. Close them after this.
        clock: times; tests give their own.
        on_chunk: called in a worker before each chunk, with its offset; for tests.
    """

    def __init__(
        self,
        settings: HashSettings | None = None,
        roots: AllowedRoots | None = None,
        *,
        clock: HashClock | None = None,
        on_chunk: ChunkHook | None = None,
    ) -> None:
        self._settings = settings or HashSettings()
        self._roots = roots
        self._clock = clock or HashClock()
        self._counters = HashCounters()
        self._jobs = HashJobs(
            self._settings, self._clock, self._counters, self._note_done, on_chunk
        )
        self._openers = WorkerThreads(1, "hash-open")
        self._cache: KeyedCache[FileHash] = KeyedCache(self._settings.cache_entries)
        self._young: KeyedCache[FileHash] = KeyedCache(_REMEMBERED)
        self._failed: KeyedCache[tuple[HashError, float]] = KeyedCache(_REMEMBERED)

    @property
    def counters(self) -> HashCounters:
        """A copy of the counters as they are now."""
        return self._counters.copy()

    @property
    def is_paused(self) -> bool:
        """Whether hashing is off to save resources."""
        return self._jobs.is_paused

    @property
    def fuzzy_state(self) -> FuzzyState:
        """Whether files get a fuzzy hash, and if not, why."""
        if not self._settings.wants_fuzzy:
            return FuzzyState.NOT_WANTED
        return FuzzyState.READY if load_fuzzy() is not None else FuzzyState.NO_LIBRARY

    async def hash_path(self, path: TargetPath) -> FileHash:
        """Returns the digests of the file at ``path``; opens and reads it in a thread.

        Cancelling one caller leaves the others alone; when all are, the reading stops. The time in
        line is not bounded here, so call it with a deadline.

        Raises:
            HashError: there are none; its kind says why.
        """
        with self._counting():
            target = self._target(path)
            for _ in range(_ATTEMPTS):
                self._refuse_unless_open()
                key = await self._look(target)
                outcome = await self._known_or_read(key, lambda: target)
                if isinstance(outcome, FileHash):
                    return outcome
            raise FileChangedError()

    async def hash_fd(self, descriptor: int, hint: str = "") -> FileHash:
        """Returns the digests of the file behind a descriptor that is open for reading.

        Args:
            descriptor: stays with the caller, who keeps it open until this returns; its position
                is not used.
            hint: what the log calls the file.

        Raises:
            HashError: there are none; its kind says why.
        """
        with self._counting():
            for _ in range(_ATTEMPTS):
                self._refuse_unless_open()
                key = look_at(descriptor, self._settings.max_file_bytes)
                outcome = await self._known_or_read(key, lambda: DescriptorTarget(descriptor, hint))
                if isinstance(outcome, FileHash):
                    return outcome
            raise FileChangedError()

    def lookup(self, target: int | os.stat_result) -> FileHash | Pending | None:
        """Returns what is known about a file now, and starts nothing; None when nothing is.

        Args:
            target: an open descriptor or the status of one.
        """
        try:
            status = os.fstat(target) if isinstance(target, int) else target
        except OSError:
            return None
        key = FileKey.of(status)
        if (known := self._cached(key) or self._young.get(key)) is not None:
            return known
        return self._jobs.find(key)

    def request(self, path: TargetPath) -> FileHash | Pending:
        """Returns the digests if they are known; else starts reading in the background.

        Opens the file in the calling thread, which takes microseconds on a local file system; for
        roots on one that may hang, use ``hash_path``.

        Raises:
            HashError: the file cannot be hashed, or its last reading in the background failed less
                than a minute ago; its kind says why.
        """
        with self._counting():
            self._refuse_closed()
            target = self._target(path)
            return self._request(target.look(self._settings.max_file_bytes), lambda: target)

    def request_fd(self, descriptor: int, hint: str = "") -> FileHash | Pending:
        """Like ``request`` for a descriptor, which the caller may close at once."""
        with self._counting():
            self._refuse_closed()
            key = look_at(descriptor, self._settings.max_file_bytes)
            return self._request(key, lambda: DescriptorTarget(descriptor, hint))

    def apply_budget(self, bytes_per_s: int | None) -> None:
        """Reads so many bytes a second from now on; None means without a bound."""
        self._jobs.apply_budget(bytes_per_s)

    def pause(self) -> None:
        """Stops starting to read: what waits is refused, requests are answered from memory."""
        self._jobs.pause()

    def resume(self) -> None:
        """Reads again."""
        self._jobs.resume()

    async def close(self) -> None:
        """Refuses who waits and ends the threads; a hasher that is closed stays so."""
        try:
            await self._jobs.close()
        finally:
            await self._openers.stop(STOP_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _target(self, path: TargetPath) -> PathTarget:
        if self._roots is None:
            split_path(path)
            raise PathNotAllowedError()
        self._roots.check(path)
        return PathTarget(self._roots, path)

    async def _look(self, target: PathTarget) -> FileKey:
        if self._openers.backlog >= self._settings.max_pending:
            raise HashCapacityError(max_pending=self._settings.max_pending)
        limit_bytes = self._settings.max_file_bytes
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._openers.submit(lambda: target.look(limit_bytes))
        except TimeoutError:
            raise HashTimeoutError(timeout_s=self._settings.timeout_s) from None

    async def _known_or_read(self, key: FileKey, make_target: Callable[[], Target]) -> Outcome:
        if (known := self._cached(key)) is not None:
            return known
        self._refuse_unless_open()
        outcome = await self._jobs.join(key, make_target)
        if isinstance(outcome, HashError):
            raise outcome.again()
        return outcome

    def _request(self, key: FileKey, make_target: Callable[[], Target]) -> FileHash | Pending:
        if (known := self._cached(key) or self._young.pop(key)) is not None:
            return known
        if (pending := self._jobs.find(key)) is not None:
            return pending
        self._refuse_failed(key)
        if self.is_paused:
            return Pending(HashState.PAUSED)
        self._jobs.begin(key, make_target)
        return Pending()

    def _cached(self, key: FileKey) -> FileHash | None:
        if (found := self._cache.get(key)) is not None:
            self._counters.cache_hits += 1
        return found

    def _note_done(self, job: HashJob, outcome: Outcome) -> None:
        if isinstance(outcome, FileHash):
            self._counters.hashed += 1
            self._failed.pop(job.key)
            if outcome.is_stable:
                self._cache.put(job.key, outcome)
            elif job.is_background:
                self._young.put(job.key, outcome)
        elif isinstance(outcome, HashError):
            self._note_failure(job, outcome)

    def _note_failure(self, job: HashJob, error: HashError) -> None:
        self._counters.changed += isinstance(error, FileChangedError)
        if job.is_background:
            if not job.waiters:
                self._counters.failures[error.kind] += 1
            if not error.retryable:
                until_s = self._clock.monotonic_s() + FAILURE_MEMORY_S
                self._failed.put(job.key, (error, until_s))

    def _refuse_failed(self, key: FileKey) -> None:
        if (found := self._failed.get(key)) is None:
            return
        error, until_s = found
        if self._clock.monotonic_s() < until_s:
            raise error.again()
        self._failed.pop(key)

    def _refuse_unless_open(self) -> None:
        self._refuse_closed()
        if self.is_paused:
            raise HashingPausedError()

    def _refuse_closed(self) -> None:
        if self._jobs.is_closed:
            raise HashingStoppedError()

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except HashError as error:
            self._counters.failures[error.kind] += 1
            raise
