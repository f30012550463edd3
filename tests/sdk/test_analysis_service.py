"""Analyses: done once, bounded, in order of urgency, and silent about causes."""

import asyncio
from collections.abc import Callable

import pytest

from collector_core import (
    AnalysisError,
    AnalysisErrorKind,
    AnalysisFinding,
    EventSource,
    SourceCaps,
    TriggerPriority,
)
from collector_core.analysis_service import (
    MAX_REMEMBERED,
    MAX_WAITING,
    REMEMBER_S,
    AnalysisRunner,
    _Slots,
)
from daemoneye.common.v1 import analysis_pb2
from daemoneye.ipc.v1 import analysis_pb2 as pb
from daemoneye_mesh.errors import InvalidRequestError, UnsupportedError

HASH = analysis_pb2.ANALYSIS_TYPE_BINARY_HASH
YARA = analysis_pb2.ANALYSIS_TYPE_YARA_SCAN

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


class FakeClock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


class FakeSource(EventSource):
    """Finds something once its gate is open."""

    name = "fake"
    caps = SourceCaps.PROCESS
    analyses = frozenset({HASH})

    def __init__(self, name="fake"):
        self.name = name
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.find: Callable[[], AnalysisFinding] = lambda: AnalysisFinding(findings={"by": name})

    async def analyze(self, request):
        self.begun.append(request.trigger_id)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.trigger_id)
            raise
        return self.find()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def source():
    return FakeSource()


@pytest.fixture
async def runner(source, clock):
    runner = AnalysisRunner([source], 1, clock)
    yield runner
    await runner.close()


def request_of(trigger_id="t1", priority=5, **changes):
    fields = {"analysis_type": HASH, "target": analysis_pb2.AnalysisTarget(path="/x")}
    return pb.AnalyzeRequest(trigger_id=trigger_id, priority=priority, **{**fields, **changes})


def kind_of(response):
    assert response.WhichOneof("outcome") == "failure"
    return AnalysisErrorKind(response.failure.kind).name


async def begin(group, runner, *requests):
    """Starts calls one after the other; each is in line before the next."""
    tasks = []
    for request in requests:
        tasks.append(group.create_task(runner.analyze(request)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return tasks


async def test_a_finding_is_answered_with_the_id_and_the_time_it_took(runner, source, clock):
    def find():
        clock.now_s += 1.5
        return AnalysisFinding(findings={"a": "1"}, confidence=0.5)

    source.find = find
    response = await runner.analyze(request_of())
    assert response.trigger_id == "t1"
    assert response.result == pb.AnalysisResult(findings={"a": "1"}, confidence=0.5)
    assert response.elapsed.ToNanoseconds() == 1_500_000_000
    assert runner.counts == {"ok": 1}


async def test_what_is_not_offered_is_refused_with_what_is(runner):
    with pytest.raises(UnsupportedError, match="ask for ANALYSIS_TYPE_BINARY_HASH") as caught:
        await runner.analyze(request_of(analysis_type=YARA))
    assert caught.value.metadata["analysis_type"] == "ANALYSIS_TYPE_YARA_SCAN"


async def test_nothing_is_offered_without_sources():
    with pytest.raises(UnsupportedError, match="no analysis is"):
        await AnalysisRunner([]).analyze(request_of())


async def test_a_request_that_makes_no_sense_is_refused(runner, source):
    with pytest.raises(InvalidRequestError):
        await runner.analyze(request_of(trigger_id=""))
    assert not source.begun


async def test_the_first_of_several_sources_answers():
    runner = AnalysisRunner([FakeSource("first"), FakeSource("second")])
    assert (await runner.analyze(request_of())).result.findings == {"by": "first"}


@pytest.mark.parametrize("kind", AnalysisErrorKind)
async def test_a_failure_is_answered_with_its_kind_alone(runner, source, kind):
    def find():
        raise AnalysisError(kind, "/etc/shadow is not readable")

    source.find = find
    response = await runner.analyze(request_of())
    assert kind_of(response) == kind.name
    assert b"shadow" not in response.SerializeToString()
    assert runner.counts == {kind.name.lower(): 1}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError("secret"), "TIMEOUT"),
        (KeyError("secret"), "INTERNAL"),
        (asyncio.CancelledError("secret"), "INTERNAL"),
        (UnsupportedError("secret"), "INTERNAL"),
    ],
    ids=lambda one: str(one) and type(one).__name__,
)
async def test_any_other_error_says_nothing_of_itself(runner, source, error, kind):
    def find():
        raise error

    source.find = find
    response = await runner.analyze(request_of())
    assert kind_of(response) == kind
    assert b"secret" not in response.SerializeToString()


