"""What is asked of a collector, told to it and given up, on a clock of ours."""

from dataclasses import replace

import pytest

from daemoneye_agent.delivery_plan import GRACE_S, SourcePlan
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
from daemoneye_agent.log_position import LogLoss, LogPosition
from daemoneye_agent.loss import EpochProgress, LossReason, LossState
from daemoneye_agent.progress import SourceProgress

LET_GO = str(LossReason.LET_GO)


def at(
    contiguous: int, highest: int = 0, *open_ranges: tuple[int, int], epoch: int = 1
) -> EpochProgress:
    return EpochProgress("procmond", epoch, contiguous, highest or contiguous, open_ranges)


def log_at(last: int, first: int = 1, acknowledged: int = 0, epoch: int = 1) -> LogPosition:
    return LogPosition(epoch, first, last, acknowledged)


class Source:
    """A plan with its clock, driven step by step."""

    def __init__(self, is_expected: bool = True) -> None:
        self.now_s = 100.0
        self.version = 0
        self.plan = SourcePlan("procmond", 100.0, is_expected=is_expected, jitter=lambda: 0.5)
        self.plan.note_subscribed(True, self.now_s)

    def step(self) -> Step | None:
        return self.plan.next_step(self.now_s)

    def later(self, seconds: float) -> Step | None:
        self.now_s += seconds
        return self.step()

    def store(self, progress: EpochProgress, *, is_arrival: bool = True) -> Step | None:
        self.version += 1
        newer = replace(progress, version=self.version)
        self.plan.note_progress(newer, self.now_s, is_arrival=is_arrival)
        return self.step()

    def beat(self, *positions: LogPosition) -> Step | None:
        self.plan.note_positions(positions, self.now_s)
        return self.step()

    def negotiate(self, can_replay: bool = True) -> None:
        self.plan.note_returned(self.now_s)
        step = self.step()
        assert isinstance(step, Negotiate)
        self.plan.note_negotiated(step, can_replay)

    def activate(self, progress: tuple[EpochProgress, ...], *positions: LogPosition) -> None:
        self.negotiate()
        step = self.beat(*positions)
        assert isinstance(step, Activate)
        self.plan.activate(step, progress, self.now_s)

    def replayed(self, first: int, last: int, *losses: LogLoss) -> None:
        step = self.step()
        assert isinstance(step, Ask)
        self.plan.note_replayed(step, first, last, losses, self.now_s)

    def acknowledgement(self) -> Acknowledge | None:
        return self.plan.next_acknowledge(self.now_s)


def active(*progress: EpochProgress, last: int = 0) -> Source:
    source = Source()
    source.activate(progress or (at(0),), log_at(last))
    return source


def test_collector_is_asked_what_it_offers_and_active_after_its_first_heartbeat() -> None:
    source = Source(is_expected=False)
    assert source.step() is None
    source.plan.note_returned(source.now_s)
    assert source.step() == ExpectReplay(True), "until it says otherwise"
    source.plan.note_expected(True)
    step = source.step()
    assert isinstance(step, Negotiate)
    source.plan.note_negotiated(step, True)
    assert source.step() is None
    step = source.beat(log_at(4, epoch=7), log_at(9, epoch=5))
    assert isinstance(step, Activate)
    assert step.epochs == (7, 5)
    source.plan.activate(step, (), source.now_s)
    assert source.plan.is_active


def test_collector_without_a_log_is_left_alone() -> None:
    source = Source()
    source.negotiate(can_replay=False)
    assert source.step() == ExpectReplay(False)
    source.plan.note_expected(False)
    assert source.later(10 * GRACE_S) is None
    source.plan.note_returned(source.now_s)
    assert isinstance(source.step(), Negotiate), "a later instance may keep one"


def test_collector_that_cannot_be_asked_is_asked_again_and_then_given_up() -> None:
    source = Source()
    source.plan.note_returned(source.now_s)
    assert isinstance(source.step(), Negotiate)
    source.plan.note_failed(source.now_s)
    assert source.step() is None
    assert isinstance(source.later(0.5), Negotiate)
    assert isinstance(source.later(GRACE_S), GiveUp)
    source.plan.note_given_up(source.now_s)
    assert isinstance(source.step(), Negotiate)


def test_answer_that_belongs_to_an_earlier_life_is_left_aside() -> None:
    source = Source()
    source.negotiate()
    step = source.beat(log_at(4))
    assert isinstance(step, Activate)
    source.plan.note_away(source.now_s)
    source.plan.activate(step, (at(3),), source.now_s)
    assert not source.plan.is_active
    assert source.acknowledgement() is None


