"""``daemoneye bus workflows``."""

import csv
import io

import pytest

from daemoneye.eventbus.v1 import correlation_service_pb2 as pb
from daemoneye.eventbus.v1 import correlation_service_pb2_grpc, eventbus_pb2
from daemoneye_mesh.errors import NotFoundError

SERVICE = "daemoneye.eventbus.v1.CorrelationService"


class FakeTracker(correlation_service_pb2_grpc.CorrelationServiceServicer):
    def __init__(self):
        self.requests = []
        self.listing = pb.ListWorkflowsResponse()
        self.answer = None

    async def ListWorkflows(self, request, context):
        self.requests.append(request)
        return self.listing

    async def GetWorkflow(self, request, context):
        self.requests.append(request)
        if self.answer is None:
            raise NotFoundError(
                f"there is no workflow {request.root_correlation_id}; list them",
                root_correlation_id=request.root_correlation_id,
            )
        return self.answer


@pytest.fixture
def tracker(fakes, monkeypatch, request):
    """The tracker of the fake mesh's broker."""
    tracker = FakeTracker()

    class TrackingMesh(fakes.FakeMesh):
        def server(self, socket, owner):
            server = super().server(socket, owner)
            if owner == self.layout.broker:
                add = correlation_service_pb2_grpc.add_CorrelationServiceServicer_to_server
                server.add(add, tracker, SERVICE)
            return server

    monkeypatch.setattr(fakes, "FakeMesh", TrackingMesh)
    request.getfixturevalue("mesh")
    return tracker


def workflow(root, message_count=4):
    one = pb.Workflow(
        root_correlation_id=root,
        message_count=message_count,
        source_ids=["procmond"],
        trace_ids=["4bf92f3577b34da6a3ce929d0e0e4736"],
    )
    one.started_at.FromSeconds(1_700_000_000)
    one.active_at.FromSeconds(1_700_000_090)
    one.stages.add(name="collect", message_count=3)
    one.stages.add(name="judge", message_count=1)
    return one


def step(topic, message_count=1, stage="collect"):
    one = pb.TimelineStep(
        topic=topic,
        source_id="procmond",
        message_type=eventbus_pb2.MESSAGE_TYPE_ALERT,
        message_count=message_count,
        correlation=eventbus_pb2.CorrelationMetadata(
            correlation_id="c1", root_correlation_id="r1", workflow_stage=stage, sequence_number=7
        ),
    )
    one.accepted_at.FromSeconds(1_700_000_000)
    return one


def test_workflows_are_listed_with_stages_publishers_and_traces(tracker, daemoneye):
    tracker.listing = pb.ListWorkflowsResponse(
        workflows=[workflow("r1")], active_count=9, expired_count=2, evicted_count=1
    )
    result = daemoneye("bus", "workflows")
    assert result.code == 0
    line = result.out.splitlines()[2]
    assert line.startswith("r1 ")
    assert "1m 30s" in line
    assert "collect (3), judge (1)" in line
    assert "1 of 9 workflows; 2 ended, 1 were forgotten to make room" in result.err
    document = daemoneye("bus", "workflows", "--format", "json").document
    assert (document["active_count"], document["evicted_count"]) == (9, 1)
    assert document["workflows"][0]["stages"][1]["name"] == "judge"


def test_no_workflow_is_said_without_a_table(tracker, daemoneye):
    result = daemoneye("bus", "workflows")
    assert (result.code, result.out) == (0, "")
    assert "0 of 0 workflows" in result.err
    assert daemoneye("bus", "workflows", "--format", "json").document["workflows"] == []


def test_search_passes_its_criteria_on(tracker, daemoneye):
    argv = ["--tag", "case=42", "--tag", "team=a=b", "--trace", "abc", "--limit", "5"]
    assert daemoneye("bus", "workflows", *argv).code == 0
    (request,) = tracker.requests
    assert dict(request.tags) == {"case": "42", "team": "a=b"}
    assert (request.trace_id, request.limit) == ("abc", 5)


def test_timeline_shows_each_step_in_order(tracker, daemoneye):
    steps = [step("events.a"), step("alerts.b", message_count=3, stage="judge")]
    tracker.answer = pb.GetWorkflowResponse(workflow=workflow("r1"), steps=steps)
    result = daemoneye("bus", "workflows", "r1")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()[2:]]
    assert [line[1:7] for line in lines] == [
        ["events.a", "procmond", "alert", "1", "collect", "c1"],
        ["alerts.b", "procmond", "alert", "3", "judge", "c1"],
    ]
    assert tracker.requests[0].root_correlation_id == "r1"
    document = daemoneye("bus", "workflows", "r1", "--format", "json").document
    assert document["workflow"]["message_count"] == 4
    assert document["steps"][1]["sequence_number"] == 7
    row = next(
        csv.DictReader(io.StringIO(daemoneye("bus", "workflows", "r1", "--format", "csv").out))
    )
    assert (row["topic"], row["correlation_id"]) == ("events.a", "c1")


def test_timeline_with_forgotten_steps_is_degraded(tracker, daemoneye):
    tracker.answer = pb.GetWorkflowResponse(
        workflow=workflow("r1"), steps=[step("events.a")], is_truncated=True
    )
    result = daemoneye("bus", "workflows", "r1")
    assert result.code == 3
    assert "1 of 4 messages are in these" in result.err
    result = daemoneye("bus", "workflows", "r1", "--format", "json")
    assert (result.code, result.err, result.document["is_truncated"]) == (3, "", True)


def test_timeline_that_was_cut_as_asked_is_whole(tracker, daemoneye):
    tracker.answer = pb.GetWorkflowResponse(
        workflow=workflow("r1"), steps=[step("events.a")], is_truncated=True
    )
    result = daemoneye("bus", "workflows", "r1", "--steps", "1")
    assert (result.code, tracker.requests[0].max_steps) == (0, 1)
    assert "raise --steps" in result.err


def test_unknown_workflow_exits_5(tracker, daemoneye):
    result = daemoneye("bus", "workflows", "nope", "--format", "json")
    assert (result.code, result.error["code"]) == (5, "NOT_FOUND")


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["r1", "--tag", "a=b"], "--tag does not go with this"),
        (["r1", "--limit", "5"], "--limit does not go with this"),
        (["--steps", "5"], "it needs a ROOT"),
        (["--tag", "a"], "write --tag KEY=VALUE"),
        (["--limit", "1001"], "from 1 to 1000"),
    ],
)
def test_wrong_usage_of_workflows_exits_2(tracker, daemoneye, argv, problem):
    result = daemoneye("bus", "workflows", *argv)
    assert (result.code, result.out) == (2, "")
    assert problem in result.err
    assert tracker.requests == []