async def test_the_log_has_the_stack_of_a_defect(runner, source, caplog):
    def find():
        raise KeyError("secret")

    source.find = find
    await runner.analyze(request_of())
    assert any(one.exc_info and "secret" in str(one.exc_info[1]) for one in caplog.records)


async def test_a_finding_beyond_the_bounds_is_a_defect(runner, source):
    source.find = lambda: AnalysisFinding(findings={str(n): "" for n in range(101)})
    assert kind_of(await runner.analyze(request_of())) == "INTERNAL"


async def test_a_text_that_is_no_unicode_is_a_defect(runner, source):
    source.find = lambda: AnalysisFinding(findings={"a": "\udcff"})
    assert kind_of(await runner.analyze(request_of())) == "INTERNAL"


async def test_calls_with_one_id_share_the_work(runner, source):
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = await begin(group, runner, *[request_of()] * 3)
        source.gate.set()
    assert source.begun == ["t1"]
    assert len({task.result().SerializeToString() for task in tasks}) == 1
    assert runner.counts == {"ok": 1}


async def test_an_answer_is_given_again_for_a_while(runner, source, clock):
    first = await runner.analyze(request_of())
    clock.now_s = REMEMBER_S - 0.1
    assert await runner.analyze(request_of()) == first
    clock.now_s = REMEMBER_S
    await runner.analyze(request_of())
    assert source.begun == ["t1", "t1"]


async def test_a_failure_is_given_again_too(runner, source):
    def find():
        raise AnalysisError(AnalysisErrorKind.UNAVAILABLE, "gone")

    source.find = find
    await runner.analyze(request_of())
    assert kind_of(await runner.analyze(request_of())) == "UNAVAILABLE"
    assert source.begun == ["t1"]


async def test_answers_that_are_remembered_are_bounded(runner, source):
    for number in range(MAX_REMEMBERED + 1):
        await runner.analyze(request_of(f"n{number}"))
    await runner.analyze(request_of(f"n{MAX_REMEMBERED}"))
    await runner.analyze(request_of("n1"))
    assert len(source.begun) == MAX_REMEMBERED + 1
    await runner.analyze(request_of("n0"))
    assert len(source.begun) == MAX_REMEMBERED + 2


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "answered"])
async def test_an_id_cannot_be_used_for_another_request(runner, source, is_running):
    if is_running:
        source.gate.clear()
    async with asyncio.TaskGroup() as group:
        await begin(group, runner, request_of())
        other = request_of(target=analysis_pb2.AnalysisTarget(path="/y"))
        with pytest.raises(InvalidRequestError, match="belongs to another request"):
            await runner.analyze(other)
        source.gate.set()


async def test_the_last_caller_to_leave_cancels_the_work(runner, source, eventually):
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        first, second = await begin(group, runner, request_of(), request_of())
        first.cancel()
        await asyncio.wait({first})
        assert not source.cancelled
        second.cancel()
        await eventually(lambda: source.cancelled == ["t1"])
    assert runner.running == 0
    assert runner.counts == {"cancelled": 1}


async def test_a_caller_that_leaves_does_not_take_the_answer_from_others(runner, source):
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        first, second = await begin(group, runner, request_of(), request_of())
        first.cancel()
        await asyncio.wait({first})
        source.gate.set()
    assert second.result().HasField("result")


