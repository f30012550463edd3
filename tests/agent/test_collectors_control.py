"""Control, configuration, logs and analyses of collectors, against a collector that is a fake."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from daemoneye.ipc.v1 import (
    analysis_pb2,
    collector_config_pb2,
    collector_control_service_pb2,
    collector_control_service_pb2_grpc,
    collector_health_pb2,
    collector_service_pb2,
    collector_service_pb2_grpc,
    ipc_pb2,
)
from daemoneye_agent.collectors import CollectorClients
from daemoneye_agent.registry import (
    CollectorRegistry,
    Heartbeat,
    RegistrationRequest,
    ReportedHealth,
)
from daemoneye_mesh.errors import (
    ConflictError,
    DaemoneyeError,
    DeadlineError,
    ErrorReason,
    InternalError,
    InvalidConfigError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)
from daemoneye_mesh.server import MeshServer

control_pb2 = collector_control_service_pb2
pytestmark = pytest.mark.usefixtures("no_leftover_tasks")
Ask = Callable[[CollectorClients], Awaitable[Any]]


class FakeCollector:
    """A collector that obeys, fails with ``error`` or hangs."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.error: Exception | None = None
        self.is_hanging = False
        self.was_cancelled = asyncio.Event()
        self.state: Any = None
        """What every answer about a state tells, instead of the truth."""

    async def take(self, request: Any) -> None:
        self.requests.append(request)
        if self.error:
            raise self.error
        if self.is_hanging:
            try:
                await asyncio.Event().wait()
            finally:
                self.was_cancelled.set()

    def reached(self, state: Any) -> Any:
        return state if self.state is None else self.state


