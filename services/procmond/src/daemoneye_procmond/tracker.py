"""The table of known processes, and the events that follow from one scan after another.

Invariant: no input or output here. Each tracked identity gets one inventory or start and at most one
stop; an absence counts as a stop only in a complete scan; a bound that is reached is counted and never
turned into an event.

What is noticed at once, because the stat line shows it: start, stop, exec, suspend, resume, a new name
or session. Ids, control group and executable path are compared whenever a record is read again; besides
the changes above that is the ``recheck_count`` processes read longest ago in each scan.

An exec shows in the addresses of the image. Where the kernel hides them (another user's process, no
privilege), a new name together with new arguments or a new executable counts as one; a program that
replaces itself under its own name goes unnoticed there. A process read in the middle of an exec has no
arguments yet; a ``modified`` event brings them.
"""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from daemoneye_procmond.event import EventKind, ProcessEvent
from daemoneye_procmond.observation import Coverage, Observation, ScanPlan, TrackerLimits
from daemoneye_procmond.parentage import RecentStops
from daemoneye_procmond.record import (
    ProcessReading,
    ProcessRecord,
    carry_over,
    find_changes,
    shorten,
    text_size_bytes,
)
from daemoneye_procmond.statline import PF_KTHREAD, ExecSignature, StatLine

__all__ = ["Tracker"]

_SHORT_TEXT_BYTES = 256


@dataclass(slots=True)
class _Entry:
    stat: StatLine
    record: ProcessRecord
    signature: ExecSignature | None
    is_denied: bool
    is_forming: bool
    is_shortened: bool
    size_bytes: int


