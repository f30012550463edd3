"""The line of files that wait for a worker: who is waited for goes before the background.

Invariant: within each of the two lanes the order is that of arrival.
"""

from collections.abc import Iterator

from collector_core.hashing.digest import FileKey
from collector_core.hashing.job import HashJob

__all__ = ["WaitingLine"]


class WaitingLine:
    """Jobs by file version, in two lanes."""

    def __init__(self) -> None:
        self._wanted: dict[FileKey, HashJob] = {}
        self._background: dict[FileKey, HashJob] = {}

    def __len__(self) -> int:
        return len(self._wanted) + len(self._background)

    def __iter__(self) -> Iterator[HashJob]:
        return iter([*self._wanted.values(), *self._background.values()])

    def add(self, job: HashJob) -> None:
        """Puts a job at the end of its lane."""
        lane = self._wanted if job.waiters else self._background
        lane[job.key] = job

    def promote(self, job: HashJob) -> None:
        """Moves a background job to those that are waited for, if it is still in line."""
        if self._background.pop(job.key, None) is not None:
            self._wanted[job.key] = job

    def remove(self, job: HashJob) -> bool:
        """Takes a job out; returns whether it was in line."""
        lane = self._wanted if job.key in self._wanted else self._background
        return lane.pop(job.key, None) is not None

    def next(self) -> HashJob | None:
        """Takes out whose turn it is; None when nobody waits."""
        for lane in (self._wanted, self._background):
            if lane:
                return lane.pop(next(iter(lane)))
        return None
