"""The log that a collector keeps of its events until they are stored; docs/wal.md.

Invariants: what ``append`` returned for is in the log until it is acknowledged or counted as lost;
within one epoch no sequence stands for two events.

Locks, in this order: ``_writing`` for the end of the log, the state keeper's, and the catalog's,
which is never held while a file is touched.
"""

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from collector_core.bus.outbox_group import OutboxGroup
from collector_core.wal.catalog import ReadPlan
from collector_core.wal.clock import LogClock, boottime_ns
from collector_core.wal.errors import LogUnusableError, LogUnwritableError, unwritable
from collector_core.wal.limits import SyncPolicy, WalLimits
from collector_core.wal.loss import LogLoss, LogPosition, LossReason
from collector_core.wal.opening import OpenedLog, finish_repair, lock_directory, open_log
from collector_core.wal.reader import UndecodableError, read_plan
from collector_core.wal.record import MAX_BODY_BYTES, MAX_SEQUENCE
from collector_core.wal.recovery import Recovery
from collector_core.wal.repair import repair_segment
from collector_core.wal.state_keeper import StateKeeper
from collector_core.wal.window import RecordDamagedError
from daemoneye_mesh.errors import PreconditionError

__all__ = ["EventLog"]

log = logging.getLogger("daemoneye.wal")