class Tracker:
    """Turns observations into events: ``plan``, read what it wants, ``apply``."""

    def __init__(self, limits: TrackerLimits | None = None) -> None:
        self._limits = limits or TrackerLimits()
        # Ordered by when the record was read, so that the front is what to check again.
        self._table: OrderedDict[int, _Entry] = OrderedDict()
        self._exited: dict[int, int] = {}
        self._recent = RecentStops()
        self._size_bytes = 0
        self._has_baseline = False
        self._horizon_ticks = -1

    def __len__(self) -> int:
        return len(self._table)

    def coverage(self) -> Coverage:
        """How much of the table is whole."""
        denied = incomplete = shortened = 0
        for entry in self._table.values():
            denied += entry.is_denied
            incomplete += bool(entry.record.missing_fields) and not entry.is_denied
            shortened += entry.is_shortened
        return Coverage(len(self._table), denied, incomplete, shortened)

    def plan(self, observation: Observation) -> ScanPlan:
        """Says what has to be read to know what happened; changes nothing."""
        new: list[StatLine] = []
        changed: list[StatLine] = []
        gone = self._find_absent(observation)
        for stat in observation.stats:
            entry = self._table.get(stat.pid)
            if entry is not None and entry.stat.start_ticks == stat.start_ticks:
                if _is_changed(entry, stat):
                    changed.append(stat)
            elif self._exited.get(stat.pid) != stat.start_ticks:
                new.append(stat)
                if entry is not None or stat.pid in self._exited:
                    gone.append(stat.pid)
        new.sort(key=lambda stat: (stat.start_ticks, stat.pid))
        room = self._limits.process_count - len(self._table) - len(self._exited) + len(gone)
        room = max(0, room)
        return ScanPlan(
            observation=observation,
            gone=tuple(gone),
            new=tuple(new[:room]),
            changed=tuple(changed),
            recheck=self._choose_recheck(observation, changed, gone),
            overflow=tuple(new[room:]),
        )

    def apply(
        self, plan: ScanPlan, readings: Mapping[int, ProcessReading]
    ) -> tuple[ProcessEvent, ...]:
        """Takes the scan into the table and returns what happened, stops first, oldest first.

        Args:
            plan: what ``plan`` said of the latest observation.
            readings: by pid; one that is left out is looked at again in the next scan.
        """
        observation = plan.observation
        self._recent.expire(observation.monotonic_s)
        events = self._take_gone(plan.gone, observation)
        for stat in plan.new:
            reading = readings.get(stat.pid)
            if reading is not None and reading.stat.start_ticks == stat.start_ticks:
                events += self._take_new(reading, observation)
        for stat in plan.changed + plan.recheck:
            events += self._take_known(stat, readings.get(stat.pid), observation)
        self._remember_horizon(plan)
        return tuple(self._with_parent(event) for event in events)

    def _find_absent(self, observation: Observation) -> list[int]:
        if not observation.is_complete:
            return []
        present = {stat.pid for stat in observation.stats} | observation.unreadable_pids
        return [pid for known in (self._table, self._exited) for pid in known if pid not in present]

    def _choose_recheck(
        self, observation: Observation, changed: Iterable[StatLine], gone: Iterable[int]
    ) -> tuple[StatLine, ...]:
        skipped = {stat.pid for stat in changed} | set(gone)
        present = {stat.pid: stat for stat in observation.stats}
        chosen: list[StatLine] = []
        for pid, entry in self._table.items():
            if len(chosen) >= self._limits.recheck_count:
                break
            if pid in present and pid not in skipped and not entry.record.kernel_thread:
                chosen.append(present[pid])
        return tuple(chosen)

    def _take_gone(self, pids: Iterable[int], observation: Observation) -> list[ProcessEvent]:
        events: list[ProcessEvent] = []
        for pid in pids:
            self._exited.pop(pid, None)
            entry = self._drop(pid)
            if entry is not None:
                events.append(self._stop(entry.record, None, observation))
        return sorted(events, key=lambda event: (event.record.start_ticks, event.record.pid))

    def _take_new(self, reading: ProcessReading, observation: Observation) -> list[ProcessEvent]:
        stat, record = reading.stat, reading.record
        opening = ProcessEvent(self._opening_kind(stat), record, observation.observed_at_ns)
        if not reading.is_vanished and not stat.is_exited:
            self._put(reading, record, stat.signature)
            return [opening]
        if not reading.is_vanished:
            self._exited[stat.pid] = stat.start_ticks
        return [opening, self._stop(record, _exit_code(stat, None), observation)]

    def _opening_kind(self, stat: StatLine) -> EventKind:
        is_older = not self._has_baseline or stat.start_ticks < self._horizon_ticks
        return EventKind.INVENTORY if is_older else EventKind.START

    def _take_known(
        self, stat: StatLine, reading: ProcessReading | None, observation: Observation
    ) -> list[ProcessEvent]:
        entry = self._table.get(stat.pid)
        if entry is None:
            return []
        if stat.is_exited:
            return [self._take_exit(entry, stat, observation)]
        if reading is None or reading.is_vanished or not _is_same_process(reading.stat, stat):
            return []  # ended while it was read: the next scan misses it, and says so
        if reading.stat.is_exited:
            return [self._take_exit(entry, reading.stat, observation)]
        return self._compare(entry, reading, observation)

    def _take_exit(self, entry: _Entry, stat: StatLine, observation: Observation) -> ProcessEvent:
        self._drop(stat.pid)
        self._exited[stat.pid] = stat.start_ticks
        return self._stop(entry.record, _exit_code(stat, entry.signature), observation)

    def _compare(
        self, entry: _Entry, reading: ProcessReading, observation: Observation
    ) -> list[ProcessEvent]:
        previous, record = entry.record, reading.record
        is_exec = _is_exec(entry, reading)
        if not is_exec and _is_same_image(entry, reading):
            record = carry_over(previous, record)
        changed = _watched_changes(previous, record) + _completed(entry, reading)
        signature = reading.stat.signature
        self._put(reading, record, signature if is_exec else signature or entry.signature)
        at_ns = observation.observed_at_ns
        events: list[ProcessEvent] = []
        if is_exec or changed:
            kind = EventKind.EXEC if is_exec else EventKind.MODIFIED
            events.append(ProcessEvent(kind, record, at_ns, previous, changed))
        if reading.stat.is_suspended != entry.stat.is_suspended:
            kind = EventKind.SUSPEND if reading.stat.is_suspended else EventKind.RESUME
            events.append(ProcessEvent(kind, record, at_ns))
        return events

    def _stop(
        self, record: ProcessRecord, exit_code: int | None, observation: Observation
    ) -> ProcessEvent:
        self._recent.add(record, observation.monotonic_s)
        return ProcessEvent(EventKind.STOP, record, observation.observed_at_ns, exit_code=exit_code)

    def _put(
        self, reading: ProcessReading, record: ProcessRecord, signature: ExecSignature | None
    ) -> None:
        pid = record.pid
        self._drop(pid)
        size_bytes = text_size_bytes(record)
        kept = record
        if self._size_bytes + size_bytes > self._limits.text_bytes:
            kept = shorten(record, _SHORT_TEXT_BYTES)
            size_bytes = text_size_bytes(kept)
        self._size_bytes += size_bytes
        self._table[pid] = _Entry(
            stat=reading.stat,
            record=kept,
            signature=signature,
            is_denied=reading.is_denied,
            is_forming=reading.is_forming,
            is_shortened=kept is not record,
            size_bytes=size_bytes,
        )

    def _drop(self, pid: int) -> _Entry | None:
        entry = self._table.pop(pid, None)
        if entry is not None:
            self._size_bytes -= entry.size_bytes
        return entry

    def _remember_horizon(self, plan: ScanPlan) -> None:
        """After a scan that left processes out, one that turns up older than it is no start."""
        observation = plan.observation
        if observation.is_complete:
            self._has_baseline = True
        ticks = [self._horizon_ticks]
        if plan.overflow:
            ticks.append(plan.overflow[-1].start_ticks + 1)
        if observation.unreadable_pids:
            ticks += [stat.start_ticks for stat in observation.stats]
        self._horizon_ticks = max(ticks)

    def _with_parent(self, event: ProcessEvent) -> ProcessEvent:
        parent = self._find_parent(event.record)
        return event if parent is None else replace(event, parent=parent)

    def _find_parent(self, record: ProcessRecord) -> ProcessRecord | None:
        if not record.ppid:
            return None
        entry = self._table.get(record.ppid)
        # A parent is never younger than its child; a younger one has got the pid since.
        if entry is not None and entry.record.start_ticks <= record.start_ticks:
            return entry.record
        return self._recent.find(record.ppid, record.start_ticks)


