"""Answers "which processes run right now", reading no more than the question needs.

Invariant: a record that is returned meets every filter as it was read last; a process about which a
filter cannot be decided is counted as unreadable, so that "no match" is not mistaken for "did not see".
"""

import fnmatch
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from daemoneye_procmond.cause import DegradedCause, coverage_causes
from daemoneye_procmond.errors import InvalidPatternError
from daemoneye_procmond.escape import escape_text
from daemoneye_procmond.procfs import ProcFs, UnreadableError
from daemoneye_procmond.record import ProcessReading, ProcessRecord
from daemoneye_procmond.statline import StatLine

__all__ = ["PATTERN_LIMIT", "EnumerationTally", "ProcessQuery", "enumerate_processes"]

PATTERN_LIMIT = 256
"""Most characters of a glob."""
_FORMING_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class ProcessQuery:
    """Which processes are wanted; an empty filter admits all, and all filters must admit.

    Raises:
        InvalidPatternError: the glob is empty or too long.
    """

    names: tuple[str, ...] = ()
    """Command names (comm) or file names of the executable, exact."""
    pids: tuple[int, ...] = ()
    executable_pattern: str | None = None
    """Case-sensitive glob over the whole executable path; ``*`` matches a slash too."""

    def __post_init__(self) -> None:
        pattern = self.executable_pattern
        if pattern is not None and not 0 < len(pattern) <= PATTERN_LIMIT:
            raise InvalidPatternError(
                f"executable pattern has {len(pattern)} characters; use 1 to {PATTERN_LIMIT}, "
                "or leave the filter out",
                length=len(pattern),
                limit=PATTERN_LIMIT,
            )


@dataclass(slots=True)
class EnumerationTally:
    """What became of the processes looked at; final once the iteration has ended."""

    listed_count: int = 0
    matched_count: int = 0
    vanished_count: int = 0
    """Gone between the listing and the reading."""
    unreadable_count: int = 0
    """Could not be read, so it is not known whether they match."""
    denied_count: int = 0
    """Not readable, or not whole, for want of privilege."""
    failed_count: int = 0
    """Not readable, or not whole, for another reason."""
    is_hidden: bool = False
    """The mount hides processes of other users."""

    @property
    def causes(self) -> tuple[DegradedCause, ...]:
        """Why the answer may not be whole; empty when it is."""
        return coverage_causes(
            denied_count=self.denied_count,
            failed_count=self.failed_count,
            is_hidden=self.is_hidden,
        )

    def count_unreadable(self, err: UnreadableError) -> None:
        """Counts a process about which nothing can be said."""
        self.unreadable_count += 1
        self.denied_count += err.is_denied
        self.failed_count += not err.is_denied

    def count_match(self, reading: ProcessReading) -> None:
        """Counts a process that is returned."""
        self.matched_count += 1
        self.denied_count += reading.is_denied
        self.failed_count += bool(reading.record.missing_fields) and not reading.is_denied


def enumerate_processes(
    procfs: ProcFs,
    query: ProcessQuery,
    tally: EnumerationTally | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[ProcessRecord]:
    """Yields the processes that ``query`` admits; blocking.

    They come by rising pid, those met in the middle of an exec after all others.

    Args:
        procfs: where to look.
        query: which are wanted.
        tally: filled while iterating.
        sleep: lets seconds pass, once, while an exec goes through.

    Raises:
        ProcFsUnavailableError: the processes cannot be listed.
    """
    counts = EnumerationTally() if tally is None else tally
    admit = _Filter(procfs, query)
    forming: list[ProcessReading] = []
    for stat in _read_stats(procfs, _candidates(procfs, query, counts), query, counts):
        reading = _read_admitted(procfs, stat, admit, counts)
        if reading is not None and reading.is_forming:
            forming.append(reading)
        elif reading is not None:
            counts.count_match(reading)
            yield reading.record
    if forming:
        sleep(_FORMING_PAUSE_S)
    for met in forming:
        reading = _read_admitted(procfs, met.stat, admit, counts)
        if reading is not None:
            counts.count_match(reading)
            yield reading.record


class _Filter:
    def __init__(self, procfs: ProcFs, query: ProcessQuery) -> None:
        self._procfs = procfs
        self._names = frozenset(query.names)
        pattern = query.executable_pattern
        self._pattern = None if pattern is None else re.compile(fnmatch.translate(pattern))

    def admits_early(self, stat: StatLine) -> bool:
        """Decides with as little reading as the filters allow; may raise UnreadableError."""
        needs_name = bool(self._names) and _comm_text(stat) not in self._names
        if not needs_name and self._pattern is None:
            return True
        if stat.is_kernel_thread or stat.is_exited:
            return False
        exe = self._procfs.read_exe(stat.pid)
        return self._admits_exe(exe, needs_name=needs_name)

    def admits(self, record: ProcessRecord) -> bool:
        """Decides on the final record: between two reads a process may become another program."""
        needs_name = bool(self._names) and record.name not in self._names
        return self._admits_exe(record.exe, needs_name=needs_name)

    def _admits_exe(self, exe: str | None, *, needs_name: bool) -> bool:
        if needs_name and (exe is None or exe.rpartition("/")[2] not in self._names):
            return False
        if self._pattern is None:
            return True
        return exe is not None and self._pattern.match(exe) is not None


def _candidates(procfs: ProcFs, query: ProcessQuery, counts: EnumerationTally) -> list[int]:
    if query.pids:
        pids = sorted({pid for pid in query.pids if pid > 0})
        counts.is_hidden = _is_first_process_hidden(procfs)
    else:
        pids = procfs.list_pids()
        counts.is_hidden = 1 not in pids
    counts.listed_count = len(pids)
    return pids


def _read_stats(
    procfs: ProcFs, pids: Iterable[int], query: ProcessQuery, counts: EnumerationTally
) -> Iterator[StatLine]:
    for pid in pids:
        try:
            stat = procfs.read_stat(pid)
        except UnreadableError as err:
            counts.count_unreadable(err)
            continue
        if stat is not None:
            yield stat
        elif not query.pids:  # a pid that was asked for and never listed has not vanished
            counts.vanished_count += 1


def _read_admitted(
    procfs: ProcFs, stat: StatLine, admit: _Filter, counts: EnumerationTally
) -> ProcessReading | None:
    try:
        if not admit.admits_early(stat):
            return None
    except UnreadableError as err:
        counts.count_unreadable(err)
        return None
    reading = procfs.read(stat)
    if reading is None:
        counts.vanished_count += 1
        return None
    return reading if admit.admits(reading.record) else None


def _is_first_process_hidden(procfs: ProcFs) -> bool:
    try:
        return procfs.read_stat(1) is None
    except UnreadableError:
        return False  # refused is counted where it matters; hidden looks like absent


def _comm_text(stat: StatLine) -> str:
    return escape_text(stat.comm)[0]
