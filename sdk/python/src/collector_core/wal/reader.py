"""Groups read back from a segment, in whole or as far as they are wanted.

Invariant: a group that is returned was verified, and holds exactly the sequences it says.
"""

import os
from collections.abc import Iterator, Sequence

from collector_core.bus.outbox_group import OutboxGroup
from collector_core.bus.wire import iter_frames
from collector_core.wal.catalog import ReadPlan
from collector_core.wal.envelope import decode_key
from collector_core.wal.record import Damage
from collector_core.wal.window import FileWindow, Found, RecordDamagedError

__all__ = ["UndecodableError", "read_plan"]


class UndecodableError(Exception):
    """A record is intact, but no group."""

    def __init__(self, first_sequence: int, last_sequence: int) -> None:
        super().__init__(f"events {first_sequence} to {last_sequence} cannot be decoded")
        self.first_sequence = first_sequence
        self.last_sequence = last_sequence


def read_plan(plan: ReadPlan, budget_bytes: int, groups: list[OutboxGroup]) -> int:
    """Reads on until the plan is done or the budget is spent.

    Args:
        plan: where to read.
        budget_bytes: how many bytes ``groups`` may have in all; the first group may go beyond.
        groups: what was read is put at its end, also when an error is raised.

    Returns:
        The sequence with which to go on; 0 when the budget is spent.

    Raises:
        RecordDamagedError: the file is not as it should be.
        UndecodableError: the record that comes next is no group.
        OSError: the file cannot be opened or read.
    """
    used_bytes = sum(group.size_bytes for group in groups)
    descriptor = os.open(plan.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for found in _iter_found(plan, descriptor):
            for group in _cut(found, plan.parts):
                used_bytes += group.size_bytes
                if groups and used_bytes > budget_bytes:
                    return 0
                groups.append(group)
    finally:
        os.close(descriptor)
    return plan.parts[-1][1] + 1


def _iter_found(plan: ReadPlan, descriptor: int) -> Iterator[Found]:
    """Yields the records with something that is wanted; all of it must be there."""
    window = FileWindow(descriptor, plan.end, plan.salt)
    expected, last = plan.parts[0][0], plan.parts[-1][1]
    offset = plan.start
    for found in window.iter_records(plan.start):
        record = found.record
        if record.first_sequence > last:
            break
        if record.last_sequence >= expected:
            yield found
        offset = found.offset + record.size_bytes
        expected = max(expected, record.last_sequence + 1)
        if expected > last:
            return
    raise RecordDamagedError(offset, Damage(False))


def _cut(found: Found, parts: Sequence[tuple[int, int]]) -> list[OutboxGroup]:
    record = found.record
    head, block = found.split()
    try:
        key = decode_key(head)
    except ValueError:
        raise UndecodableError(record.first_sequence, record.last_sequence) from None
    if key.epoch != record.epoch:
        raise UndecodableError(record.first_sequence, record.last_sequence)
    whole = OutboxGroup(key, record.first_sequence)
    whole.extend(block, record.event_count, record.largest_bytes)
    groups: list[OutboxGroup] = []
    for first, last in parts:
        low, high = max(first, record.first_sequence), min(last, record.last_sequence)
        if (low, high) == (record.first_sequence, record.last_sequence):
            return [whole]
        if low <= high:
            groups.append(_slice(whole, low, high))
    return groups


def _slice(whole: OutboxGroup, first: int, last: int) -> OutboxGroup:
    part = OutboxGroup(whole.key, first)
    try:
        for sequence, frame in enumerate(iter_frames(whole.block), whole.first_sequence):
            if first <= sequence <= last:
                part.append_frame(frame)
    except IndexError:
        part.count = 0
    if part.count != last - first + 1:
        raise UndecodableError(whole.first_sequence, whole.next_sequence - 1)
    return part
