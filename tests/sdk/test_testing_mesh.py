"""The fake mesh: what it lets a collector do, what it refuses, and how it fails when told to."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from collector_core.bus import BusPublisher, EnvelopeKey, Outbox, OutboxMessage
from collector_core.testing import ConditionTimeoutError, FakeMesh
from daemoneye.agent.v1 import registry_service_pb2 as registry_pb
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import (
    event_data_pb2,
    eventbus_pb2,
    eventbus_service_pb2,
    eventbus_service_pb2_grpc,
)
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import (
    ConflictError,
    DaemoneyeError,
    ErrorReason,
    InvalidRequestError,
    OverloadedError,
)
from daemoneye_mesh.rpc_status import from_rpc_error

TOPIC = "events.performance.utilization"
EPOCH = 5
pytestmark = pytest.mark.usefixtures("no_leftover_tasks")


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    async with FakeMesh() as mesh:
        mesh.enrol("unit", "performance")
        yield mesh


def payload(value: float) -> eventbus_pb2.CollectionEventPayload:
    record = common_pb2.PerformanceRecord(metric_name="load1", value=value, unit="1")
    return eventbus_pb2.CollectionEventPayload(
        event_type=eventbus_pb2.EVENT_TYPE_PERFORMANCE_EVENT,
        performance_event=event_data_pb2.PerformanceEventData(performance=record),
    )


def message(sequence: int, topic: str = TOPIC, source_id: str = "unit") -> Any:
    return eventbus_pb2.EventBusMessage(
        metadata=eventbus_pb2.MessageMetadata(
            topic=topic, source_id=source_id, source_epoch=EPOCH, source_sequence=sequence
        ),
        collection_event=payload(sequence),
    )


@asynccontextmanager
async def channel_of(mesh: FakeMesh, path: Path) -> AsyncIterator[grpc.aio.Channel]:
    token = mesh.token(mesh.layout.collector("unit"), mesh.layout.owner_of(path))
    channel = open_channel(path, lambda: token)
    try:
        yield channel
    finally:
        await channel.close()


async def publish(mesh: FakeMesh, *messages: Any) -> Any:
    """Publishes one batch as the collector ``unit``; raises our errors."""
    async with channel_of(mesh, mesh.layout.eventbus_socket) as channel:
        stub: Any = eventbus_service_pb2_grpc.EventBusServiceStub(channel)
        request = eventbus_service_pb2.PublishRequest(messages=messages)
        try:
            return await stub.Publish(request, timeout=5)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None


@asynccontextmanager
async def publishing(mesh: FakeMesh) -> AsyncIterator[Callable[[int], Any]]:
    """Runs the SDK's publisher; gives a function that hands it one event by its sequence."""
    outbox = Outbox(1000, 1 << 20)
    key = EnvelopeKey(
        topic=TOPIC,
        source_id="unit",
        event_type=eventbus_pb2.EVENT_TYPE_PERFORMANCE_EVENT,
        epoch=EPOCH,
    )

    async def put(sequence: int) -> None:
        frame = eventbus_pb2.EventBusMessage(collection_event=payload(sequence))
        await outbox.put(OutboxMessage(key, sequence, frame.SerializeToString()))

    async with channel_of(mesh, mesh.layout.eventbus_socket) as channel:
        task = asyncio.create_task(BusPublisher(channel, outbox).run())
        try:
            yield put
        finally:
            task.cancel()
            await asyncio.wait([task])


# -- the bus ------------------------------------------------------------------------------------------


async def test_every_accepted_message_is_recorded_with_its_whole_envelope(mesh: FakeMesh) -> None:
    async with publishing(mesh) as put:
        for sequence in (1, 2, 3):
            await put(sequence)
        await mesh.until(lambda: len(mesh.bus.messages) == 3, "three messages arrive")
    assert [one.metadata.source_sequence for one in mesh.bus.messages] == [1, 2, 3]
    assert {one.metadata.topic for one in mesh.bus.messages} == {TOPIC}
    assert {one.metadata.source_epoch for one in mesh.bus.messages} == {EPOCH}
    assert mesh.bus.topics == {TOPIC: 3}
    assert len(mesh.bus.on("events.performance.#")) == 3
    assert mesh.bus.on("events.process.#") == []


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"topic": "events.process.lifecycle"}, ErrorReason.ACCESS_DENIED),
        ({"topic": "Events"}, ErrorReason.TOPIC_INVALID),
        ({"source_id": "other"}, ErrorReason.REQUEST_INVALID),
    ],
)
async def test_the_bus_refuses_what_the_real_one_refuses(
    mesh: FakeMesh, wrong: dict[str, str], reason: ErrorReason
) -> None:
    with pytest.raises(DaemoneyeError) as refused:
        await publish(mesh, message(1), message(2, **wrong))
    assert refused.value.reason is reason
    assert mesh.bus.messages == []  # a batch is refused whole
    assert mesh.bus.refused == {reason: 1}


