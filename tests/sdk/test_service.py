"""What one collector answers: capabilities, schema, tasks, its log and analyses."""

import asyncio
import logging

import grpc
import grpc.aio
import pytest

from collector_core.analysis import AnalysisError, AnalysisErrorKind, AnalysisFinding
from collector_core.analysis_service import AnalysisRunner
from collector_core.capability import SourceCaps
from collector_core.delivery import ReplayAnswer
from collector_core.service import MAX_TASKS, CollectorServicer
from collector_core.source import EventSource
from collector_core.source_runner import RunnerLimits, SourceRunner
from collector_core.wal import LogLoss, LossReason
from daemoneye.common.v1 import analysis_pb2, common_pb2, completeness_pb2
from daemoneye.ipc.v1 import analysis_pb2 as ipc_analysis_pb2
from daemoneye.ipc.v1 import collector_service_pb2 as pb
from daemoneye.ipc.v1 import collector_service_pb2_grpc, event_log_pb2, ipc_pb2
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import (
    ErrorReason,
    InvalidRequestError,
    OverloadedError,
    PreconditionError,
    UnsupportedError,
)
from daemoneye_mesh.limits import MAX_CHUNK_BYTES
from daemoneye_mesh.rpc_status import from_rpc_error
from daemoneye_mesh.server import MeshServer

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 20
ENUMERATE = common_pb2.TASK_TYPE_ENUMERATE_PROCESSES
VERIFY = common_pb2.TASK_TYPE_VERIFY_EXECUTABLE
BEHAVIOR = analysis_pb2.ANALYSIS_TYPE_BEHAVIORAL_ANALYSIS


class FakeSource(EventSource):
    """Answers with as many records as it is told, and may wait in between."""

    name = "fake"
    caps = SourceCaps.PROCESS | SourceCaps.SYSTEM_WIDE
    task_types = frozenset({ENUMERATE, VERIFY, common_pb2.TASK_TYPE_CHECK_PROCESS_HASH})
    tables = (pb.TableDescription(name="processes", task_type=ENUMERATE),)

    def __init__(self):
        self.record_count = 0
        self.record_bytes = 10
        self.error = None
        self.degradation = None
        self.open_count = 0
        self.go = asyncio.Event()
        self.go.set()

    async def execute(self, task, report):
        self.open_count += 1
        try:
            if self.degradation:
                report.degradations.append(self.degradation)
            for pid in range(self.record_count):
                yield common_pb2.ProcessRecord(pid=pid, name="x" * self.record_bytes)
            await self.go.wait()
            if self.error:
                raise self.error
        finally:
            self.open_count -= 1


class NetworkSource(EventSource):
    """Another domain with no tasks, and one analysis."""

    name = "network"
    caps = SourceCaps.NETWORK | SourceCaps.REALTIME
    analyses = frozenset({BEHAVIOR})

    def __init__(self):
        self.error = None
        self.asked = []

    async def watch(self, emit):
        await asyncio.Event().wait()

    async def analyze(self, request):
        self.asked.append(request)
        if self.error:
            raise self.error
        return AnalysisFinding(findings={"peers": "3"}, confidence=0.5)


class FakeLog:
    """Remembers what was asked; a test says what it answers."""

    def __init__(self):
        self.asked = []
        self.error = None
        self.watermark = 0
        self.losses = ()

    async def acknowledge(self, epoch, sequence):
        self.asked.append((epoch, sequence))
        if self.error:
            raise self.error
        return self.watermark

    async def replay(self, epoch, first, last):
        self.asked.append((epoch, first, last))
        if self.error:
            raise self.error
        return ReplayAnswer(first, last, self.losses)


class FakeAnalyses(AnalysisRunner):
    """Remembers how much time it was given."""

    def __init__(self, sources):
        super().__init__(sources, 3)
        self.timeouts_s = []

    async def analyze(self, request, timeout_s=None):
        self.timeouts_s.append(timeout_s)
        return await super().analyze(request, timeout_s)


async def emit(event):
    raise AssertionError("no source emits here")


@pytest.fixture
async def source():
    return FakeSource()


