import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from collector_core.control import CEILING_S, CollectorControlServicer
from collector_core.live_config import LiveConfig
from collector_core.settings import CollectorSettings
from daemoneye.ipc.v1 import collector_config_pb2 as config_pb
from daemoneye.ipc.v1 import collector_control_service_pb2 as pb
from daemoneye.ipc.v1 import collector_control_service_pb2_grpc
from daemoneye.ipc.v1 import collector_health_pb2 as health_pb
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.configuration import load_settings
from daemoneye_mesh.errors import Code, ErrorReason
from daemoneye_mesh.rpc_status import from_rpc_error
from daemoneye_mesh.server import MeshServer

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 20
NOWHERE = Path("/nonexistent")
OPERATIONS = {
    "BeginMonitoring": pb.BeginMonitoringRequest(),
    "StopMonitoring": pb.StopMonitoringRequest(),
    "RestartMonitoring": pb.RestartMonitoringRequest(idempotency_key="k"),
    "PauseMonitoring": pb.PauseMonitoringRequest(),
    "ResumeMonitoring": pb.ResumeMonitoringRequest(),
}
REACHED = {
    "BeginMonitoring": pb.MONITORING_STATE_MONITORING,
    "StopMonitoring": pb.MONITORING_STATE_IDLE,
    "RestartMonitoring": pb.MONITORING_STATE_MONITORING,
    "PauseMonitoring": pb.MONITORING_STATE_PAUSED,
    "ResumeMonitoring": pb.MONITORING_STATE_MONITORING,
}


class FakeCollector:
    """Remembers what it was told; an operation waits until it may go on."""

    def __init__(self, config):
        self.state = pb.MONITORING_STATE_MONITORING
        self.config = config
        self.calls = []
        self.running = 0
        self.most_running = 0
        self.error = None
        self.go = asyncio.Event()
        self.go.set()

    async def _reach(self, name, state):
        self.calls.append(name)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await self.go.wait()
            if self.error:
                raise self.error
            self.state = state
        except asyncio.CancelledError:
            self.calls.append(f"{name} cancelled")
            raise
        finally:
            self.running -= 1

    async def begin(self):
        await self._reach("begin", pb.MONITORING_STATE_MONITORING)

    async def stop_monitoring(self):
        await self._reach("stop", pb.MONITORING_STATE_IDLE)

    async def restart(self):
        await self._reach("restart", pb.MONITORING_STATE_MONITORING)

    async def pause(self):
        await self._reach("pause", pb.MONITORING_STATE_PAUSED)

    async def resume(self):
        await self._reach("resume", pb.MONITORING_STATE_MONITORING)

    def health(self):
        return health_pb.CheckHealthResponse(status=health_pb.COLLECTOR_STATUS_OK)

    def stats(self):
        return pb.GetCollectorStatsResponse(state=self.state, emitted_count=3)

    def shut_down(self, reason, timeout_s):
        self.calls.append((reason, timeout_s))

    def force_shut_down(self, reason):
        self.calls.append(("force", reason))


@pytest.fixture
def loaded():
    flags = ["--shutdown-timeout-s", "8"]
    return load_settings(CollectorSettings, "unit", flags, {}, NOWHERE, NOWHERE)


@pytest.fixture
async def config(loaded, tmp_path):
    return LiveConfig(loaded, tmp_path / "state" / "config.json", lambda: 1_500_000_000)


@pytest.fixture
async def collector(config):
    return FakeCollector(config)


@pytest.fixture
async def ceiling_s():
    return dict(CEILING_S)


@pytest.fixture
async def stub(collector, ceiling_s, mesh_identity):
    layout = mesh_identity.layout
    path, identity = layout.collector_socket("unit"), layout.collector("unit")
    server = MeshServer(path, mesh_identity.auth(identity))
    add = collector_control_service_pb2_grpc.add_CollectorControlServiceServicer_to_server
    servicer = CollectorControlServicer(collector, ceiling_s)
    server.add(add, servicer, "daemoneye.ipc.v1.CollectorControlService")
    await server.start()
    async with open_channel(path, mesh_identity.source(layout.agent, identity)) as channel:
        yield collector_control_service_pb2_grpc.CollectorControlServiceStub(channel)
    await server.drain(0)


