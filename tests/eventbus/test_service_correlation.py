"""What the tracker knows comes out of the service whole, within bounds, and nothing malformed in."""

import asyncio

import pytest

from daemoneye.eventbus.v1 import correlation_service_pb2 as pb
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_eventbus.group import Envelope
from daemoneye_eventbus.service_correlation import SERVICE_NAME, CorrelationService
from daemoneye_eventbus.tracker import Tracker, UnknownWorkflowError
from daemoneye_mesh.correlation import Correlation, TraceContext
from daemoneye_mesh.correlation_message import to_message
from daemoneye_mesh.errors import InvalidRequestError
from daemoneye_mesh.limits import MAX_BATCH_BYTES

NOW_NS = 1_700_000_000_123_456_789
TRACE = TraceContext("1" * 32, "2" * 16)
LARGE_TAGS = {f"{number}{'k' * 120}": "v" * 1024 for number in range(64)}


@pytest.fixture
def tracker() -> Tracker:
    return Tracker(monotonic=lambda: 0.0, wall_ns=lambda: NOW_NS)


@pytest.fixture
def service(tracker: Tracker) -> CorrelationService:
    return CorrelationService(tracker)


def track(tracker: Tracker, correlation: Correlation, count: int = 1) -> None:
    tracker.track(
        Envelope(
            topic="alerts.high.rule",
            source_id="agent",
            count=count,
            message_type=eventbus_pb2.MESSAGE_TYPE_ALERT,
            correlation=correlation,
        )
    )


async def list_roots(service: CorrelationService, request: pb.ListWorkflowsRequest) -> list[str]:
    response = await service.ListWorkflows(request, None)
    return [workflow.root_correlation_id for workflow in response.workflows]


def test_service_name_is_the_contracts() -> None:
    assert pb.DESCRIPTOR.services_by_name["CorrelationService"].full_name == SERVICE_NAME


async def test_workflow_is_told_with_stages_sources_traces_and_times(
    tracker: Tracker, service: CorrelationService
) -> None:
    root = Correlation.begin("scan", {"host": "a"}, TRACE)
    track(tracker, root, count=5)
    track(tracker, root.child("hash"), count=2)
    response = await service.GetWorkflow(
        pb.GetWorkflowRequest(root_correlation_id=root.correlation_id), None
    )
    workflow = response.workflow
    assert workflow.root_correlation_id == root.correlation_id
    assert workflow.message_count == 7
    assert [(stage.name, stage.message_count) for stage in workflow.stages] == [
        ("scan", 5),
        ("hash", 2),
    ]
    assert list(workflow.source_ids) == ["agent"]
    assert list(workflow.trace_ids) == [TRACE.trace_id]
    stage = workflow.stages[0]
    for stamp in (workflow.started_at, workflow.active_at, stage.began_at, stage.active_at):
        assert stamp.ToNanoseconds() == NOW_NS


async def test_step_is_told_with_its_correlation_as_it_came(
    tracker: Tracker, service: CorrelationService
) -> None:
    correlation = Correlation.begin("scan", {"host": "a"}, TRACE).next()
    track(tracker, correlation, count=5)
    response = await service.GetWorkflow(
        pb.GetWorkflowRequest(root_correlation_id=correlation.correlation_id), None
    )
    (step,) = response.steps
    assert step.correlation == to_message(correlation)
    assert (step.topic, step.source_id, step.message_count) == ("alerts.high.rule", "agent", 5)
    assert step.message_type == eventbus_pb2.MESSAGE_TYPE_ALERT
    assert step.accepted_at.ToNanoseconds() == NOW_NS
    assert not response.is_truncated


async def test_timeline_holds_the_latest_steps_in_order_and_says_what_is_left_out(
    tracker: Tracker, service: CorrelationService
) -> None:
    correlation = Correlation.begin()
    for _ in range(50):
        track(tracker, correlation)
        correlation = correlation.next()
    root = correlation.correlation_id
    response = await service.GetWorkflow(
        pb.GetWorkflowRequest(root_correlation_id=root, max_steps=40), None
    )
    sequence = [step.correlation.sequence_number for step in response.steps]
    assert sequence == list(range(10, 50))
    assert response.is_truncated


@pytest.mark.parametrize(("asked", "told"), [(0, 1_000), (1, 1), (10_000, 1_200)])
async def test_timeline_has_as_many_steps_as_asked_for(
    tracker: Tracker, service: CorrelationService, asked: int, told: int
) -> None:
    correlation = Correlation.begin()
    for _ in range(1_200):
        track(tracker, correlation)
    response = await service.GetWorkflow(
        pb.GetWorkflowRequest(root_correlation_id=correlation.correlation_id, max_steps=asked), None
    )
    assert len(response.steps) == told
    assert response.is_truncated == (told < 1_200)


async def test_timeline_larger_than_an_answer_is_cut_at_its_older_end(
    tracker: Tracker, service: CorrelationService
) -> None:
    correlation = Correlation.begin(tags=LARGE_TAGS)
    for _ in range(80):
        track(tracker, correlation)
        correlation = correlation.next()
    response = await service.GetWorkflow(
        pb.GetWorkflowRequest(root_correlation_id=correlation.correlation_id), None
    )
    assert MAX_BATCH_BYTES - 100_000 < response.ByteSize() <= MAX_BATCH_BYTES
    assert response.steps[-1].correlation.sequence_number == 79
    numbers = [step.correlation.sequence_number for step in response.steps]
    assert numbers == list(range(80 - len(numbers), 80))
    assert response.is_truncated


