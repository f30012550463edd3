from hypothesis import given
from hypothesis import strategies as st

from collector_core.health import HealthMonitor, Status, StatusMachine
from collector_core.manual_clock import ManualClock

NAMES = st.sampled_from(["a", "b", "c"])
REPORTS = {
    "ok": Status.OK,
    "recoverable": Status.RECOVERABLE_ERROR,
    "permanent": Status.PERMANENT_ERROR,
    "fatal": Status.FATAL_ERROR,
}
SECONDS = st.floats(0.01, 30)
STEPS = st.one_of(
    st.tuples(st.just("report"), NAMES, st.sampled_from(sorted(REPORTS))),
    st.tuples(st.just("report"), NAMES, st.sampled_from(["ok", "recoverable", "permanent"])),
    st.tuples(st.sampled_from(["advance", "suspend", "step_wall"]), SECONDS),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("ready")),
)
ENDS = st.sampled_from([(), ("stopping",), ("stopping", "stopped"), ("stopped",)])


def play(health, clock, step, said):
    match step:
        case ("report", name, report):
            handle = health.component(name, max_silence_s=20)
            getattr(handle, report)(*([] if report == "ok" else ["x; do y"]))
            said[name] = REPORTS[report]
        case ("remove", name):
            health.remove(name)
            if name not in {one.name for one in health.snapshot().components}:
                said.pop(name, None)
        case ("ready",):
            health.ready()
        case (move, seconds):
            getattr(clock, move)(seconds)


@given(st.lists(STEPS, max_size=40), ENDS)
def test_whatever_is_reported_the_status_is_legal_and_never_too_good(steps, ends):
    clock = ManualClock()
    health, said, is_ready = HealthMonitor(clock), {}, False
    for step in steps:
        play(health, clock, step, said)
        is_ready |= step == ("ready",)
        snapshot = health.snapshot()
        parts = {one.name: one.status for one in snapshot.components}
        worst = max((status.severity for status in parts.values()), default=0)
        assert set(parts) == set(said)
        for name, status in said.items():
            assert parts[name].severity >= status.severity
        if is_ready:
            assert snapshot.status.severity == worst
            assert snapshot.status is not Status.STARTING
        else:
            assert not snapshot.status.is_serving
            assert worst < 2 or snapshot.status.severity >= worst
    for end in ends:
        getattr(health, end)()
        clock.advance(10)
        assert health.snapshot().status.name == end.upper()
    replayed = StatusMachine(clock)
    for change in health.history:
        assert replayed.status is change.before
        replayed.change_to(change.after)
    assert replayed.status is health.status


@given(st.lists(STEPS, max_size=30))
def test_next_change_is_never_later_than_a_change_that_time_alone_makes(steps):
    clock = ManualClock()
    health = HealthMonitor(clock)
    health.ready()
    for step in steps:
        play(health, clock, step, {})
    health.evaluate()
    due_s = health.next_change_s

    def statuses():
        return [(one.name, one.status) for one in health.snapshot().components]

    before = statuses()
    clock.advance(1e6 if due_s is None else max(due_s - 0.001, 0))
    assert statuses() == before
