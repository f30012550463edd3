"""Times in which a collector did not see everything, told as events (MUST-GAP-01, MUST-GAP-02).

Invariant: a gap that was opened is told when it closes and at the latest a minute after it began, piece
by piece; what was told is not told again.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from collector_core.event import Emit, Event
from daemoneye.eventbus.v1 import collection_gap_pb2 as pb

__all__ = ["Gap", "GapKeeper", "GapReason", "LifeMark"]

REPORT_S = 60.0
MAX_WAITING = 1_000
"""Gaps that wait to be told, as while the log cannot be written; past that they grow together."""
MARK_S = 1.0
"""How often the collector leaves the mark that it is alive."""

log = logging.getLogger("daemoneye.gap")


class GapReason(IntEnum):
    """Why not everything was seen; the numbers are those of the contract."""

    KILLED = pb.COLLECTION_GAP_REASON_KILLED
    STOPPED = pb.COLLECTION_GAP_REASON_STOPPED
    PAUSED = pb.COLLECTION_GAP_REASON_PAUSED
    SOURCE_FAILED = pb.COLLECTION_GAP_REASON_SOURCE_FAILED
    SHED = pb.COLLECTION_GAP_REASON_SHED
    SUSPENDED = pb.COLLECTION_GAP_REASON_SUSPENDED


@dataclass(slots=True)
class Gap:
    """One time in which something may have gone unseen."""

    reason: GapReason
    started_ns: int
    ended_ns: int
    message: str
    source_name: str = ""
    event_count: int | None = None


@dataclass(frozen=True, slots=True)
class _OpenGap:
    gap: Gap
    count: Callable[[], int] | None
    """Events left out since it was asked last."""


class GapKeeper:
    """Keeps the open gaps of a collector and tells them.

    Args:
        emit: takes the events.
        topic: where they are published, such as ``events.process.gap``.
        now_ns: wall clock.
    """

    def __init__(self, emit: Emit, topic: str, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._emit = emit
        self._topic = topic
        self._now_ns = now_ns
        self._open: dict[tuple[GapReason, str], _OpenGap] = {}
        self._closed: list[Gap] = []
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()
        self.told_count = 0

    @property
    def is_waiting(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._closed)

    def open(
        self,
        reason: GapReason,
        source_name: str,
        message: str,
        count: Callable[[], int] | None = None,
    ) -> None:
        """Begins a gap; does nothing when it is open already.

        Args:
            reason: why.
            source_name: the source concerned; empty for the whole collector.
            message: one sentence for a person.
            count: returns how many events were left out since it was called last, if that is known.
        """
        if (reason, source_name) not in self._open:
            now_ns = self._now_ns()
            gap = Gap(reason, now_ns, now_ns, message, source_name)
            self._open[reason, source_name] = _OpenGap(gap, count)

    def close(self, reason: GapReason, source_name: str) -> None:
        """Ends a gap; does nothing when it is not open."""
        known = self._open.pop((reason, source_name), None)
        if known is not None:
            self._tell_until(known, self._now_ns())

    def tell(self, gap: Gap) -> None:
        """Tells a gap that is known from beginning to end."""
        if len(self._closed) < MAX_WAITING:
            self._closed.append(gap)
        else:
            _merge(self._closed[-1], gap)
        self._changed.set()

    def tell_until_now(self, gap: Gap) -> None:
        """Tells a gap that ends when it is emitted: what happened before this life."""
        gap.ended_ns = 0
        self.tell(gap)

    def tell_open(self) -> None:
        """Tells what has passed of the gaps that are open, and begins them anew."""
        now_ns = self._now_ns()
        for key, known in list(self._open.items()):
            rest = replace(known.gap, started_ns=now_ns, ended_ns=now_ns)
            self._open[key] = _OpenGap(rest, known.count)
            self._tell_until(known, now_ns)

    async def run(self) -> None:
        """Tells gaps until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + REPORT_S
        while True:
            try:
                async with asyncio.timeout_at(due_s):
                    await self._changed.wait()
            except TimeoutError:
                due_s = loop.time() + REPORT_S
                self.tell_open()
            await self.flush()

    async def flush(self) -> None:
        """Emits what is to be told; returns when all of it was taken."""
        async with self._turn:
            self._changed.clear()
            while self._closed:
                gap = self._closed[0]
                await self._emit(self._to_event(gap))
                self._closed.pop(0)
                self.told_count += 1
                log.warning("not everything was seen: %s", gap.message)

    def _tell_until(self, known: _OpenGap, now_ns: int) -> None:
        known.gap.ended_ns = max(now_ns, known.gap.started_ns)
        known.gap.event_count = known.count() if known.count is not None else None
        self.tell(known.gap)

    def _to_event(self, gap: Gap) -> Event:
        if not gap.ended_ns:
            gap.ended_ns = max(self._now_ns(), gap.started_ns)
        data = pb.CollectionGapData(
            reason=pb.CollectionGapReason.ValueType(gap.reason),
            source_name=gap.source_name,
            event_count=gap.event_count,
            message=gap.message,
        )
        data.started_at.FromNanoseconds(gap.started_ns)
        data.ended_at.FromNanoseconds(max(gap.ended_ns, gap.started_ns))
        return Event(self._topic, data, gap.ended_ns)


def _merge(into: Gap, gap: Gap) -> None:
    """Makes one gap of two: it spans both, and is of the whole collector if they differ."""
    if (into.reason, into.source_name) != (gap.reason, gap.source_name):
        into.source_name = ""
    into.started_ns = min(into.started_ns, gap.started_ns)
    into.ended_ns = max(into.ended_ns, gap.ended_ns)
    counts = [one for one in (into.event_count, gap.event_count) if one is not None]
    into.event_count = sum(counts) if counts else None
    if not into.message.endswith(", and more"):
        into.message += ", and more"


class LifeMark:
    """A file whose time says when the collector was last alive; survives every kind of end.

    Args:
        path: the file; its directory exists.
        now_ns: wall clock.
    """

    def __init__(self, path: Path, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._now_ns = now_ns

    def read_ns(self) -> int | None:
        """When an earlier life was last alive; None when there was none. At most now."""
        try:
            return min(self._path.stat().st_mtime_ns, self._now_ns())
        except FileNotFoundError:
            return None

    def touch(self) -> None:
        """Leaves the mark."""
        if not self._path.exists():
            self._path.touch(mode=0o600)
        os.utime(self._path, ns=(self._now_ns(), self._now_ns()))

    async def run(self) -> None:
        """Leaves the mark every second until cancelled."""
        is_failing = False
        while True:
            try:
                await asyncio.to_thread(self.touch)
                is_failing = False
            except OSError as error:
                if not is_failing:
                    log.warning("cannot mark %s: %s", self._path.name, error.strerror)
                is_failing = True
            await asyncio.sleep(MARK_S)
