"""What a log knows about its files and epochs, for several threads at once.

Invariant: every access is under one lock, which is never held while a file is touched.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from collector_core.wal.epoch_book import EpochBook
from collector_core.wal.loss import LogLoss, LogPosition, LossReason
from collector_core.wal.segment import Segment
from collector_core.wal.state import EpochState
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["Catalog", "ReadPlan", "Written"]


class Written(NamedTuple):
    """A record that is in the file."""

    first_sequence: int
    last_sequence: int
    appended_ns: int
    offset: int


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Where some of a range is.

    Args:
        segment: as it is known; only compared, since others change it.
        path: of its file.
        salt: of its records.
        start: offset where to begin.
        end: offset where its good records end.
        parts: first and last sequence of each part that is wanted, ascending.
    """

    segment: Segment
    path: Path
    salt: int
    start: int
    end: int
    parts: Sequence[tuple[int, int]]


class Catalog:
    """The books of all epochs.

    Args:
        books: of older epochs, ascending.
        epoch: the current one.
    """

    def __init__(self, books: dict[int, EpochBook], epoch: int) -> None:
        self._lock = threading.Lock()
        self._books = books
        self._current = books.setdefault(epoch, EpochBook(epoch))
        self._active: Segment | None = None
        self._released: list[Segment] = []
        self._released_bytes = 0
        self._lost: Counter[str] = Counter()
        self.is_dirty = False
        """Whether something changed that the state on disk does not say; set under the lock."""

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self._current.epoch

    @property
    def last_sequence(self) -> int:
        """The last that was given out in the current epoch."""
        return self._current.last_sequence

    @property
    def size_bytes(self) -> int:
        """Of all segments that are on disk."""
        with self._lock:
            return self._released_bytes + sum(
                segment.size_bytes for book in self._books.values() for segment in book.segments
            )

    @property
    def held_bytes(self) -> int:
        """Of the segments that were not let go of."""
        with self._lock:
            return sum(
                segment.size_bytes for book in self._books.values() for segment in book.segments
            )

    @property
    def segment_count(self) -> int:
        """How many segments are on disk."""
        with self._lock:
            return len(self._released) + sum(len(book.segments) for book in self._books.values())

    @property
    def unacknowledged_count(self) -> int:
        """How many events are held and not acknowledged."""
        with self._lock:
            return sum(book.unacknowledged_count for book in self._books.values())

    @property
    def lost_count(self) -> Counter[str]:
        """How many events were lost since the log was opened, by reason."""
        with self._lock:
            return Counter(self._lost)

    @property
    def oldest_unacknowledged_ns(self) -> int | None:
        """When about the oldest event that is held was appended, Unix time."""
        with self._lock:
            for book in self._books.values():
                if found := book.find(1, book.last_sequence):
                    segment, parts = found
                    return segment.point_before(parts[0][0]).appended_ns
        return None

    def count_losses(self, losses: Sequence[LogLoss]) -> None:
        """Counts losses that are in the books."""
        with self._lock:
            for loss in losses:
                self._lost[loss.reason.value] += loss.count

    def add_active(self, segment: Segment) -> None:
        """Takes the segment in that is appended to from now on."""
        with self._lock:
            self._active = segment
            self._current.add_segment(segment)
            self._release(self._current)
            self.is_dirty = True

    def add_written(
        self, segment: Segment, written: Sequence[Written], end: int, age_ns: int
    ) -> None:
        """Takes records in that are in the file of a segment, and as old as that."""
        with self._lock:
            for record in written:
                segment.note_written(*record)
            segment.size_bytes = end
            segment.newest_ns = max(segment.newest_ns, age_ns)
            self._current.last_sequence = max(self._current.last_sequence, segment.last_sequence)

    def move_records(
        self, segment: Segment, offset: int, last_sequence: int, successor: Segment
    ) -> None:
        """Lets the records from an offset on be those of a successor, which is complete."""
        with self._lock:
            segment.truncate(offset, last_sequence)
            self._active = successor
            self._current.add_segment(successor)
            self.is_dirty = True

    def acknowledge(self, epoch: int, sequence: int) -> int:
        """Moves a watermark up; returns where it is.

        Raises:
            InvalidRequestError: the epoch is unknown, or the sequence was never given out.
        """
        with self._lock:
            book = self._book(epoch)
            if not 0 <= sequence <= book.last_sequence:
                raise InvalidRequestError(
                    f"sequence {sequence} of epoch {epoch} was never given out, the last was"
                    f" {book.last_sequence}; read the positions of the log again",
                    sequence=sequence,
                    epoch=epoch,
                    last_sequence=book.last_sequence,
                )
            if sequence > book.acknowledged:
                book.acknowledge(sequence)
                self.is_dirty = True
                self._release(book)
            return book.acknowledged

    def lose(self, loss: LogLoss) -> list[LogLoss]:
        """Notes a loss; returns the parts of it that were held until now.

        Raises:
            InvalidRequestError: the epoch is unknown.
        """
        with self._lock:
            book = self._book(loss.epoch)
            losses = self._lose(book, loss)
            self._release(book)
            return losses

    def lose_oldest(self, oldest: Segment, reason: LossReason, lost_at_ns: int) -> list[LogLoss]:
        """Lets go of a segment that ``oldest`` returned; returns what is lost by that."""
        with self._lock:
            book = self._books[oldest.header.epoch]
            first, last = oldest.first_sequence, book.last_of(0)
            losses = self._lose(book, LogLoss(book.epoch, first, last, reason, lost_at_ns))
            self._release(book)
            return losses

    def release_all(self) -> None:
        """Lets go of all segments of which nothing is held."""
        with self._lock:
            for book in self._books.values():
                self._release(book)

    def oldest(self) -> tuple[Segment, bool] | None:
        """Returns the oldest segment that is not let go of, and whether it is appended to."""
        with self._lock:
            for book in self._books.values():
                if book.segments:
                    return book.segments[0], book.segments[0] is self._active
        return None

    def is_active(self, segment: Segment) -> bool:
        """Whether a segment is the one that is appended to."""
        with self._lock:
            return segment is self._active

    def is_idle(self, segment: Segment, size_bytes: int) -> bool:
        """Whether a segment is larger than that and nothing in it is held."""
        with self._lock:
            return (
                segment.size_bytes > size_bytes
                and segment.last_sequence <= self._current.acknowledged
            )

    def acknowledged(self) -> int:
        """Returns the watermark of the current epoch."""
        with self._lock:
            return self._current.acknowledged

    def positions(self) -> tuple[LogPosition, ...]:
        """Returns how far each epoch goes, newest first."""
        with self._lock:
            return tuple(book.position() for book in reversed(self._books.values()))

    def losses(self, epoch: int, first: int, last: int) -> tuple[LogLoss, ...]:
        """Returns what is lost of a range and not acknowledged.

        Raises:
            InvalidRequestError: the epoch is unknown.
        """
        with self._lock:
            return tuple(self._book(epoch).losses.between(first, last))

    def plan(self, epoch: int, first: int, last: int) -> ReadPlan | None:
        """Returns where the beginning of a range is; None when nothing of it is held.

        Raises:
            InvalidRequestError: the epoch is unknown.
        """
        with self._lock:
            if not (found := self._book(epoch).find(first, last)):
                return None
            segment, parts = found
            start = segment.point_before(parts[0][0]).offset
            salt = segment.header.salt
            return ReadPlan(segment, segment.path, salt, start, segment.size_bytes, parts)

    def is_current(self, plan: ReadPlan) -> bool:
        """Whether the file is still as the plan says."""
        with self._lock:
            segment = plan.segment
            book = self._books.get(segment.header.epoch)
            return (
                book is not None
                and any(known is segment for known in book.segments)
                and segment.size_bytes >= plan.end
            )

    def replace_segment(self, damaged: Segment, mended: Segment, now_ns: int) -> list[LogLoss]:
        """Puts a segment in the place of another; returns what is lost by that."""
        with self._lock:
            book = self._books[damaged.header.epoch]
            index = next(i for i, known in enumerate(book.segments) if known is damaged)
            first, last = damaged.first_sequence, book.last_of(index)
            book.segments[index] = mended
            gone = [*mended.gaps, (max(first, mended.last_sequence + 1), last)]
            mended.gaps.clear()
            losses: list[LogLoss] = []
            for low, high in gone:
                loss = LogLoss(book.epoch, low, min(high, last), LossReason.LOG_CORRUPT, now_ns)
                losses += self._lose(book, loss)
            self._release(book)
            return losses

    def drop_segment(self, missing: Segment, now_ns: int) -> list[LogLoss]:
        """Gives a segment up whose file is gone; returns what is lost by that."""
        with self._lock:
            book = self._books[missing.header.epoch]
            index = next(i for i, known in enumerate(book.segments) if known is missing)
            loss = LogLoss(
                *(book.epoch, missing.first_sequence, book.last_of(index)),
                *(LossReason.LOG_CORRUPT, now_ns),
            )
            del book.segments[index]
            return self._lose(book, loss)

    def take_released(
        self,
    ) -> tuple[list[Segment], tuple[EpochState, ...], tuple[int, int]]:
        """Returns files to delete, and what has to be on disk before; clears ``is_dirty``.

        Returns:
            The files; the epochs; epoch and first sequence of the segment that is appended to.
        """
        with self._lock:
            released, self._released = self._released, []
            self._released_bytes = 0
            self.is_dirty = False
            epochs = tuple(
                EpochState(book.epoch, book.last_sequence, book.acknowledged, tuple(book.losses))
                for book in self._books.values()
            )
            active = self._active
            return (
                released,
                epochs,
                ((active.header.epoch, active.first_sequence) if active else (0, 0)),
            )

    def put_back(self, released: Sequence[Segment]) -> None:
        """Takes files back that could not be deleted."""
        with self._lock:
            self._note_released(released)
            self.is_dirty = True

    def _book(self, epoch: int) -> EpochBook:
        if not (book := self._books.get(epoch)):
            raise InvalidRequestError(
                f"the log never had epoch {epoch}, or forgot it; read its positions again",
                epoch=epoch,
            )
        return book

    def _lose(self, book: EpochBook, loss: LogLoss) -> list[LogLoss]:
        losses = book.lose(loss)
        for added in losses:
            self._lost[added.reason.value] += added.count
        self.is_dirty = self.is_dirty or bool(losses)
        return losses

    def _release(self, book: EpochBook) -> None:
        active = self._active if book is self._current else None
        self._note_released(book.release(active))

    def _note_released(self, released: Sequence[Segment]) -> None:
        self._released += released
        self._released_bytes += sum(segment.size_bytes for segment in released)
