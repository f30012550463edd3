"""The tracker agrees with a model that remembers everything, and stays within its bounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.group import Envelope
from daemoneye_eventbus.tracker import (
    MAX_SOURCES,
    MAX_STAGES,
    MAX_TRACES,
    Stage,
    Step,
    Timeline,
    Tracker,
    UnknownWorkflowError,
    Workflow,
)
from daemoneye_mesh.correlation import Correlation
from daemoneye_mesh.errors import Code, InvalidConfigError

EPOCH_NS = 1_700_000_000_000_000_000
TRACES = ["1" * 32, "2" * 32]


class Clock:
    """Both clocks of a tracker, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return EPOCH_NS + int(self.now_s * 1e9)


def tracker_of(clock: Clock, **bounds: Any) -> Tracker:
    return Tracker(**bounds, monotonic=clock.monotonic, wall_ns=clock.wall_ns)


def envelope_of(root: str = "r", count: int = 1, source_id: str = "s", **fields: Any) -> Envelope:
    correlation = Correlation(
        **{
            "correlation_id": "c",
            "root_correlation_id": root,
            "parent_correlation_id": "p",
            **fields,
        }
    )
    return Envelope(
        topic="events.process.lifecycle", source_id=source_id, count=count, correlation=correlation
    )


def step_of(envelope: Envelope, accepted_at_ns: int) -> Step:
    assert envelope.correlation is not None
    return Step(
        accepted_at_ns,
        envelope.topic,
        envelope.source_id,
        envelope.message_type,
        envelope.count,
        envelope.correlation,
    )


def roots_of(workflows: Sequence[Workflow]) -> list[str]:
    return [workflow.root for workflow in workflows]


@dataclass
class Life:
    """All that one workflow of the model ever saw."""

    active_s: float = 0.0
    seen: list[Step] = field(default_factory=list)

    def view(self, root: str) -> Workflow:
        stages: dict[str, list[Step]] = {}
        for step in self.seen:
            if step.correlation.workflow_stage is not None:
                stages.setdefault(step.correlation.workflow_stage, []).append(step)
        return Workflow(
            root=root,
            started_at_ns=self.seen[0].accepted_at_ns,
            active_at_ns=self.seen[-1].accepted_at_ns,
            message_count=sum(step.message_count for step in self.seen),
            stages=tuple(
                Stage(
                    name,
                    steps[0].accepted_at_ns,
                    steps[-1].accepted_at_ns,
                    sum(step.message_count for step in steps),
                )
                for name, steps in stages.items()
            ),
            unlisted_stage_message_count=0,
            source_ids=tuple(dict.fromkeys(step.source_id for step in self.seen)),
            trace_ids=tuple(
                dict.fromkeys(
                    step.correlation.trace_id for step in self.seen if step.correlation.trace_id
                )
            ),
        )


