"""The readings of a hasher: coalesced by file version, bounded, cancelled when nobody waits.

Invariants: callers for one file version wait for one reading of it; every caller who waits gets an
answer; no more files wait, and no more descriptors are held, than the settings allow; a worker that
hangs in a file system takes its place away, but nobody waits for it longer than a file may take.

Used from one event loop; only ``HashJob.read`` runs in a worker.
"""

import asyncio
import logging
from collections.abc import Callable

from collector_core.hashing.budget import HashClock, ReadBudget
from collector_core.hashing.counters import HashCounters
from collector_core.hashing.digest import FileKey, HashState, Pending
from collector_core.hashing.errors import (
    HashCapacityError,
    HashError,
    HashFailedError,
    HashingPausedError,
    HashingStoppedError,
    HashTimeoutError,
)
from collector_core.hashing.gate import ChunkHook, ReadingCancelled, WorkerGate
from collector_core.hashing.job import HashJob, Outcome
from collector_core.hashing.line import WaitingLine
from collector_core.hashing.reading import Reading
from collector_core.hashing.settings import HashSettings
from collector_core.hashing.target import Target
from collector_core.hashing.worker import WorkerThreads

__all__ = ["HashJobs"]

log = logging.getLogger("daemoneye.hashing")

STUCK_AFTER_S = 1.0
"""A worker that has not come back so long after its time was over hangs in the file system."""
STOP_S = 2.0
"""How long closing waits for workers: they look up after each chunk."""
_REARM_S = 0.05

DoneListener = Callable[[HashJob, Outcome], None]