@pytest.fixture
async def network():
    return NetworkSource()


@pytest.fixture
async def runners(source, network):
    made = [SourceRunner(one, emit, RunnerLimits, lambda runner: None) for one in (source, network)]
    for runner in made:
        runner.is_prepared = True
    return made


@pytest.fixture
async def event_log():
    return FakeLog()


@pytest.fixture
async def analyses(source, network):
    return FakeAnalyses([source, network])


@pytest.fixture
async def servicer(runners, event_log, analyses):
    degradation = Degradation(DegradedReason.POLLING, "unit", "it polls")
    return CollectorServicer("unit", "1.2.3", runners, event_log, analyses, lambda: [degradation])


@pytest.fixture
async def stub(servicer, mesh_identity):
    layout = mesh_identity.layout
    path, collector = layout.collector_socket("unit"), layout.collector("unit")
    server = MeshServer(path, mesh_identity.auth(collector))
    add = collector_service_pb2_grpc.add_CollectorServiceServicer_to_server
    server.add(add, servicer, "daemoneye.ipc.v1.CollectorService")
    await server.start()
    async with open_channel(path, mesh_identity.source(layout.agent, collector)) as channel:
        yield collector_service_pb2_grpc.CollectorServiceStub(channel)
    await server.drain(0)


def task_of(task_type=ENUMERATE, task_id="t1", **filters):
    task = ipc_pb2.DetectionTask(task_id=task_id, task_type=task_type, **filters)
    return pb.ExecuteTaskRequest(task=task)


async def execute(stub, *args, **filters):
    call = stub.ExecuteTask(task_of(*args, **filters), timeout=GUARD_S)
    return [chunk async for chunk in call]


async def refusal(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await awaitable
    return from_rpc_error(refused.value)


def negotiate(stub, **fields):
    return stub.NegotiateCapabilities(ipc_pb2.CapabilityRequest(**fields), timeout=GUARD_S)


@pytest.mark.parametrize(("lowest", "highest"), [(0, 0), (1, 1), (1, 9), (0, 1)])
async def test_version_within_the_range_is_agreed_on(stub, lowest, highest):
    answer = await negotiate(stub, min_protocol_version=lowest, max_protocol_version=highest)
    assert answer.negotiation_success
    assert answer.protocol_version == 1


@pytest.mark.parametrize(("lowest", "highest"), [(2, 3), (2, 0), (9, 1)])
async def test_range_without_our_version_is_refused(stub, lowest, highest):
    error = await refusal(
        negotiate(stub, min_protocol_version=lowest, max_protocol_version=highest)
    )
    assert isinstance(error, PreconditionError)
    assert error.reason is ErrorReason.VERSION_UNSUPPORTED
    assert error.metadata["offered"] == "1"


async def test_capabilities_are_those_of_the_sources(stub):
    answer = await negotiate(stub, client_id="agent")
    assert (answer.collector_id, answer.server_version) == ("unit", "1.2.3")
    assert list(answer.capabilities.supported_domains) == [0, 1]
    advanced = answer.capabilities.advanced
    assert (advanced.kernel_level, advanced.realtime, advanced.system_wide) == (False, True, True)
    assert list(answer.supported_task_types) == [0, 1, 3]
    assert answer.max_message_bytes == MAX_CHUNK_BYTES
    assert answer.supports_replay
    assert list(answer.supported_analyses) == [BEHAVIOR]
    assert answer.max_concurrent_analyses == 3
    assert answer.completeness.state == completeness_pb2.COMPLETENESS_STATE_DEGRADED
    assert [cause.message for cause in answer.completeness.causes] == ["it polls"]


async def test_capabilities_cover_the_requested_domains_only(stub):
    answer = await negotiate(stub, requested_domains=[ipc_pb2.MONITORING_DOMAIN_PROCESS])
    assert list(answer.capabilities.supported_domains) == [0]
    assert not answer.capabilities.advanced.realtime
    other = await negotiate(stub, requested_domains=[ipc_pb2.MONITORING_DOMAIN_NETWORK])
    assert list(other.capabilities.supported_domains) == [1]
    assert (other.capabilities.advanced.realtime, other.capabilities.advanced.system_wide) == (
        True,
        False,
    )


async def test_collector_without_analyses_offers_none(runners, event_log):
    plain = CollectorServicer(
        "unit", "1", runners[:1], event_log, AnalysisRunner([runners[0].source]), lambda: ()
    )
    answer = await plain.NegotiateCapabilities(ipc_pb2.CapabilityRequest(), None)
    assert not answer.supported_analyses
    assert answer.max_concurrent_analyses == 0


async def test_unknown_domain_is_refused(stub):
    error = await refusal(negotiate(stub, requested_domains=[0, 99]))
    assert (error.reason, error.metadata["number"]) == (ErrorReason.ENUM_UNKNOWN, "99")


async def test_schema_lists_the_tables_of_all_sources(stub):
    answer = await stub.DescribeSchema(pb.DescribeSchemaRequest(), timeout=GUARD_S)
    assert [table.name for table in answer.tables] == ["processes"]


@pytest.mark.parametrize("count", [0, 1, 12_000])
async def test_records_come_in_numbered_chunks_of_bounded_size(stub, source, servicer, count):
    source.record_count, source.record_bytes = count, 400
    chunks = await execute(stub)
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_last for chunk in chunks].count(True) == 1
    assert chunks[-1].is_last
    assert chunks[-1].record_count == count
    assert max(chunk.ByteSize() for chunk in chunks) <= MAX_CHUNK_BYTES
    assert {chunk.result.task_id for chunk in chunks} == {"t1"}
    pids = [one.pid for chunk in chunks for one in chunk.result.processes]
    assert pids == list(range(count))
    assert chunks[-1].completeness.state == completeness_pb2.COMPLETENESS_STATE_COMPLETE
    assert servicer.task_count == {"ok": 1}