def test_gap_is_asked_for_at_once_and_one_range_at_a_time() -> None:
    source = active(at(10))
    assert source.store(at(10, 20, (11, 19))) == Ask(1, 11, 19)
    source.replayed(11, 19)
    assert source.store(at(10, 9_000, (11, 19), (5_000, 5_001))) is None
    assert source.store(at(4_999, 9_000, (5_000, 5_001))) == Ask(1, 5_000, 5_001)


def test_long_range_is_asked_for_in_pieces() -> None:
    source = active(at(0, 200_000, (1, 199_999)))
    assert source.step() == Ask(1, 1, 50_000)
    source.replayed(1, 50_000)
    assert source.later(1) is None
    assert source.store(at(50_000, 200_000, (50_001, 199_999))) == Ask(1, 50_001, 100_000)


def test_range_that_makes_no_progress_is_asked_for_ever_more_slowly() -> None:
    source = active(at(10, 20, (11, 19)))
    for patience_s in (5, 10, 20, 40, 60, 60):
        source.replayed(11, 19)
        assert source.later(patience_s - 0.01) is None
        assert source.later(0.02) == Ask(1, 11, 19)


def test_progress_gives_a_range_more_time() -> None:
    source = active(at(10, 20, (11, 19)))
    source.replayed(11, 19)
    for first in range(12, 19):
        source.now_s += 4
        assert source.store(at(first - 1, 20, (first, 19))) is None
    assert source.later(5) == Ask(1, 18, 19)


def test_range_that_never_comes_does_not_hold_up_the_next() -> None:
    source = active(at(0, 9_000, (1, 1), (5_000, 5_000)))
    source.replayed(1, 1)
    assert source.later(5) == Ask(1, 5_000, 5_000)
    source.replayed(5_000, 5_000)
    assert source.store(at(0, 9_000, (1, 1))) == Ask(1, 1, 1)


def test_epoch_that_cannot_be_replayed_does_not_hold_up_another() -> None:
    source = Source()
    epochs = (at(0, 9, (1, 8)), at(0, 9, (1, 8), epoch=2))
    source.activate(epochs, log_at(9, epoch=2), log_at(9))
    ask = source.step()
    assert ask == Ask(1, 1, 8)
    source.plan.note_replay_failed(ask, source.now_s)
    assert source.step() == Ask(2, 1, 8)
    source.plan.note_replay_failed(Ask(2, 1, 8), source.now_s)
    assert source.step() is None
    assert source.later(5) == Ask(1, 1, 8)


def test_nothing_is_asked_for_while_the_bus_is_not_heard() -> None:
    source = active(at(10, 20, (11, 19)))
    source.plan.note_subscribed(False, source.now_s)
    assert source.later(100) is None
    source.plan.note_subscribed(True, source.now_s)
    assert source.step() == Ask(1, 11, 19)


def test_new_subscription_asks_at_once_for_what_was_on_its_way() -> None:
    source = active(at(10, 20, (11, 19)))
    source.replayed(11, 19)
    assert source.later(1) is None
    source.plan.note_opened(source.now_s)
    assert source.step() == Ask(1, 11, 19)


def test_lost_tail_is_asked_for_when_nothing_arrives() -> None:
    source = active(at(10), last=10)
    assert source.later(5) is None
    assert source.beat(log_at(14)) is None
    assert source.later(1.9) is None
    assert source.later(0.2) == Ask(1, 11, 14)


def test_tail_that_still_arrives_is_not_asked_for() -> None:
    source = active(at(10), last=10)
    source.beat(log_at(1_000))
    for highest in range(11, 20):
        source.now_s += 1.9
        assert source.store(at(highest)) is None
    assert source.later(2) == Ask(1, 20, 1_000)


def test_older_epoch_of_which_nothing_is_stored_is_asked_for() -> None:
    source = Source()
    source.activate((at(3, epoch=2),), log_at(3, epoch=2), log_at(50, epoch=1))
    assert source.later(2) == Ask(1, 1, 50)


def test_what_the_log_let_go_of_is_settled_with_its_reason() -> None:
    source = active(at(0, 100, (1, 99)))
    full = LogLoss(20, 30, 1)
    assert source.beat(replace(log_at(100, first=41), losses=(full,))) == Settle(
        1, 20, 30, "the collector's log was full"
    )
    left = at(0, 100, (1, 19), (31, 99))
    assert source.store(left, is_arrival=False) == Settle(1, 1, 19, LET_GO)
    left = at(30, 100, (31, 99))
    assert source.store(left, is_arrival=False) == Settle(1, 31, 40, LET_GO)
    assert source.store(at(40, 100, (41, 99)), is_arrival=False) == Ask(1, 41, 99)