class HashJobs:
    """Runs readings.

    Args:
        settings: the bounds.
        clock: times.
        counters: kept up to date.
        on_done: told of every reading that came to an end and was not called off.
        on_chunk: called in the worker before each chunk.
    """

    def __init__(
        self,
        settings: HashSettings,
        clock: HashClock,
        counters: HashCounters,
        on_done: DoneListener,
        on_chunk: ChunkHook | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._counters = counters
        self._on_done = on_done
        self._on_chunk = on_chunk
        self._budget = ReadBudget(settings.bytes_per_s, clock.monotonic_s)
        self._readers = WorkerThreads(settings.workers, "hash-read")
        self._jobs: dict[FileKey, HashJob] = {}
        self._line = WaitingLine()
        self._running: set[HashJob] = set()
        self._descriptors = 0
        self._stuck = 0
        self.is_paused = False
        self.is_closed = False

    def apply_budget(self, bytes_per_s: int | None) -> None:
        """Reads at another rate from now on."""
        self._budget.apply_rate(bytes_per_s)

    def find(self, key: FileKey) -> Pending | None:
        """Returns how far the reading of ``key`` is; None when there is none."""
        if (job := self._jobs.get(key)) is None:
            return None
        is_halted = self.is_paused and job not in self._running
        return Pending(HashState.PAUSED if is_halted else HashState.PENDING)

    async def join(self, key: FileKey, make_target: Callable[[], Target]) -> Outcome:
        """Waits for the reading of ``key``; starts it if it is not under way.

        Raises:
            HashCapacityError: there is no place in line.
        """
        job = self._jobs.get(key)
        if job is None:
            job = self._admit(key, make_target, is_background=False)
        else:
            self._counters.coalesced += 1
            job.waiters += 1
            self._line.promote(job)
        try:
            return await asyncio.shield(job.future)
        finally:
            job.waiters -= 1
            if not job.waiters and not job.is_background and not job.future.done():
                self._call_off(job)

    def begin(self, key: FileKey, make_target: Callable[[], Target]) -> None:
        """Starts the reading of ``key`` in the background, if it is not under way.

        Raises:
            HashCapacityError: there is no place in line.
        """
        if key not in self._jobs:
            self._admit(key, make_target, is_background=True)

    def pause(self) -> None:
        """Starts no further reading; who waits in line is refused, the background stays there."""
        self.is_paused = True
        for job in self._line:
            if job.waiters:
                self._drop(job, HashingPausedError())

    def resume(self) -> None:
        """Goes on with what is in line."""
        self.is_paused = False
        self._pump()

    async def close(self) -> None:
        """Calls everything off and ends the workers."""
        self.is_closed = True
        for job in self._line:
            self._drop(job, HashingStoppedError())
        for job in list(self._running):
            job.gate.cancel()
            self._settle(job, HashingStoppedError())
        if hanging := await self._readers.stop(STOP_S):
            log.warning("%d hash workers hang in a file system and are left behind", hanging)

    def _admit(
        self, key: FileKey, make_target: Callable[[], Target], is_background: bool
    ) -> HashJob:
        places = self._settings.max_pending
        if is_background:
            places = max(places * 3 // 4, 1)
        if len(self._line) >= places or self._is_stalled():
            raise HashCapacityError(max_pending=self._settings.max_pending)
        target = make_target()
        if target.holds_descriptor:
            if self._descriptors >= self._settings.max_descriptors:
                target.release()
                raise HashCapacityError(max_descriptors=self._settings.max_descriptors)
            self._descriptors += 1
        job = HashJob(
            key,
            target,
            asyncio.get_running_loop().create_future(),
            WorkerGate(self._settings, self._budget, self._clock, self._on_chunk),
            waiters=0 if is_background else 1,
            is_background=is_background,
        )
        self._jobs[key] = job
        self._line.add(job)
        self._pump()
        return job

    def _pump(self) -> None:
        while (
            not (self.is_paused or self.is_closed) and len(self._running) < self._settings.workers
        ):
            if (job := self._line.next()) is None:
                break
            self._start(job)
        self._count_load()

    def _start(self, job: HashJob) -> None:
        self._running.add(job)
        reading = Reading(self._settings, job.gate, self._clock.wall_ns)
        future = self._readers.submit(lambda: job.read(reading))
        future.add_done_callback(lambda done: self._finish(job, done))
        loop = asyncio.get_running_loop()
        job.watch = loop.call_later(self._settings.timeout_s, self._watch, job)

    def _finish(self, job: HashJob, done: "asyncio.Future[Outcome]") -> None:
        if job.watch is not None:
            job.watch.cancel()
        self._running.discard(job)
        self._stuck -= job.is_stuck
        self._counters.bytes_read += job.gate.bytes_read
        self._release(job)
        error = done.exception()
        if error is None:
            self._settle(job, done.result())
        elif not isinstance(error, ReadingCancelled):
            log.error("hashing failed", exc_info=error)
            self._settle(job, HashFailedError())
        self._pump()

    def _watch(self, job: HashJob) -> None:
        """Answers for a worker whose time is over: it may hang in a read that never returns."""
        loop = asyncio.get_running_loop()
        if (remaining_s := job.gate.remaining_s()) > 0:
            job.watch = loop.call_later(max(remaining_s, _REARM_S), self._watch, job)
            return
        job.gate.cancel()
        self._settle(job, HashTimeoutError(timeout_s=self._settings.timeout_s))
        job.watch = loop.call_later(STUCK_AFTER_S, self._mark_stuck, job)

    def _mark_stuck(self, job: HashJob) -> None:
        log.warning("a hash worker hangs in the file system of device %d", job.key.device)
        job.is_stuck = True
        self._stuck += 1
        if self._is_stalled():
            for waiting in self._line:
                self._drop(waiting, HashCapacityError())
        self._count_load()

    def _is_stalled(self) -> bool:
        return self._stuck >= self._settings.workers

    def _call_off(self, job: HashJob) -> None:
        self._counters.cancelled += 1
        job.gate.cancel()
        self._forget(job)
        job.future.cancel()
        if self._line.remove(job):
            self._release(job)
            self._count_load()

    def _drop(self, job: HashJob, error: HashError) -> None:
        """Answers a job that waits in line."""
        self._line.remove(job)
        self._release(job)
        self._settle(job, error)
        self._count_load()

    def _settle(self, job: HashJob, outcome: Outcome) -> None:
        if job.future.done():
            return
        self._forget(job)
        job.future.set_result(outcome)
        self._on_done(job, outcome)

    def _forget(self, job: HashJob) -> None:
        if self._jobs.get(job.key) is job:
            del self._jobs[job.key]

    def _release(self, job: HashJob) -> None:
        job.target.release()
        self._descriptors -= job.target.holds_descriptor

    def _count_load(self) -> None:
        self._counters.waiting = len(self._line)
        self._counters.running = len(self._running)
        self._counters.stuck = self._stuck
