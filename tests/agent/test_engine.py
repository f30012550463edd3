"""The engine: one rule never harms another, and a rule that did not look is said to have not."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from daemoneye_agent.engine import EngineLimits, RuleEngine, event_row, test_rule
from daemoneye_agent.event import EVENT_COLUMNS, EventRow
from daemoneye_agent.rule import InvalidRuleError, Rule, parse_rule

DOCUMENT = """
id = "{id}"
title = "T"
description = "D"
severity = "high"
dedup = ["exe"]
sql = '''{sql}'''
"""
FROM_TMP = "SELECT event_id, pid, exe FROM process_events WHERE exe GLOB '/tmp/*'"
SLOW = (
    "SELECT a.pid, a.exe FROM process_events a, process_events b, process_events c,"
    " process_events d WHERE a.pid + b.pid + c.pid + d.pid < 0"
)
FAILS = "SELECT pid, json_extract(exe, '$.a') AS exe FROM process_events"


def rule(sql: str, rule_id: str = "rule") -> Rule:
    return parse_rule(DOCUMENT.format(id=rule_id, sql=sql), f"{rule_id}.toml")


def batch(count: int, exe: str = "/usr/bin/x", first: int = 1) -> list[EventRow]:
    return [
        event_row({"event_id": number, "pid": number + 1000, "exe": exe})
        for number in range(first, first + count)
    ]


class FakeClock:
    """Time that a test moves; ``step_s`` passes at every look."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.step_s = 0.0

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine(clock: FakeClock) -> Iterator[RuleEngine]:
    engine = RuleEngine(
        [rule(SLOW, "a-slow"), rule(FAILS, "b-fails"), rule(FROM_TMP, "c-good")], clock=clock
    )
    yield engine
    engine.close()


def test_evaluate_returns_the_rows_of_every_rule() -> None:
    engine = RuleEngine([rule(FROM_TMP, "one"), rule("SELECT pid, exe FROM process_events", "two")])
    rows = [*batch(1, "/tmp/x", 7), *batch(1, "/usr/bin/y", 8)]
    matches = engine.evaluate(rows)
    assert [(match.rule.id, match.event_id) for match in matches] == [
        ("one", 7),
        ("two", 7),
        ("two", 8),
    ]
    assert matches[0].row == {"event_id": 7, "pid": 1007, "exe": "/tmp/x"}
    assert engine.failures == ()
    engine.close()


def test_evaluate_forgets_a_batch_before_the_next() -> None:
    engine = RuleEngine([rule(FROM_TMP)])
    assert len(engine.evaluate(batch(3, "/tmp/x"))) == 3
    assert engine.evaluate(batch(3)) == []
    assert engine.evaluate([]) == []
    engine.close()


def test_evaluate_finds_the_latest_event_of_a_pid_when_the_rule_returns_none() -> None:
    engine = RuleEngine([rule("SELECT pid, max(exe) AS exe FROM process_events GROUP BY pid")])
    rows = [event_row({"event_id": number, "pid": 5, "exe": "/x"}) for number in (11, 12, 13)]
    assert [match.event_id for match in engine.evaluate(rows)] == [13]
    engine.close()


def test_dedup_key_tells_rules_and_values_apart() -> None:
    engine = RuleEngine([rule(FROM_TMP, "one"), rule(FROM_TMP, "two")])
    rows = [*batch(2, "/tmp/x"), *batch(1, "/tmp/" + "y" * 5_000, 9)]
    keys = [match.dedup_key for match in engine.evaluate(rows)]
    assert len(keys) == 6
    assert len(set(keys)) == 4
    assert max(map(len, keys)) <= 512
    engine.close()


def test_failing_rules_are_reported_and_the_others_go_on(
    engine: RuleEngine, clock: FakeClock
) -> None:
    clock.step_s = 0.3
    matches = engine.evaluate(batch(60, "/tmp/x"))
    assert {match.rule.id for match in matches} == {"c-good"}
    assert len(matches) == 60
    reasons = {failure.rule_id: failure.reason for failure in engine.failures}
    assert reasons == {
        "a-slow": "it took longer than 250 ms for one batch",
        "b-fails": "a JSON function met text or a path that is not JSON; test it with json_valid",
    }


