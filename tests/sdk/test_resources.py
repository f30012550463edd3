import asyncio

import pytest

from collector_core.clock import ClockEvent, ClockEventKind
from collector_core.manual_clock import ManualClock
from collector_core.resources import (
    DegradationLevel,
    ResourceBudget,
    ResourceGuard,
    ResourceSample,
    ResourcesUnreadableError,
    measure_self,
)
from daemoneye_mesh.completeness import DegradedReason
from daemoneye_mesh.errors import ErrorReason, InvalidConfigError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

NONE, NO_HASHING, NO_ENRICHMENT, SAMPLING = DegradationLevel
MIB = 1 << 20
BUDGET = ResourceBudget(cpu_share=0.25, rss_bytes=100 * MIB)


class FakeProcess:
    """A process whose use a test decides."""

    def __init__(self, clock):
        self.clock = clock
        self.cpu_s = 7.0
        self.rss_bytes = 10 * MIB
        self.error = None

    def sample(self):
        if self.error:
            raise self.error
        return ResourceSample(self.clock.monotonic_s(), self.cpu_s, self.rss_bytes)


class Rig:
    """A guard that measures the fake process when told."""

    def __init__(self):
        self.clock = ManualClock()
        self.process = FakeProcess(self.clock)
        self.guard = ResourceGuard(BUDGET, self.clock, self.process.sample)
        self.levels = []
        self.guard.on_level(self.levels.append)
        self.guard.measure()

    def load(self, share, count=1, rss_bytes=10 * MIB):
        """Uses that much for ``count`` measurements."""
        for _ in range(count):
            self.clock.advance(2)
            self.process.cpu_s += 2 * share
            self.process.rss_bytes = rss_bytes
            self.guard.measure()


@pytest.fixture
def rig():
    return Rig()


def test_levels_are_ordered_and_the_lowest_leaves_nothing_out():
    assert NONE < NO_HASHING < NO_ENRICHMENT < SAMPLING
    assert NONE.consequence == ""
    assert all(level.consequence for level in DegradationLevel if level)


@pytest.mark.parametrize(("cpu_share", "rss_bytes"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0)])
def test_budget_of_nothing_is_refused(cpu_share, rss_bytes):
    with pytest.raises(InvalidConfigError):
        ResourceBudget(cpu_share, rss_bytes)


def test_use_is_unknown_before_two_measurements(rig):
    assert rig.guard.use() is None
    rig.load(0.1)
    use = rig.guard.use()
    assert use.cpu_share == pytest.approx(0.1)
    assert (use.cpu_budget_share, use.rss_bytes, use.rss_budget_bytes) == (
        0.25,
        10 * MIB,
        100 * MIB,
    )
    assert use.level is NONE


def test_use_is_smoothed_over_about_ten_seconds(rig):
    rig.load(0.0, 20)
    rig.load(0.2, 5)
    assert rig.guard.use().cpu_share == pytest.approx(0.2 * (1 - 2.718281828**-1))


def test_one_busy_measurement_at_first_is_no_reason_to_leave_anything_out(rig):
    rig.load(0.5)
    rig.load(0.0, 10)
    assert rig.levels == []


def test_three_measurements_over_the_budget_cost_one_level(rig):
    rig.load(0.61, 2)
    assert rig.guard.level is NONE
    rig.load(0.61)
    assert rig.guard.level is NO_HASHING
    assert rig.levels == [NO_HASHING]
    assert rig.guard.use().level is NO_HASHING
    assert rig.guard.why == (
        "uses 61 % of a core, budget 25 %: file hashes are left out; raise cpu_budget_share"
    )


def test_levels_come_one_at_a_time_and_end_with_sampling(rig):
    rig.load(1.0, 30)
    assert rig.levels == [NO_HASHING, NO_ENRICHMENT, SAMPLING]


def test_load_from_before_a_step_costs_no_further_one(rig):
    rig.load(1.0, 3)
    rig.load(0.22, 10)
    assert rig.levels == [NO_HASHING]


def test_measurements_over_the_budget_must_follow_one_another(rig):
    for _ in range(10):
        rig.load(0.0, 2, rss_bytes=200 * MIB)
        rig.load(0.0, 1, rss_bytes=90 * MIB)
    assert rig.levels == []


def test_memory_over_the_budget_costs_a_level_too(rig):
    rig.load(0.01, 3, rss_bytes=210 * MIB)
    assert rig.guard.level is NO_HASHING
    assert rig.guard.why == (
        "uses 210.0 MiB of memory, budget 100.0 MiB: file hashes are left out; "
        "raise rss_budget_bytes"
    )


def test_sentence_names_both_budgets_when_both_are_exceeded(rig):
    rig.load(0.5, 3, rss_bytes=210 * MIB)
    assert "of a core" in rig.guard.why
    assert "of memory" in rig.guard.why
    assert rig.guard.why.endswith("raise cpu_budget_share and rss_budget_bytes")


def test_five_calm_measurements_give_one_level_back(rig):
    rig.load(1.0, 6)
    assert rig.guard.level is NO_ENRICHMENT
    rig.load(0.1, 4)
    assert rig.guard.level is NO_ENRICHMENT
    rig.load(0.1)
    assert rig.guard.level is NO_HASHING
    assert rig.guard.why.startswith("was over its budget: file hashes are left out")
    rig.load(0.1, 5)
    assert (rig.guard.level, rig.guard.why) == (NONE, "")
    rig.load(0.1, 50)
    assert rig.levels == [NO_HASHING, NO_ENRICHMENT, NO_HASHING, NONE]


