import asyncio
from contextlib import asynccontextmanager

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from collector_core.collector import Collector
from collector_core.settings import CollectorSettings
from collector_core.wal import LogUnusableError
from daemoneye.eventbus.v1 import collection_gap_pb2 as gap_pb
from daemoneye.ipc.v1 import collector_control_service_pb2 as control_pb
from daemoneye.ipc.v1 import collector_control_service_pb2_grpc, ipc_pb2
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import ConflictError, ErrorReason, InvalidRequestError, PreconditionError
from daemoneye_mesh.lifecycle import StopRequest

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 20
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def layout(mesh_identity):
    mesh_identity.enrol(mesh_identity.layout.collector("unit"))
    return mesh_identity.layout


@pytest.fixture
async def start(layout, running, tmp_path):
    """Starts a collector of sources; returns it, its stop and its task."""

    def start_collector(*sources, **settings):
        settings = CollectorSettings(
            runtime_dir=layout.root,
            state_dir=tmp_path / "state",
            heartbeat_interval_s=1.0,
            **settings,
        )
        collector, stop = Collector("unit", sources, settings, "1.2.3"), StopRequest()
        return collector, stop, running(collector.run(stop))

    return start_collector


@pytest.fixture
def socket(layout):
    return layout.collector_socket("unit")


@pytest.fixture
def call_control(mesh_identity, socket):
    """Calls the control service as the agent does."""

    @asynccontextmanager
    async def call():
        layout = mesh_identity.layout
        source = mesh_identity.source(layout.agent, layout.collector("unit"))
        async with open_channel(socket, source) as channel:
            yield collector_control_service_pb2_grpc.CollectorControlServiceStub(channel)

    return call


def stats_of(collector):
    """The counters; those of a new collector before it runs."""
    if collector.running is None:
        return control_pb.GetCollectorStatsResponse()
    return collector.running.stats()


async def read_health(path):
    async with open_channel(path) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="daemoneye.ipc.v1.CollectorService")
        return (await stub.Check(request, timeout=GUARD_S)).status


async def end(stop, task):
    stop.request("the test is over")
    async with asyncio.timeout(GUARD_S):
        await task


async def test_whole_life_of_a_collector(
    *, broker, registry, serve, start, socket, list_source, eventually
):
    await serve(broker)
    await serve(registry)
    source = list_source("one", pids=tuple(range(1, 101)))
    source.prepared.clear()
    collector, stop, task = start(source)
    await eventually(socket.exists)
    assert await read_health(socket) == NOT_SERVING
    assert not broker.accepted

    source.prepared.set()
    await eventually(lambda: len(broker.accepted) == 100)
    assert await read_health(socket) == SERVING
    epochs = {message.metadata.source_epoch for message in broker.accepted}
    assert epochs == {stats_of(collector).source_epoch}
    assert {message.metadata.source_id for message in broker.accepted} == {"unit"}
    assert broker.sequences == list(range(1, 101))
    pids = [one.collection_event.process_event.process.pid for one in broker.accepted]
    assert pids == list(range(1, 101))

    await eventually(lambda: registry.heartbeats)
    (registered,) = registry.registrations
    assert registered.socket_path == str(socket)
    assert list(registered.domains) == [ipc_pb2.MONITORING_DOMAIN_PROCESS]
    assert registered.version == "1.2.3"
    await end(stop, task)
    assert source.calls == ["prepare", "watch", "end", "close"]
    assert [one.reason for one in registry.departures] == ["the test is over"]
    assert len(registry.registrations) == 1
    assert not list(socket.parent.iterdir())


async def test_stop_waits_for_the_broker_to_take_what_is_queued(
    *, broker, registry, serve, start, list_source, eventually
):
    broker.answering.clear()
    await serve(broker)
    await serve(registry)
    source = list_source("one", pids=tuple(range(1, 51)))
    collector, stop, task = start(source)
    await eventually(lambda: stats_of(collector).emitted_count == 50)
    await eventually(lambda: broker.batches)
    stop.request("stop")
    await eventually(lambda: "end" in source.calls)
    assert not task.done()
    broker.answering.set()
    await end(stop, task)
    assert broker.sequences == list(range(1, 51))
    assert stats_of(collector).published_count == 50
    assert stats_of(collector).pending_count == 0


async def test_stop_without_a_broker_keeps_the_events_for_the_next_life(
    *, broker, registry, serve, start, list_source, eventually
):
    await serve(registry)
    collector, stop, task = start(list_source("one", pids=(1, 2, 3)))
    await eventually(lambda: stats_of(collector).logged_count == 3)
    await eventually(lambda: registry.heartbeats)
    await end(stop, task)
    assert len(registry.departures) == 1
    await serve(broker)
    _, stop, task = start(list_source("one"))
    await eventually(lambda: len(broker.accepted) == 4)
    await end(stop, task)
    assert broker.sequences == [1, 2, 3, 4]
    gap = broker.accepted[3].collection_event.collection_gap
    assert gap.reason == gap_pb.COLLECTION_GAP_REASON_STOPPED


async def test_stop_without_an_agent_ends_too(start, socket, list_source, eventually):
    _, stop, task = start(list_source())
    await eventually(socket.exists)
    await end(stop, task)
    assert not socket.exists()


async def test_source_that_cannot_be_cancelled_does_not_keep_the_lease(
    *, registry, serve, start, eventually, list_source
):
    release = asyncio.Event()

    class Stubborn(list_source):
        async def watch(self, emit):
            try:
                await asyncio.Event().wait()
            finally:
                await release.wait()

    await serve(registry)
    _, stop, task = start(Stubborn(), shutdown_timeout_s=0.5)
    await eventually(lambda: registry.heartbeats)
    stop.request("stop")
    await eventually(lambda: registry.departures)
    release.set()
    await end(stop, task)


