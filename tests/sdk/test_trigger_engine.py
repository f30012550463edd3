"""What is asked for, how often, and in which order."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from collector_core import Event, TriggerPriority
from collector_core.trigger import (
    AnalysisKind,
    MissingExecutable,
    Predicate,
    ProcessNamePattern,
    TriggerEngine,
    TriggerLimits,
    TriggerSpec,
)
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2 as pb

START = pb.PROCESS_EVENT_SUBTYPE_PROCESS_CREATED
STOP = pb.PROCESS_EVENT_SUBTYPE_PROCESS_TERMINATED


class FakeClock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


class Outlet:
    """Takes what is emitted; may be closed, or fail."""

    def __init__(self):
        self.events = []
        self.failures = []
        self.opened = asyncio.Event()
        self.opened.set()
        self.asked = asyncio.Event()

    async def __call__(self, event):
        self.asked.set()
        await self.opened.wait()
        if self.failures:
            raise self.failures.pop()
        self.events.append(event)

    @property
    def targets(self):
        return [one.data.target.pid for one in self.events]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def outlet():
    return Outlet()


@pytest.fixture
def new_engine(clock):
    def make(*specs, **limits):
        return TriggerEngine(specs or [spec_of()], TriggerLimits(**limits), clock)

    return make


def spec_of(**changes):
    fields = {
        "id": "deleted",
        "description": "A file is gone.",
        "condition": MissingExecutable(),
        "analysis_type": AnalysisKind.BINARY_HASH,
        "target_collector": "procmond",
    }
    return TriggerSpec(**{**fields, **changes})


def event_of(pid=7, ticks=1, path="/x", subtype=START, name="x"):
    record = common_pb2.ProcessRecord(
        pid=pid, name=name, executable_path=path, boot_id="boot", start_ticks=ticks
    )
    return Event(
        "events.process.lifecycle", pb.ProcessEventData(process=record, subtype=subtype), 5
    )


@asynccontextmanager
async def running(engine, outlet):
    async with asyncio.TaskGroup() as group:
        task = group.create_task(engine.run(outlet))
        yield task
        task.cancel()


async def drain(engine, outlet, eventually):
    async with running(engine, outlet):
        await eventually(lambda: engine.pending == 0)


async def test_a_match_is_emitted_on_the_topic_of_its_domain(new_engine, outlet, eventually):
    engine = new_engine()
    assert engine.examine(event_of()) == 1
    await drain(engine, outlet, eventually)
    (event,) = outlet.events
    assert event.topic == "events.process.trigger"
    assert event.time_ns == 5
    assert event.data.trigger_id.startswith("deleted-")
    assert engine.emitted == 1
    assert not engine.refused


def test_what_does_not_match_is_left_alone(new_engine):
    engine = new_engine(spec_of(condition=ProcessNamePattern("nc")))
    assert engine.examine(event_of()) == 0
    assert (engine.pending, engine.refused) == (0, {})


def test_events_of_other_domains_are_left_alone(new_engine):
    data = pb.TriggerEventData(trigger_id="x")
    assert new_engine().examine(Event("events.process.trigger", data)) == 0


def test_nothing_is_looked_at_without_triggers():
    assert TriggerEngine([]).examine(object()) == 0


def test_a_broken_event_does_not_raise(new_engine, caplog):
    engine = new_engine()
    event = event_of()
    broken = Event("events", event.data)
    assert [engine.examine(broken) for _ in range(3)] == [0, 0, 0]
    assert engine.refused == {"invalid": 3}
    assert len(caplog.records) == 1


def test_a_condition_that_fails_does_not_stop_the_others(new_engine, caplog):
    class Broken:
        fields = frozenset()

        def holds(self, subject):
            raise KeyError("oops")

    engine = new_engine(spec_of(id="broken", condition=Broken()), spec_of())
    assert [engine.examine(event_of(pid)) for pid in (1, 2)] == [1, 1]
    assert engine.refused == {"invalid": 2}
    assert len(caplog.records) == 1


def test_a_stop_is_looked_at_only_by_who_mentions_it(new_engine):
    engine = new_engine(
        spec_of(),
        spec_of(id="all", condition=Predicate("name = 'x'")),
        spec_of(id="stops", condition=Predicate("kind = 'stop'")),
    )
    assert engine.examine(event_of(subtype=STOP)) == 1


def test_a_match_without_anything_to_look_at_is_invalid(new_engine):
    engine = new_engine(spec_of(condition=Predicate("kind = 'stop'")))
    event = event_of(subtype=STOP)
    event.data.process.ClearField("executable_path")
    assert engine.examine(event) == 0
    assert engine.refused == {"invalid": 1}


async def test_the_same_is_asked_once_until_its_time_is_over(new_engine, clock, outlet, eventually):
    engine = new_engine(dedup_s=300)
    async with running(engine, outlet):
        for passed_s, expected in ((0, 1), (299, 0), (1, 1)):
            clock.now_s += passed_s
            assert engine.examine(event_of()) == expected
            await eventually(lambda: engine.pending == 0)
    assert engine.refused == {"duplicate": 1}


def test_the_same_is_asked_once_while_it_waits(new_engine):
    engine = new_engine(dedup_s=0)
    assert engine.examine(event_of()) == 1
    assert engine.examine(event_of()) == 0
    assert engine.refused == {"duplicate": 1}


@pytest.mark.parametrize(
    "other", [{"pid": 8}, {"ticks": 2}, {"path": "/y"}], ids=["pid", "pid again", "path"]
)
async def test_another_target_is_asked_about(new_engine, outlet, eventually, other):
    engine = new_engine()
    engine.examine(event_of())
    await drain(engine, outlet, eventually)
    assert engine.examine(event_of(**other)) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"target_collector": "yara"},
        {"analysis_type": AnalysisKind.YARA_SCAN},
        {"analysis_type": AnalysisKind.CUSTOM, "custom_type": "strings"},
    ],
    ids=["collector", "analysis", "custom analysis"],
)
def test_another_question_about_the_same_target_is_asked(new_engine, other):
    engine = new_engine(spec_of(), spec_of(id="other", **other))
    assert engine.examine(event_of()) == 2


def test_the_more_urgent_of_two_equal_questions_is_asked(new_engine):
    engine = new_engine(
        spec_of(priority=TriggerPriority.LOW),
        spec_of(id="urgent", priority=TriggerPriority.CRITICAL),
    )
    assert engine.examine(event_of()) == 1
    assert engine.refused == {"duplicate": 1}
    assert engine._lanes._high[0].trigger_id.startswith("urgent-")


async def test_too_many_questions_a_minute_are_refused_and_not_remembered(
    new_engine, clock, outlet, eventually
):
    engine = new_engine(per_minute=2)
    assert [engine.examine(event_of(pid)) for pid in (1, 2, 3)] == [1, 1, 0]
    assert engine.refused == {"rate_limited": 1}
    await drain(engine, outlet, eventually)
    assert engine.examine(event_of(3)) == 0
    clock.now_s += 30
    assert engine.examine(event_of(3)) == 1
    assert engine.refused == {"rate_limited": 2}


def test_each_collector_has_its_own_rate(new_engine):
    engine = new_engine(spec_of(), spec_of(id="b", target_collector="other"), per_minute=1)
    assert engine.examine(event_of(1)) == 2
    assert engine.examine(event_of(2)) == 0
    assert engine.refused == {"rate_limited": 2}


def test_a_duplicate_does_not_use_up_the_rate(new_engine):
    engine = new_engine(per_minute=2)
    assert [engine.examine(event_of(pid)) for pid in (1, 1, 1, 2)] == [1, 0, 0, 1]


async def test_a_full_queue_uses_up_neither_memory_nor_rate(new_engine, outlet, eventually):
    engine = new_engine(max_pending=1, per_minute=2)
    assert [engine.examine(event_of(pid)) for pid in (1, 2, 2)] == [1, 0, 0]
    assert engine.refused == {"queue_full": 2}
    await drain(engine, outlet, eventually)
    assert engine.examine(event_of(2)) == 1
    assert engine.refused == {"queue_full": 2}


async def test_an_emit_that_fails_uses_up_neither_memory_nor_rate(
    new_engine, outlet, eventually, caplog
):
    engine = new_engine(per_minute=1)
    outlet.failures = [OSError("disk"), OSError("disk")]
    async with running(engine, outlet):
        for emitted in (0, 0, 1):
            assert engine.examine(event_of()) == 1
            await eventually(lambda: engine.pending == 0)
            assert engine.emitted == emitted
    assert engine.refused == {"emit_failed": 2}
    assert len(caplog.records) == 1


async def test_a_cancelled_emit_is_tried_again_by_the_next_run(new_engine, outlet, eventually):
    engine = new_engine(per_minute=2)
    outlet.opened.clear()
    engine.examine(event_of(1))
    engine.examine(event_of(2))
    async with running(engine, outlet):
        await outlet.asked.wait()
        assert engine.pending == 2
    assert (engine.pending, engine.emitted) == (2, 0)
    assert engine.examine(event_of(1)) == 0
    outlet.opened.set()
    await drain(engine, outlet, eventually)
    assert outlet.targets == [1, 2]
    assert engine.emitted == 2


def test_low_priority_gives_way_under_pressure(new_engine):
    low = spec_of(priority=TriggerPriority.LOW, condition=ProcessNamePattern("low"))
    normal = spec_of(id="n", condition=ProcessNamePattern("normal"))
    high = spec_of(id="h", priority=TriggerPriority.HIGH, condition=ProcessNamePattern("high"))
    engine = new_engine(low, normal, high, max_pending=5)
    names = ["low", "low", "high", "normal", "low", "normal", "high", "low"]
    taken = [engine.examine(event_of(pid, name=name)) for pid, name in enumerate(names, 1)]
    assert taken == [1, 1, 1, 1, 0, 1, 0, 0]
    assert engine.refused == {"backpressure": 1, "queue_full": 2}


def test_a_budget_of_one_takes_one_of_any_priority(new_engine):
    for priority in TriggerPriority:
        engine = new_engine(spec_of(priority=priority), max_pending=1)
        assert [engine.examine(event_of(pid)) for pid in (1, 2)] == [1, 0]
        assert engine.refused == {"queue_full": 1}


async def test_what_is_being_emitted_counts_against_the_budget(new_engine, outlet):
    engine = new_engine(max_pending=1)
    outlet.opened.clear()
    engine.examine(event_of(1))
    async with running(engine, outlet):
        await outlet.asked.wait()
        assert engine.examine(event_of(2)) == 0
    assert engine.refused == {"queue_full": 1}


async def test_the_high_lane_goes_first(new_engine, outlet, eventually):
    specs = [
        spec_of(id=one.name.lower(), priority=one, condition=ProcessNamePattern(one.name))
        for one in TriggerPriority
    ]
    engine = new_engine(*specs)
    for pid, name in enumerate(["LOW", "NORMAL", "HIGH", "CRITICAL", "LOW", "HIGH"], 1):
        engine.examine(event_of(pid, name=name))
    await drain(engine, outlet, eventually)
    assert outlet.targets == [3, 4, 6, 1, 2, 5]


async def test_other_limits_are_obeyed_at_once(new_engine, outlet, eventually):
    engine = new_engine(per_minute=100, dedup_s=300)
    engine.examine(event_of(1))
    await drain(engine, outlet, eventually)
    engine.apply_limits(TriggerLimits(per_minute=1, dedup_s=0, max_pending=1))
    assert [engine.examine(event_of(pid)) for pid in (1, 2)] == [1, 0]
    assert engine.refused == {"rate_limited": 1}
    engine.apply_limits(TriggerLimits(per_minute=100, dedup_s=0, max_pending=1))
    assert engine.examine(event_of(2)) == 0
    assert engine.refused["queue_full"] + engine.refused["rate_limited"] == 2


async def test_targets_that_are_remembered_are_bounded(new_engine, outlet, eventually):
    engine = new_engine(max_remembered=2)
    for pid in (1, 2, 3):
        engine.examine(event_of(pid))
    await drain(engine, outlet, eventually)
    assert engine.forgotten == 1
    assert engine.examine(event_of(1)) == 1
    assert engine.examine(event_of(3)) == 0