def test_hole_in_the_log_is_settled_though_older_events_are_held() -> None:
    source = active(at(0, 100, (1, 99)))
    corrupt = LogLoss(20, 30, 3)
    step = source.beat(replace(log_at(100), losses=(corrupt,)))
    assert step == Settle(1, 20, 30, "the collector's log was corrupt")


def test_what_may_still_be_on_its_way_is_not_settled_at_once() -> None:
    source = active(at(10), last=10)
    assert source.beat(log_at(30, first=21)) is None
    assert source.later(2) == Settle(1, 11, 20, LET_GO)


def test_last_of_many_losses_is_not_believed_because_it_stands_for_more() -> None:
    source = active(at(0, 1_000, (1, 999)))
    known = [LogLoss(10 * n, 10 * n + 1, 1) for n in range(1, 64)]
    losses = (*known, LogLoss(640, 999, 1))
    stored = SourceProgress(gap_state=LossState.OPEN)
    stored.admit(1_000, 1, lambda _: False)
    step = source.beat(replace(log_at(1_000), losses=losses))
    gone = []
    while isinstance(step, Settle):
        gone.append((step.first, step.last))
        stored.give_up(step.first, step.last, step.reason, 1)
        step = source.store(stored.describe("procmond", 1, 0), is_arrival=False)
    assert gone == [(loss.first_sequence, loss.last_sequence) for loss in known]


def test_first_contact_with_a_high_sequence_asks_from_the_beginning() -> None:
    source = active(at(0, 500, (1, 499)), last=500)
    assert source.step() == Ask(1, 1, 499)
    source.replayed(401, 499)
    assert source.step() == Settle(1, 1, 400, LET_GO)


def test_answer_settles_what_it_says_is_lost() -> None:
    source = active(at(0, 100, (1, 99)))
    source.replayed(11, 99, LogLoss(1, 5, 2), LogLoss(50, 200, 4))
    steps = []
    while isinstance(step := source.step(), Settle):
        steps.append((step.first, step.last, step.reason))
        source.plan.note_settled(step)
    assert steps == [
        (1, 5, "older than the collector's log keeps"),
        (50, 99, "refused by the broker"),
        (1, 10, LET_GO),
    ]


def test_answer_that_sends_nothing_and_loses_nothing_is_not_asked_again_at_once() -> None:
    source = active(at(0, 100, (1, 99)))
    source.replayed(1, 0)
    assert source.step() is None
    assert source.later(5) == Ask(1, 1, 99)


def test_answer_that_sends_less_is_followed_by_the_next_piece() -> None:
    source = active(at(0, 100, (1, 99)))
    source.replayed(1, 40)
    assert source.store(at(40, 100, (41, 99))) == Ask(1, 41, 99)


def test_epoch_that_the_collector_does_not_know_is_given_up() -> None:
    source = Source()
    source.activate((at(3, 9, (4, 8)), at(3, epoch=2)), log_at(3, epoch=2))
    assert source.step() == Ask(1, 4, 8)
    source.plan.note_refused(1, source.now_s)
    assert source.step() == Settle(1, 1, 9, LossReason.UNKNOWN_EPOCH)
    source.plan.note_settled(Settle(1, 1, 9, LossReason.UNKNOWN_EPOCH))
    assert source.later(100) is None


def test_epoch_that_the_collector_names_is_given_up_only_when_it_refuses_again_and_again() -> None:
    source = active(at(3, 9, (4, 8)), last=9)
    for wait_s in (0, 5, 10):
        assert source.later(wait_s) == Ask(1, 4, 8)
        source.plan.note_refused(1, source.now_s)
    assert source.step() == Settle(1, 1, 9, LossReason.UNKNOWN_EPOCH)


def test_collector_that_stays_away_is_given_up_with_its_tail_until_it_is_back() -> None:
    source = active(at(3, 9, (4, 8)), last=12)
    source.plan.note_away(source.now_s)
    assert source.later(GRACE_S - 0.1) is None
    step = source.later(0.1)
    assert step == GiveUp(LossReason.AWAY, (Settle(1, 10, 12, LossReason.AWAY),))
    source.plan.note_given_up(source.now_s)
    assert source.later(1) is None
    source.negotiate()
    assert isinstance(source.beat(log_at(12)), Activate)


def test_agent_that_starts_without_the_collector_gives_it_time() -> None:
    source = Source()
    assert source.later(GRACE_S - 1) is None
    assert source.later(1) == GiveUp(LossReason.AWAY, ())


