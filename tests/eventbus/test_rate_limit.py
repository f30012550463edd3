"""Who may publish how fast, held against what a bucket of tokens may let through."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemoneye_eventbus.rate_limit import (
    InvalidRateLimitError,
    RateLimit,
    RateLimiter,
    parse_rate_limit,
)
from daemoneye_mesh.errors import Code, ErrorReason, InvalidConfigError, RateLimitedError

TOPIC = "events.process.lifecycle"
PROCMOND = "collector/procmond"
EPSILON_S = 1e-3


class Clock:
    def __init__(self, now_s=1_000.0):
        self.now_s = now_s

    def __call__(self):
        return self.now_s


def is_admitted(limiter, identity, counts):
    try:
        limiter.admit(identity, counts)
    except RateLimitedError:
        return False
    return True


def wait_of(limiter, identity, counts):
    with pytest.raises(RateLimitedError) as caught:
        limiter.admit(identity, counts)
    return caught.value.retry_after_s


def limiter_of(*rules, global_rate=None, max_buckets=4_096):
    clock = Clock()
    return RateLimiter(map(parse_rate_limit, rules), global_rate, clock, max_buckets), clock


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "collector/+ events.process 200000/s burst 400000",
            RateLimit("collector/+", "events.process", 200_000, 400_000),
        ),
        (
            "collector/+ events.process 200000/s",
            RateLimit("collector/+", "events.process", 2e5, 400_000),
        ),
        ("+ 0.25/s", RateLimit("+", "", 0.25, 1)),
        ("operator/alice control 1.5/s burst 9", RateLimit("operator/alice", "control", 1.5, 9)),
        ("  agent/agent\t10/s  ", RateLimit("agent/agent", "", 10, 20)),
    ],
)
def test_rule_is_read_as_it_is_written(text, rule):
    assert parse_rate_limit(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "200000/s",
        "collector/+",
        "collector/+ events.process",
        "collector/+ events.process 200000",
        "collector/+ events.process 200000/min",
        "collector/+ events.process 2e5/s",
        "collector/+ events.process -1/s",
        "collector/+ events.process 1/s burst",
        "collector/+ events.process 1/s burst 1.5",
        "collector/+ events.process 1/s bursts 7",
        "collector/+ events.process control 1/s",
        "collector/+ events.process 1/s burst 7 more",
        "collector/+ " + "9" * 5_000 + "/s",
    ],
)
def test_rule_that_is_malformed_is_refused_with_an_example(text):
    with pytest.raises(InvalidRateLimitError, match=r"write it like 'collector/\+ events\.process"):
        parse_rate_limit(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("stranger/+ 1/s", "write kind/id, kind/\\+ or \\+ with one of the kinds agent, broker"),
        ("collector 1/s", "write kind/id"),
        ("collector/ 1/s", "write kind/id"),
        ("collector/a/b 1/s", "write kind/id"),
        ("collector/A 1/s", "write kind/id"),
        ("+/procmond 1/s", "write kind/id"),
        ("+ events.# 1/s", "without wildcards"),
        ("+ events.+.x 1/s", "without wildcards"),
        ("+ events. 1/s", "whole segments"),
        ("+ other 1/s", "whole segments"),
        ("+ 0/s", "out of range"),
        ("+ 100000001/s", "out of range"),
        ("+ 1/s burst 0", "out of range"),
        ("+ 1/s burst 1000000001", "out of range"),
    ],
)
def test_rule_that_cannot_be_obeyed_is_refused_with_a_hint(text, hint):
    with pytest.raises(InvalidRateLimitError, match=hint) as caught:
        parse_rate_limit(text)
    assert isinstance(caught.value, InvalidConfigError)


@pytest.mark.parametrize("rate", [0, -1, 1e9, float("inf"), float("nan")])
def test_rate_out_of_range_is_refused(rate):
    with pytest.raises(InvalidRateLimitError, match="out of range"):
        RateLimit("+", "", rate, 1)
    with pytest.raises(InvalidRateLimitError, match="out of range"):
        RateLimiter([], rate)


def test_two_rules_for_the_same_are_refused():
    with pytest.raises(InvalidRateLimitError, match=r"collector/\+ has two rate limits on events"):
        limiter_of("collector/+ events 1/s", "collector/+ 1/s", "collector/+ events 2/s")


def test_limiter_without_rules_admits_everything():
    limiter, _ = limiter_of()

    assert limiter.is_open
    limiter.admit(PROCMOND, {TOPIC: 10**12})


def test_limiter_with_a_rule_or_a_global_rate_is_not_open():
    assert not limiter_of("+ 1/s")[0].is_open
    assert not limiter_of(global_rate=1)[0].is_open


def test_burst_passes_at_once_and_one_more_waits_for_its_token():
    limiter, clock = limiter_of("+ 10/s burst 30")
    limiter.admit(PROCMOND, {TOPIC: 30})

    assert wait_of(limiter, PROCMOND, {TOPIC: 1}) == pytest.approx(0.1)
    clock.now_s += 0.1
    limiter.admit(PROCMOND, {TOPIC: 1})
    assert not is_admitted(limiter, PROCMOND, {TOPIC: 1})


def test_bucket_never_holds_more_than_its_burst():
    limiter, clock = limiter_of("+ 10/s burst 30")
    clock.now_s += 1_000

    limiter.admit(PROCMOND, {TOPIC: 30})
    assert not is_admitted(limiter, PROCMOND, {TOPIC: 1})


def test_refused_batch_takes_nothing():
    limiter, _ = limiter_of("+ events 10/s burst 10", "+ control 10/s burst 1000")
    limiter.admit(PROCMOND, {TOPIC: 1})

    for _ in range(3):
        assert not is_admitted(limiter, PROCMOND, {"control.x": 1_000, TOPIC: 5, "events.y": 5})
    limiter.admit(PROCMOND, {"control.x": 1_000, TOPIC: 4, "events.y": 5})


def test_batch_waits_for_the_slowest_of_its_buckets():
    limiter, clock = limiter_of("+ events 10/s burst 10", "+ control 1/s burst 10")
    both = {TOPIC: 10, "control.x": 5}
    limiter.admit(PROCMOND, both)

    assert wait_of(limiter, PROCMOND, {TOPIC: 5, "control.x": 10}) == pytest.approx(5.0)
    clock.now_s += 5
    limiter.admit(PROCMOND, {TOPIC: 5, "control.x": 10})


def test_batch_larger_than_the_burst_passes_when_the_bucket_is_full_and_leaves_it_in_debt():
    limiter, clock = limiter_of("+ 10/s burst 20")
    limiter.admit(PROCMOND, {TOPIC: 10})

    assert wait_of(limiter, PROCMOND, {TOPIC: 100}) == pytest.approx(1.0)
    clock.now_s += 1
    limiter.admit(PROCMOND, {TOPIC: 100})
    assert wait_of(limiter, PROCMOND, {TOPIC: 1}) == pytest.approx(8.1)


def test_refusal_says_who_what_where_and_until_when():
    limiter, _ = limiter_of("collector/+ events.process 3/s burst 1")
    limiter.admit(PROCMOND, {TOPIC: 1})
    with pytest.raises(RateLimitedError) as caught:
        limiter.admit(PROCMOND, {TOPIC: 1})

    error = caught.value
    assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, ErrorReason.RATE_LIMITED)
    assert error.metadata == {
        "identity": PROCMOND,
        "topic_prefix": "events.process",
        "limit": "3",
        "unit": "messages/s",
        "retry_after_ms": "334",
        "scope": "identity",
    }
    assert error.message == (
        "collector/procmond may publish 3 messages/s on events.process; "
        "wait 334 ms, then send the batch again"
    )


def test_refusal_by_the_global_rate_says_so():
    limiter, _ = limiter_of(global_rate=200_000)
    limiter.admit("agent/agent", {"alerts.high": 400_000})
    with pytest.raises(
        RateLimitedError, match="all identities together may publish 200000 "
    ) as got:
        limiter.admit(PROCMOND, {TOPIC: 1})

    assert got.value.metadata["identity"] == PROCMOND
    assert (got.value.metadata["scope"], got.value.metadata["topic_prefix"]) == ("global", "")


def test_each_identity_has_a_bucket_of_its_own():
    limiter, _ = limiter_of("collector/+ 1/s burst 5")

    limiter.admit("collector/a", {TOPIC: 5})
    limiter.admit("collector/b", {TOPIC: 5})
    assert not is_admitted(limiter, "collector/a", {TOPIC: 1})


def test_topics_below_one_prefix_share_its_bucket():
    limiter, _ = limiter_of("+ events 1/s burst 5")

    limiter.admit(PROCMOND, {"events.process": 2, "events.network": 2, "events": 1})
    assert not is_admitted(limiter, PROCMOND, {"events.file": 1})
    limiter.admit(PROCMOND, {"control.x": 1_000})


def test_global_rate_holds_for_all_together_beside_the_rules():
    limiter, _ = limiter_of("collector/a 1/s burst 2", global_rate=5)

    limiter.admit("collector/a", {TOPIC: 1})
    assert not is_admitted(limiter, "collector/a", {TOPIC: 2})
    limiter.admit("collector/b", {TOPIC: 8})
    limiter.admit("collector/a", {TOPIC: 1})
    assert not is_admitted(limiter, "collector/b", {TOPIC: 1})


@pytest.mark.parametrize(
    ("identity", "topic", "expected"),
    [
        ("collector/a", "events.process.x", "collector/a events.process"),
        ("collector/a", "events.process", "collector/a events.process"),
        ("collector/a", "events.processes", "collector/+ events"),
        ("collector/a", "events.network.x", "collector/+ events"),
        ("collector/a", "control.x", "collector/+ all"),
        ("collector/b", "events.process.x", "collector/+ events"),
        ("collector/a-b", "events.process.x", "collector/+ events"),
        ("operator/a", "events.process.x", "+ events.process.x"),
        ("operator/a", "events.process.y", None),
    ],
)
def test_most_specific_rule_applies_identity_first_then_prefix(identity, topic, expected):
    limits = {
        "collector/a events.process": 11,
        "collector/+ events": 12,
        "collector/+ all": 13,
        "+ events.process.x": 14,
    }
    rules = [f"{name.removesuffix(' all')} {n}/s burst 1" for name, n in limits.items()]
    limiter, _ = limiter_of(*rules)
    limiter.admit(identity, {topic: 1})

    if expected is None:
        limiter.admit(identity, {topic: 1_000})
    else:
        with pytest.raises(RateLimitedError) as caught:
            limiter.admit(identity, {topic: 1})
        assert caught.value.metadata["limit"] == str(limits[expected])


steps = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 400), st.integers(0, 40)), min_size=1, max_size=80
)
"""Who publishes, after how many milliseconds, how many messages."""


def assert_within_the_rule(admitted, rate, burst):
    """No stretch of time saw more than a bucket may hand out, but for one batch beyond the burst."""
    for (start, (first_s, _)), (end, (last_s, _)) in itertools.combinations_with_replacement(
        list(enumerate(admitted)), 2
    ):
        counts = [count for _, count in admitted[start : end + 1]]
        beyond = max(0, counts[-1] - burst)
        assert sum(counts) <= burst + beyond + rate * (last_s - first_s) + EPSILON_S


@settings(deadline=None)
@given(steps, st.integers(1, 50), st.integers(1, 30), st.integers(1, 4))
def test_no_identity_gets_more_than_its_rule_however_few_buckets_there_are(
    steps, rate, burst, max_buckets
):
    limiter, clock = limiter_of(f"+ {rate}/s burst {burst}", max_buckets=max_buckets)
    admitted = {}
    for who, pause_ms, count in steps:
        clock.now_s += pause_ms / 1_000
        if is_admitted(limiter, f"collector/c{who}", {TOPIC: count}):
            admitted.setdefault(who, []).append((clock.now_s, count))

    for batches in admitted.values():
        assert_within_the_rule(batches, rate, burst)


@settings(deadline=None)
@given(steps, st.integers(1, 50))
def test_all_identities_together_get_no_more_than_the_global_rate(steps, rate):
    limiter, clock = limiter_of(global_rate=rate, max_buckets=1)
    admitted = []
    for who, pause_ms, count in steps:
        clock.now_s += pause_ms / 1_000
        if is_admitted(limiter, f"collector/c{who}", {TOPIC: count}):
            admitted.append((clock.now_s, count))

    assert_within_the_rule(admitted, rate, 2 * rate)


@settings(deadline=None)
@given(
    steps,
    st.floats(0.5, 1e6),
    st.integers(1, 60),
    st.integers(1, 4),
    st.floats(0, 1e8),
)
def test_whoever_waits_as_long_as_told_is_admitted_and_not_before(
    steps, rate, burst, max_buckets, uptime_s
):
    clock = Clock(uptime_s)
    rule = RateLimit("+", "", rate, burst)
    limiter = RateLimiter([rule], rate * 2, clock, max_buckets)
    for who, pause_ms, count in steps:
        clock.now_s += pause_ms / 1_000
        identity, counts = f"collector/c{who}", {TOPIC: count}
        if is_admitted(limiter, identity, counts):
            continue
        wait_s = wait_of(limiter, identity, counts)
        start_s = clock.now_s
        if wait_s > 2 * EPSILON_S:
            clock.now_s = start_s + wait_s - EPSILON_S
            assert not is_admitted(limiter, identity, counts)
        clock.now_s = start_s + wait_s
        limiter.admit(identity, counts)


def test_rounding_of_the_clock_makes_nobody_wait_twice():
    for start in range(10_000):
        clock = Clock(start / 9_973)
        limiter = RateLimiter([RateLimit("+", "", 3, 10)], None, clock)
        limiter.admit(PROCMOND, {TOPIC: 10})
        clock.now_s += 0.0005
        clock.now_s += wait_of(limiter, PROCMOND, {TOPIC: 7})
        limiter.admit(PROCMOND, {TOPIC: 7})


def test_bucket_that_owes_is_not_forgotten_for_a_newcomer():
    limiter, _ = limiter_of("+ 1/s burst 5", max_buckets=1)
    limiter.admit("collector/a", {TOPIC: 5})
    limiter.admit("collector/b", {TOPIC: 5})

    assert not is_admitted(limiter, "collector/a", {TOPIC: 1})


def test_newcomers_share_one_bucket_while_all_places_owe():
    limiter, _ = limiter_of("+ 1/s burst 5", max_buckets=1)
    limiter.admit("collector/a", {TOPIC: 5})
    limiter.admit("collector/b", {TOPIC: 3})

    assert not is_admitted(limiter, "collector/c", {TOPIC: 3})
    limiter.admit("collector/c", {TOPIC: 2})


def test_newcomer_gets_a_bucket_of_its_own_with_the_shared_debt_once_there_is_room():
    limiter, clock = limiter_of("+ 1/s burst 5", max_buckets=1)
    limiter.admit("collector/a", {TOPIC: 1})
    limiter.admit("collector/b", {TOPIC: 5})
    clock.now_s += 1

    assert wait_of(limiter, "collector/b", {TOPIC: 2}) == pytest.approx(1.0)
    limiter.admit("collector/b", {TOPIC: 1})
    clock.now_s += 5
    limiter.admit("collector/c", {TOPIC: 5})


def test_one_bucket_that_owes_for_long_does_not_keep_others_from_being_forgotten():
    slow, fast = "operator/slow 0.001/s burst 1", "collector/+ 10/s burst 10"
    limiter, clock = limiter_of(slow, fast, max_buckets=2)
    limiter.admit("operator/slow", {TOPIC: 1})
    limiter.admit("collector/a", {TOPIC: 10})
    clock.now_s += 1
    limiter.admit("collector/b", {TOPIC: 10})
    limiter.admit("collector/c", {TOPIC: 0})
    clock.now_s += 1

    limiter.admit("collector/b", {TOPIC: 10})
    limiter.admit("collector/c", {TOPIC: 10})
    assert not is_admitted(limiter, "operator/slow", {TOPIC: 1})