async def call(stub, method, request, timeout_s=GUARD_S):
    return await getattr(stub, method)(request, timeout=timeout_s)


async def refusal(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await awaitable
    return from_rpc_error(refused.value)


def update(stub, changes=None, **fields):
    request = config_pb.UpdateConfigRequest(changes=changes or {}, **fields)
    return call(stub, "UpdateConfig", request)


# -- state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OPERATIONS)
async def test_operation_is_carried_out_and_answered_with_the_state(stub, collector, method):
    collector.state = pb.MONITORING_STATE_PAUSED
    answer = await call(stub, method, OPERATIONS[method])
    assert answer.state == collector.state == REACHED[method]
    assert collector.calls == [method.removesuffix("Monitoring").lower()]


@pytest.mark.parametrize("method", [*OPERATIONS, "UpdateConfig"])
async def test_operation_is_illegal_while_the_collector_stops(stub, collector, method):
    collector.state = pb.MONITORING_STATE_STOPPING
    request = OPERATIONS.get(method, config_pb.UpdateConfigRequest())
    error = await refusal(call(stub, method, request))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, ErrorReason.STATE_INVALID)
    assert error.metadata == {"operation": method, "state": "STOPPING"}
    assert method in error.message
    assert "stopping" in error.message
    assert collector.calls == []


@pytest.mark.parametrize("method", ["PauseMonitoring", "ResumeMonitoring"])
async def test_idle_collector_is_neither_paused_nor_resumed(stub, collector, method):
    collector.state = pb.MONITORING_STATE_IDLE
    error = await refusal(call(stub, method, OPERATIONS[method]))
    assert (error.reason, error.metadata["state"]) == (ErrorReason.STATE_INVALID, "IDLE")
    assert "call BeginMonitoring first" in error.message


async def test_idle_collector_begins_and_stops_again(stub, collector):
    collector.state = pb.MONITORING_STATE_IDLE
    for method in ("StopMonitoring", "BeginMonitoring", "StopMonitoring", "RestartMonitoring"):
        await call(stub, method, OPERATIONS[method])
    assert collector.calls == ["stop", "begin", "stop", "restart"]


async def test_unforeseen_error_does_not_reach_the_caller(stub, collector):
    collector.error = RuntimeError("secret")
    error = await refusal(call(stub, "PauseMonitoring", OPERATIONS["PauseMonitoring"]))
    assert (error.code, error.reason) == (Code.INTERNAL, ErrorReason.INTERNAL)
    assert "secret" not in error.message


async def test_operations_wait_for_each_other(stub, collector, running, eventually):
    collector.go.clear()
    methods = ["PauseMonitoring", "ResumeMonitoring", "RestartMonitoring", "BeginMonitoring"]
    calls = [running(call(stub, method, OPERATIONS[method])) for method in methods]
    await eventually(lambda: collector.running)
    for _ in methods:  # by the time these are answered, the others have come
        await call(stub, "CheckHealth", health_pb.CheckHealthRequest())
    collector.go.set()
    await asyncio.gather(*calls)
    assert collector.most_running == 1
    assert sorted(collector.calls) == ["begin", "pause", "restart", "resume"]


async def test_health_counters_and_configuration_wait_for_nobody(
    stub, collector, running, eventually
):
    collector.go.clear()
    running(call(stub, "PauseMonitoring", OPERATIONS["PauseMonitoring"]))
    await eventually(lambda: collector.running)
    health = await call(stub, "CheckHealth", health_pb.CheckHealthRequest())
    assert health.status == health_pb.COLLECTOR_STATUS_OK
    stats = await call(stub, "GetCollectorStats", pb.GetCollectorStatsRequest())
    assert stats.emitted_count == 3
    assert (await call(stub, "GetConfig", config_pb.GetConfigRequest())).fields
    await call(stub, "ShutdownCollector", pb.ShutdownCollectorRequest())


# -- deadlines -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", OPERATIONS)
async def test_work_past_its_ceiling_is_cancelled(stub, collector, ceiling_s, method):
    collector.go.clear()
    ceiling_s[method] = 0.05
    error = await refusal(call(stub, method, OPERATIONS[method]))
    assert (error.code, error.reason) == (Code.DEADLINE_EXCEEDED, ErrorReason.DEADLINE_EXCEEDED)
    assert error.metadata == {"operation": method, "limit_s": "0.05"}
    name = method.removesuffix("Monitoring").lower()
    assert collector.calls == [name, f"{name} cancelled"]
    collector.go.set()
    ceiling_s[method] = GUARD_S
    assert (await call(stub, method, OPERATIONS[method])).state == REACHED[method]


