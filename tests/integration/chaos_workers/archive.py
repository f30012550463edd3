"""Keeps every file that a log ever wrote, by a second name for it, and reads them all at the end.

Segments are only appended to, cut at a torn tail, or let go of; so a second link to the same inode
shows whatever reached the log, also long after the log has let go of it.
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from collector_core.bus.wire import iter_frames
from collector_core.wal import EventLog, WalLimits
from daemoneye.eventbus.v1 import eventbus_pb2

LINK_S = 0.05
READ_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Logged:
    """One event as it is in the log."""

    epoch: int
    sequence: int
    time_ns: int
    pid: int
    """Process id; 0 for an event about something else."""


class Archive:
    """The files of one log.

    Args:
        source: directory of the log.
        target: where to keep them, on the same file system.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._source = source
        self._target = target
        self._known: set[int] = set()

    async def run(self) -> None:
        """Links new files until cancelled."""
        while True:
            self.link()
            await asyncio.sleep(LINK_S)

    def link(self) -> None:
        """Gives every new file its second name."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._source):
                if entry.name.endswith(".wal") and entry.inode() not in self._known:
                    place = self._target / str(entry.inode())
                    place.mkdir(parents=True, mode=0o700, exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):
                        os.link(entry.path, place / entry.name)
                        self._known.add(entry.inode())

    def read(self) -> Iterator[Logged]:
        """Yields every event of every file; one that is in two files comes twice."""
        for place in sorted(self._target.iterdir()):
            event_log = EventLog.open(place, WalLimits(max_bytes=1 << 40), boot_id="archive")
            try:
                for position in event_log.positions():
                    yield from _read_epoch(event_log, position.epoch, position.last_sequence)
            finally:
                event_log.close()


def _read_epoch(event_log: EventLog, epoch: int, last: int) -> Iterator[Logged]:
    first = 1
    while groups := event_log.read(epoch, first, last, READ_BYTES):
        for group in groups:
            for index, frame in enumerate(iter_frames(group.block)):
                message = eventbus_pb2.EventBusMessage.FromString(frame)
                yield Logged(
                    epoch,
                    group.first_sequence + index,
                    message.metadata.timestamp,
                    message.collection_event.process_event.process.pid,
                )
        first = groups[-1].next_sequence