def test_rule_is_disabled_after_three_failures_in_a_row(engine: RuleEngine) -> None:
    for expected in (1, 2, 3):
        engine.evaluate(batch(1))
        (failure,) = engine.failures
        assert (failure.rule_id, failure.consecutive) == ("b-fails", expected)
        assert failure.is_disabled is (expected == 3)
    assert "disabled after 3 failures in a row" in engine.disabled["b-fails"]
    engine.evaluate(batch(1))
    assert engine.failures == ()
    assert engine.counters["b-fails"].evaluations == 3
    assert engine.counters["c-good"].evaluations == 4


def test_success_ends_a_row_of_failures(engine: RuleEngine) -> None:
    for exe in ("/x", "/x", '{"a": 1}', "/x", "/x"):
        engine.evaluate(batch(1, exe))
    assert engine.disabled == {}
    assert engine.counters["b-fails"].failures == 4
    assert engine.counters["b-fails"].matches == 1


def test_rule_that_returns_too_much_keeps_the_first_matches_and_says_so() -> None:
    limits = EngineLimits(max_matches=10)
    engine = RuleEngine([rule("SELECT pid, exe FROM process_events")], limits=limits)
    assert len(engine.evaluate(batch(11))) == 10
    assert engine.failures[0].reason == "it returned more than 10 rows for one batch; narrow it"
    assert len(engine.evaluate(batch(10))) == 10
    assert engine.failures == ()
    engine.close()


def test_engine_leaves_disabled_rules_out() -> None:
    engine = RuleEngine([replace(rule(FROM_TMP), enabled=False)])
    assert engine.rules == ()
    assert engine.evaluate(batch(1, "/tmp/x")) == []
    engine.close()


def test_engine_refuses_a_rule_that_only_sqlite_finds_wrong() -> None:
    with pytest.raises(InvalidRuleError, match="more than once") as caught:
        RuleEngine([rule("SELECT pid, exe FROM process_events a, process_events b", "twice")])
    assert caught.value.metadata["rule_id"] == "twice"


def test_engine_refuses_a_regular_expression_that_is_not_linear() -> None:
    engine = RuleEngine([rule(f"{FROM_TMP} AND exe REGEXP '(?=x)'")])
    engine.evaluate(batch(1, "/tmp/x"))
    assert "look-around" in engine.failures[0].reason
    engine.close()


def test_counters_are_kept_for_every_rule() -> None:
    engine = RuleEngine([rule(FROM_TMP)])
    engine.evaluate(batch(2, "/tmp/x"))
    engine.evaluate(batch(2))
    counters = engine.counters["rule"]
    assert (counters.evaluations, counters.matches, counters.failures) == (2, 2, 0)
    assert counters.time_ns > 0
    engine.close()


def test_event_row_has_every_column_of_the_schema() -> None:
    row = dict(zip(EVENT_COLUMNS, event_row({"exe": "/x", "pid": 9}), strict=True))
    assert (row["exe"], row["pid"], row["kind"], row["parent_name"]) == ("/x", 9, "start", None)


def test_test_rule_reports_every_sample_that_misbehaves() -> None:
    good = replace(rule(FROM_TMP), positive=({"exe": "/tmp/x"},), negative=({"exe": "/x"},))
    assert test_rule(good) == []
    bad = replace(good, positive=good.negative, negative=good.positive)
    assert [(item.sample, item.reason) for item in test_rule(bad)] == [
        ("positive 1", "it did not match"),
        ("negative 1", "it matched"),
    ]
    assert [item.sample for item in test_rule(rule(FROM_TMP))] == ["positive", "negative"]


def test_test_rule_reports_a_rule_that_can_not_look() -> None:
    broken = replace(rule(FAILS), positive=({"exe": "/x"},), negative=({"exe": "{}"},))
    assert [item.sample for item in test_rule(broken)] == ["positive 1", "negative 1"]


def test_test_rule_runs_a_disabled_rule_too() -> None:
    samples = replace(rule(FROM_TMP), positive=({"exe": "/tmp/x"},), negative=({"exe": "/x"},))
    assert test_rule(replace(samples, enabled=False)) == []