class EventLog:
    """A log; ``EventLog.open`` makes one.

    One thread at a time appends and syncs, others may read, acknowledge and ask meanwhile.
    """

    def __init__(
        self,
        directory: Path,
        opened: OpenedLog,
        limits: WalLimits,
        keeper: StateKeeper,
        clock: LogClock,
    ) -> None:
        self.recovery: Recovery = opened.recovery
        """What opening it found and did."""
        self.epoch: int = opened.epoch
        """The epoch in which events are appended."""
        self._directory = directory
        self._catalog = opened.catalog
        self._appender = opened.appender
        self._limits = limits
        self._keeper = keeper
        self._clock = clock
        self._writing = threading.Lock()
        self._lock_descriptor: int | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        limits: WalLimits,
        *,
        sync: SyncPolicy = SyncPolicy.COMMIT,
        boot_id: str,
        now_ns: Callable[[], int] = time.time_ns,
        boottime_ns: Callable[[], int] = boottime_ns,
    ) -> "EventLog":
        """Opens a log, creating it if there is none, and puts in order what it finds.

        Args:
            directory: absolute path; nobody else gets in.
            limits: its bounds.
            sync: when an append returns.
            boot_id: of this boot, at most 36 bytes.
            now_ns: Unix time.
            boottime_ns: a clock that does not jump, for the age of segments.

        Raises:
            LogUnusableError: it cannot be created or written, is locked, or is not ours.
            ValueError: the boot id is too long.
        """
        clock = LogClock(now_ns, boottime_ns)
        descriptor = lock_directory(directory)
        try:
            opened = open_log(directory, sync, boot_id, clock)
            keeper = StateKeeper(directory, opened.catalog, sync=sync, boot_id=boot_id, clock=clock)
            if not keeper.settle():
                opened.appender.close()
                raise LogUnusableError(
                    f"the log cannot write in {directory}; make room or mend its permissions",
                    path=directory,
                )
        except BaseException:
            os.close(descriptor)
            raise
        finish_repair(directory)
        self = cls(directory, opened, limits, keeper, clock)
        self._lock_descriptor = descriptor
        return self

    @property
    def last_sequence(self) -> int:
        """The last that was appended in the current epoch; 0 when none was."""
        return self._catalog.last_sequence

    @property
    def size_bytes(self) -> int:
        """Of all segments on disk."""
        return self._catalog.size_bytes

    @property
    def segment_count(self) -> int:
        """Segments on disk."""
        return self._catalog.segment_count

    @property
    def unacknowledged_count(self) -> int:
        """Events that are held and not acknowledged, of all epochs."""
        return self._catalog.unacknowledged_count

    @property
    def lost_count(self) -> Counter[str]:
        """Events lost since the log was opened, by value of ``LossReason``."""
        return self._catalog.lost_count

    @property
    def oldest_unacknowledged_ns(self) -> int | None:
        """When about the oldest event that is held was appended, Unix time; None without one."""
        return self._catalog.oldest_unacknowledged_ns

    def append(self, groups: Sequence[OutboxGroup]) -> None:
        """Appends groups, all or none.

        Args:
            groups: of the current epoch; their sequences go on where the log ends, without a gap.

        Raises:
            ValueError: they do not, or a group is empty or larger than 2 MiB.
            LogUnwritableError: nothing was appended; the same call may be repeated.
        """
        with self._writing:
            self._check_open()
            self._check_groups(groups)
            if not groups:
                return
            try:
                has_begun = self._appender.append(groups, self._limits.segment_bytes)
            except LogUnwritableError:
                self._keeper.settle()  # what is acknowledged makes room for the next try
                raise
            if has_begun:
                with contextlib.suppress(LogUnwritableError):  # these groups are written
                    self._enforce()
                self._keeper.settle()

    def sync(self) -> None:
        """Has everything on disk that was appended.

        Raises:
            LogUnwritableError: it is not; the same call may be repeated.
        """
        with self._writing:
            self._check_open()
            self._appender.sync()
        self._keeper.settle_if_due()

    def read(self, epoch: int, first: int, last: int, max_bytes: int) -> list[OutboxGroup]:
        """Returns what is held of a range, in order; what is lost or acknowledged is skipped.

        Args:
            epoch: of the range.
            first: first sequence.
            last: last sequence.
            max_bytes: of all groups; one is returned whatever its size.

        Raises:
            InvalidRequestError: the log never had the epoch.
            LogUnwritableError: a file is damaged and cannot be repaired now; try again.
        """
        self._check_open()
        groups: list[OutboxGroup] = []
        cursor = max(1, first)
        while cursor and (plan := self._catalog.plan(epoch, cursor, last)):
            try:
                cursor = read_plan(plan, max_bytes, groups)
                continue
            except UndecodableError as err:
                self._lose_undecodable(epoch, err)
            except (RecordDamagedError, FileNotFoundError):
                self._repair(plan)
            except OSError as err:
                raise unwritable(plan.path, err) from err
            if groups:
                cursor = max(cursor, groups[-1].next_sequence)
        return groups

    def acknowledge(self, epoch: int, sequence: int) -> int:
        """Lets go of everything up to a sequence; returns the watermark.

        Raises:
            InvalidRequestError: the log never had the epoch, or never gave out the sequence.
        """
        self._check_open()
        watermark = self._catalog.acknowledge(epoch, sequence)
        if epoch == self.epoch and self._writing.acquire(blocking=False):
            try:
                self._leave_idle_segment()
            finally:
                self._writing.release()
        self._keeper.settle_if_due()
        return watermark

    def note_refused(self, epoch: int, first: int, last: int) -> None:
        """Counts events as lost that the broker refused for good.

        Raises:
            InvalidRequestError: the log never had the epoch.
        """
        self._check_open()
        loss = LogLoss(epoch, first, last, LossReason.REFUSED, self._clock.unix_ns())
        self._catalog.lose(loss)
        self._keeper.settle_if_due()

    def positions(self) -> tuple[LogPosition, ...]:
        """Returns how far each epoch goes, newest first; at most 16 old ones."""
        return self._catalog.positions()

    def losses(self, epoch: int, first: int, last: int) -> tuple[LogLoss, ...]:
        """Returns what is lost of a range, as far as it is not acknowledged.

        Raises:
            InvalidRequestError: the log never had the epoch.
        """
        return self._catalog.losses(epoch, first, last)

    def apply_limits(self, limits: WalLimits) -> None:
        """Sets other bounds; what is beyond them goes now."""
        self._limits = limits
        self.enforce_limits()

    def enforce_limits(self) -> tuple[LogLoss, ...]:
        """Lets go of the oldest segments beyond the bounds; returns what is lost by that."""
        with self._writing:
            self._check_open()
            self._leave_idle_segment()
            losses = self._enforce()
        self._keeper.settle_if_due()
        return losses

    def close(self, clean: bool = True) -> None:
        """Closes the log; twice does no harm.

        Args:
            clean: sync it and say on disk that nothing is missing.
        """
        with self._writing:
            if (descriptor := self._lock_descriptor) is None:
                return
            self._lock_descriptor = None
            try:
                if clean:
                    self._finish()
            finally:
                self._appender.close()
                os.close(descriptor)

    def _finish(self) -> None:
        try:
            self._appender.sync()
        except LogUnwritableError as err:
            log.error("the log is not closed cleanly: %s", err.message)
            self._keeper.settle()
            return
        self._keeper.settle(is_clean=True)

    def _check_open(self) -> None:
        if self._lock_descriptor is None:
            raise PreconditionError("the log is closed; open it again")

    def _check_groups(self, groups: Sequence[OutboxGroup]) -> None:
        expected = self._catalog.last_sequence + 1
        for group in groups:
            if group.key.epoch != self.epoch:
                raise ValueError(f"a group is of epoch {group.key.epoch}, not {self.epoch}")
            if not group.count or group.first_sequence != expected:
                raise ValueError(f"a group begins with {group.first_sequence}, not {expected}")
            if len(group.key.head) + len(group.block) > MAX_BODY_BYTES:
                raise ValueError(f"a group is larger than {MAX_BODY_BYTES} bytes")
            expected += group.count
        if expected > MAX_SEQUENCE:
            raise ValueError("the sequences of the epoch are used up")

    def _leave_idle_segment(self) -> None:
        if self._appender.is_idle(self._limits.segment_bytes):
            with contextlib.suppress(LogUnwritableError):  # the next append says so, if it matters
                self._appender.begin()

    def _enforce(self) -> tuple[LogLoss, ...]:
        # What is acknowledged makes room first: it is no loss.
        if self._catalog.size_bytes > self._limits.max_bytes:
            self._keeper.settle()
        losses: list[LogLoss] = []
        while reason := self._excess():
            found = self._catalog.oldest()
            if found is None:
                break
            oldest, is_active = found
            if is_active and oldest.is_empty:
                break
            if is_active:
                self._appender.begin()
            losses += self._catalog.lose_oldest(oldest, reason, self._clock.unix_ns())
            self._keeper.settle()
        for loss in losses:
            log.error("the log lets go of %d events: %s", loss.count, loss.reason.value)
        return tuple(losses)

    def _excess(self) -> LossReason | None:
        found = self._catalog.oldest()
        if found is None:
            return None
        if self._catalog.held_bytes > self._limits.max_bytes:
            return LossReason.LOG_FULL
        age_s = (self._clock.age_ns() - found[0].newest_ns) / 1e9
        return LossReason.LOG_EXPIRED if age_s > self._limits.max_age_s else None

    def _lose_undecodable(self, epoch: int, err: UndecodableError) -> None:
        log.error("the log holds what is no group: %s", err)
        self._catalog.lose(
            LogLoss(
                *(epoch, err.first_sequence, err.last_sequence),
                *(LossReason.LOG_CORRUPT, self._clock.unix_ns()),
            )
        )

    def _repair(self, plan: ReadPlan) -> None:
        """Mends the file of a plan, unless it was changed meanwhile and the plan is out of date."""
        with self._writing:
            self._check_open()
            if not self._catalog.is_current(plan):
                return
            now_ns = self._clock.unix_ns()
            if self._catalog.is_active(plan.segment):
                self._appender.begin()
            try:
                repair_segment(self._directory, self._catalog, plan.segment, now_ns)
            except OSError as err:
                raise unwritable(plan.path, err) from err
            self._keeper.settle()
