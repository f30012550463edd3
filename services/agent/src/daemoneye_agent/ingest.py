"""Decides which rows of a batch are new; no I/O.

Invariant: ``offered = accepted + duplicates + refused``, for each batch and therefore for ever.
A row that cannot be stored never takes its neighbours down: it is refused, counted, and its sequence
is recorded as lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from daemoneye_agent.alert import Recorded
from daemoneye_agent.collector_event import CollectorEventRow, GapRow
from daemoneye_agent.event import EVENT_INSERT_COLUMNS, EventRow, SqlValue
from daemoneye_agent.loss import EpochProgress, Loss, LossReason
from daemoneye_agent.partition import DroppedPartition
from daemoneye_agent.progress import SourceProgress
from daemoneye_mesh.errors import InvalidRequestError

__all__ = [
    "Admission",
    "IngestResult",
    "Screening",
    "SourceInvalidError",
    "admit_rows",
    "check_source",
    "screen_rows",
]

_MAX_INTEGER = 2**63 - 1
_MIN_INTEGER = -(2**63)
_MAX_SOURCE_ID_CHARS = 256
_NOTHING: frozenset[int] = frozenset()


class SourceInvalidError(InvalidRequestError):
    """A source has no usable name or epoch."""


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What became of one batch."""

    accepted: list[EventRow]
    """The new process events with their id in front: the order of ``EVENT_COLUMNS``."""
    other_count: int = 0
    """New events that are not about processes."""
    gaps: tuple[GapRow, ...] = ()
    """New gaps in collection."""
    duplicates: int = 0
    """Rows that had been stored before."""
    refused: int = 0
    """Rows that cannot be stored: no sequence, or a value outside SQLite's range."""
    losses: tuple[Loss, ...] = ()
    """Ranges that were found missing with this batch and still are at its end."""
    repaired: int = 0
    """Rows that filled an older gap."""
    dropped: tuple[DroppedPartition, ...] = ()
    """Partitions let go because the store had reached its size."""
    alerts: tuple[Recorded, ...] = ()
    """What the store itself raised: events that are lost, gaps."""
    progress: tuple[EpochProgress, ...] = ()
    """How far every epoch is that the batch was about."""

    @property
    def stored(self) -> int:
        """How many rows are new, of whatever kind."""
        return len(self.accepted) + self.other_count + len(self.gaps)

    @property
    def changes_shortfall(self) -> bool:
        """Whether more or less is known to be missing than before."""
        return bool(self.losses or self.repaired or self.gaps)


@dataclass(frozen=True, slots=True)
class Screening:
    """A batch cleared of rows without a usable key."""

    rows: Sequence[EventRow]
    refused_indices: frozenset[int]
    """Rows that have a key, but a value that cannot be stored."""
    keyless: int
    """Rows left out because nobody can tell which event they are."""


@dataclass(slots=True)
class Admission:
    """Outcome of the de-duplication of one batch."""

    accepted: list[EventRow] = field(default_factory=list)
    duplicates: int = 0
    refused: int = 0
    repaired: int = 0


class ProgressLookup(Protocol):
    """Finds the progress of a source, making it when the source is new."""

    def __call__(self, source_id: str, source_epoch: int, /) -> SourceProgress: ...


class StoredLookup(Protocol):
    """Says whether the store holds an event; asked only where the progress does not know."""

    def __call__(self, source_id: str, source_epoch: int, sequence: int, /) -> bool: ...


def admit_rows(
    rows: Sequence[EventRow],
    progress_of: ProgressLookup,
    is_stored: StoredLookup,
    now_ns: int,
    refused_indices: frozenset[int] = _NOTHING,
) -> Admission:
    """De-duplicates a batch against the progress of its sources, and advances that progress."""
    result = Admission()
    accept = result.accepted.append
    source_id: SqlValue = None
    source_epoch: SqlValue = None
    progress = SourceProgress()
    for index, row in enumerate(rows):
        if row[0] != source_id or row[1] != source_epoch:
            source_id, source_epoch = row[0], row[1]
            progress = progress_of(source_id, source_epoch)  # type: ignore[arg-type]
        sequence: int = row[2]  # type: ignore[assignment]
        if sequence == progress.highest + 1 and not refused_indices:
            progress.highest = sequence  # the path of nearly every row: in order, exactly once
            accept(row)
        elif index in refused_indices or sequence < 1:
            result.refused += 1
            _skip_refused(progress, sequence, now_ns)
        else:
            _admit_out_of_order(result, progress, row, _bind(is_stored, row), now_ns)
    return result


def _admit_out_of_order(
    result: Admission,
    progress: SourceProgress,
    row: EventRow,
    is_stored: Callable[[int], bool],
    now_ns: int,
) -> None:
    sequence: int = row[2]  # type: ignore[assignment]
    late = sequence <= progress.highest
    if not progress.admit(sequence, now_ns, is_stored):
        result.duplicates += 1
        return
    result.repaired += late
    result.accepted.append(row)


def _skip_refused(progress: SourceProgress, sequence: int, now_ns: int) -> None:
    if sequence >= 1:
        progress.give_up(sequence, sequence, LossReason.REFUSED, now_ns)


def _bind(is_stored: StoredLookup, row: EventRow) -> Callable[[int], bool]:
    return lambda sequence: is_stored(row[0], row[1], sequence)  # type: ignore[arg-type]


def check_source(source_id: object, source_epoch: object) -> None:
    """Raises SourceInvalidError unless progress can be kept under this name."""
    if not (_is_source_id(source_id) and _is_natural(source_epoch)):
        raise SourceInvalidError(
            f"a source needs a name of 1 to {_MAX_SOURCE_ID_CHARS} characters and an epoch "
            "of 0 or more",
            limit=_MAX_SOURCE_ID_CHARS,
        )


def screen_rows(rows: Sequence[EventRow]) -> Screening:
    """Finds the rows that cannot be stored; run only after storing a whole batch failed."""
    keyed = [row for row in rows if _has_key(row)]
    refused = frozenset(index for index, row in enumerate(keyed) if not _is_storable(row))
    return Screening(keyed, refused, len(rows) - len(keyed))


def _has_key(row: EventRow) -> bool:
    if len(row) < 3:
        return False
    source_id, source_epoch, sequence = row[:3]
    return _is_source_id(source_id) and _is_natural(source_epoch) and _is_natural(sequence)


def _is_source_id(value: object) -> bool:
    return (
        isinstance(value, str)
        and 0 < len(value) <= _MAX_SOURCE_ID_CHARS
        and _is_storable_value(value)
    )


def _is_natural(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= _MAX_INTEGER


def _is_storable(row: EventRow) -> bool:
    is_whole = isinstance(row, CollectorEventRow | GapRow)
    return (
        (is_whole or len(row) == len(EVENT_INSERT_COLUMNS))
        and isinstance(row[3], int)  # the time decides about the partition
        and all(map(_is_storable_value, row))
    )


def _is_storable_value(value: object) -> bool:
    match value:
        case int():
            return _MIN_INTEGER <= value <= _MAX_INTEGER
        case str():
            return not any(0xD800 <= ord(char) <= 0xDFFF for char in value)
        case None | float() | bytes():
            return True
    return False
