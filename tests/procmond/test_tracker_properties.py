"""Random lives of processes, replayed through the tracker."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from daemoneye_procmond.event import EventKind, ProcessEvent
from daemoneye_procmond.observation import Observation, TrackerLimits
from daemoneye_procmond.record import ProcessIdentity, ProcessReading
from daemoneye_procmond.statline import StatLine
from daemoneye_procmond.tracker import Tracker

OPENING = (EventKind.INVENTORY, EventKind.START)
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["fork", "exit", "reap", "exec", "stop", "cont", "rename"]),
        st.integers(1, 6),
    ),
    max_size=8,
)
SCANS = st.lists(
    st.tuples(ACTIONS, st.sampled_from(["whole", "partial", "unreadable"])), max_size=12
)


class World:
    """A host of six pids which are used again and again."""

    def __init__(self, make_stat: Callable[..., StatLine]) -> None:
        self._make_stat = make_stat
        self._ticks = 0
        self.processes: dict[int, StatLine] = {}
        self.exec_seen_by: Counter[tuple[int, int]] = Counter()

    def act(self, action: str, pid: int) -> None:
        self._ticks += 1
        stat = self.processes.get(pid)
        if action == "fork" and stat is None:
            self.processes[pid] = self._make_stat(pid, self._ticks, start_stack=self._ticks + 99)
        elif action == "reap" and stat is not None:
            del self.processes[pid]
        elif stat is not None and not stat.is_exited:
            self.processes[pid] = stat._replace(**self._change(action))

    def _change(self, action: str) -> dict[str, Any]:
        changes: dict[str, dict[str, Any]] = {
            "exit": {"state": "Z", "start_stack": 0},
            "exec": {"start_stack": self._ticks + 99},
            "stop": {"state": "T"},
            "cont": {"state": "S"},
            "rename": {"comm": b"n%d" % self._ticks},
        }
        return changes.get(action, {})


def scan(
    tracker: Tracker,
    stats: list[StatLine],
    make_reading: Callable[..., ProcessReading],
    *,
    mode: str = "whole",
) -> tuple[ProcessEvent, ...]:
    left_out = stats[: len(stats) // 2] if mode != "whole" else []
    plan = tracker.plan(
        Observation(
            stats[len(left_out) :],
            observed_at_ns=1,
            monotonic_s=0.0,
            unreadable_pids=frozenset(stat.pid for stat in left_out if mode == "unreadable"),
            is_complete=mode != "partial",
        )
    )
    return tracker.apply(plan, {stat.pid: make_reading(stat) for stat in plan.wanted})


def check_lives(events: list[ProcessEvent]) -> set[ProcessIdentity]:
    """Holds each identity to one opening, changes, one stop; returns those still running."""
    running: set[ProcessIdentity] = set()
    ended: set[ProcessIdentity] = set()
    suspended: set[ProcessIdentity] = set()
    for event in events:
        identity = event.record.identity
        assert identity not in ended
        if event.kind in OPENING:
            assert identity not in running
            running.add(identity)
            if event.record.state == "T":
                suspended.add(identity)
            continue
        assert identity in running
        if event.kind is EventKind.STOP:
            running.remove(identity)
            ended.add(identity)
        elif event.kind is EventKind.SUSPEND:
            assert identity not in suspended
            suspended.add(identity)
        elif event.kind is EventKind.RESUME:
            suspended.remove(identity)
        elif event.kind is EventKind.MODIFIED:
            assert event.changed_fields
    return running


@settings(max_examples=300)
@given(SCANS, st.integers(0, 3))
def test_tracker_tells_each_life_once_and_in_order(
    make_stat: Callable[..., StatLine],
    make_reading: Callable[..., ProcessReading],
    scans: list[tuple[list[tuple[str, int]], str]],
    recheck_count: int,
) -> None:
    world, tracker = World(make_stat), Tracker(TrackerLimits(recheck_count=recheck_count))
    events: list[ProcessEvent] = []
    for actions, mode in scans:
        for action in actions:
            world.act(*action)
        events += scan(tracker, list(world.processes.values()), make_reading, mode=mode)
    events += scan(tracker, list(world.processes.values()), make_reading)
    alive = {(s.pid, s.start_ticks) for s in world.processes.values() if not s.is_exited}
    assert {(i.pid, i.start_ticks) for i in check_lives(events)} == alive
    assert len(tracker) == len(alive)
    events += scan(tracker, [], make_reading)
    assert check_lives(events) == set()


@settings(max_examples=300)
@given(st.lists(ACTIONS, max_size=12), st.integers(1, 5))
def test_tracker_never_makes_events_of_its_bound(
    make_stat: Callable[..., StatLine],
    make_reading: Callable[..., ProcessReading],
    scans: list[list[tuple[str, int]]],
    limit: int,
) -> None:
    world, tracker = World(make_stat), Tracker(TrackerLimits(process_count=limit))
    events: list[ProcessEvent] = []
    for actions in scans:
        for action in actions:
            world.act(*action)
        events += scan(tracker, list(world.processes.values()), make_reading)
        alive = {(s.pid, s.start_ticks) for s in world.processes.values() if not s.is_exited}
        running = {(i.pid, i.start_ticks) for i in check_lives(events)}
        assert running <= alive
        assert len(tracker) <= limit


@settings(max_examples=200)
@given(st.lists(ACTIONS, max_size=12))
def test_tracker_tells_one_exec_for_each_that_a_scan_can_see(
    make_stat: Callable[..., StatLine],
    make_reading: Callable[..., ProcessReading],
    scans: list[list[tuple[str, int]]],
) -> None:
    world, tracker = World(make_stat), Tracker()
    events: list[ProcessEvent] = []
    expected: Counter[tuple[int, int]] = Counter()
    for actions in scans:
        before = {(s.pid, s.start_ticks): s.start_stack for s in world.processes.values()}
        for action in actions:
            world.act(*action)
        for stat in world.processes.values():
            key = (stat.pid, stat.start_ticks)
            if not stat.is_exited and before.get(key, stat.start_stack) != stat.start_stack:
                expected[key] += 1
        events += scan(tracker, list(world.processes.values()), make_reading)
    told = Counter(
        (event.record.pid, event.record.start_ticks)
        for event in events
        if event.kind is EventKind.EXEC
    )
    assert told == expected