async def test_superseded_collector_stops_with_the_reason(
    *, broker, registry, serve, start, socket, list_source, eventually
):
    await serve(broker)
    await serve(registry)
    source = list_source()
    _, _, task = start(source)
    await eventually(lambda: registry.heartbeats)
    registry.loss = ConflictError("epoch 8 has taken over", reason=ErrorReason.SUPERSEDED)
    with pytest.raises(ConflictError, match="epoch 8") as ended:
        async with asyncio.timeout(GUARD_S):
            await task
    assert ended.value.reason is ErrorReason.SUPERSEDED
    assert source.calls[-1] == "close"
    assert not registry.departures
    assert not socket.exists()


async def test_source_that_cannot_be_prepared_ends_the_collector(start, socket, list_source):
    class Broken(list_source):
        async def prepare(self, context):
            raise PreconditionError("no /proc; mount it")

    _, _, task = start(Broken())
    with pytest.raises(PreconditionError, match="no /proc"):
        async with asyncio.timeout(GUARD_S):
            await task
    assert not socket.exists()


async def test_second_instance_on_the_socket_is_refused_and_the_first_goes_on(
    *, registry, serve, start, socket, list_source, eventually
):
    await serve(registry)
    _, stop, task = start(list_source())
    await eventually(lambda: registry.heartbeats)
    _, _, second = start(list_source())
    with pytest.raises(LogUnusableError):
        async with asyncio.timeout(GUARD_S):
            await second
    assert await read_health(socket) == SERVING
    await end(stop, task)


async def test_sequences_have_no_gap_after_a_pause_that_cut_off_waiting_sources(
    *, broker, registry, serve, start, list_source, eventually, monkeypatch
):
    """Two sources wait for room in the outbox when the pause cancels both."""
    broker.answering.clear()
    await serve(broker)
    await serve(registry)
    sources = [list_source(name, pids=tuple(range(1, 801))) for name in ("one", "two")]
    monkeypatch.setattr("collector_core.delivery.pipeline.INTAKE_MESSAGES", 100)
    collector, stop, task = start(*sources, outbox_messages=1_000)
    await eventually(lambda: stats_of(collector).emitted_count >= 200)
    async with asyncio.timeout(GUARD_S):
        await collector.running.pause()
    broker.answering.set()
    await eventually(lambda: stats_of(collector).pending_count == 0)
    await collector.running.resume()
    await eventually(lambda: stats_of(collector).published_count >= 1_800)
    await end(stop, task)
    assert broker.sequences == list(range(1, len(broker.accepted) + 1))


async def test_oversized_event_is_refused_to_its_source_and_uses_no_sequence(
    *, broker, serve, start, list_source, new_event, eventually
):
    class Verbose(list_source):
        async def watch(self, emit):
            with pytest.raises(InvalidRequestError):
                await emit(new_event(1, "x" * (2 << 20)))
            await emit(new_event(2))
            await asyncio.Event().wait()

    await serve(broker)
    collector, stop, task = start(Verbose())
    await eventually(lambda: stats_of(collector).emitted_count == 1)
    assert stats_of(collector).source_sequence == 1
    await end(stop, task)


async def test_refused_events_are_counted_by_reason(
    *, broker, registry, serve, start, list_source, eventually
):
    broker.refusal = lambda request: InvalidRequestError("bad", reason=ErrorReason.TOPIC_INVALID)
    await serve(broker)
    await serve(registry)
    collector, stop, task = start(list_source("one", pids=(1, 2, 3)))
    await eventually(lambda: dict(stats_of(collector).lost_count) == {"refused": 3})
    assert stats_of(collector).unacknowledged_count == 0
    await end(stop, task)


async def test_control_service_pauses_resumes_and_counts(
    *, broker, registry, serve, start, list_source, eventually, call_control
):
    await serve(broker)
    await serve(registry)
    source = list_source("one", pids=(1,))
    _, stop, task = start(source)
    await eventually(lambda: len(broker.accepted) == 1)
    async with call_control() as control:
        paused = await control.PauseMonitoring(control_pb.PauseMonitoringRequest(), timeout=GUARD_S)
        assert paused.state == control_pb.MONITORING_STATE_PAUSED
        assert source.calls[-1] == "end"
        again = await control.ResumeMonitoring(
            control_pb.ResumeMonitoringRequest(), timeout=GUARD_S
        )
        assert again.state == control_pb.MONITORING_STATE_MONITORING
        await eventually(lambda: len(broker.accepted) == 3)
        stats = await control.GetCollectorStats(
            control_pb.GetCollectorStatsRequest(), timeout=GUARD_S
        )
    assert (stats.emitted_count, stats.source_sequence) == (3, 3)
    gaps = [one.collection_event.collection_gap for one in broker.accepted]
    assert gap_pb.COLLECTION_GAP_REASON_PAUSED in {gap.reason for gap in gaps}
    assert stats.uptime.ToNanoseconds() > 0
    await end(stop, task)


async def test_control_service_shuts_the_collector_down(
    *, broker, registry, serve, start, list_source, eventually, call_control
):
    await serve(broker)
    await serve(registry)
    _, stop, task = start(list_source())
    await eventually(lambda: registry.heartbeats)
    async with call_control() as control, asyncio.timeout(GUARD_S):
        request = control_pb.ShutdownCollectorRequest(reason="upgrade")
        answer = await control.ShutdownCollector(request)
        assert answer.state == control_pb.MONITORING_STATE_STOPPING
        await task
    assert stop.reason == "upgrade"
    assert [one.reason for one in registry.departures] == ["upgrade"]
