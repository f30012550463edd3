"""The memories of what was asked: bounded, and changed only by recording."""

from collector_core.trigger.pace import Allowance, RecentTargets


def test_a_target_is_remembered_for_its_time():
    recent = RecentTargets()
    recent.record("a", 0, 10, 100)
    assert recent.holds("a", 9.9, 10)
    assert not recent.holds("a", 10, 10)
    assert not recent.holds("b", 0, 10)


def test_asking_does_not_record():
    recent = RecentTargets()
    assert not recent.holds("a", 0, 10)
    assert not recent.holds("a", 0, 10)
    assert len(recent) == 0


def test_what_is_over_is_let_go_of():
    recent = RecentTargets()
    for second in range(100):
        recent.record(second, second, 10, 1000)
    assert len(recent) == 10
    assert recent.forgotten == 0


def test_the_oldest_is_forgotten_first_and_counted():
    recent = RecentTargets()
    for key in "abc":
        recent.record(key, 0, 10, 2)
    assert not recent.holds("a", 0, 10)
    assert recent.holds("b", 0, 10)
    assert recent.forgotten == 1


def test_a_target_recorded_again_is_young_again():
    recent = RecentTargets()
    recent.record("a", 0, 10, 2)
    recent.record("b", 1, 10, 2)
    recent.record("a", 2, 10, 2)
    recent.record("c", 3, 10, 2)
    assert recent.holds("a", 3, 10)
    assert not recent.holds("b", 3, 10)


def test_nothing_is_remembered_for_no_time():
    recent = RecentTargets()
    recent.record("a", 5, 0, 2)
    assert not recent.holds("a", 5, 0)
    assert len(recent) == 0


def test_an_allowance_fills_evenly():
    allowance = Allowance(60, 0)
    for _ in range(60):
        assert allowance.has_room(0, 0)
        allowance.take(0)
    assert not allowance.has_room(0, 0.5)
    assert allowance.has_room(0, 1)
    assert not allowance.has_room(1, 1)


def test_an_allowance_holds_a_minutes_worth_at_most():
    allowance = Allowance(2, 0)
    assert allowance.has_room(1, 1e6)
    assert not allowance.has_room(2, 1e6)


def test_an_allowance_obeys_another_rate():
    allowance = Allowance(100, 0)
    allowance.change(1, 0)
    assert not allowance.has_room(1, 0)
    allowance.take(0)
    assert not allowance.has_room(0, 59)
    allowance.change(60, 59)
    assert allowance.has_room(0, 60.1)


def test_a_clock_that_stands_still_or_goes_back_gives_nothing():
    allowance = Allowance(1, 100)
    allowance.take(100)
    assert not allowance.has_room(0, 50)