def test_what_is_stored_is_acknowledged_at_start_and_then_when_it_rises() -> None:
    source = active(at(10), last=10)
    step = source.acknowledgement()
    assert step == Acknowledge(1, 10)
    source.plan.note_acknowledged(step, source.now_s)
    source.store(at(10, 12, (11, 11)))
    assert (source.acknowledgement(), source.plan.acknowledge_wait_s(source.now_s)) == (None, None)
    source.store(at(12))
    assert source.acknowledgement() is None, "not more often than every quarter of a second"
    assert source.plan.acknowledge_wait_s(source.now_s) == pytest.approx(0.25)
    source.now_s += 0.25
    assert source.acknowledgement() == Acknowledge(1, 12)


def test_nothing_is_acknowledged_before_what_was_given_up_is_open_again() -> None:
    source = Source()
    source.negotiate()
    source.store(at(10))
    assert source.acknowledgement() is None
    source.beat(log_at(10))
    assert source.acknowledgement() is None


def test_news_from_before_the_opening_is_not_believed() -> None:
    source = Source()
    source.activate((replace(at(3, 9, (4, 8)), version=5),), log_at(9))
    source.plan.note_progress(replace(at(9), version=4), source.now_s)
    assert source.acknowledgement() == Acknowledge(1, 3)


def test_acknowledgement_that_fails_is_tried_again_ever_more_slowly() -> None:
    source = active(at(10))
    for wait_s in (0.5, 1, 2):
        assert source.acknowledgement() == Acknowledge(1, 10)
        source.plan.note_acknowledge_failed(source.now_s)
        source.now_s += wait_s - 0.01
        assert source.acknowledgement() is None
        source.now_s += 0.02


def test_collector_that_forgot_an_acknowledgement_is_told_again() -> None:
    source = active(at(10), last=10)
    source.plan.note_acknowledged(Acknowledge(1, 10), source.now_s)
    source.now_s += 1
    source.beat(log_at(10, acknowledged=10))
    assert source.acknowledgement() is None
    source.beat(log_at(10, acknowledged=4))
    assert source.acknowledgement() == Acknowledge(1, 10)


def test_older_epoch_is_acknowledged_only_while_the_log_names_it() -> None:
    source = Source()
    source.activate((at(8), at(3, epoch=2)), log_at(3, epoch=2), log_at(8))
    assert source.acknowledgement() == Acknowledge(1, 8)
    source.beat(log_at(3, epoch=2))
    assert source.acknowledgement() == Acknowledge(2, 3)


def test_tail_of_an_epoch_that_vanished_from_the_log_is_given_up_once() -> None:
    source = active(at(3), last=9)
    source.plan.note_away(source.now_s)
    source.activate((at(3),), log_at(0, epoch=2))
    lost = Settle(1, 1, 9, LossReason.UNKNOWN_EPOCH)
    assert source.step() == lost
    source.plan.note_settled(lost)
    assert source.step() is None


def test_epoch_that_vanished_before_the_source_was_active_is_given_up_when_it_is() -> None:
    source = Source()
    source.plan.note_returned(source.now_s)
    source.beat(log_at(42, acknowledged=42))
    source.activate((), log_at(0, epoch=2))
    assert source.step() == Settle(1, 1, 42, LossReason.UNKNOWN_EPOCH)


def test_collector_that_stays_away_is_given_up_with_what_it_said_before_it_was_active() -> None:
    source = Source()
    source.plan.note_returned(source.now_s)
    source.beat(log_at(42))
    source.plan.note_away(source.now_s)
    step = source.later(GRACE_S)
    assert step == GiveUp(LossReason.AWAY, (Settle(1, 1, 42, LossReason.AWAY),))


def test_old_epoch_is_acknowledged_no_further_than_its_log_goes() -> None:
    source = Source()
    source.activate((at(10), at(0, epoch=2)), log_at(0, epoch=2), log_at(6))
    assert source.acknowledgement() == Acknowledge(1, 6)


def test_hole_behind_the_end_of_an_old_epoch_is_given_up() -> None:
    source = Source()
    holes = at(5, 13, (6, 12))
    source.activate((holes, at(0, epoch=2)), log_at(0, epoch=2), log_at(5, acknowledged=5))
    assert source.step() == Settle(1, 6, 12, LET_GO)


def test_hole_behind_what_the_latest_heartbeat_said_is_asked_for() -> None:
    source = active(at(5, 13, (6, 12)), last=5)
    assert source.step() == Ask(1, 6, 12)
