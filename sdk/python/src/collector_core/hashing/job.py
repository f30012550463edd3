"""One reading of one file version, for any number of callers."""

import asyncio
import contextlib
from dataclasses import dataclass
from enum import Enum, auto

from collector_core.hashing.digest import FileHash, FileKey
from collector_core.hashing.errors import FileUnavailableError, HashError, PathNotAllowedError
from collector_core.hashing.gate import WorkerGate
from collector_core.hashing.reading import Reading
from collector_core.hashing.target import Target

__all__ = ["HashJob", "Moved", "Outcome"]


class Moved(Enum):
    """The target was another version, or gone, by the time it was opened."""

    MOVED = auto()


Outcome = FileHash | HashError | Moved


@dataclass(slots=True, eq=False)
class HashJob:
    """A reading that waits or runs; touched by the event loop only, but for ``read``."""

    key: FileKey
    target: Target
    future: "asyncio.Future[Outcome]"
    gate: WorkerGate
    waiters: int = 0
    is_background: bool = False
    """Whether it is done even if nobody waits."""
    is_stuck: bool = False
    watch: asyncio.TimerHandle | None = None

    def read(self, reading: Reading) -> Outcome:
        """Reads the file, in a worker.

        Raises:
            ReadingCancelled: it was called off.
        """
        try:
            self.gate.start()
            with contextlib.ExitStack() as stack:
                try:
                    descriptor = stack.enter_context(self.target.lend())
                except (FileUnavailableError, PathNotAllowedError):
                    # Gone from its path since it was looked at; others who wait for this version
                    # may have it open.
                    return Moved.MOVED
                if reading.look(descriptor) != self.key:
                    return Moved.MOVED
                return reading.digest(descriptor, self.key)
        except HashError as error:
            return error