class Model:
    """Does what a tracker does in the plainest way, with every step it ever saw."""

    def __init__(self, max_steps: int, max_workflows: int, timeout_s: float, max_bytes: int):
        self.bounds = (max_steps, max_workflows, timeout_s, max_bytes)
        self.lives: dict[str, Life] = {}
        self.kept: list[Step] = []
        self.tracked = self.forgotten = self.expired_steps = self.expired = self.evicted = 0

    def track(self, envelope: Envelope, clock: Clock) -> None:
        max_steps, max_workflows, _, max_bytes = self.bounds
        self.sweep(clock)
        step = step_of(envelope, clock.wall_ns())
        root = step.correlation.root_correlation_id
        if root not in self.lives and len(self.lives) == max_workflows:
            self.forgotten += self.drop(next(iter(self.lives)))
            self.evicted += 1
        life = self.lives.pop(root, Life())
        self.lives[root] = life
        life.active_s = clock.now_s
        life.seen.append(step)
        self.kept.append(step)
        self.tracked += 1
        while len(self.kept) > max_steps or self.size_bytes() > max_bytes:
            del self.kept[0]
            self.forgotten += 1

    def sweep(self, clock: Clock) -> None:
        for root, life in list(self.lives.items()):
            if clock.now_s - life.active_s >= self.bounds[2]:
                self.expired_steps += self.drop(root)
                self.expired += 1

    def drop(self, root: str) -> int:
        del self.lives[root]
        gone = len(self.steps(root))
        self.kept = [one for one in self.kept if one.correlation.root_correlation_id != root]
        return gone

    def steps(self, root: str) -> list[Step]:
        return [one for one in self.kept if one.correlation.root_correlation_id == root]

    def size_bytes(self) -> int:
        return sum(step.size_bytes for step in self.kept)

    def workflows(self, tags: dict[str, str], trace_id: str | None) -> list[Workflow]:
        return [
            life.view(root)
            for root, life in reversed(self.lives.items())
            if (
                not tags
                or any(tags.items() <= s.correlation.tags.items() for s in self.steps(root))
            )
            and (not trace_id or trace_id in [s.correlation.trace_id for s in life.seen])
        ]

    def timeline(self, root: str, max_steps: int) -> Timeline:
        steps = self.steps(root)[-max_steps:]
        return Timeline(tuple(steps), len(steps) < len(self.lives[root].seen))

    def require_same(self, tracker: Tracker) -> None:
        counters = tracker.counters()
        assert counters.active == len(self.lives)
        assert (counters.expired, counters.evicted) == (self.expired, self.evicted)
        assert (counters.steps, counters.step_bytes) == (len(self.kept), self.size_bytes())
        assert counters.tracked_steps == self.tracked
        assert (counters.forgotten_steps, counters.expired_steps) == (
            self.forgotten,
            self.expired_steps,
        )
        kept = counters.steps + counters.forgotten_steps + counters.expired_steps
        assert counters.tracked_steps == kept
        for tags in ({}, {"a": "1"}, {"a": "1", "b": "1"}):
            for trace_id in (None, TRACES[0]):
                assert tracker.workflows(tags, trace_id) == self.workflows(tags, trace_id)
        for root in self.lives:
            assert tracker.workflow(root) == self.lives[root].view(root)
            for max_steps in (1, 3, 100):
                assert tracker.timeline(root, max_steps) == self.timeline(root, max_steps)


tag_sets = st.sampled_from([{}, {"a": "1"}, {"b": "1"}, {"a": "1", "b": "1"}, {"a": "é" * 500}])
envelopes = st.builds(
    envelope_of,
    root=st.sampled_from("rstuv"),
    count=st.integers(1, 9),
    source_id=st.sampled_from("xyz"),
    workflow_stage=st.none() | st.sampled_from("kl"),
    trace_id=st.none() | st.sampled_from(TRACES),
    tags=tag_sets,
)
operations = st.lists(envelopes | envelopes | st.sampled_from([1.0, 4.0, 10.0]), max_size=30)


@given(
    operations,
    st.integers(0, 8),
    st.integers(1, 4),
    st.sampled_from([1_000, 4_000, 6_000, 1 << 20]),
)
def test_tracker_agrees_with_one_that_keeps_everything(
    operations: list[Envelope | float], max_steps: int, max_workflows: int, max_bytes: int
) -> None:
    clock = Clock()
    model = Model(max_steps, max_workflows, 10.0, max_bytes)
    tracker = tracker_of(
        clock,
        max_steps=max_steps,
        max_workflows=max_workflows,
        timeout_s=10.0,
        max_step_bytes=max_bytes,
    )
    for operation in operations:
        if isinstance(operation, Envelope):
            tracker.track(operation)
            model.track(operation, clock)
        else:
            clock.now_s += operation
            model.sweep(clock)
        model.require_same(tracker)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> Tracker:
    return tracker_of(clock)


def test_message_without_correlation_is_not_tracked(tracker: Tracker) -> None:
    tracker.track(Envelope(topic="events.process.lifecycle", source_id="s"))
    assert tracker.counters().active == 0
    assert tracker.counters().tracked_steps == 0


def test_children_belong_to_the_workflow_of_their_root(tracker: Tracker) -> None:
    root = Correlation.begin()
    for correlation in (root, root.child(), root.child().child()):
        tracker.track(Envelope(topic="events.a", source_id="s", correlation=correlation))
    assert roots_of(tracker.workflows()) == [root.correlation_id]
    assert len(tracker.timeline(root.correlation_id).steps) == 3


