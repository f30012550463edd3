"""Calls of the fake agent to a collector, here one that answers from memory."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from collector_core.testing import CollectorPeer, ConditionTimeoutError, FakeMesh, SequenceRange
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2
from daemoneye.ipc.v1 import (
    analysis_pb2,
    collector_config_pb2,
    collector_control_service_pb2_grpc,
    collector_service_pb2_grpc,
    event_log_pb2,
    ipc_pb2,
)
from daemoneye.ipc.v1 import collector_control_service_pb2 as control_pb
from daemoneye.ipc.v1 import collector_service_pb2 as pb
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor, caller
from daemoneye_mesh.errors import NotFoundError, PreconditionError, UnavailableError
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.token import TokenVerifier

EPOCH = 3
pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


class MemoryCollector(collector_service_pb2_grpc.CollectorServiceServicer):
    """Answers with what it was given, and remembers what it was asked."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.losses: list[event_log_pb2.EventLoss] = []
        self.first_held = 1
        self.refusal: Exception | None = None

    async def NegotiateCapabilities(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return ipc_pb2.CapabilityResponse(
            collector_id="unit", server_version=caller().identity.name
        )

    async def DescribeSchema(self, request: Any, context: Any) -> Any:
        return pb.DescribeSchemaResponse(tables=[pb.TableDescription(name="load")])

    async def ExecuteTask(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.requests.append(request)
        task_id = request.task.task_id
        for index in (0, 1):
            record = common_pb2.PerformanceRecord(metric_name=f"m{index}")
            result = ipc_pb2.DetectionResult(task_id=task_id, performance_events=[record])
            yield pb.ExecuteTaskResponse(result=result, chunk_index=index)
        if self.refusal is not None:
            raise self.refusal
        result = ipc_pb2.DetectionResult(
            task_id=task_id, hash_result=common_pb2.HashResult(hash_value="ab")
        )
        last = pb.ExecuteTaskResponse(result=result, chunk_index=2, is_last=True)
        last.completeness.state = 1
        yield last

    async def Analyze(self, request: Any, context: Any) -> Any:
        return analysis_pb2.AnalyzeResponse(trigger_id=request.trigger_id)

    async def Acknowledge(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        return pb.AcknowledgeResponse(source_sequence=request.source_sequence)

    async def Replay(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return pb.ReplayResponse(
            from_sequence=max(request.from_sequence, self.first_held),
            to_sequence=request.to_sequence,
            losses=self.losses,
        )


class MemoryControl(collector_control_service_pb2_grpc.CollectorControlServiceServicer):
    """Remembers the requests and answers with the state that goes with them."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def answer(self, request: Any, response: Any, **fields: Any) -> Any:
        self.requests.append(request)
        return response(**fields)

    async def BeginMonitoring(self, request: Any, context: Any) -> Any:
        return self.answer(request, control_pb.BeginMonitoringResponse, state=2)

    async def StopMonitoring(self, request: Any, context: Any) -> Any:
        return self.answer(request, control_pb.StopMonitoringResponse, state=5)

    async def RestartMonitoring(self, request: Any, context: Any) -> Any:
        return self.answer(request, control_pb.RestartMonitoringResponse, state=2)

    async def PauseMonitoring(self, request: Any, context: Any) -> Any:
        return self.answer(request, control_pb.PauseMonitoringResponse, state=3)

    async def ResumeMonitoring(self, request: Any, context: Any) -> Any:
        return self.answer(request, control_pb.ResumeMonitoringResponse, state=2)

    async def ShutdownCollector(self, request: Any, context: Any) -> Any:
        return self.answer(request, control_pb.ShutdownCollectorResponse, state=4)

    async def ForceShutdownCollector(self, request: Any, context: Any) -> Any:
        return self.answer(request, control_pb.ForceShutdownCollectorResponse, state=4)

    async def UpdateConfig(self, request: Any, context: Any) -> Any:
        return self.answer(request, collector_config_pb2.UpdateConfigResponse, version=8)

    async def GetConfig(self, request: Any, context: Any) -> Any:
        return self.answer(request, collector_config_pb2.GetConfigResponse, version=8)

    async def GetCollectorStats(self, request: Any, context: Any) -> Any:
        return self.answer(request, control_pb.GetCollectorStatsResponse, emitted_count=4)


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    async with FakeMesh() as mesh:
        mesh.enrol("unit", "performance")
        yield mesh


@pytest.fixture
def collector() -> MemoryCollector:
    return MemoryCollector()


@pytest.fixture
def control() -> MemoryControl:
    return MemoryControl()


@pytest.fixture
async def peer(
    mesh: FakeMesh, collector: MemoryCollector, control: MemoryControl
) -> AsyncIterator[CollectorPeer]:
    """The collector on its socket, as the fake agent sees it."""
    identity = mesh.layout.collector("unit")
    verifier = TokenVerifier(mesh.layout.trust_bundle, identity.spiffe_id, mesh.layout.trust_domain)
    auth = AuthInterceptor(verifier, AccessTable.load())
    server = MeshServer(mesh.layout.collector_socket("unit"), auth)
    server.add(
        collector_service_pb2_grpc.add_CollectorServiceServicer_to_server,
        collector,
        "daemoneye.ipc.v1.CollectorService",
    )
    server.add(
        collector_control_service_pb2_grpc.add_CollectorControlServiceServicer_to_server,
        control,
        "daemoneye.ipc.v1.CollectorControlService",
    )
    await server.start()
    await server.set_serving(True)
    yield mesh.agent.collector("unit")
    await server.drain(0)


def store(mesh: FakeMesh, *sequences: int) -> None:
    data = event_data_pb2.PerformanceEventData()
    for sequence in sequences:
        metadata = eventbus_pb2.MessageMetadata(
            topic="events.performance.utilization",
            source_id="unit",
            source_epoch=EPOCH,
            source_sequence=sequence,
        )
        payload = eventbus_pb2.CollectionEventPayload(performance_event=data)
        mesh.agent.store(eventbus_pb2.EventBusMessage(metadata=metadata, collection_event=payload))


async def test_the_peer_calls_as_the_agent(peer: CollectorPeer) -> None:
    answer = await peer.negotiate()
    assert answer.collector_id == "unit"
    assert answer.server_version == "agent/agent"
    assert [table.name for table in await peer.describe()] == ["load"]


async def test_the_answer_to_a_task_has_all_records_in_order(peer: CollectorPeer) -> None:
    answer = await peer.execute(ipc_pb2.DetectionTask(task_id="t1"))
    names = [getattr(record, "metric_name", "hash") for record in answer.records]
    assert names == ["m0", "m1", "hash"]
    assert answer.completeness.state == 1
    assert [chunk.chunk_index for chunk in answer.chunks] == [0, 1, 2]


async def test_a_task_that_fails_half_way_raises_the_error_of_the_collector(
    peer: CollectorPeer, collector: MemoryCollector
) -> None:
    collector.refusal = PreconditionError("it is stopped; begin first")
    with pytest.raises(PreconditionError, match="begin first"):
        await peer.execute(ipc_pb2.DetectionTask(task_id="t1"))


async def test_an_analysis_is_answered(peer: CollectorPeer) -> None:
    answer = await peer.analyze(analysis_pb2.AnalyzeRequest(trigger_id="a1"))
    assert answer.trigger_id == "a1"


async def test_the_watermark_is_up_to_where_nothing_is_missing(
    mesh: FakeMesh, peer: CollectorPeer, collector: MemoryCollector
) -> None:
    store(mesh, 1, 2, 4)
    await mesh.agent.acknowledge()
    (request,) = collector.requests
    assert (request.source_epoch, request.source_sequence) == (EPOCH, 2)


async def test_nothing_is_acknowledged_when_the_first_is_missing(
    mesh: FakeMesh, peer: CollectorPeer, collector: MemoryCollector
) -> None:
    store(mesh, 2)
    await mesh.agent.acknowledge()
    assert collector.requests == []
    await peer.acknowledge(EPOCH, 0)
    assert collector.requests[0].source_sequence == 0


async def test_what_arrives_is_acknowledged_by_itself_when_told_so(
    mesh: FakeMesh, peer: CollectorPeer, collector: MemoryCollector
) -> None:
    collector.refusal = UnavailableError("draining; come back")
    mesh.agent.auto_acknowledge = True
    store(mesh, 1, 2)
    await mesh.until(lambda: len(collector.requests) >= 2, "it is tried again")
    collector.refusal = None
    store(mesh, 3)

    def watermarks() -> set[int]:
        return {request.source_sequence for request in collector.requests}

    await mesh.until(lambda: 3 in watermarks(), "the watermark arrives")


async def test_a_replay_asks_for_exactly_what_is_missing(
    mesh: FakeMesh, peer: CollectorPeer, collector: MemoryCollector
) -> None:
    store(mesh, 1, 4, 7)
    await mesh.agent.replay()
    asked = [(one.from_sequence, one.to_sequence) for one in collector.requests]
    assert asked == [(2, 3), (5, 6)]
    assert len(peer.missing()) == 2  # asked for, and not here yet


async def test_a_replay_settles_what_is_lost_and_what_is_older_than_the_log(
    mesh: FakeMesh, peer: CollectorPeer, collector: MemoryCollector
) -> None:
    store(mesh, 9)
    collector.first_held = 4
    collector.losses = [event_log_pb2.EventLoss(first_sequence=6, last_sequence=7, reason=1)]
    losses = await peer.replay()
    assert [loss.reason for loss in losses] == [event_log_pb2.EVENT_LOSS_REASON_LOG_FULL]
    assert peer.missing() == [SequenceRange(EPOCH, 4, 5), SequenceRange(EPOCH, 8, 8)]


async def test_catching_up_asks_until_nothing_is_missing(
    mesh: FakeMesh, peer: CollectorPeer, collector: MemoryCollector
) -> None:
    store(mesh, 1, 4)
    catching_up = asyncio.create_task(mesh.agent.catch_up())
    await mesh.until(lambda: collector.requests, "it asks")
    store(mesh, 2, 6)
    mesh.changes.tell()
    await mesh.until(lambda: len(collector.requests) == 2, "it asks for what is missing since")
    assert not catching_up.done()
    store(mesh, 3, 5)
    await catching_up
    asked = [(one.from_sequence, one.to_sequence) for one in collector.requests]
    assert asked == [(2, 3), (5, 5)]


async def test_catching_up_in_vain_says_what_is_missing(
    mesh: FakeMesh, peer: CollectorPeer
) -> None:
    store(mesh, 1, 3)
    with pytest.raises(ConditionTimeoutError, match="first=2, last=2"):
        await mesh.agent.catch_up(timeout_s=0.05)


async def test_every_control_operation_has_a_method(
    peer: CollectorPeer, control: MemoryControl
) -> None:
    states = [
        await peer.control.begin(),
        await peer.control.stop(),
        await peer.control.restart("key"),
        await peer.control.pause(),
        await peer.control.resume(),
        await peer.control.shut_down("done", timeout_s=1.5),
        await peer.control.force_shut_down("now"),
    ]
    assert states == [2, 5, 2, 3, 2, 4, 4]
    restart, shut_down = control.requests[2], control.requests[5]
    assert restart.idempotency_key == "key"
    assert (shut_down.reason, shut_down.timeout.ToMilliseconds()) == ("done", 1500)


async def test_configuration_and_counters_are_asked_for(
    peer: CollectorPeer, control: MemoryControl
) -> None:
    changed = await peer.control.update_config(
        {"health_interval_s": "1"}, reset=["wal_max_bytes"], validate_only=True, expected_version=7
    )
    assert changed.version == 8
    request = control.requests[-1]
    assert dict(request.changes) == {"health_interval_s": "1"}
    assert list(request.reset_fields) == ["wal_max_bytes"]
    assert request.validate_only
    assert request.expected_version == 7
    assert (await peer.control.get_config()).version == 8
    assert (await peer.control.stats()).emitted_count == 4


async def test_health_is_told_by_name(mesh: FakeMesh, peer: CollectorPeer) -> None:
    assert await peer.health() == "SERVING"
    assert await peer.is_serving()
    assert await peer.health("nobody.Service") == "SERVICE_UNKNOWN"
    assert await mesh.agent.collector("absent").health() == "UNREACHABLE"


async def test_a_collector_that_is_away_is_unavailable(mesh: FakeMesh) -> None:
    with pytest.raises(UnavailableError):
        await mesh.agent.collector("absent").negotiate()


async def test_errors_of_the_collector_keep_their_reason(
    peer: CollectorPeer, collector: MemoryCollector
) -> None:
    collector.refusal = NotFoundError("no such epoch; ask for the positions")
    with pytest.raises(NotFoundError, match="no such epoch"):
        await peer.acknowledge(EPOCH, 1)