@pytest.mark.parametrize("method", ["PauseMonitoring", "RestartMonitoring"])
async def test_work_past_the_callers_deadline_is_cancelled(stub, collector, eventually, method):
    collector.go.clear()
    error = await refusal(call(stub, method, OPERATIONS[method], timeout_s=1))
    assert error.code is Code.DEADLINE_EXCEEDED
    name = method.removesuffix("Monitoring").lower()
    await eventually(lambda: collector.calls == [name, f"{name} cancelled"])


async def test_work_is_cancelled_when_the_caller_leaves(stub, collector, eventually):
    collector.go.clear()
    pause = stub.PauseMonitoring(pb.PauseMonitoringRequest(), timeout=GUARD_S)
    await eventually(lambda: collector.running)
    pause.cancel()
    await eventually(lambda: collector.calls == ["pause", "pause cancelled"])


async def test_waiting_for_another_operation_counts(
    stub, collector, ceiling_s, running, eventually
):
    collector.go.clear()
    restart = running(call(stub, "RestartMonitoring", OPERATIONS["RestartMonitoring"]))
    await eventually(lambda: collector.running)
    ceiling_s["PauseMonitoring"] = 0.05
    error = await refusal(call(stub, "PauseMonitoring", OPERATIONS["PauseMonitoring"]))
    assert error.reason is ErrorReason.DEADLINE_EXCEEDED
    collector.go.set()
    await restart
    assert collector.calls == ["restart"]


class LateContext:
    """A call whose deadline is over."""

    def time_remaining(self):
        return 0.0


@pytest.mark.parametrize("method", [*OPERATIONS, "ShutdownCollector", "ForceShutdownCollector"])
async def test_nothing_is_begun_when_the_deadline_is_over(collector, method):
    request = OPERATIONS.get(method) or getattr(pb, f"{method}Request")(reason="x")
    with pytest.raises(Exception, match="was over before it began") as refused:
        await getattr(CollectorControlServicer(collector), method)(request, LateContext())
    assert refused.value.reason is ErrorReason.DEADLINE_EXCEEDED
    assert collector.calls == []


def test_ceilings_are_those_of_the_contract():
    proto = Path(__file__).parents[2] / "protos/daemoneye/ipc/v1/collector_control_service.proto"
    comment = ""
    for line in proto.read_text().splitlines():
        if line.strip().startswith("//"):
            comment += line.strip().removeprefix("//")
        elif line.strip().startswith("rpc "):
            method = line.split()[1].partition("(")[0]
            if method in CEILING_S:
                assert f"Deadline: {CEILING_S[method]:g} s" in comment, method
            comment = ""


async def test_restart_with_the_same_key_is_done_once(stub, collector, running, eventually):
    collector.go.clear()
    request = OPERATIONS["RestartMonitoring"]
    calls = [running(call(stub, "RestartMonitoring", request)) for _ in range(3)]
    await eventually(lambda: collector.running)
    collector.go.set()
    answers = {(await one).state for one in calls}
    answers.add((await call(stub, "RestartMonitoring", request)).state)
    assert answers == {pb.MONITORING_STATE_MONITORING}
    assert collector.calls == ["restart"]
    await call(stub, "RestartMonitoring", pb.RestartMonitoringRequest(idempotency_key="k2"))
    assert collector.calls == ["restart", "restart"]


@pytest.mark.parametrize("key", ["", "x" * 65])
async def test_restart_without_a_usable_key_is_refused(stub, collector, key):
    request = pb.RestartMonitoringRequest(idempotency_key=key)
    error = await refusal(call(stub, "RestartMonitoring", request))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)
    assert error.metadata["field"] == "idempotency_key"
    assert collector.calls == []


async def test_update_with_the_same_key_is_done_once_and_answered_the_same(stub, config):
    first = await update(stub, {"health_interval_s": "11"}, idempotency_key="k")
    await update(stub, {"health_interval_s": "12"})
    assert await update(stub, {"health_interval_s": "11"}, idempotency_key="k") == first
    assert (config.version, config.current.health_interval_s) == (2, 12.0)


