"""Requests wait in order of urgency, within bounds, and not for ever."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_agent.workflow_queue import (
    FIRST_RETRY_S,
    PATIENCE_S,
    Offer,
    Order,
    Probe,
    WorkQueue,
)
from daemoneye_agent.workflow_record import Asked, Cause

HASH, SCAN = 1, 3


@dataclass
class Line:
    """A queue whose collectors come and go as a test says."""

    limits: dict[str, int] = field(default_factory=dict)
    present: dict[str, int] = field(default_factory=lambda: {"a": 1})
    offers: dict[str, Offer] = field(default_factory=dict)
    now_s: float = 100.0
    count: int = 0
    displaced: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self.find, lambda: 0.5, **self.limits)

    def find(self, name: str) -> int | Cause:
        return self.present.get(name, Cause.NOT_REGISTERED)

    def add(self, target: str = "a", urgency: int = 5, analysis: int = HASH, size: int = 1) -> bool:
        self.count += 1
        asked = Asked(
            event_id=self.count,
            source_id="s",
            trigger_id=f"t{self.count}",
            target_collector=target,
        )
        pace = self.queue.make_pace()
        order = Order(asked, b"x" * size, analysis, urgency, self.now_s, pace)
        gone = self.queue.add(order)
        self.displaced += [one.asked.event_id for one in gone if one is not order]
        return order not in gone

    def start(self) -> list[Order]:
        """Begins all that can be begun; whoever is probed answers at once."""
        started: list[Order] = []
        while (step := self.queue.next_step(self.now_s)) is not None:
            if isinstance(step, Probe):
                self.queue.note_offer(step, self.offers.get(step.target, Offer()))
            else:
                started.append(step.order)
        return started

    def started_ids(self) -> list[int]:
        return [order.asked.event_id for order in self.start()]

    def expired(self) -> list[tuple[int, Cause]]:
        found = self.queue.take_expired(self.now_s)
        return [(order.asked.event_id, cause) for order, cause in found]


def test_the_urgent_go_first_and_equals_in_order_of_arrival() -> None:
    line = Line(offers={"a": Offer(limit=9)})
    for urgency in (5, 1, 10, 8, 10, 5):
        line.add(urgency=urgency)
    assert line.started_ids() == [3, 5, 4, 1, 6, 2]


def test_a_target_has_no_more_at_once_than_it_offers() -> None:
    line = Line(offers={"a": Offer(limit=2)})
    for _ in range(4):
        line.add()
    first, second = line.start()
    assert line.start() == []
    line.queue.finish(first)
    line.queue.finish(second)
    assert line.started_ids() == [3, 4]


def test_a_target_that_does_not_say_gets_four_at_once() -> None:
    line = Line()
    for _ in range(6):
        line.add()
    assert line.started_ids() == [1, 2, 3, 4]


def test_a_busy_target_holds_up_no_other() -> None:
    line = Line(present={"a": 1, "b": 1}, offers={"a": Offer(limit=1)})
    for target in "aab":
        line.add(target)
    assert line.started_ids() == [1, 3]


def test_all_targets_together_have_a_bound_with_questions_counted() -> None:
    names = [f"c{number}" for number in range(5)]
    line = Line(limits={"max_active": 3}, present=dict.fromkeys(names, 1))
    for name in names:
        line.add(name)
    steps = [line.queue.next_step(line.now_s) for _ in names]
    assert [isinstance(step, Probe) for step in steps] == [True, True, True, False, False]
    assert line.queue.active == 3


def test_nothing_is_asked_of_a_target_before_it_said_what_it_offers() -> None:
    line = Line()
    line.add()
    probe = line.queue.next_step(line.now_s)
    assert probe == Probe("a", 1)
    assert line.queue.next_step(line.now_s) is None, "it is asked once"


def test_a_new_instance_is_asked_anew() -> None:
    line = Line()
    line.add()
    line.queue.finish(line.start()[0])
    line.add()
    line.present["a"] = 2
    assert line.queue.next_step(line.now_s) == Probe("a", 2)


@pytest.mark.parametrize("limits", [{"max_orders": 3}, {"max_bytes": 3}])
def test_over_the_bound_there_is_no_room_until_something_is_over(limits: dict[str, int]) -> None:
    line = Line(limits=limits)
    assert [line.add() for _ in range(4)] == [True, True, True, False]
    started = line.start()
    assert not line.add(), "what is under way takes room, too"
    line.queue.finish(started[0])
    assert line.add()


def test_who_waits_for_somebody_away_makes_room_for_who_need_not() -> None:
    line = Line(limits={"max_orders": 4}, offers={"a": Offer(limit=1)})
    line.add("gone", urgency=8)
    line.add("gone")
    line.add("gone")
    line.add()
    assert line.started_ids() == [4]
    assert (line.add(), line.displaced) == (True, [3]), "the least urgent and latest goes"
    assert not line.add("gone", urgency=10), "who would wait as well has no claim"
    assert [line.add(), line.add()] == [True, True]
    assert line.displaced == [3, 2, 1]
    assert not line.add(), "all that is left can be done"


def test_as_many_make_room_as_the_bytes_of_a_request_demand() -> None:
    line = Line(limits={"max_bytes": 10})
    for _ in range(3):
        line.add("gone", size=3)
    line.start()
    assert (line.add(size=5), line.displaced) == (True, [3, 2])
    assert not line.add(size=9), "there is not so much to gain"
    assert line.displaced == [3, 2]


def test_a_target_that_is_not_there_is_waited_for_five_minutes() -> None:
    line = Line(present={})
    line.add()
    assert line.start() == []
    line.now_s += PATIENCE_S - 1
    assert (line.start(), line.expired()) == ([], [])
    line.now_s += 1
    assert line.expired() == [(1, Cause.NOT_REGISTERED)]
    assert len(line.queue) == 0


def test_a_request_that_came_later_is_waited_for_as_long() -> None:
    line = Line(present={})
    line.add()
    line.start()
    line.now_s += PATIENCE_S - 1
    line.add()
    line.now_s += 1
    assert line.expired() == [(1, Cause.NOT_REGISTERED)]
    line.now_s += PATIENCE_S
    assert line.expired() == [(2, Cause.NOT_REGISTERED)]


def test_waiting_for_a_slot_is_not_failing() -> None:
    line = Line(offers={"a": Offer(limit=1)})
    line.add()
    line.add()
    (first,) = line.start()
    line.now_s += 10 * PATIENCE_S
    assert line.expired() == []
    line.queue.finish(first)
    assert line.started_ids() == [2]


def test_a_target_that_comes_back_is_asked_at_once() -> None:
    line = Line(present={})
    line.add()
    line.start()
    line.present["a"] = 1
    assert line.start() == [], "its time has not come"
    line.queue.hasten("a")
    assert line.started_ids() == [1]


def test_an_analysis_that_is_not_offered_waits_and_is_given_up() -> None:
    line = Line(offers={"a": Offer(frozenset({HASH}))})
    line.add(analysis=SCAN)
    line.add(analysis=HASH)
    assert line.started_ids() == [2]
    line.now_s += PATIENCE_S
    assert line.expired() == [(1, Cause.NOT_OFFERED)]


def test_an_analysis_is_carried_out_once_a_newer_instance_offers_it() -> None:
    line = Line(offers={"a": Offer(frozenset({HASH}))})
    line.add(analysis=SCAN)
    line.start()
    line.present["a"], line.offers["a"] = 2, Offer(frozenset({HASH, SCAN}))
    line.queue.hasten("a")
    assert line.started_ids() == [1]


def test_what_was_put_back_waits_longer_each_time_and_goes_first_again() -> None:
    line = Line(offers={"a": Offer(limit=1)})
    line.add(urgency=8)
    line.add()
    (order,) = line.start()
    line.queue.put_back(order, Cause.OVERLOADED, line.now_s)
    (other,) = line.start()
    assert other.asked.event_id == 2, "others need not wait for it"
    line.queue.finish(other)
    line.now_s += FIRST_RETRY_S
    (order,) = line.start()
    line.queue.put_back(order, Cause.OVERLOADED, line.now_s)
    line.now_s += FIRST_RETRY_S
    assert line.start() == []
    line.now_s += FIRST_RETRY_S
    assert line.start() == [order]


def test_a_request_that_fails_for_five_minutes_is_given_up_though_its_target_is_well() -> None:
    line = Line()
    line.add()
    (order,) = line.start()
    line.queue.put_back(order, Cause.UNREACHABLE, line.now_s)
    line.now_s += PATIENCE_S - 1
    (again,) = line.start()
    line.queue.put_back(again, Cause.UNREACHABLE, line.now_s)
    line.now_s += 1
    assert line.expired() == [(1, Cause.UNREACHABLE)]


def test_a_target_that_answers_no_question_is_asked_less_and_less_often() -> None:
    line = Line()
    line.add()
    times: list[float] = []
    end_s = line.now_s + 60
    while line.now_s < end_s:
        if isinstance(step := line.queue.next_step(line.now_s), Probe):
            times.append(line.now_s)
            line.queue.note_unreached(step, Cause.UNREACHABLE, line.now_s)
        line.now_s += 0.5
    assert 4 < len(times) < 12
    assert line.queue.active == 0


def test_names_that_somebody_made_up_are_forgotten() -> None:
    line = Line()
    for number in range(50):
        line.add(f"nobody{number}")
    line.start()
    line.now_s += PATIENCE_S
    assert len(line.expired()) == 50
    assert line.queue._targets == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 10)), max_size=40), st.data())
def test_nothing_is_lost_and_no_bound_is_passed_whatever_happens(
    wanted: list[tuple[str, int]], data: st.DataObject
) -> None:
    line = Line(
        limits={"max_orders": 30, "max_active": 4},
        present={"a": 1, "b": 1},
        offers={"a": Offer(limit=1), "b": Offer(limit=3)},
    )
    added = sum(line.add(*one) for one in wanted) - len(line.displaced)
    over, under_way = 0, list[Order]()
    for _ in range(200):
        line.now_s += 10
        under_way += line.start()
        assert len(under_way) == line.queue.active <= 4
        assert sum(order.target == "a" for order in under_way) <= 1
        over += len(line.expired())
        if not under_way:
            continue
        order = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
        if data.draw(st.booleans()):
            line.queue.put_back(order, Cause.OVERLOADED, line.now_s)
        else:
            line.queue.finish(order)
            over += 1
    assert added == min(len(wanted), 30)
    assert over + len(under_way) + len(line.queue) == added