async def test_work_that_was_cancelled_can_be_asked_for_again(runner, source):
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        (first,) = await begin(group, runner, request_of())
        first.cancel()
        await asyncio.wait({first})
        source.gate.set()
        response = await runner.analyze(request_of())
    assert response.HasField("result")
    assert source.begun == ["t1", "t1"]


async def test_time_that_runs_out_is_answered_and_the_work_cancelled(runner, source, eventually):
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        (other,) = await begin(group, runner, request_of())
        assert kind_of(await runner.analyze(request_of(), timeout_s=0.01)) == "TIMEOUT"
        assert not source.cancelled
        other.cancel()
    await eventually(lambda: source.cancelled == ["t1"])
    assert kind_of(await runner.analyze(request_of("t2"), timeout_s=0.01)) == "TIMEOUT"
    await eventually(lambda: runner.running == 0)
    assert source.cancelled == ["t1", "t2"]
    assert runner.counts == {"timeout": 2, "cancelled": 1}


async def test_a_time_out_is_not_remembered(runner, source):
    source.gate.clear()
    assert kind_of(await runner.analyze(request_of(), timeout_s=0)) == "TIMEOUT"
    source.gate.set()
    assert (await runner.analyze(request_of())).HasField("result")


async def test_the_urgent_go_first_and_equals_in_order(runner, source):
    source.gate.clear()
    numbers = [1, 5, 10, 8, 1, 10]
    async with asyncio.TaskGroup() as group:
        requests = [request_of(f"{n}-{index}", n) for index, n in enumerate(numbers)]
        await begin(group, runner, request_of("first", 1), *requests)
        assert source.begun == ["first"]
        source.gate.set()
    assert source.begun == ["first", "10-2", "10-5", "8-3", "5-1", "1-0", "1-4"]


async def test_as_many_run_at_once_as_are_allowed(source, clock, eventually):
    runner = AnalysisRunner([source], 3, clock)
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        await begin(group, runner, *(request_of(f"n{number}") for number in range(5)))
        assert source.begun == ["n0", "n1", "n2"]
        source.gate.set()
    assert source.begun == ["n0", "n1", "n2", "n3", "n4"]


async def test_what_waits_is_bounded_and_the_refused_may_come_again(runner, source):
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        requests = [request_of(f"n{number}") for number in range(MAX_WAITING + 1)]
        tasks = await begin(group, runner, *requests)
        refused = await runner.analyze(request_of("more", 10))
        assert kind_of(refused) == "RESOURCE_EXHAUSTED"
        source.gate.set()
    assert all(task.result().HasField("result") for task in tasks)
    assert (await runner.analyze(request_of("more", 10))).HasField("result")
    assert runner.counts == {"ok": MAX_WAITING + 2, "resource_exhausted": 1}


async def test_who_leaves_the_line_is_passed_over(runner, source, eventually):
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        _, second, _ = await begin(group, runner, request_of("a"), request_of("b"), request_of("c"))
        second.cancel()
        await eventually(lambda: runner.running == 2)
        source.gate.set()
    assert source.begun == ["a", "c"]


@pytest.mark.parametrize("is_turn_first", [True, False], ids=["turn first", "cancelled first"])
async def test_a_turn_is_not_lost_on_who_leaves_in_the_same_moment(is_turn_first):
    slots = _Slots(1)
    await slots.enter(TriggerPriority.NORMAL)
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(slots.enter(TriggerPriority.NORMAL))
        await asyncio.sleep(0)
        steps = [slots.leave, waiter.cancel]
        for step in steps if is_turn_first else reversed(steps):
            step()
    assert waiter.cancelled()
    assert (slots.free, slots.waiting) == (1, 0)


async def test_closing_cancels_the_work_and_answers_who_waits(runner, source):
    source.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = await begin(group, runner, request_of("a"), request_of("b"))
        await runner.close()
    assert [kind_of(task.result()) for task in tasks] == ["RESOURCE_EXHAUSTED"] * 2
    assert source.cancelled == ["a"]
    assert runner.running == 0