async def test_key_that_comes_with_another_request_is_refused(stub, config):
    await update(stub, {"health_interval_s": "11"}, idempotency_key="k")
    again = [
        update(stub, {"health_interval_s": "12"}, idempotency_key="k"),
        update(stub, {"health_interval_s": "11"}, idempotency_key="k", validate_only=True),
        call(stub, "RestartMonitoring", pb.RestartMonitoringRequest(idempotency_key="k")),
    ]
    for one in again:
        error = await refusal(one)
        assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)
    assert config.version == 1


async def test_update_without_a_key_is_done_each_time(stub, config):
    for text in ("11", "12", "11"):
        await update(stub, {"health_interval_s": text})
    assert config.version == 3


async def test_update_is_in_the_name_of_its_caller(stub, config):
    answer = await update(stub, {"health_interval_s": "11"})
    assert (answer.version, config.applied_by) == (1, "agent/agent")
    (change,) = answer.changes
    assert (change.name, change.before, change.after) == ("health_interval_s", "10.0", "11.0")


async def test_update_that_the_agent_passes_on_is_in_the_name_of_who_asked_it(stub, config):
    await update(stub, {"health_interval_s": "11"}, on_behalf_of="operator/eve\n")
    assert config.applied_by == "operator/eve"


async def test_update_resets_fields(stub, config):
    await update(stub, {"health_interval_s": "11"})
    answer = await update(stub, reset_fields=["health_interval_s"], expected_version=1)
    assert (answer.version, config.current.health_interval_s) == (2, 10.0)


async def test_validate_only_changes_nothing(stub, config):
    answer = await update(stub, {"health_interval_s": "11"}, validate_only=True)
    assert (answer.version, len(answer.changes), config.version) == (0, 1, 0)


async def test_wrong_field_is_refused_by_name(stub):
    error = await refusal(update(stub, {"health_interval_s": "0", "wal_sync": "interval"}))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, ErrorReason.CONFIG_INVALID)
    assert "must be at least 0.1" in error.metadata["health_interval_s"]
    assert "cannot change while" in error.metadata["wal_sync"]


async def test_other_version_is_refused(stub):
    error = await refusal(update(stub, {"health_interval_s": "11"}, expected_version=9))
    assert (error.code, error.reason) == (Code.ABORTED, ErrorReason.CONFIG_CONFLICT)
    assert error.metadata == {"version": "0", "expected_version": "9"}


async def test_part_that_fails_is_answered_as_rolled_back(stub, config):
    async def apply(value):
        if value.health_interval_s == 11:
            raise RuntimeError("secret")

    config.subscribe(None, apply, "health")
    error = await refusal(update(stub, {"health_interval_s": "11"}))
    assert (error.code, error.reason) == (Code.INTERNAL, ErrorReason.APPLY_FAILED)
    assert error.metadata == {"subscriber": "health", "is_rolled_back": "true"}
    assert "secret" not in error.message
    assert config.current.health_interval_s == 10


async def test_update_that_cannot_be_kept_is_answered_as_such(stub, config, tmp_path):
    (tmp_path / "state").write_text("in the way")
    error = await refusal(update(stub, {"health_interval_s": "11"}))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, ErrorReason.FILE_UNUSABLE)
    assert config.current.health_interval_s == 10


async def test_update_past_its_ceiling_is_rolled_back(stub, collector, loaded, ceiling_s):
    seen, config = [], LiveConfig(loaded)  # without a file: a disk takes what time it likes
    collector.config = config

    async def apply(value):
        seen.append(value.health_interval_s)
        if value.health_interval_s == 11:
            await asyncio.Event().wait()

    config.subscribe(None, apply, "health")
    ceiling_s["UpdateConfig"] = 0.2
    error = await refusal(update(stub, {"health_interval_s": "11"}))
    assert error.reason is ErrorReason.DEADLINE_EXCEEDED
    assert (seen, config.current.health_interval_s) == ([11.0, 10.0], 10.0)


@pytest.mark.parametrize("field", ["changes", "reset_fields"])
async def test_too_many_fields_are_refused(stub, field):
    names = [f"f{n}" for n in range(65)]
    fields = {"reset_fields": names} if field == "reset_fields" else {}
    changes = dict.fromkeys(names, "1") if field == "changes" else {}
    error = await refusal(update(stub, changes, **fields))
    assert error.reason is ErrorReason.REQUEST_INVALID
    assert (error.metadata["field"], error.metadata["limit"]) == (field, "64")