async def test_the_bus_refuses_an_empty_batch(mesh: FakeMesh) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await publish(mesh)
    assert refused.value.reason is ErrorReason.BATCH_EMPTY


async def test_a_refusal_lasts_until_it_is_taken_back(mesh: FakeMesh) -> None:
    mesh.bus.refuse(OverloadedError("too much; wait"))
    async with publishing(mesh) as put:
        await put(1)
        await mesh.until(lambda: mesh.bus.refused["LIMIT_REACHED"], "a batch is refused")
        assert mesh.bus.messages == []
        mesh.bus.refuse(None)
        await mesh.until(lambda: mesh.bus.messages, "the publisher has come back")


async def test_a_denied_call_reaches_nothing(mesh: FakeMesh) -> None:
    mesh.bus.deny(OverloadedError("too many streams; wait"))
    with pytest.raises(OverloadedError):
        await publish(mesh, message(1))
    mesh.bus.deny(None)
    await publish(mesh, message(1))
    assert len(mesh.bus.messages) == 1


async def test_what_is_held_reaches_the_agent_only_when_it_is_released(mesh: FakeMesh) -> None:
    mesh.bus.hold()
    await publish(mesh, message(1), message(2))
    assert mesh.agent.events == []
    mesh.bus.release()
    assert [event.sequence for event in mesh.agent.events] == [1, 2]
    await publish(mesh, message(3))
    assert len(mesh.agent.events) == 3


async def test_a_bus_that_starts_again_has_lost_what_it_held(mesh: FakeMesh) -> None:
    await publish(mesh, message(1))
    mesh.bus.hold()
    await publish(mesh, message(2), message(3))
    assert await mesh.restart_bus() == 2
    await publish(mesh, message(4))
    assert [event.sequence for event in mesh.agent.events] == [1, 4]
    (hole,) = mesh.agent.missing()["unit"]
    assert (hole.epoch, hole.first, hole.last) == (EPOCH, 2, 3)


async def test_a_batch_that_was_accepted_and_not_answered_comes_again(mesh: FakeMesh) -> None:
    mesh.bus.stop_answering(accepts=True)
    async with publishing(mesh) as put:
        await put(1)
        await mesh.until(lambda: mesh.bus.messages, "the batch is accepted")
        await mesh.restart_bus()
        mesh.bus.answer_again()
        await mesh.until(lambda: len(mesh.bus.messages) == 2, "it is published again")
    record = mesh.agent.collector("unit").record
    assert len(record.events) == 1
    assert record.repeat_count == 1


async def test_a_bus_that_does_not_answer_accepts_nothing(mesh: FakeMesh) -> None:
    mesh.bus.stop_answering()
    async with publishing(mesh) as put:
        await put(1)
        await mesh.until(lambda: mesh.bus.batch_count, "a batch arrives")
        assert mesh.bus.messages == []
        mesh.bus.answer_again()
        await mesh.until(lambda: mesh.bus.messages, "it is accepted")


# -- the registry -------------------------------------------------------------------------------------


def registration(**changes: Any) -> registry_pb.RegisterCollectorRequest:
    fields = {
        "collector_id": "unit",
        "instance_epoch": 9,
        "domains": [ipc_pb2.MONITORING_DOMAIN_PERFORMANCE],
        **changes,
    }
    return registry_pb.RegisterCollectorRequest(**fields)


@asynccontextmanager
async def registry_of(mesh: FakeMesh) -> AsyncIterator[Any]:
    async with channel_of(mesh, mesh.layout.agent_socket) as channel:
        yield registry_service_pb2_grpc.RegistryServiceStub(channel)


async def beat(registry: Any, count: int = 1, instance_epoch: int = 9) -> list[int]:
    """Sends heartbeats; returns the sequences that were answered, or raises our error."""

    async def beats() -> AsyncIterator[Any]:
        for sequence in range(1, count + 1):
            yield registry_pb.HeartbeatRequest(
                collector_id="unit", instance_epoch=instance_epoch, heartbeat_sequence=sequence
            )

    try:
        return [one.heartbeat_sequence async for one in registry.Heartbeat(beats(), timeout=5)]
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def register(registry: Any, **changes: Any) -> Any:
    try:
        return await registry.RegisterCollector(registration(**changes), timeout=5)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