def test_workflow_counts_messages_and_not_groups(tracker: Tracker) -> None:
    tracker.track(envelope_of(count=100, workflow_stage="scan"))
    tracker.track(envelope_of(count=20, workflow_stage="scan"))
    workflow = tracker.workflow("r")
    assert workflow.message_count == 120
    assert [stage.message_count for stage in workflow.stages] == [120]


def test_workflow_tells_when_it_and_its_stages_began_and_were_active(
    tracker: Tracker, clock: Clock
) -> None:
    first_ns = clock.wall_ns()
    tracker.track(envelope_of(workflow_stage="scan"))
    clock.now_s += 5
    tracker.track(envelope_of(workflow_stage="hash"))
    clock.now_s += 5
    tracker.track(envelope_of(workflow_stage="scan"))
    last_ns = clock.wall_ns()
    workflow = tracker.workflow("r")
    assert (workflow.started_at_ns, workflow.active_at_ns) == (first_ns, last_ns)
    assert workflow.stages == (
        Stage("scan", first_ns, last_ns, 2),
        Stage("hash", first_ns + 5 * 10**9, first_ns + 5 * 10**9, 1),
    )


def test_stages_beyond_the_bound_are_counted_and_not_listed(tracker: Tracker) -> None:
    for number in range(MAX_STAGES + 2):
        tracker.track(envelope_of(count=3, workflow_stage=f"stage-{number}"))
    tracker.track(envelope_of(workflow_stage="stage-0"))
    workflow = tracker.workflow("r")
    assert [one.name for one in workflow.stages] == [f"stage-{n}" for n in range(MAX_STAGES)]
    assert workflow.stages[0].message_count == 4
    assert workflow.unlisted_stage_message_count == 6
    assert workflow.message_count == 3 * (MAX_STAGES + 2) + 1


def test_sources_and_traces_are_listed_up_to_their_bounds(tracker: Tracker) -> None:
    for number in range(1, 100):
        tracker.track(envelope_of(source_id=f"s{number}", trace_id=f"{number:032x}"))
    workflow = tracker.workflow("r")
    assert workflow.source_ids == tuple(f"s{number}" for number in range(1, MAX_SOURCES + 1))
    assert workflow.trace_ids == tuple(f"{number:032x}" for number in range(1, MAX_TRACES + 1))


def test_trace_beyond_the_listed_ones_is_found_while_its_step_is_remembered(clock: Clock) -> None:
    tracker = tracker_of(clock, max_steps=2)
    for number in range(1, MAX_TRACES + 3):
        tracker.track(envelope_of(trace_id=f"{number:032x}"))
    assert roots_of(tracker.workflows(trace_id=f"{MAX_TRACES + 2:032x}")) == ["r"]
    tracker.track(envelope_of())
    tracker.track(envelope_of())
    assert tracker.workflows(trace_id=f"{MAX_TRACES + 2:032x}") == []
    assert roots_of(tracker.workflows(trace_id=f"{1:032x}")) == ["r"]


def test_tags_must_all_be_on_one_message(tracker: Tracker) -> None:
    tracker.track(envelope_of("apart", tags={"a": "1"}))
    tracker.track(envelope_of("apart", tags={"b": "1"}))
    tracker.track(envelope_of("together", tags={"a": "1", "b": "1", "c": "1"}))
    assert roots_of(tracker.workflows({"a": "1", "b": "1"})) == ["together"]
    assert roots_of(tracker.workflows({"a": "1"})) == ["together", "apart"]
    assert tracker.workflows({"a": "2"}) == []


def test_workflows_come_latest_activity_first_up_to_the_limit(tracker: Tracker) -> None:
    for root in "abcab":
        tracker.track(envelope_of(root))
    assert roots_of(tracker.workflows()) == ["b", "a", "c"]
    assert roots_of(tracker.workflows(limit=2)) == ["b", "a"]


def test_full_tracker_forgets_the_workflow_active_longest_ago_with_its_steps(clock: Clock) -> None:
    tracker = tracker_of(clock, max_workflows=2)
    for root in "aabac":
        tracker.track(envelope_of(root))
    assert roots_of(tracker.workflows()) == ["c", "a"]
    counters = tracker.counters()
    assert (counters.evicted, counters.forgotten_steps, counters.steps) == (1, 1, 4)
    with pytest.raises(UnknownWorkflowError) as unknown:
        tracker.timeline("b")
    assert unknown.value.code is Code.NOT_FOUND