@pytest.mark.parametrize(("share", "rss_bytes"), [(0.21, 10 * MIB), (0.01, 81 * MIB)])
def test_level_stays_while_one_use_is_near_its_budget(rig, share, rss_bytes):
    rig.load(1.0, 3)
    rig.load(share, 50, rss_bytes=rss_bytes)
    assert rig.guard.level is NO_HASHING


def test_budget_that_is_raised_holds_from_the_next_measurement(rig):
    rig.load(0.5, 2)
    rig.guard.apply_budget(ResourceBudget(0.8, 100 * MIB))
    assert rig.guard.use().cpu_budget_share == 0.8
    rig.load(0.5, 10)
    assert rig.levels == []
    assert rig.guard.budget.cpu_share == 0.8


def test_budget_that_is_lowered_starts_a_new_count(rig):
    rig.load(0.5, 2)
    rig.guard.apply_budget(ResourceBudget(0.1, 100 * MIB))
    rig.load(0.5, 2)
    assert rig.levels == []
    rig.load(0.5)
    assert rig.levels == [NO_HASHING]


@pytest.mark.parametrize("kind", [ClockEventKind.SUSPENDED, ClockEventKind.STALLED])
def test_absence_starts_a_new_count(rig, kind):
    rig.load(1.0, 2)
    rig.guard.note_clock_event(ClockEvent(kind, 100, 0))
    rig.load(1.0, 3)  # the first of them is the new beginning
    assert rig.levels == []
    rig.load(1.0)
    assert rig.levels == [NO_HASHING]


def test_wall_clock_that_is_set_starts_nothing(rig):
    rig.load(1.0, 2)
    rig.guard.note_clock_event(ClockEvent(ClockEventKind.WALL_STEPPED, 100, 0))
    rig.load(1.0)
    assert rig.levels == [NO_HASHING]


def test_measurement_that_is_far_too_late_does_not_count(rig):
    rig.load(0.2, 20)
    rig.clock.advance(3600)
    rig.guard.measure()
    assert rig.guard.use().cpu_share == pytest.approx(0.2)
    rig.load(1.0, 2)
    assert rig.levels == []


def test_two_measurements_of_one_moment_divide_by_nothing(rig):
    rig.load(0.2)
    rig.guard.measure()
    assert rig.guard.use().cpu_share == pytest.approx(0.2)


def test_failed_measurement_is_said_and_starts_a_new_count(rig, caplog):
    rig.load(1.0, 2)
    rig.process.error = ResourcesUnreadableError("cannot read it; mount /proc")
    rig.load(1.0, 2)
    assert (rig.guard.failure, rig.guard.failure_count) == ("cannot read it; mount /proc", 2)
    assert caplog.text.count("ERROR") == 1
    rig.process.error = None
    rig.load(1.0, 3)
    assert rig.guard.failure == ""
    assert rig.levels == []


def test_degradation_says_who_suffers_and_why(rig):
    assert rig.guard.degradations("unit") == ()
    rig.load(1.0, 3)
    (one,) = rig.guard.degradations("unit")
    assert (one.reason, one.subject, one.message) == (
        DegradedReason.OVER_BUDGET,
        "unit",
        rig.guard.why,
    )


async def test_run_measures_at_its_interval():
    clock = ManualClock()
    process, levels = FakeProcess(clock), []
    guard = ResourceGuard(BUDGET, clock, process.sample, interval_s=2)
    guard.on_level(levels.append)
    task = asyncio.ensure_future(guard.run())
    for _ in range(5):
        await clock.pass_time(1)
        process.cpu_s += 1
    assert levels == []
    await clock.pass_time(1)
    assert levels == [NO_HASHING]
    task.cancel()
    await asyncio.wait([task])


def test_own_process_is_measured():
    before = measure_self()
    spent = 0
    while measure_self().cpu_s - before.cpu_s < 0.02:
        spent += sum(range(20_000))
    after = measure_self()
    assert after.at_s > before.at_s
    assert after.cpu_s >= before.cpu_s + 0.02
    assert MIB < after.rss_bytes < 1 << 40


def test_name_of_the_process_does_not_confuse_the_measurement(tmp_path):
    fields = b" ".join(str(number).encode() for number in range(4, 53))
    (tmp_path / "stat").write_bytes(b"42 (a) R (b 9 9) S " + fields)
    (tmp_path / "statm").write_bytes(b"1000 250 9 9 0 9 0\n")
    sample = measure_self(tmp_path)
    assert sample.cpu_s > 0
    assert sample.cpu_s * 1000 % (14 + 15) == 0
    assert sample.rss_bytes % 250 == 0


@pytest.mark.parametrize(
    ("stat", "statm"), [(b"", b"1 1"), (b"1 (a) R 1", b"1 1"), (b"1 (a) " + b"1 " * 40, b"1")]
)
def test_measurement_that_makes_no_sense_is_an_error(tmp_path, stat, statm):
    (tmp_path / "stat").write_bytes(stat)
    (tmp_path / "statm").write_bytes(statm)
    with pytest.raises(ResourcesUnreadableError) as got:
        measure_self(tmp_path)
    assert got.value.reason is ErrorReason.FILE_UNUSABLE


def test_measurement_without_proc_is_an_error(tmp_path):
    with pytest.raises(ResourcesUnreadableError):
        measure_self(tmp_path / "nothing")