async def test_a_lease_is_granted_kept_and_given_back(mesh: FakeMesh) -> None:
    async with registry_of(mesh) as registry:
        lease = await register(registry)
        assert lease.heartbeat_interval.ToNanoseconds() / 1e9 == mesh.agent.heartbeat_interval_s
        assert mesh.agent.is_registered("unit")
        assert await beat(registry, 3) == [1, 2, 3]
        request = registry_pb.DeregisterCollectorRequest(collector_id="unit", instance_epoch=9)
        await registry.DeregisterCollector(request, timeout=5)
    assert not mesh.agent.is_registered("unit")
    last = mesh.agent.last_heartbeat("unit")
    assert last is not None
    assert last.heartbeat_sequence == 3
    assert mesh.agent.last_heartbeat("other") is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"collector_id": "other"}, ErrorReason.REQUEST_INVALID),
        ({"domains": [ipc_pb2.MONITORING_DOMAIN_NETWORK]}, ErrorReason.REQUEST_INVALID),
        ({"domains": [77]}, ErrorReason.ENUM_UNKNOWN),
    ],
)
async def test_a_registration_that_the_agent_would_refuse_is_refused(
    mesh: FakeMesh, changes: dict[str, Any], reason: ErrorReason
) -> None:
    async with registry_of(mesh) as registry:
        with pytest.raises(InvalidRequestError) as refused:
            await register(registry, **changes)
    assert refused.value.reason is reason
    assert len(mesh.agent.registrations) == 1


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda mesh: mesh.agent.take_lease_away("unit"), ErrorReason.NOT_REGISTERED),
        (lambda mesh: mesh.agent.end_leases(), ErrorReason.NOT_REGISTERED),
        (lambda mesh: mesh.agent.supersede("unit"), ErrorReason.SUPERSEDED),
    ],
)
async def test_a_lease_that_is_gone_ends_the_heartbeats(
    mesh: FakeMesh, end: Callable[[FakeMesh], None], reason: ErrorReason
) -> None:
    async with registry_of(mesh) as registry:
        await register(registry)
        end(mesh)
        with pytest.raises(DaemoneyeError) as ended:
            await beat(registry)
    assert ended.value.reason is reason
    assert not mesh.agent.is_registered("unit")


async def test_a_newer_instance_supersedes_an_older_one(mesh: FakeMesh) -> None:
    async with registry_of(mesh) as registry:
        await register(registry, instance_epoch=9)
        await register(registry, instance_epoch=10)
        with pytest.raises(ConflictError, match="newer instance"):
            await beat(registry, instance_epoch=9)
        assert await beat(registry, instance_epoch=10) == [1]


async def test_a_token_names_the_domains_of_the_enrolment(mesh: FakeMesh) -> None:
    async with registry_of(mesh) as registry:
        audience = mesh.layout.broker.spiffe_id
        request = registry_pb.IssueTokenRequest(audience=audience)
        token = (await registry.IssueToken(request, timeout=5)).token
    assert mesh.agent.token_requests == [("unit", audience)]
    channel = open_channel(mesh.layout.eventbus_socket, lambda: token)
    stub: Any = eventbus_service_pb2_grpc.EventBusServiceStub(channel)
    request = eventbus_service_pb2.PublishRequest(messages=[message(1)])
    await stub.Publish(request, timeout=5)
    await channel.close()
    assert len(mesh.agent.events) == 1


# -- the whole ----------------------------------------------------------------------------------------


async def test_a_wait_in_vain_says_what_was_there(mesh: FakeMesh) -> None:
    await publish(mesh, message(1), message(3))
    with pytest.raises(ConditionTimeoutError) as failed:
        await mesh.until(lambda: False, "pigs fly", timeout_s=0.05)
    text = str(failed.value)
    assert "pigs fly" in text
    assert f"{TOPIC}: 2" in text
    assert "first=2, last=2" in text


async def test_a_mesh_leaves_nothing_behind() -> None:
    async with FakeMesh() as mesh:
        root = mesh.root
        assert mesh.layout.eventbus_socket.is_socket()
        assert mesh.layout.agent_socket.is_socket()
    assert not root.exists()


async def test_a_mesh_that_fails_in_the_test_leaves_nothing_behind() -> None:
    with pytest.raises(RuntimeError, match="the test failed"):
        async with FakeMesh() as mesh:
            raise RuntimeError("the test failed")
    assert not mesh.root.exists()


async def test_a_given_root_stays_and_its_sockets_go(short_dir: Path) -> None:
    async with FakeMesh(short_dir) as mesh:
        mesh.enrol("unit", "performance")
    left = [Path(folder) / name for folder, _, names in os.walk(short_dir) for name in names]
    assert left
    assert not [path for path in left if path.is_socket()]


async def test_a_root_that_is_too_long_for_sockets_is_refused(short_dir: Path) -> None:
    with pytest.raises(InvalidRequestError, match="107"):
        await FakeMesh(short_dir / ("x" * 90)).start()


async def test_two_meshes_in_one_test_do_not_know_each_other(mesh: FakeMesh) -> None:
    async with FakeMesh() as other:
        other.enrol("unit", "performance")
        await publish(other, message(1))
        assert len(other.agent.events) == 1
        assert mesh.agent.events == []


async def test_the_environment_of_collectors_has_no_settings_of_other_meshes(
    mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAEMONEYE_UNIT_LOG_LEVEL", "debug")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
    names = {name for name in mesh.environment if name.startswith(("DAEMONEYE_", "XDG_"))}
    assert names == {"DAEMONEYE_RUNTIME_DIR", "DAEMONEYE_STATE_DIR"}