async def test_last_chunk_tells_what_the_task_could_not_see(stub, source):
    source.degradation = Degradation(DegradedReason.READ_ERRORS, "unit", "2 were not readable")
    (last,) = await execute(stub)
    assert [cause.message for cause in last.completeness.causes] == ["2 were not readable"]


@pytest.mark.parametrize("task_id", ["", "x" * 129, "é" * 65])
async def test_task_id_out_of_bounds_is_refused(stub, task_id):
    error = await refusal(execute(stub, ENUMERATE, task_id))
    assert (error.reason, error.metadata["field"]) == (ErrorReason.REQUEST_INVALID, "task_id")


async def test_task_id_of_the_largest_size_is_taken(stub):
    (last,) = await execute(stub, ENUMERATE, "é" * 64)
    assert last.result.task_id == "é" * 64


async def test_note_on_a_task_is_logged_and_bounded(stub, caplog):
    with caplog.at_level(logging.DEBUG, "daemoneye.tasks"):
        assert await execute(stub, ENUMERATE, metadata="n" * 1024)
    assert [record.note for record in caplog.records] == ["n" * 1024]
    error = await refusal(execute(stub, ENUMERATE, metadata="n" * 1025))
    assert (error.reason, error.metadata["field"]) == (ErrorReason.REQUEST_INVALID, "metadata")


async def test_unknown_task_type_is_refused(stub):
    error = await refusal(execute(stub, 77))
    assert (error.reason, error.metadata["field"]) == (ErrorReason.ENUM_UNKNOWN, "task_type")


async def test_task_type_that_is_not_offered_is_unimplemented(stub):
    error = await refusal(execute(stub, common_pb2.TASK_TYPE_MONITOR_NETWORK_CONNECTIONS))
    assert error.reason is ErrorReason.FEATURE_UNSUPPORTED
    assert error.metadata["task_type"] == "TASK_TYPE_MONITOR_NETWORK_CONNECTIONS"
    assert "TASK_TYPE_ENUMERATE_PROCESSES" in error.metadata["offered"]