async def test_configuration_is_read_with_the_origin_of_every_value(stub):
    answer = await call(stub, "GetConfig", config_pb.GetConfigRequest())
    assert (answer.version, answer.applied_by) == (0, "")
    assert not answer.HasField("applied_at")
    await update(stub, {"health_interval_s": "11"})
    answer = await call(stub, "GetConfig", config_pb.GetConfigRequest())
    assert (answer.version, answer.applied_by) == (1, "agent/agent")
    assert answer.applied_at.ToNanoseconds() == 1_500_000_000
    fields = {one.name: one for one in answer.fields}
    live, flag, unset = (
        fields[name] for name in ("health_interval_s", "shutdown_timeout_s", "token_file")
    )
    assert (live.value, live.is_live) == ("11.0", True)
    assert (live.origin, live.origin_detail) == (config_pb.CONFIG_ORIGIN_LIVE, "agent/agent")
    assert flag.origin == config_pb.CONFIG_ORIGIN_FLAG
    assert flag.origin_detail == "--shutdown-timeout-s"
    assert (unset.value, unset.origin) == ("", config_pb.CONFIG_ORIGIN_DEFAULT)
    assert all(one.help for one in answer.fields)


async def test_shutdown_is_asked_for_with_reason_and_time(stub, collector):
    request = pb.ShutdownCollectorRequest(reason="an\nupgrade\x1b[2J")
    request.timeout.FromMilliseconds(1_500)
    answer = await call(stub, "ShutdownCollector", request)
    assert answer.state == pb.MONITORING_STATE_STOPPING
    assert collector.calls == [("anupgrade[2J", 1.5)]


async def test_shutdown_without_reason_and_time_says_who_asked(stub, collector):
    collector.state = pb.MONITORING_STATE_STOPPING
    await call(stub, "ShutdownCollector", pb.ShutdownCollectorRequest())
    await call(stub, "ForceShutdownCollector", pb.ForceShutdownCollectorRequest(reason="\0"))
    assert collector.calls == [("asked by agent/agent", None), ("force", "asked by agent/agent")]


async def test_reason_is_bounded(stub, collector):
    await call(stub, "ShutdownCollector", pb.ShutdownCollectorRequest(reason="x" * 10_000))
    assert collector.calls == [("x" * 256, None)]


@pytest.mark.parametrize("timeout_ms", [0, 99, 300_001, -1_000])
async def test_time_for_a_shutdown_is_bounded(stub, collector, timeout_ms):
    request = pb.ShutdownCollectorRequest()
    request.timeout.FromMilliseconds(timeout_ms)
    error = await refusal(call(stub, "ShutdownCollector", request))
    assert (error.reason, error.metadata["field"]) == (ErrorReason.REQUEST_INVALID, "timeout")
    assert collector.calls == []


@pytest.mark.parametrize("timeout_ms", [100, 300_000])
async def test_time_for_a_shutdown_at_its_bounds_is_taken(stub, collector, timeout_ms):
    request = pb.ShutdownCollectorRequest(reason="x")
    request.timeout.FromMilliseconds(timeout_ms)
    await call(stub, "ShutdownCollector", request)
    assert collector.calls == [("x", timeout_ms / 1_000)]


async def test_forced_shutdown_is_asked_for(stub, collector):
    request = pb.ForceShutdownCollectorRequest(reason="it hangs")
    answer = await call(stub, "ForceShutdownCollector", request)
    assert answer.state == pb.MONITORING_STATE_STOPPING
    assert collector.calls == [("force", "it hangs")]


async def test_caller_without_the_right_is_refused(stub, mesh_identity, collector):
    layout = mesh_identity.layout
    source = mesh_identity.source(layout.collector("other"), layout.collector("unit"))
    async with open_channel(layout.collector_socket("unit"), source) as channel:
        other = collector_control_service_pb2_grpc.CollectorControlServiceStub(channel)
        error = await refusal(call(other, "PauseMonitoring", pb.PauseMonitoringRequest()))
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, ErrorReason.ACCESS_DENIED)
    assert collector.calls == []
