"""Numbered, timed events and what a subscriber tells by them; the same code for every system.

Standard library only: each peer's interpreter runs it. Invariant: each event is stamped where it is
made and each stamp is read where it arrives, one by one, whoever carries them.
"""

import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

__all__ = ["STAMP_BYTES", "Progress", "Source", "Tally", "Template"]

_STAMP = Struct("<QQ")
STAMP_BYTES = _STAMP.size
"""Sequence from 1, then CLOCK_MONOTONIC in nanoseconds."""
SAMPLE_EVENTS, TIMED_SAMPLE_EVENTS = 1_024, 64
"""About how many events lie between two samples of time and count; fewer where they are slow."""


@dataclass(frozen=True, slots=True)
class Template:
    """An encoded event and the place in it that is written over."""

    frame: bytes
    offset: int


class Source:
    """Makes the events of one publisher."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self.count = 0

    def take(self, count: int) -> list[bytes]:
        """The next ``count`` events, each stamped with the time it is made."""
        frame, offset = bytearray(self._template.frame), self._template.offset
        stamp, now_ns = _STAMP.pack_into, time.monotonic_ns
        frames = []
        first = self.count + 1
        for sequence in range(first, first + count):
            stamp(frame, offset, sequence, now_ns())
            frames.append(bytes(frame))
        self.count += count
        return frames


class Progress:
    """How far each subscription has come, in memory that publisher and subscribers share."""

    def __init__(self, path: Path, slots: int) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), slots * 8)
        self._slots = memoryview(self._map).cast("Q")

    @staticmethod
    def create(path: Path, slots: int) -> None:
        """Makes the file, with every subscription at the start."""
        path.write_bytes(bytes(slots * 8))

    def tell(self, slot: int, sequence: int) -> None:
        """Says that a subscription has come to ``sequence``."""
        self._slots[slot] = sequence

    @property
    def least(self) -> int:
        """The sequence that every subscription has come to."""
        return min(self._slots)


class Tally:
    """What one subscription has seen of one publisher, whose events are numbered from 1."""

    __slots__ = (
        *(
            "template",
            "last",
            "received",
            "duplicates",
            "damaged",
            "announced",
            "latencies_ns",
            "samples",
        ),
        *("_progress", "_slot", "_is_timed", "_sample_events"),
    )

    def __init__(
        self, template: Template, progress: Progress, slot: int, is_timed: bool = False
    ) -> None:
        self._progress = progress
        self._slot = slot
        self._is_timed = is_timed
        self._sample_events = TIMED_SAMPLE_EVENTS if is_timed else SAMPLE_EVENTS
        self.template = template
        self.last = 0
        """The highest sequence seen."""
        self.received = 0
        self.duplicates = 0
        """Events that came again, or late."""
        self.damaged = 0
        """Events, of those looked at closely, that are not what was published."""
        self.announced = 0
        """Events that the system itself says were dropped."""
        self.latencies_ns: list[int] = []
        self.samples: list[tuple[int, int]] = []
        """CLOCK_MONOTONIC in nanoseconds, events delivered by then."""

    @property
    def delivered(self) -> int:
        """Different events that came."""
        return self.received - self.duplicates

    def take(self, frame: bytes) -> None:
        """Counts one event."""
        sequence, made_ns = _STAMP.unpack_from(frame, self.template.offset)
        self.received += 1
        last = self.last
        if sequence <= last:
            self.duplicates += 1
            return
        self.last = sequence
        if self._is_timed:
            self.latencies_ns.append(time.monotonic_ns() - made_ns)
        if sequence // self._sample_events != last // self._sample_events:
            self._sample(frame)

    def take_all(self, frames: Sequence[bytes]) -> None:
        """Counts events that came together, each as ``take`` does, with one sample for them all."""
        if self._is_timed:
            for frame in frames:
                self.take(frame)
            return
        read, offset, last = _STAMP.unpack_from, self.template.offset, self.last
        for frame in frames:
            sequence, _made_ns = read(frame, offset)
            if sequence <= last:
                self.duplicates += 1
                continue
            last = sequence
        before, self.last = self.last, last
        self.received += len(frames)
        if last // self._sample_events != before // self._sample_events:
            self._sample(frames[-1])

    def _sample(self, frame: bytes) -> None:
        """Notes the time, tells the publisher and looks at one event closely."""
        self.damaged += not self.recognises(frame)
        self.samples.append((time.monotonic_ns(), self.delivered))
        self._progress.tell(self._slot, self.last)

    def recognises(self, frame: bytes) -> bool:
        """Whether a frame is an event of the template, byte by byte, but for its stamp."""
        offset, expected = self.template.offset, self.template.frame
        end = offset + STAMP_BYTES
        same_size = len(frame) == len(expected)
        return same_size and frame[:offset] + frame[end:] == expected[:offset] + expected[end:]