@pytest.mark.parametrize(
    ("task_type", "filters"),
    [
        (ENUMERATE, {"hash_check": common_pb2.HashCheck()}),
        (ENUMERATE, {"network_filter": common_pb2.NetworkFilter()}),
        (VERIFY, {"process_filter": common_pb2.ProcessFilter()}),
        (common_pb2.TASK_TYPE_CHECK_PROCESS_HASH, {"hash_check": common_pb2.HashCheck()}),
    ],
)
async def test_filter_of_another_task_type_is_refused(stub, source, task_type, filters):
    error = await refusal(execute(stub, task_type, **filters))
    assert (error.reason, error.metadata["field"]) == (ErrorReason.REQUEST_INVALID, *filters)
    assert source.open_count == 0


@pytest.mark.parametrize(
    ("task_type", "filters"),
    [
        (ENUMERATE, {"process_filter": common_pb2.ProcessFilter()}),
        (VERIFY, {"hash_check": common_pb2.HashCheck()}),
        (common_pb2.TASK_TYPE_CHECK_PROCESS_HASH, {"process_filter": common_pb2.ProcessFilter()}),
    ],
)
async def test_filter_that_the_contract_names_for_the_type_is_taken(stub, task_type, filters):
    assert await execute(stub, task_type, **filters)


async def test_cancelling_the_call_closes_the_source(stub, source, servicer, eventually):
    source.go.clear()
    source.record_count, source.record_bytes = 1_000, 1_000
    call = stub.ExecuteTask(task_of())
    async with asyncio.timeout(GUARD_S):
        assert (await call.read()).chunk_index == 0
        assert source.open_count == 1
        call.cancel()
    await eventually(lambda: source.open_count == 0, "the generator is closed")
    await eventually(lambda: servicer.task_count == {"failed": 1})


async def test_source_is_closed_when_the_reader_stalls_and_leaves(stub, source, eventually):
    source.record_count, source.record_bytes = 20_000, 1_000
    call = stub.ExecuteTask(task_of())
    async with asyncio.timeout(GUARD_S):
        await call.read()
    await eventually(lambda: source.open_count == 1)
    call.cancel()
    await eventually(lambda: source.open_count == 0, "the generator is closed")


async def test_abandoned_answer_closes_the_source_at_once(servicer, source):
    source.record_count, source.record_bytes = 1_000, 1_000
    answer = servicer.ExecuteTask(task_of(), None)
    await anext(answer)
    await answer.aclose()
    assert source.open_count == 0
    assert servicer.task_count == {"failed": 1}


async def test_source_that_fails_ends_the_call_with_its_error(stub, source, servicer):
    source.record_count = 5
    source.error = PreconditionError("the file changed; ask again")
    error = await refusal(execute(stub))
    assert error.message == "the file changed; ask again"
    assert servicer.task_count == {"failed": 1}
    assert source.open_count == 0


async def test_too_many_tasks_at_once_are_refused(stub, source, servicer, eventually):
    source.go.clear()
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(execute(stub)) for _ in range(MAX_TASKS)]
        await eventually(lambda: source.open_count == MAX_TASKS)
        error = await refusal(execute(stub))
        assert (error.reason, error.metadata) == (
            ErrorReason.LIMIT_REACHED,
            {"limit": str(MAX_TASKS)},
        )
        source.go.set()
    assert all(task.result()[-1].is_last for task in running)
    assert await execute(stub)
    assert servicer.task_count == {"ok": MAX_TASKS + 1}


async def test_task_of_a_source_that_is_not_prepared_is_refused(stub, source, runners):
    runners[0].is_prepared = False
    error = await refusal(execute(stub))
    assert isinstance(error, PreconditionError)
    assert (error.reason, error.metadata["source"]) == (ErrorReason.STATE_INVALID, "fake")
    assert source.open_count == 0
    runners[0].is_prepared = True
    assert await execute(stub)


async def test_first_of_two_sources_with_the_same_task_answers_it(runners, event_log, analyses):
    other = SourceRunner(FakeSource(), emit, RunnerLimits, lambda runner: None)
    servicer = CollectorServicer("unit", "1", [*runners, other], event_log, analyses, lambda: ())
    runners[0].source.record_count = 2
    chunks = [one async for one in servicer.ExecuteTask(task_of(), None)]
    assert chunks[-1].record_count == 2


