"""What one epoch of a source still lacks: from what is stored and what its log says; no I/O.

Invariant: what is asked for or given up is open in the store, or was given out and never seen there.
"""

from collections.abc import Callable, Iterator, Sequence

from daemoneye_agent.delivery_step import Ask, Settle
from daemoneye_agent.log_position import MAX_LOG_LOSSES, LogLoss, LogPosition
from daemoneye_agent.loss import EpochProgress, LossReason
from daemoneye_agent.retry_pace import RetryPace
from daemoneye_agent.span import Span, intersect, select_piece

__all__ = ["TAIL_IDLE_S", "EpochPlan", "name_losses"]

TAIL_IDLE_S = 2.0
"""Without an arrival for this long, what was given out and is not stored counts as missing."""
PATIENCE_S = 5.0
MAX_PATIENCE_S = 60.0
MAX_REFUSALS = 3
_MAX_SEQUENCE = 2**63 - 1
_LOSS_REASONS = {
    1: "the collector's log was full",
    2: "older than the collector's log keeps",
    3: "the collector's log was corrupt",
    4: "refused by the broker",
}
"""By number of ``ipc.v1.EventLossReason``."""


class EpochPlan:
    """One epoch. Times are seconds of a clock that never jumps back.

    Args:
        progress: how far it is stored.
        now_s: the time.
        jitter: a number from 0 to 1.
    """

    def __init__(self, progress: EpochProgress, now_s: float, jitter: Callable[[], float]) -> None:
        self.progress = progress
        self.position: LogPosition | None = None
        self.acknowledged = 0
        """Up to where the collector was told to let go."""
        self.pace = RetryPace(PATIENCE_S, MAX_PATIENCE_S, jitter)
        self.is_refused = False
        """Whether the collector does not know the epoch; nothing more is asked of it then."""
        self._refusals = 0
        self._cursor = 0
        self._quiet_since_s = now_s
        self._is_behind = False

    def take_progress(self, progress: EpochProgress, now_s: float, *, is_arrival: bool) -> None:
        """Takes over how far the store is; older news than what is known is left aside."""
        if progress.version < self.progress.version:
            return
        self.progress = progress
        if is_arrival:
            self._quiet_since_s = now_s
        self._is_behind = self._tail is not None

    def take_position(self, position: LogPosition | None, now_s: float) -> None:
        """Takes over how far the log goes; None when the collector did not name the epoch."""
        self.position = position
        if position is not None:
            self.acknowledged = min(self.acknowledged, position.acknowledged_sequence)
        if self._tail is not None and not self._is_behind:
            self._is_behind = True
            self._quiet_since_s = now_s

    def hurry(self, now_s: float) -> None:
        """Waits no longer: whatever was on its way is gone."""
        self._quiet_since_s = now_s - TAIL_IDLE_S
        self.pace.reset()
        self._cursor = 0

    def find_gone(self, now_s: float, *, is_ended: bool) -> Settle | None:
        """Returns the first range that the log does not have any more and the store waits for.

        Args:
            now_s: the time.
            is_ended: whether the log is in a later epoch, so that nothing is added to this one.
        """
        if self.position is None:
            return None
        wanted = self._wanted(now_s)
        for gone, reason in _gone_of(self.position, is_ended=is_ended):
            for span in wanted:
                if common := intersect(span, gone):
                    return Settle(self.progress.source_epoch, *common, reason)
        return None

    def next_ask(self, now_s: float) -> Ask | None:
        """Returns what to ask for now."""
        if self.is_refused or not self.pace.is_due(now_s):
            return None
        piece = select_piece(self._wanted(now_s), self._cursor)
        return Ask(self.progress.source_epoch, *piece) if piece else None

    def count_missing(self, ask: Ask) -> int:
        """How much of what was asked for is not stored yet."""
        unseen = (self.progress.highest + 1, max(ask.last, self.progress.highest + 1))
        parts = (
            intersect(span, (ask.first, ask.last)) for span in (*self.progress.open_ranges, unseen)
        )
        return sum(part[1] - part[0] + 1 for part in parts if part)

    def note_stalled(self, ask: Ask) -> None:
        """Lets others come first: what was asked for does not arrive."""
        self._cursor = ask.last
        self.pace.stall()

    def note_refused(self, now_s: float, *, is_unknown: bool) -> Settle | None:
        """Takes note that the collector refuses the epoch; returns what is lost by that.

        Args:
            now_s: the time.
            is_unknown: whether the collector names other epochs, and not this one.
        """
        self._refusals += 1
        self.pace.fail(now_s)
        if not is_unknown and self._refusals < MAX_REFUSALS:
            return None
        self.is_refused = True
        last = max(self.progress.highest, self._tail[1] if self._tail else 0)
        if not last:
            return None
        return Settle(self.progress.source_epoch, 1, last, LossReason.UNKNOWN_EPOCH)

    def settle_tail(self, reason: str) -> Settle | None:
        """Returns what was given out and never seen, to be given up."""
        return Settle(self.progress.source_epoch, *self._tail, reason) if self._tail else None

    @property
    def _tail(self) -> Span | None:
        if self.position is None or self.position.last_sequence <= self.progress.highest:
            return None
        return self.progress.highest + 1, self.position.last_sequence

    def _wanted(self, now_s: float) -> Sequence[Span]:
        if self.is_refused:
            return ()
        tail = self._tail
        if tail is None or now_s - self._quiet_since_s < TAIL_IDLE_S:
            return self.progress.open_ranges
        return (*self.progress.open_ranges, tail)


def name_losses(losses: Sequence[LogLoss]) -> Iterator[tuple[Span, str]]:
    """Returns ranges and why they are lost.

    A list that is full is cut by its last entry: that one covers events that are not lost, too.
    """
    known = losses[:-1] if len(losses) >= MAX_LOG_LOSSES else losses
    for loss in known:
        reason = _LOSS_REASONS.get(loss.reason, LossReason.LET_GO)
        yield (loss.first_sequence, loss.last_sequence), reason


def _gone_of(position: LogPosition, *, is_ended: bool) -> Iterator[tuple[Span, str]]:
    yield from name_losses(position.losses)
    through = max(position.first_sequence - 1, position.acknowledged_sequence)
    yield (1, min(through, position.last_sequence)), LossReason.LET_GO
    if is_ended:  # a power cut may have taken what was given out last
        yield (position.last_sequence + 1, _MAX_SEQUENCE), LossReason.LET_GO