class FakeControl(collector_control_service_pb2_grpc.CollectorControlServiceServicer):
    def __init__(self, fake: FakeCollector) -> None:
        self.fake = fake

    async def BeginMonitoring(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        state = self.fake.reached(control_pb2.MONITORING_STATE_MONITORING)
        return control_pb2.BeginMonitoringResponse(state=state)

    async def StopMonitoring(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        state = self.fake.reached(control_pb2.MONITORING_STATE_IDLE)
        return control_pb2.StopMonitoringResponse(state=state)

    async def RestartMonitoring(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        state = self.fake.reached(control_pb2.MONITORING_STATE_MONITORING)
        return control_pb2.RestartMonitoringResponse(state=state)

    async def PauseMonitoring(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        state = self.fake.reached(control_pb2.MONITORING_STATE_PAUSED)
        return control_pb2.PauseMonitoringResponse(state=state)

    async def ResumeMonitoring(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        state = self.fake.reached(control_pb2.MONITORING_STATE_MONITORING)
        return control_pb2.ResumeMonitoringResponse(state=state)

    async def CheckHealth(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        return collector_health_pb2.CheckHealthResponse(is_shedding=True)

    async def UpdateConfig(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        return collector_config_pb2.UpdateConfigResponse(version=2)

    async def GetConfig(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        return collector_config_pb2.GetConfigResponse(version=1)

    async def GetCollectorStats(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        return control_pb2.GetCollectorStatsResponse(emitted_count=9)

    async def ShutdownCollector(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        state = self.fake.reached(control_pb2.MONITORING_STATE_STOPPING)
        return control_pb2.ShutdownCollectorResponse(state=state)

    async def ForceShutdownCollector(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        state = self.fake.reached(control_pb2.MONITORING_STATE_STOPPING)
        return control_pb2.ForceShutdownCollectorResponse(state=state)


class FakeService(collector_service_pb2_grpc.CollectorServiceServicer):
    def __init__(self, fake: FakeCollector) -> None:
        self.fake = fake

    async def NegotiateCapabilities(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        return ipc_pb2.CapabilityResponse(supports_replay=True)

    async def Acknowledge(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        return collector_service_pb2.AcknowledgeResponse(source_sequence=77)

    async def Replay(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        return collector_service_pb2.ReplayResponse(from_sequence=5, to_sequence=9)

    async def Analyze(self, request: Any, context: Any) -> Any:
        await self.fake.take(request)
        return analysis_pb2.AnalyzeResponse(trigger_id=request.trigger_id)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(RegistrationRequest("procmond", 1, domains=("process",)), "procmond")
    return registry


@pytest.fixture
async def clients(
    mesh_identity: Any, registry: CollectorRegistry
) -> AsyncIterator[CollectorClients]:
    """The agent's side."""
    layout = mesh_identity.layout
    clients = CollectorClients(layout, registry, lambda one: mesh_identity.token(layout.agent, one))
    yield clients
    await clients.close()


@pytest.fixture
async def collector(mesh_identity: Any) -> AsyncIterator[FakeCollector]:
    """A fake procmond on its socket."""
    layout, fake = mesh_identity.layout, FakeCollector()
    server = MeshServer(
        layout.collector_socket("procmond"), mesh_identity.auth(layout.collector("procmond"))
    )
    for module, name, servicer in (
        (collector_control_service_pb2_grpc, "CollectorControlService", FakeControl(fake)),
        (collector_service_pb2_grpc, "CollectorService", FakeService(fake)),
    ):
        add = getattr(module, f"add_{name}Servicer_to_server")
        server.add(add, servicer, f"daemoneye.ipc.v1.{name}")
    await server.start()
    yield fake
    await server.drain(0)


UPDATE = collector_config_pb2.UpdateConfigRequest(changes={"a": "1"}, idempotency_key="k")
ANALYSIS = analysis_pb2.AnalyzeRequest(trigger_id="t1")
STEERS: dict[str, Ask] = {
    "begin": lambda one: one.begin("procmond"),
    "stop": lambda one: one.stop("procmond"),
    "restart": lambda one: one.restart("procmond", "k"),
    "pause": lambda one: one.pause("procmond"),
    "resume": lambda one: one.resume("procmond"),
    "end": lambda one: one.end("procmond", "why"),
    "force": lambda one: one.end("procmond", "why", force=True),
}
ASKS: dict[str, Ask] = {
    **STEERS,
    "check": lambda one: one.check("procmond"),
    "get_config": lambda one: one.get_config("procmond"),
    "update_config": lambda one: one.update_config("procmond", UPDATE),
    "counters": lambda one: one.counters("procmond"),
    "negotiate": lambda one: one.negotiate("procmond"),
    "acknowledge": lambda one: one.acknowledge("procmond", 3, 9),
    "replay": lambda one: one.replay("procmond", 3, 5, 9),
    "analyze": lambda one: one.analyze("procmond", ANALYSIS, 5),
}
EVERY = pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)


# -- what is sent, what comes back ----------------------------------------------------------------


@pytest.mark.parametrize("ask", STEERS.values(), ids=STEERS)
async def test_steering_is_done_when_the_collector_says_so(
    collector: FakeCollector, clients: CollectorClients, ask: Ask
) -> None:
    assert await ask(clients) is None
    assert len(collector.requests) == 1


@pytest.mark.parametrize("ask", STEERS.values(), ids=STEERS)
@pytest.mark.parametrize("state", [control_pb2.MONITORING_STATE_STARTING, 99])
async def test_answer_that_tells_another_state_is_not_taken_for_done(
    collector: FakeCollector, clients: CollectorClients, ask: Ask, state: Any
) -> None:
    collector.state = state
    with pytest.raises(UnavailableError, match=r"answers that it is (starting|99) instead"):
        await ask(clients)


async def test_answers_come_back_as_they_are(
    collector: FakeCollector, clients: CollectorClients
) -> None:
    assert (await clients.check("procmond")).is_shedding is True
    assert (await clients.get_config("procmond")).version == 1
    assert (await clients.update_config("procmond", UPDATE)).version == 2
    assert (await clients.counters("procmond")).emitted_count == 9
    assert (await clients.negotiate("procmond")).supports_replay is True
    assert (await clients.analyze("procmond", ANALYSIS, 5)).trigger_id == "t1"


async def test_restart_and_update_carry_their_keys(
    collector: FakeCollector, clients: CollectorClients
) -> None:
    await clients.restart("procmond", "once")
    await clients.update_config("procmond", UPDATE)
    assert collector.requests[0].idempotency_key == "once"
    assert collector.requests[1] == UPDATE


async def test_end_carries_reason_and_time(
    collector: FakeCollector, clients: CollectorClients
) -> None:
    await clients.end("procmond", "new kernel", timeout_s=2.5)
    await clients.end("procmond", "")
    await clients.end("procmond", "stuck", force=True)
    first, second, third = collector.requests
    assert (first.reason, first.timeout.ToMilliseconds()) == ("new kernel", 2500)
    assert second.HasField("timeout") is False
    assert third == control_pb2.ForceShutdownCollectorRequest(reason="stuck")


async def test_watermark_and_range_carry_their_epoch(
    collector: FakeCollector, clients: CollectorClients
) -> None:
    assert await clients.acknowledge("procmond", 3, 9) == 77
    replayed = await clients.replay("procmond", 3, 5, 0)
    assert (replayed.from_sequence, replayed.to_sequence) == (5, 9)
    assert collector.requests == [
        collector_service_pb2.AcknowledgeRequest(source_epoch=3, source_sequence=9),
        collector_service_pb2.ReplayRequest(source_epoch=3, from_sequence=5),
    ]


async def test_negotiation_says_who_asks_and_what_is_spoken(
    collector: FakeCollector, clients: CollectorClients, mesh_identity: Any
) -> None:
    await clients.negotiate("procmond")
    (request,) = collector.requests
    assert request.client_id == mesh_identity.layout.agent.spiffe_id
    assert (request.min_protocol_version, request.max_protocol_version) == (1, 1)


# -- errors ---------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(
    "error",
    [
        InvalidConfigError("scan_interval_s = '0' must be at least 0.05", field="scan_interval_s"),
        ConflictError(
            "version 3 is in force; read it again", reason=ErrorReason.CONFIG_CONFLICT, version=3
        ),
        InternalError(
            "source proc failed to apply it; rolled back",
            reason=ErrorReason.APPLY_FAILED,
            source="proc",
        ),
        PreconditionError("the file cannot be kept", reason=ErrorReason.FILE_UNUSABLE),
        PreconditionError("procmond is stopped; start it", state="idle"),
        InvalidRequestError("epoch 9 was never here", epoch=9),
        OverloadedError("too many ranges are being replayed; wait", limit=4),
        UnsupportedError("there is no log here; do without"),
    ],
    ids=lambda error: str(error.reason),
)
async def test_what_a_collector_says_about_the_request_is_passed_on_whole(
    collector: FakeCollector, clients: CollectorClients, ask: Ask, error: DaemoneyeError
) -> None:
    collector.error = error
    with pytest.raises(DaemoneyeError) as raised:
        await ask(clients)
    told = raised.value
    assert (told.code, told.reason, told.message) == (error.code, error.reason, error.message)
    assert told.metadata == error.metadata


@EVERY
@pytest.mark.parametrize(
    "error",
    [
        LookupError("secret"),
        UnauthenticatedError("secret", reason=ErrorReason.TOKEN_EXPIRED),
        PermissionDeniedError("secret"),
        NotFoundError("secret"),
        UnavailableError("secret"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_lies_between_the_collector_and_us_is_not_passed_on(
    collector: FakeCollector, clients: CollectorClients, ask: Ask, error: Exception
) -> None:
    collector.error = error
    with pytest.raises(UnavailableError, match="procmond cannot be asked") as raised:
        await ask(clients)
    assert "secret" not in raised.value.message + str(raised.value.metadata)
    assert raised.value.reason is ErrorReason.PEER_UNAVAILABLE


async def test_collector_that_drains_is_told_apart(
    collector: FakeCollector, clients: CollectorClients
) -> None:
    collector.error = UnavailableError("bye", reason=ErrorReason.DRAINING)
    with pytest.raises(UnavailableError, match="procmond is shutting down; ask again") as raised:
        await clients.pause("procmond")
    assert raised.value.reason is ErrorReason.PEER_UNAVAILABLE  # it is not we who drain


async def test_method_that_an_older_collector_lacks_is_unsupported_in_our_words(
    serve_methods: Any, clients: CollectorClients
) -> None:
    await serve_methods({})
    with pytest.raises(UnsupportedError, match="procmond does not offer this; update it"):
        await clients.acknowledge("procmond", 1, 1)


async def test_answer_that_is_too_large_is_not_told_in_the_words_of_the_transport(
    serve_methods: Any, clients: CollectorClients
) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return b"\x0a" * (64 << 20)

    await serve_methods({"Replay": grpc.unary_unary_rpc_method_handler(answer)})
    with pytest.raises(UnavailableError, match="procmond cannot be asked"):
        await clients.replay("procmond", 1, 1, 1)


@EVERY
async def test_collector_that_hangs_costs_no_more_than_the_deadline_and_is_cancelled(
    collector: FakeCollector,
    clients: CollectorClients,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
) -> None:
    for name in ("CONTROL", "CONFIG", "SOURCES", "RESTART", "REPLAY"):
        monkeypatch.setattr(f"daemoneye_agent.collectors.{name}_TIMEOUT_S", 0.2)
    collector.is_hanging = True
    if ask is ASKS["analyze"]:
        ask = lambda one: one.analyze("procmond", ANALYSIS, 0.2)  # noqa: E731
    with pytest.raises(DeadlineError, match="procmond did not answer in time"):
        await ask(clients)
    async with asyncio.timeout(5):
        await collector.was_cancelled.wait()


async def test_caller_that_goes_away_cancels_the_collectors_work(
    collector: FakeCollector, clients: CollectorClients, eventually: Any
) -> None:
    collector.is_hanging = True
    task = asyncio.ensure_future(clients.restart("procmond", "k"))
    await eventually(lambda: collector.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await collector.was_cancelled.wait()


# -- who is called --------------------------------------------------------------------------------


@EVERY
async def test_collector_that_said_good_bye_is_not_called(
    clients: CollectorClients, registry: CollectorRegistry, ask: Ask
) -> None:
    registry.deregister("procmond", 1, "procmond")
    with pytest.raises(PreconditionError, match="procmond is deregistered"):
        await ask(clients)


@EVERY
async def test_collector_that_failed_can_be_asked_and_mended_but_gets_no_tasks(
    collector: FakeCollector, clients: CollectorClients, registry: CollectorRegistry, ask: Ask
) -> None:
    beat = Heartbeat("procmond", 1, 1, health=ReportedHealth.UNHEALTHY)
    registry.heartbeat(beat, "procmond")
    if ask is ASKS["analyze"]:
        with pytest.raises(PreconditionError, match="procmond is unavailable"):
            await ask(clients)
    else:
        await ask(clients)
        assert len(collector.requests) == 1


@EVERY
async def test_collector_that_is_not_there_is_named_without_the_words_of_the_transport(
    clients: CollectorClients, ask: Ask
) -> None:
    with pytest.raises(UnavailableError, match="procmond cannot be asked") as raised:
        await ask(clients)
    assert "unix:" not in raised.value.message