def test_history_forgets_the_oldest_step_of_any_workflow(clock: Clock) -> None:
    tracker = tracker_of(clock, max_steps=2)
    for root in "aab":
        tracker.track(envelope_of(root))
    assert len(tracker.timeline("a").steps) == 1
    assert tracker.timeline("a").is_truncated
    assert not tracker.timeline("b").is_truncated
    assert tracker.workflow("a").message_count == 2


def test_steps_with_many_large_tags_are_bounded_by_bytes(clock: Clock) -> None:
    tracker = tracker_of(clock, max_step_bytes=1 << 20)
    tags = {f"{number}{'k' * 120}": "v" * 1024 for number in range(64)}
    for _ in range(100):
        tracker.track(envelope_of(tags=tags))
    counters = tracker.counters()
    assert 5 < counters.steps < 16
    assert counters.step_bytes <= 1 << 20
    assert counters.steps + counters.forgotten_steps == 100


def test_tracker_without_history_has_workflows_and_no_timelines(clock: Clock) -> None:
    tracker = tracker_of(clock, max_steps=0)
    tracker.track(envelope_of(tags={"a": "1"}))
    assert tracker.workflow("r").message_count == 1
    assert tracker.timeline("r") == Timeline((), is_truncated=True)
    assert tracker.workflows({"a": "1"}) == []
    assert tracker.counters().step_bytes == 0


def test_timeline_holds_the_latest_steps_in_the_order_of_acceptance(tracker: Tracker) -> None:
    for number in range(5):
        tracker.track(envelope_of(sequence_number=number))
    timeline = tracker.timeline("r", max_steps=3)
    assert [step.correlation.sequence_number for step in timeline.steps] == [2, 3, 4]
    assert timeline.is_truncated
    assert not tracker.timeline("r", max_steps=5).is_truncated


def test_workflow_ends_after_the_timeout_and_not_before(tracker: Tracker, clock: Clock) -> None:
    tracker.track(envelope_of())
    clock.now_s += 299.9
    assert tracker.sweep() == 0
    tracker.track(envelope_of())
    clock.now_s += 299.9
    assert tracker.sweep() == 0
    assert tracker.sweep(clock.now_s + 0.2) == 1
    counters = tracker.counters()
    assert (counters.expired, counters.expired_steps, counters.forgotten_steps) == (1, 2, 0)
    assert (counters.active, counters.steps, counters.step_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    "ask",
    [
        lambda tracker: tracker.workflow("r"),
        lambda tracker: tracker.timeline("r"),
        lambda tracker: tracker.workflows()[0],
    ],
)
def test_overdue_workflow_is_not_told_although_nobody_swept(
    tracker: Tracker, clock: Clock, ask: Callable[[Tracker], object]
) -> None:
    tracker.track(envelope_of())
    clock.now_s += 300
    with pytest.raises((UnknownWorkflowError, IndexError)):
        ask(tracker)


def test_message_for_an_ended_workflow_begins_a_new_one(tracker: Tracker, clock: Clock) -> None:
    tracker.track(envelope_of(count=7))
    clock.now_s += 300
    tracker.track(envelope_of(count=2))
    assert tracker.workflow("r").message_count == 2
    assert tracker.workflow("r").started_at_ns == clock.wall_ns()
    assert not tracker.timeline("r").is_truncated


def test_answer_does_not_change_when_more_is_tracked(tracker: Tracker) -> None:
    tracker.track(envelope_of(workflow_stage="scan"))
    workflow, timeline = tracker.workflow("r"), tracker.timeline("r")
    tracker.track(envelope_of(workflow_stage="hash"))
    assert len(workflow.stages) == len(timeline.steps) == 1


def test_unknown_root_is_shown_harmless_and_short() -> None:
    message = str(UnknownWorkflowError("\n" + "x" * 500))
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize(
    "bounds",
    [
        {"max_steps": -1},
        {"max_workflows": 0},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"max_step_bytes": -1},
    ],
)
def test_tracker_refuses_bounds_out_of_range(bounds: dict[str, float]) -> None:
    with pytest.raises(InvalidConfigError) as refusal:
        Tracker(**bounds)  # type: ignore[arg-type]
    assert refusal.value.metadata["setting"] == next(iter(bounds))