async def test_list_larger_than_an_answer_keeps_the_latest_and_tells_how_many_there_are(
    tracker: Tracker, service: CorrelationService
) -> None:
    for number in range(600):
        root = Correlation(correlation_id=f"{number}", root_correlation_id=f"{number}")
        for stage in range(64):
            track(tracker, root.child(f"{stage}{'x' * 120}"))
    response = await service.ListWorkflows(pb.ListWorkflowsRequest(limit=1_000), None)
    assert MAX_BATCH_BYTES - 100_000 < response.ByteSize() <= MAX_BATCH_BYTES
    assert response.workflows[0].root_correlation_id == "599"
    assert len(response.workflows) < response.active_count == 600


async def test_list_tells_what_is_known_and_what_was_forgotten() -> None:
    now_s = 0.0
    tracker = Tracker(2, 2, monotonic=lambda: now_s, wall_ns=lambda: NOW_NS)
    service = CorrelationService(tracker)
    track(tracker, Correlation.begin())
    now_s = 400.0
    for _ in range(4):
        track(tracker, Correlation.begin())
    track(tracker, Correlation.begin("last"))
    response = await service.ListWorkflows(pb.ListWorkflowsRequest(), None)
    assert response.active_count == 2
    assert response.expired_count == 1
    assert response.evicted_count == 3
    assert response.forgotten_step_count == 3
    assert response.workflows[0].stages[0].name == "last"


async def test_list_holds_only_what_meets_every_criterion(
    tracker: Tracker, service: CorrelationService
) -> None:
    both = Correlation.begin(tags={"a": "1", "b": "1"}, trace=TRACE)
    tagged = Correlation.begin(tags={"a": "1"})
    traced = Correlation.begin(trace=TRACE)
    for correlation in (both, tagged, traced):
        track(tracker, correlation)
    asked = pb.ListWorkflowsRequest
    ids = [one.correlation_id for one in (both, tagged, traced)]
    assert await list_roots(service, asked()) == ids[::-1]
    assert await list_roots(service, asked(limit=1)) == ids[2:]
    assert await list_roots(service, asked(tags={"a": "1"})) == [ids[1], ids[0]]
    assert await list_roots(service, asked(trace_id=TRACE.trace_id)) == [ids[2], ids[0]]
    assert await list_roots(service, asked(tags={"a": "1"}, trace_id=TRACE.trace_id)) == [ids[0]]
    assert await list_roots(service, asked(tags={"a": "2"})) == []


@pytest.mark.parametrize(("asked", "told"), [(0, 100), (1_000, 120)])
async def test_list_has_as_many_workflows_as_asked_for(
    tracker: Tracker, service: CorrelationService, asked: int, told: int
) -> None:
    for _ in range(120):
        track(tracker, Correlation.begin())
    assert len(await list_roots(service, pb.ListWorkflowsRequest(limit=asked))) == told


@pytest.mark.parametrize(
    ("request_message", "name"),
    [
        (pb.ListWorkflowsRequest(limit=1_001), "limit"),
        (pb.ListWorkflowsRequest(tags={str(number): "" for number in range(65)}), "tags"),
        (pb.ListWorkflowsRequest(tags={"k" * 129: ""}), "tag key"),
        (pb.ListWorkflowsRequest(tags={"k": "v" * 1_025}), "tag value"),
        (pb.ListWorkflowsRequest(trace_id="F" * 32), "trace_id"),
    ],
)
async def test_list_refuses_criteria_out_of_bounds(
    service: CorrelationService, request_message: pb.ListWorkflowsRequest, name: str
) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        await service.ListWorkflows(request_message, None)
    assert refusal.value.metadata["field"] == name
    assert refusal.value.metadata["limit"]


@pytest.mark.parametrize(
    ("request_message", "name"),
    [
        (pb.GetWorkflowRequest(), "root_correlation_id"),
        (pb.GetWorkflowRequest(root_correlation_id="é" * 128 + "x"), "root_correlation_id"),
        (pb.GetWorkflowRequest(root_correlation_id="x", max_steps=10_001), "max_steps"),
    ],
)
async def test_get_refuses_fields_out_of_bounds(
    service: CorrelationService, request_message: pb.GetWorkflowRequest, name: str
) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        await service.GetWorkflow(request_message, None)
    assert refusal.value.metadata["field"] == name


@pytest.mark.parametrize("root", ["x", "é" * 128])
async def test_unknown_root_is_not_found(service: CorrelationService, root: str) -> None:
    with pytest.raises(UnknownWorkflowError):
        await service.GetWorkflow(pb.GetWorkflowRequest(root_correlation_id=root), None)


async def test_long_answer_is_a_snapshot_although_others_have_the_loop_meanwhile(
    tracker: Tracker, service: CorrelationService
) -> None:
    correlation = Correlation.begin()
    for _ in range(100):
        track(tracker, correlation)
    request = pb.GetWorkflowRequest(root_correlation_id=correlation.correlation_id)
    was_done: list[bool] = []

    async def interfere(answer: "asyncio.Task[pb.GetWorkflowResponse]") -> None:
        was_done.append(answer.done())
        track(tracker, correlation, count=50)

    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(service.GetWorkflow(request, None))
        tasks.create_task(interfere(answer))
    assert was_done == [False]
    assert answer.result().workflow.message_count == len(answer.result().steps) == 100