async def test_acknowledge_passes_on_and_answers_the_watermark(stub, event_log):
    event_log.watermark = 90
    request = pb.AcknowledgeRequest(source_epoch=7, source_sequence=80)
    answer = await stub.Acknowledge(request, timeout=GUARD_S)
    assert answer.source_sequence == 90
    assert event_log.asked == [(7, 80)]


async def test_replay_answers_the_range_and_what_is_lost(stub, event_log):
    event_log.losses = tuple(
        LogLoss(7, 10 + number, 11 + number, reason, 1_500_000_000 + number)
        for number, reason in enumerate(LossReason)
    )
    request = pb.ReplayRequest(source_epoch=7, from_sequence=5, to_sequence=50)
    answer = await stub.Replay(request, timeout=GUARD_S)
    assert event_log.asked == [(7, 5, 50)]
    assert (answer.from_sequence, answer.to_sequence) == (5, 50)
    names = [event_log_pb2.EventLossReason.Name(one.reason) for one in answer.losses]
    assert names == [f"EVENT_LOSS_REASON_{reason.name}" for reason in LossReason]
    assert [one.first_sequence for one in answer.losses] == [
        10 + number for number in range(len(LossReason))
    ]
    assert answer.losses[0].last_sequence == 11
    assert answer.losses[0].lost_at.ToNanoseconds() == 1_500_000_000


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InvalidRequestError("epoch 9 is not in the log; ask for 7"), ErrorReason.REQUEST_INVALID),
        (OverloadedError("64 ranges wait; ask again later"), ErrorReason.LIMIT_REACHED),
    ],
)
async def test_errors_of_the_log_reach_the_caller(stub, event_log, error, reason):
    event_log.error = error
    for call in (
        stub.Replay(pb.ReplayRequest(source_epoch=9), timeout=GUARD_S),
        stub.Acknowledge(pb.AcknowledgeRequest(source_epoch=9), timeout=GUARD_S),
    ):
        found = await refusal(call)
        assert (found.reason, found.message) == (reason, error.message)


def analysis_of(analysis_type=BEHAVIOR, trigger_id="a1"):
    target = analysis_pb2.AnalysisTarget(path="/usr/bin/true")
    return ipc_analysis_pb2.AnalyzeRequest(
        trigger_id=trigger_id, analysis_type=analysis_type, target=target
    )


async def test_analysis_is_done_within_the_time_of_the_caller(stub, network, analyses):
    answer = await stub.Analyze(analysis_of(), timeout=GUARD_S)
    assert dict(answer.result.findings) == {"peers": "3"}
    assert network.asked[0].target.path == "/usr/bin/true"
    (timeout_s,) = analyses.timeouts_s
    assert 0 < timeout_s < GUARD_S + 1  # gRPC rounds deadlines up on their way


async def test_analysis_without_a_deadline_is_passed_on_without_one(stub, analyses):
    await stub.Analyze(analysis_of())
    assert analyses.timeouts_s == [None]


async def test_analysis_that_fails_is_an_answer_with_its_kind_only(stub, network):
    network.error = AnalysisError(AnalysisErrorKind.UNAVAILABLE, "no such file: /root/secret")
    answer = await stub.Analyze(analysis_of(), timeout=GUARD_S)
    assert answer.failure.kind == analysis_pb2.ANALYSIS_ERROR_KIND_UNAVAILABLE
    assert b"secret" not in answer.SerializeToString()


async def test_analysis_that_is_not_offered_is_unimplemented(stub):
    error = await refusal(
        stub.Analyze(analysis_of(analysis_pb2.ANALYSIS_TYPE_BINARY_HASH), timeout=GUARD_S)
    )
    assert isinstance(error, UnsupportedError)


async def test_analysis_of_a_source_that_is_not_prepared_is_refused(stub, network, runners):
    runners[1].is_prepared = False
    error = await refusal(stub.Analyze(analysis_of(), timeout=GUARD_S))
    assert (error.reason, error.metadata["source"]) == (ErrorReason.STATE_INVALID, "network")
    assert not network.asked
