"""What phases are held to, and what figures and bars are made of them."""

from dataclasses import replace

import pytest
from benchmarks.bus import median_phase
from benchmarks.bus_figures import BusFigures
from benchmarks.bus_phase import Phase, check
from benchmarks.bus_plan import (
    Link,
    Offer,
    PublishPlan,
    PublishReport,
    SubscribePlan,
    SubscribeReport,
    rate_between,
)
from benchmarks.report import BrokenEquationError, NothingDeliveredError

PUBLISHED = PublishReport(
    offered=100,
    begun_ns=0,
    ended_ns=1_000_000_000,
    settled_ns=2_000_000_000,
    cpu_s=0.5,
    lateness_p99_s=0.001,
    stalled_count=0,
)
RECEIVED = SubscribeReport(
    delivered=100,
    missing=0,
    announced=0,
    duplicates=0,
    damaged=0,
    reconnects=0,
    delivered_per_s=50.0,
    cpu_s=0.25,
    latency_p50_s=0.0002,
    latency_p99_s=0.0008,
    latency_max_s=0.004,
)
LINK = Link("ours", "socket", "events.process", "00ff", 1)


def phase(**changes: float) -> Phase:
    return Phase(PUBLISHED, (replace(RECEIVED, **changes),), 0.1, 50_000_000, 1)


def figures(ours: float, at_least_once: float, **peers: float) -> BusFigures:
    rates = {"ours": ours, **peers}
    phases = {name: phase(delivered_per_s=rate) for name, rate in rates.items()}
    return BusFigures(phases, phases, phases, phases, phase(delivered_per_s=at_least_once))


def held(found: BusFigures) -> list[bool]:
    return [bar.holds for bar in found.bars()]


@pytest.mark.parametrize("announces", [True, False])
def test_phase_that_lost_nothing_passes(announces: bool) -> None:
    check(phase(), announces)


def test_announced_losses_pass_and_silent_ones_only_for_peers() -> None:
    check(phase(delivered=90, missing=10, announced=10), announces=True)
    check(phase(delivered=90, missing=10), announces=False)
    with pytest.raises(BrokenEquationError):
        check(phase(delivered=90, missing=10), announces=True)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"delivered": 0, "missing": 100}, NothingDeliveredError),
        ({"delivered_per_s": 0.0}, NothingDeliveredError),
        ({"delivered": 99}, BrokenEquationError),
        ({"announced": 1}, BrokenEquationError),
        ({"duplicates": 1}, BrokenEquationError),
        ({"damaged": 1}, BrokenEquationError),
    ],
)
def test_phase_that_does_not_add_up_fails(
    changes: dict[str, float], error: type[Exception]
) -> None:
    with pytest.raises(error):
        check(phase(**changes), announces=True)


def test_phase_sums_its_subscribing_processes() -> None:
    both = replace(phase(), received=(RECEIVED, RECEIVED), subscriptions=2)
    check(both, announces=True)
    assert (both.delivered, both.offered, both.delivered_per_s) == (200, 200, 100.0)
    assert both.subscriber_cpu_s == 0.5


def test_bars_hold_us_against_the_best_peer() -> None:
    assert held(figures(200.0, 120.0, nats=100.0, redis=60.0)) == [True, True, True, True]
    assert held(figures(199.0, 119.0, nats=60.0, redis=100.0)) == [False, False, True, True]


def test_bar_about_peers_is_left_out_when_there_are_none() -> None:
    assert len(figures(200.0, 120.0).bars()) == 3


def test_figures_stand_beside_those_of_the_peers() -> None:
    metrics = {one.metric: one for one in figures(200.0, 120.0, nats=100.0).metrics()}
    assert metrics["one-to-one, delivered"].value == 200.0
    assert metrics["one-to-one, delivered"].peers == {"nats": 100.0}
    assert metrics["one-to-one, CPU of the server"].value == pytest.approx(1_000.0)
    assert metrics["latency p99 at 1,000/s"].value == pytest.approx(0.8)
    assert metrics["server CPU at 1,000/s"].value == pytest.approx(5.0)


def test_median_phase_is_one_that_was_measured() -> None:
    phases = [phase(delivered_per_s=rate) for rate in (30.0, 10.0, 20.0, 40.0)]
    assert median_phase(phases).delivered_per_s == 20.0


def test_rate_counts_between_the_two_times_alone() -> None:
    second = 1_000_000_000
    samples = [(0, 5), (1 * second, 10), (2 * second, 30), (3 * second, 50), (9 * second, 60)]
    assert rate_between(samples, Offer(60, 1 * second, 3 * second)) == 20.0
    assert rate_between(samples, Offer(60, 4 * second, 8 * second)) == 0.0


def test_plans_travel_as_one_line() -> None:
    publish = PublishPlan(LINK, "progress", slots=2, duration_s=1.0, window=5)
    subscribe = SubscribePlan(LINK, "progress", slots=2, first_slot=1, count=1)
    for plan in (publish, subscribe):
        line = plan.dump()
        assert "\n" not in line
        assert type(plan).parse(line) == plan
    assert publish.link.template.frame == b"\x00\xff"