def _is_same_process(one: StatLine, other: StatLine) -> bool:
    return one.pid == other.pid and one.start_ticks == other.start_ticks


def _is_changed(entry: _Entry, stat: StatLine) -> bool:
    """Whether the stat line alone shows that something happened since the record was read."""
    known = entry.stat
    return (
        (stat.comm != known.comm and not stat.is_kernel_thread)
        or stat.start_stack != known.start_stack
        or stat.start_code != known.start_code
        or stat.env_start != known.env_start
        or stat.session_id != known.session_id
        or (stat.state != known.state and _is_new_phase(known, stat))
        or stat.flags & PF_KTHREAD != known.flags & PF_KTHREAD
    )


def _is_new_phase(known: StatLine, stat: StatLine) -> bool:
    return stat.is_exited or stat.is_suspended != known.is_suspended


def _is_exec(entry: _Entry, reading: ProcessReading) -> bool:
    if entry.record.kernel_thread:
        return not reading.record.kernel_thread
    signature = reading.stat.signature
    if signature is not None and entry.signature is not None:
        return signature != entry.signature
    if (
        reading.is_forming
        and entry.signature is not None
        and "argv" in reading.record.missing_fields
    ):
        return True  # we may see the addresses, and the new image has none yet
    return reading.stat.comm != entry.stat.comm and any(
        getattr(entry.record, column) != getattr(reading.record, column)
        for column in ("argv", "exe")
        if entry.record.is_whole(column) and reading.record.is_whole(column)
    )


def _is_same_image(entry: _Entry, reading: ProcessReading) -> bool:
    """Whether it is certain that no other program took the process over unnoticed."""
    signature = reading.stat.signature
    if signature is not None and entry.signature is not None:
        return signature == entry.signature
    old, new = entry.record, reading.record
    return (
        old.name == new.name
        and old.is_whole("argv")
        and new.is_whole("argv")
        and old.argv == new.argv
    )


def _completed(entry: _Entry, reading: ProcessReading) -> tuple[str, ...]:
    """The arguments, once the exec in the middle of which a process was read is through."""
    if not entry.is_forming or reading.is_forming:
        return ()
    is_new = reading.record.argv is not None and reading.record.argv != entry.record.argv
    return ("argv", "cmdline") if is_new else ()


def _watched_changes(old: ProcessRecord, new: ProcessRecord) -> tuple[str, ...]:
    changes = find_changes(old, new)
    if old.kernel_thread and new.kernel_thread:
        # The kernel renames its workers by the work they do.
        return tuple(column for column in changes if column != "name")
    return changes


def _exit_code(stat: StatLine, signature: ExecSignature | None) -> int | None:
    # The kernel prints 0 when we may not see it; that is an answer only where we could see the rest.
    if stat.wait_status == 0 and signature is None:
        return None
    try:
        return os.waitstatus_to_exitcode(stat.wait_status)
    except ValueError:  # the status of a stop, not of an exit
        return None
