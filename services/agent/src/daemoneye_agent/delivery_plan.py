"""What to ask a collector for, what to tell it, and what to give up, and when; no I/O.

Invariant: a collector is told to let go of events only after what was given up for want of it has been
opened again; at most one range is being replayed at a time; whatever makes no progress is tried ever
more slowly, and everything that is open ends as stored or as lost with a reason.

A source is *away* until its collector is in service. Then the collector is asked what it offers, and
once a heartbeat said how far its log goes the source is *active*. One that is not active for
``GRACE_S`` is given up, until it comes back.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from daemoneye_agent.delivery_step import (
    Acknowledge,
    Activate,
    Ask,
    ExpectReplay,
    GiveUp,
    Negotiate,
    Settle,
    Step,
)
from daemoneye_agent.epoch_plan import EpochPlan, name_losses
from daemoneye_agent.log_position import LogLoss, LogPosition
from daemoneye_agent.loss import EpochProgress, LossReason
from daemoneye_agent.retry_pace import RetryPace
from daemoneye_agent.span import intersect

__all__ = ["ACKNOWLEDGE_EVERY_S", "GRACE_S", "SourcePlan"]

GRACE_S = 60.0
"""How long a collector may be away before what it has is given up."""
ACKNOWLEDGE_EVERY_S = 0.25
MAX_TOLD_EPOCHS = 64


@dataclass(slots=True)
class _Outstanding:
    ask: Ask
    patience_s: float
    missing: int
    contiguous: int
    since_s: float
    """When it last made progress."""


class SourcePlan:
    """The plan for one source. Times are seconds of a clock that never jumps back.

    Args:
        source_id: the source, which is the collector of that id.
        now_s: the time.
        is_expected: whether the store knows already that the source can send again.
        jitter: a number from 0 to 1, so that many sources do not act at once.
    """

    def __init__(
        self,
        source_id: str,
        now_s: float,
        *,
        is_expected: bool = False,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.source_id = source_id
        self._jitter = jitter
        self._is_expected = is_expected
        self._term = 0
        self._is_in_service = False
        self._is_subscribed = False
        self._is_negotiated = False
        self._can_replay: bool | None = None
        self._positions: tuple[LogPosition, ...] | None = None
        self._told: dict[int, int] = {}
        """The last sequence given out, by epoch, of those that are named or were and are not settled."""
        self._is_active = False
        self._give_up_at_s = now_s + GRACE_S
        self._version = 0
        self._epochs: dict[int, EpochPlan] = {}
        self._outstanding: _Outstanding | None = None
        self._settlements: deque[Settle] = deque()
        self._pace = RetryPace(0.5, 10.0, jitter)
        self._acknowledge_pace = RetryPace(0.5, 30.0, jitter)
        self._acknowledge_at_s = 0.0

    @property
    def is_in_service(self) -> bool:
        """Whether the collector can be asked."""
        return self._is_in_service

    @property
    def is_active(self) -> bool:
        """Whether the collector is reached and both sides know how far they are."""
        return self._is_active

    # What happened.

    def note_away(self, now_s: float) -> None:
        """The collector is out of service."""
        if self._is_in_service:
            self._give_up_at_s = now_s + GRACE_S
        self._term += 1
        self._is_in_service = self._is_active = self._is_negotiated = False
        self._outstanding = None

    def note_returned(self, now_s: float) -> None:
        """An instance of the collector is in service, or is again."""
        self._give_up_at_s = now_s + GRACE_S
        self._term += 1
        self._is_in_service, self._is_active = True, False
        self._is_negotiated = False
        self._positions = None
        self._outstanding = None
        self._pace.reset()

    def note_positions(self, positions: tuple[LogPosition, ...], now_s: float) -> bool:
        """A heartbeat says how far the log goes; False when it is the one known already."""
        if positions is self._positions:
            return False
        self._positions = positions
        self._told |= {
            one.source_epoch: one.last_sequence for one in positions if one.last_sequence
        }
        while len(self._told) > MAX_TOLD_EPOCHS:
            del self._told[min(self._told)]
        if self._is_active:
            self._take_positions(now_s)
        return True

    def note_subscribed(self, is_subscribed: bool, now_s: float) -> None:
        """Whether the bus is heard; events that are sent again reach nobody while it is not."""
        if is_subscribed and not self._is_subscribed:
            self.note_opened(now_s)
        self._is_subscribed = is_subscribed

    def note_opened(self, now_s: float) -> None:
        """The subscription began anew: whatever was on its way is gone."""
        self._is_subscribed = True
        self._outstanding = None
        for epoch in self._epochs.values():
            epoch.hurry(now_s)

    def note_progress(
        self, progress: EpochProgress, now_s: float, *, is_arrival: bool = True
    ) -> bool:
        """The store is further; returns whether there may be something to do but acknowledge.

        Args:
            progress: how far one epoch is.
            now_s: the time.
            is_arrival: whether events arrived; if not, ranges were given up.
        """
        if not self._is_active or progress.version < self._version:
            return False
        known = self._epochs.get(progress.source_epoch)
        if known is None:
            self._add_epoch(progress, now_s)
        else:
            known.take_progress(progress, now_s, is_arrival=is_arrival)
        return bool(progress.open_ranges or self._outstanding)

    def note_expected(self, is_expected: bool) -> None:
        """The store knows whether the source can send again."""
        self._is_expected = is_expected

    def note_negotiated(self, step: Negotiate, can_replay: bool) -> None:
        """The collector said what it offers."""
        if step.term != self._term:
            return
        self._is_negotiated, self._can_replay = True, can_replay
        self._pace.reset()

    def note_unsupported(self) -> None:
        """The collector keeps no log after all."""
        self._is_active, self._can_replay = False, False
        self._outstanding = None

    def note_failed(self, now_s: float) -> None:
        """A step other than a replay did not work; it comes again, later."""
        self._pace.fail(now_s)

    def activate(self, step: Activate, progress: Iterable[EpochProgress], now_s: float) -> None:
        """What had been given up is open again, and this is how far the store is."""
        if step.term != self._term:
            return
        known = {one.source_epoch: one for one in progress}
        self._version = max((one.version for one in known.values()), default=self._version)
        self._is_active = True
        self._settlements.clear()
        self._epochs.clear()
        self._pace.reset()
        self._acknowledge_pace.reset()
        for epoch, one in known.items():
            if one.open_ranges or epoch == max(known):
                self._add_epoch(one, now_s)
        for position in self._positions or ():
            empty = EpochProgress(self.source_id, position.source_epoch)
            if position.source_epoch not in self._epochs:
                self._add_epoch(known.get(position.source_epoch, empty), now_s)
        self._take_positions(now_s)

    def note_settled(self, step: Settle) -> None:
        """The store recorded a range as lost."""
        self._pace.reset()
        if step == self._find_vanished():
            del self._told[step.source_epoch]
        if self._settlements and self._settlements[0] == step:
            self._settlements.popleft()

    def note_given_up(self, now_s: float) -> None:
        """The store recorded everything as lost; what opens from now on has its time, too."""
        self._epochs.clear()
        self._told.clear()
        self._pace.reset()
        self._give_up_at_s = now_s + GRACE_S

    def note_replayed(
        self, ask: Ask, first: int, last: int, losses: Sequence[LogLoss], now_s: float
    ) -> None:
        """The collector sends ``first`` to ``last`` again; ``losses`` cannot be had any more."""
        epoch = self._epochs.get(ask.source_epoch)
        if epoch is None or not self._is_active:
            return
        gone = [*name_losses(losses), ((ask.first, first - 1), str(LossReason.LET_GO))]
        lost = [
            Settle(ask.source_epoch, *common, reason)
            for span, reason in gone
            if (common := intersect(span, (ask.first, ask.last)))
        ]
        self._settlements.extend(lost)
        last = min(last, ask.last)
        if last < max(first, ask.first):
            self._outstanding = None
            if not lost:
                epoch.pace.fail(now_s)
            return
        sent = Ask(ask.source_epoch, ask.first, last)
        self._outstanding = _Outstanding(
            sent,
            epoch.pace.draw_wait(),
            epoch.count_missing(sent),
            epoch.progress.contiguous,
            now_s,
        )

    def note_replay_failed(self, ask: Ask, now_s: float) -> None:
        """The collector could not be asked for a range."""
        if epoch := self._epochs.get(ask.source_epoch):
            epoch.pace.fail(now_s)

    def note_refused(self, source_epoch: int, now_s: float) -> None:
        """The collector says that a request about an epoch can never succeed."""
        epoch = self._epochs.get(source_epoch)
        if epoch is None:
            return
        is_unknown = bool(self._positions) and epoch.position is None
        if lost := epoch.note_refused(now_s, is_unknown=is_unknown):
            self._settlements.append(lost)

    def note_acknowledged(self, step: Acknowledge, now_s: float) -> None:
        """The collector was told to let go."""
        if epoch := self._epochs.get(step.source_epoch):
            epoch.acknowledged = step.sequence
        self._acknowledge_pace.reset()
        self._acknowledge_at_s = now_s + ACKNOWLEDGE_EVERY_S

    def note_acknowledge_failed(self, now_s: float) -> None:
        """The collector could not be told."""
        self._acknowledge_pace.fail(now_s)
        self._acknowledge_at_s = self._acknowledge_pace.not_before_s

    # What is to be done.

    def next_step(self, now_s: float) -> Step | None:
        """Returns what to do now; None when there is nothing, for now."""
        if not self._pace.is_due(now_s):
            return None
        if not self._is_active:
            return self._next_to_activate(now_s)
        if self._settlements:
            return self._settlements[0]
        if vanished := self._find_vanished():
            return vanished
        current = max((one.source_epoch for one in self._positions or ()), default=0)
        for epoch in self._in_order():
            is_ended = epoch.progress.source_epoch < current
            if gone := epoch.find_gone(now_s, is_ended=is_ended):
                return gone
        return self._next_ask(now_s)

    def next_acknowledge(self, now_s: float) -> Acknowledge | None:
        """Returns what to acknowledge now; None when there is nothing, for now."""
        if not self._is_active or now_s < self._acknowledge_at_s:
            return None
        return self._unacknowledged()

    def acknowledge_wait_s(self, now_s: float) -> float | None:
        """How long until ``next_acknowledge`` has something; None when nothing is stored anew."""
        if not self._is_active or self._unacknowledged() is None:
            return None
        return max(self._acknowledge_at_s - now_s, 0.0)

    def _next_to_activate(self, now_s: float) -> Step | None:
        if self._is_negotiated:
            if self._can_replay is not self._is_expected:
                return ExpectReplay(bool(self._can_replay))
            if self._can_replay and self._positions is not None:
                return Activate(self._term, tuple(one.source_epoch for one in self._positions))
        elif self._is_in_service and not self._is_expected and self._can_replay is None:
            return ExpectReplay(True)  # until it says otherwise: what is given up raises an alert
        if now_s >= self._give_up_at_s and self._is_expected:
            return GiveUp(LossReason.AWAY, tuple(self._find_tails(LossReason.AWAY)))
        return Negotiate(self._term) if self._is_in_service and not self._is_negotiated else None

    def _find_vanished(self) -> Settle | None:
        """Returns what was given out in an epoch that the collector does not name any more."""
        named = {one.source_epoch for one in self._positions or ()}
        gone = self._told.keys() - named if named else ()
        return next(self._settle_told(gone, LossReason.UNKNOWN_EPOCH), None)

    def _find_tails(self, reason: str) -> Iterator[Settle]:
        yield from (tail for epoch in self._in_order() if (tail := epoch.settle_tail(reason)))
        yield from self._settle_told(self._told.keys() - self._epochs.keys(), reason)

    def _settle_told(self, epochs: Iterable[int], reason: str) -> Iterator[Settle]:
        """Yields ranges to give up; what is stored of them stays as it is."""
        for number in sorted(epochs):
            yield Settle(number, 1, self._told[number], reason)

    def _next_ask(self, now_s: float) -> Ask | None:
        if not self._is_subscribed or self._is_waiting(now_s):
            return None
        in_turn = sorted(self._in_order(), key=lambda epoch: epoch.pace.attempts)
        return next((ask for epoch in in_turn if (ask := epoch.next_ask(now_s))), None)

    def _is_waiting(self, now_s: float) -> bool:
        """Whether what was asked for still arrives."""
        waiting = self._outstanding
        if waiting is None:
            return False
        epoch = self._epochs[waiting.ask.source_epoch]
        missing = epoch.count_missing(waiting.ask)
        contiguous = epoch.progress.contiguous
        if missing and (missing < waiting.missing or contiguous > waiting.contiguous):
            waiting.missing, waiting.contiguous, waiting.since_s = missing, contiguous, now_s
            epoch.pace.reset()
        elif missing and now_s - waiting.since_s >= waiting.patience_s:
            epoch.note_stalled(waiting.ask)
            self._outstanding = None
        elif not missing:
            epoch.pace.reset()
            self._outstanding = None
        return self._outstanding is not None

    def _unacknowledged(self) -> Acknowledge | None:
        newest = max(self._epochs, default=0)
        for number, epoch in sorted(self._epochs.items()):
            contiguous = epoch.progress.contiguous
            if epoch.position is not None and number != newest:
                # A log that was torn knows of less than it gave out; it would refuse the rest.
                contiguous = min(contiguous, epoch.position.last_sequence)
            is_kept = epoch.position is not None or number == newest
            if is_kept and not epoch.is_refused and contiguous > epoch.acknowledged:
                return Acknowledge(number, contiguous)
        return None

    def _in_order(self) -> list[EpochPlan]:
        return [self._epochs[number] for number in sorted(self._epochs)]

    def _add_epoch(self, progress: EpochProgress, now_s: float) -> None:
        self._epochs[progress.source_epoch] = EpochPlan(progress, now_s, self._jitter)

    def _take_positions(self, now_s: float) -> None:
        positions = {one.source_epoch: one for one in self._positions or ()}
        for number in positions.keys() - self._epochs.keys():
            self._add_epoch(EpochProgress(self.source_id, number), now_s)
        newest = max(self._epochs, default=0)
        for number, epoch in list(self._epochs.items()):
            epoch.take_position(positions.get(number), now_s)
            is_done = not epoch.progress.open_ranges and number not in positions
            if is_done and number != newest and not self._is_asked(number):
                del self._epochs[number]

    def _is_asked(self, source_epoch: int) -> bool:
        waiting = self._outstanding
        return waiting is not None and waiting.ask.source_epoch == source_epoch
