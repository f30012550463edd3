"""Times in which not everything was seen: opened, told piece by piece, found again after a death."""

import asyncio
import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from collector_core.collector import Collector
from collector_core.event import Event
from collector_core.gap import Gap, GapKeeper, GapReason, LifeMark
from collector_core.manual_clock import ManualClock
from collector_core.settings import CollectorSettings
from daemoneye.eventbus.v1 import collection_gap_pb2 as pb
from daemoneye_mesh.lifecycle import StopRequest

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 20
T0_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


class Told:
    """Takes the events of gaps; a test may hold them up."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.go = asyncio.Event()
        self.go.set()

    async def emit(self, event: Event) -> None:
        await self.go.wait()
        self.events.append(event)

    @property
    def gaps(self) -> list[Any]:
        return [event.data for event in self.events]

    @property
    def spans_s(self) -> list[tuple[float, float]]:
        """Begin and end of each gap, seconds after T0."""
        return [span_s(gap) for gap in self.gaps]


def span_s(gap: Any) -> tuple[float, float]:
    begin_ns, end_ns = gap.started_at.ToNanoseconds(), gap.ended_at.ToNanoseconds()
    return (begin_ns - T0_NS) / SECOND_NS, (end_ns - T0_NS) / SECOND_NS


@pytest.fixture
async def told() -> Told:
    return Told()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(T0_NS)


@pytest.fixture
async def gaps(told: Told, clock: ManualClock) -> GapKeeper:
    return GapKeeper(told.emit, "events.process.gap", clock.wall_ns)


async def test_gap_is_told_when_it_closes(gaps: GapKeeper, told: Told, clock: ManualClock) -> None:
    gaps.open(GapReason.SOURCE_FAILED, "one", "source one failed")
    clock.advance(5)
    await gaps.flush()
    assert not told.events
    gaps.close(GapReason.SOURCE_FAILED, "one")
    assert gaps.is_waiting
    await gaps.flush()
    (event,) = told.events
    assert event.topic == "events.process.gap"
    assert event.time_ns == T0_NS + 5 * SECOND_NS
    (gap,) = told.gaps
    assert gap.reason == pb.COLLECTION_GAP_REASON_SOURCE_FAILED
    assert (gap.source_name, gap.message) == ("one", "source one failed")
    assert not gap.HasField("event_count")
    assert told.spans_s == [(0, 5)]
    assert gaps.told_count == 1
    assert not gaps.is_waiting


async def test_gap_that_is_opened_twice_begins_once_and_is_told_once(
    gaps: GapKeeper, told: Told, clock: ManualClock
) -> None:
    gaps.open(GapReason.PAUSED, "", "was paused")
    clock.advance(1)
    gaps.open(GapReason.PAUSED, "", "was paused")
    clock.advance(1)
    gaps.close(GapReason.PAUSED, "")
    gaps.close(GapReason.PAUSED, "")
    await gaps.flush()
    assert told.spans_s == [(0, 2)]


async def test_gaps_of_other_reasons_and_sources_are_their_own(gaps: GapKeeper, told: Told) -> None:
    gaps.open(GapReason.SOURCE_FAILED, "one", "one failed")
    gaps.open(GapReason.SOURCE_FAILED, "two", "two failed")
    gaps.open(GapReason.PAUSED, "", "was paused")
    gaps.close(GapReason.SOURCE_FAILED, "two")
    gaps.close(GapReason.STOPPED, "")
    await gaps.flush()
    assert [gap.source_name for gap in told.gaps] == ["two"]


async def test_open_gap_is_told_in_pieces_without_holes_that_add_up(
    gaps: GapKeeper, told: Told, clock: ManualClock
) -> None:
    counts = iter([3, 4, 5])
    gaps.open(GapReason.SHED, "", "left out", lambda: next(counts))
    for _ in range(2):
        clock.advance(60)
        gaps.tell_open()
    clock.advance(10)
    gaps.close(GapReason.SHED, "")
    await gaps.flush()
    assert told.spans_s == [(0, 60), (60, 120), (120, 130)]
    assert [gap.event_count for gap in told.gaps] == [3, 4, 5]


async def test_count_of_nothing_is_told_as_zero(gaps: GapKeeper, told: Told) -> None:
    gaps.open(GapReason.SHED, "", "left out", lambda: 0)
    gaps.close(GapReason.SHED, "")
    await gaps.flush()
    assert told.gaps[0].HasField("event_count")


async def test_gap_never_ends_before_it_began_when_the_wall_clock_is_set_back(
    gaps: GapKeeper, told: Told, clock: ManualClock
) -> None:
    gaps.open(GapReason.PAUSED, "", "was paused")
    gaps.open(GapReason.SOURCE_FAILED, "one", "failed")
    clock.step_wall(-3_600)
    gaps.tell_open()
    gaps.close(GapReason.PAUSED, "")
    gaps.tell(Gap(GapReason.SUSPENDED, T0_NS, T0_NS - 5, "slept"))
    gaps.tell_until_now(Gap(GapReason.KILLED, T0_NS, T0_NS, "was killed"))
    await gaps.flush()
    assert len(told.spans_s) == 5
    assert all(begin <= end for begin, end in told.spans_s)


async def test_gap_until_now_ends_when_it_is_emitted(
    gaps: GapKeeper, told: Told, clock: ManualClock
) -> None:
    gaps.tell_until_now(Gap(GapReason.STOPPED, T0_NS, T0_NS, "was stopped"))
    clock.advance(7)
    await gaps.flush()
    assert told.spans_s == [(0, 7)]


async def test_gaps_that_nobody_takes_are_bounded_and_nothing_of_them_is_left_out(
    gaps: GapKeeper, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector_core.gap.MAX_WAITING", 3)
    for begin in range(6):
        span_ns = (T0_NS + begin * SECOND_NS, T0_NS + (begin + 1) * SECOND_NS)
        gaps.tell(Gap(GapReason.SHED, *span_ns, "shed", f"source-{begin}", event_count=10))
    await gaps.flush()
    assert told.spans_s == [(0, 1), (1, 2), (2, 6)]
    assert [gap.event_count for gap in told.gaps] == [10, 10, 40]
    assert told.gaps[-1].message == "shed, and more"
    assert told.gaps[-1].source_name == ""


async def test_two_flushes_at_once_tell_each_gap_once(gaps: GapKeeper, told: Told) -> None:
    told.go.clear()
    for number in range(3):
        gaps.tell(Gap(GapReason.SUSPENDED, T0_NS, T0_NS, str(number)))
    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(gaps.flush())
        await asyncio.sleep(0)
        told.go.set()
    assert [gap.message for gap in told.gaps] == ["0", "1", "2"]


async def test_gap_whose_telling_is_cancelled_is_told_later(
    gaps: GapKeeper, told: Told, running: Any
) -> None:
    told.go.clear()
    gaps.tell(Gap(GapReason.SUSPENDED, T0_NS, T0_NS, "slept"))
    task = running(gaps.flush())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert gaps.is_waiting
    told.go.set()
    await gaps.flush()
    assert [gap.message for gap in told.gaps] == ["slept"]


async def test_running_keeper_tells_open_gaps_again_and_again_whatever_else_it_tells(
    *, gaps: GapKeeper, told: Told, running: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector_core.gap.REPORT_S", 0.03)
    gaps.open(GapReason.PAUSED, "", "was paused")

    def is_told_thrice() -> bool:
        gaps.tell(Gap(GapReason.SUSPENDED, T0_NS, T0_NS, "slept"))  # oftener than REPORT_S
        return [gap.message for gap in told.gaps].count("was paused") >= 3

    running(gaps.run())
    await eventually(is_told_thrice)


def test_mark_of_no_earlier_life_is_none(tmp_path: Path) -> None:
    assert LifeMark(tmp_path / "alive").read_ns() is None


def test_mark_says_when_it_was_left_by_the_clock_it_was_given(
    tmp_path: Path, clock: ManualClock
) -> None:
    mark = LifeMark(tmp_path / "alive", clock.wall_ns)
    mark.touch()
    assert mark.read_ns() == T0_NS
    clock.advance(3)
    assert mark.read_ns() == T0_NS
    mark.touch()
    assert mark.read_ns() == T0_NS + 3 * SECOND_NS
    assert (tmp_path / "alive").stat().st_mode & 0o777 == 0o600


def test_mark_from_the_future_counts_as_now(tmp_path: Path, clock: ManualClock) -> None:
    mark = LifeMark(tmp_path / "alive", clock.wall_ns)
    mark.touch()
    clock.step_wall(-3_600)
    assert mark.read_ns() == T0_NS - 3_600 * SECOND_NS


async def test_mark_that_cannot_be_left_is_complained_of_once_and_tried_again(
    *,
    tmp_path: Path,
    running: Any,
    eventually: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("collector_core.gap.MARK_S", 0.001)
    tries: list[None] = []
    mark = LifeMark(tmp_path / "state" / "alive", lambda: T0_NS)
    touch = mark.touch

    def count_and_touch() -> None:
        tries.append(None)
        touch()

    monkeypatch.setattr(mark, "touch", count_and_touch)
    with caplog.at_level(logging.WARNING, "daemoneye.gap"):
        running(mark.run())
        await eventually(lambda: len(tries) >= 3)
        assert caplog.text.count("cannot mark") == 1
        (tmp_path / "state").mkdir()
        await eventually(lambda: mark.read_ns() == T0_NS)


class Lives:
    """Lives of one collector on one clock, whose ends a test chooses."""

    def __init__(self, settings: CollectorSettings, clock: ManualClock, running: Any) -> None:
        self._settings = settings
        self.clock = clock
        self._running = running
        self.mark = LifeMark(settings.state_path("unit") / "alive", clock.wall_ns)
        self.stop = StopRequest()
        self.collector: Any = None
        self._task: Any = None

    def begin(self, *sources: Any) -> None:
        self.stop = StopRequest()
        self.collector = Collector("unit", sources, self._settings, clock=self.clock)
        self._task = self._running(self.collector.run(self.stop))

    async def end(self) -> None:
        self.stop.request("the test wants it")
        async with asyncio.timeout(GUARD_S):
            await self._task

    @property
    def is_connected(self) -> bool:
        """Whether the broker takes its events."""
        parts = self.collector.running.vitals.health.snapshot().components
        return any(one.name == "bus" and one.status == "OK" for one in parts)

    async def kill(self) -> None:
        """Ends it without a chance to close its log cleanly."""
        self._task.cancel()
        async with asyncio.timeout(GUARD_S):
            await asyncio.wait({self._task})


@pytest.fixture
async def serve_mesh(broker: Any, registry: Any, serve: Any) -> None:
    await serve(broker)
    await serve(registry)


@pytest.fixture
async def lives(
    *,
    mesh_identity: Any,
    running: Any,
    tmp_path: Path,
    clock: ManualClock,
    serve_mesh: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Lives:
    monkeypatch.setattr("collector_core.gap.MARK_S", 0.005)
    layout = mesh_identity.layout
    mesh_identity.enrol(layout.collector("unit"))
    settings = CollectorSettings(runtime_dir=layout.root, state_dir=tmp_path / "state")
    return Lives(settings, clock, running)


def gaps_of(broker: Any) -> list[Any]:
    payloads = [one.collection_event for one in broker.accepted]
    return [one.collection_gap for one in payloads if one.HasField("collection_gap")]


async def live_until(lives: Lives, end_s: float, eventually: Callable[..., Any]) -> None:
    """Has the collector live until so many seconds after T0, and be known to have."""
    await eventually(lambda: lives.mark.read_ns() is not None and lives.is_connected)
    lives.clock.step_wall(end_s)
    await eventually(lambda: lives.mark.read_ns() == T0_NS + int(end_s * SECOND_NS))


@pytest.mark.parametrize(
    ("end", "reason"),
    [("kill", pb.COLLECTION_GAP_REASON_KILLED), ("end", pb.COLLECTION_GAP_REASON_STOPPED)],
)
async def test_time_between_two_lives_is_told_before_anything_the_second_one_sees(
    *,
    lives: Lives,
    broker: Any,
    list_source: Any,
    eventually: Any,
    end: str,
    reason: int,
) -> None:
    lives.begin(list_source("one", pids=(1,)))
    await eventually(lambda: len(broker.accepted) == 1)
    await live_until(lives, 10, eventually)
    await getattr(lives, end)()
    lives.clock.step_wall(100)
    source = list_source("one", pids=(2,))
    source.prepared.clear()
    lives.begin(source)
    await eventually(lambda: lives.collector.running is not None)
    await eventually(lambda: broker.sequences == [1, 1])  # nobody has acknowledged the first
    lives.clock.step_wall(30)
    assert not gaps_of(broker)
    source.prepared.set()
    await eventually(lambda: broker.sequences == [1, 1, 2, 3])
    gap = broker.accepted[2].collection_event.collection_gap
    assert gap.reason == reason
    assert span_s(gap) == (10, 140)
    assert broker.accepted[3].collection_event.process_event.process.pid == 2
    await lives.end()
    assert len(gaps_of(broker)) == 1


async def test_first_life_tells_no_gap(
    lives: Lives, broker: Any, list_source: Any, eventually: Any
) -> None:
    lives.begin(list_source("one", pids=(1,)))
    await eventually(lambda: len(broker.accepted) == 1)
    await live_until(lives, 5, eventually)
    await lives.end()
    assert not gaps_of(broker)


async def test_gap_after_the_wall_clock_was_set_back_is_told_with_no_length(
    lives: Lives, broker: Any, list_source: Any, eventually: Any
) -> None:
    lives.begin(list_source("one"))
    await live_until(lives, 10, eventually)
    await lives.kill()
    lives.clock.step_wall(-3_600)
    lives.begin(list_source("one"))
    await eventually(lambda: gaps_of(broker))
    begin_s, end_s = span_s(gaps_of(broker)[0])
    assert begin_s == end_s == -3_590
    await lives.end()


async def test_life_that_died_before_it_told_its_gap_leaves_it_to_the_next(
    lives: Lives, broker: Any, list_source: Any, eventually: Any
) -> None:
    lives.begin(list_source("one"))
    await live_until(lives, 10, eventually)
    await lives.kill()
    lives.clock.step_wall(20)
    never = list_source("one")
    never.prepared.clear()
    lives.begin(never)
    await eventually(lambda: lives.collector.running is not None)
    await eventually(lambda: lives.collector.running.monitor.state == 2)
    await lives.kill()
    lives.clock.step_wall(20)
    lives.begin(list_source("one"))
    await eventually(lambda: gaps_of(broker))
    assert [span_s(gap) for gap in gaps_of(broker)] == [(10, 50)]
    await lives.end()


async def test_gap_that_is_open_at_the_end_of_a_life_is_told_in_it(
    lives: Lives, broker: Any, list_source: Any, eventually: Any
) -> None:
    lives.begin(list_source("one"))
    await live_until(lives, 10, eventually)
    await lives.collector.running.pause()
    lives.clock.step_wall(5)
    await lives.end()
    assert [(gap.reason, span_s(gap)) for gap in gaps_of(broker)] == [
        (pb.COLLECTION_GAP_REASON_PAUSED, (10, 15))
    ]
    (event,) = broker.accepted
    assert event.metadata.topic == "events.process.gap"


async def test_pauses_and_stops_of_the_sources_are_told_with_their_times(
    lives: Lives, broker: Any, list_source: Any, eventually: Any
) -> None:
    lives.begin(list_source("one"))
    await live_until(lives, 10, eventually)
    running = lives.collector.running
    for away, back in ((running.pause, running.resume), (running.stop_monitoring, running.begin)):
        await away()
        lives.clock.step_wall(5)
        await back()
    await eventually(lambda: len(gaps_of(broker)) == 2)
    assert [(gap.reason, span_s(gap)) for gap in gaps_of(broker)] == [
        (pb.COLLECTION_GAP_REASON_PAUSED, (10, 15)),
        (pb.COLLECTION_GAP_REASON_STOPPED, (15, 20)),
    ]
    await lives.end()


async def test_pieces_of_a_long_pause_touch_each_other(
    *,
    lives: Lives,
    broker: Any,
    list_source: Any,
    eventually: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("collector_core.gap.REPORT_S", 0.02)
    lives.begin(list_source("one"))
    await live_until(lives, 10, eventually)
    await lives.collector.running.pause()
    for count in range(1, 4):
        await eventually(lambda count=count: len(gaps_of(broker)) >= count)
        lives.clock.step_wall(60)
    await lives.collector.running.resume()
    await lives.end()
    spans = [span_s(gap) for gap in gaps_of(broker)]
    assert (spans[0][0], spans[-1][1]) == (10, 190)
    assert all(before[1] == after[0] for before, after in pairwise(spans))
