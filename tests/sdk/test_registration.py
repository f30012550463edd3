"""The lease at the agent: taken, kept by heartbeats, taken again, given back."""

import asyncio
from pathlib import Path

import pytest

from collector_core.registration import CollectorDescription, Registration
from daemoneye.agent.v1 import registry_service_pb2 as pb
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye.ipc.v1 import ipc_pb2
from daemoneye_mesh.errors import ConflictError, ErrorReason, PreconditionError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15
DESCRIPTION = CollectorDescription(
    collector_id="unit",
    instance_epoch=7,
    version="1.2.3",
    socket_path=Path("/run/daemoneye/collectors/unit.sock"),
    domains=[ipc_pb2.MONITORING_DOMAIN_PROCESS],
    task_types=[0],
    pid=42,
    heartbeat_interval_s=2.5,
)


def superseded():
    return ConflictError("epoch 8 has taken over; stop", reason=ErrorReason.SUPERSEDED)


def lost():
    return PreconditionError("no lease; register again", reason=ErrorReason.NOT_REGISTERED)


class Vitals:
    """What the collector says of itself; a test changes it."""

    def __init__(self):
        self.health = pb.COLLECTOR_HEALTH_OK
        self.asked_count = 0

    def __call__(self):
        self.asked_count += 1
        return pb.HeartbeatRequest(
            health=self.health, metrics={"events_emitted": 3}, config_version=self.asked_count
        )


@pytest.fixture
def vitals():
    return Vitals()


@pytest.fixture
def changes():
    """Whether the agent holds a lease, each time it was told."""
    return []


@pytest.fixture
def registration(connect, mesh_identity, vitals, changes):
    stub = registry_service_pb2_grpc.RegistryServiceStub(connect(mesh_identity.layout.agent_socket))
    return Registration(stub, DESCRIPTION, vitals, changes.append)


async def test_registration_says_what_the_collector_is(
    registration, registry, serve, running, eventually
):
    await serve(registry)
    running(registration.run())
    await eventually(lambda: registration.is_registered)
    (request,) = registry.registrations
    assert (request.collector_id, request.instance_epoch, request.version) == ("unit", 7, "1.2.3")
    assert request.socket_path == "/run/daemoneye/collectors/unit.sock"
    assert list(request.domains) == [ipc_pb2.MONITORING_DOMAIN_PROCESS]
    assert list(request.task_types) == [0]
    assert request.pid == 42
    assert request.heartbeat_interval.ToMilliseconds() == 2_500


async def test_heartbeats_arrive_numbered_from_1_and_with_what_the_collector_says(
    registration, registry, serve, running, eventually
):
    await serve(registry)
    running(registration.run())
    await eventually(lambda: len(registry.heartbeats) >= 5)
    beats = registry.heartbeats[:5]
    assert [one.heartbeat_sequence for one in beats] == [1, 2, 3, 4, 5]
    assert {(one.collector_id, one.instance_epoch) for one in beats} == {("unit", 7)}
    assert dict(beats[0].metrics) == {"events_emitted": 3.0}
    assert beats[0].health == pb.COLLECTOR_HEALTH_OK
    assert [one.config_version for one in beats] == [1, 2, 3, 4, 5]  # asked for each anew
    assert len(registry.registrations) == 1


async def test_heartbeats_keep_to_the_interval_of_the_lease(
    registration, registry, serve, running, eventually
):
    registry.interval_s = 3_600
    await serve(registry)
    running(registration.run())
    await eventually(lambda: registry.heartbeats)
    async with asyncio.timeout(GUARD_S):
        await registration.deregister("bye")  # a round trip later there is still only one
    assert len(registry.heartbeats) == 1


async def test_lease_without_an_interval_falls_back_to_the_wanted_one(
    registration, registry, serve, running, eventually
):
    registry.interval_s = 0
    await serve(registry)
    running(registration.run())
    await eventually(lambda: registry.heartbeats)
    async with asyncio.timeout(GUARD_S):
        await registration.deregister("bye")
    assert len(registry.heartbeats) == 1


async def test_change_of_the_vitals_is_told_with_the_next_heartbeat(
    *, registration, registry, serve, running, eventually, vitals
):
    await serve(registry)
    running(registration.run())
    await eventually(lambda: registry.heartbeats)
    vitals.health = pb.COLLECTOR_HEALTH_DEGRADED
    await eventually(lambda: registry.heartbeats[-1].health == pb.COLLECTOR_HEALTH_DEGRADED)


async def test_every_change_of_the_lease_is_heard(
    *, registration, registry, serve, running, eventually, changes
):
    await serve(registry)
    running(registration.run())
    await eventually(lambda: registry.heartbeats)
    assert changes == [True]
    registry.loss = lost()
    await eventually(lambda: len(registry.registrations) == 2 and registration.is_registered)
    assert changes == [True, False, True]
    async with asyncio.timeout(GUARD_S):
        await registration.deregister("bye")
    await eventually(lambda: not registration.is_registered)
    assert changes == [True, False, True]  # whoever leaves does not miss the lease


async def test_agent_that_was_never_reached_is_heard_of(registration, running, eventually, changes):
    running(registration.run())
    await eventually(lambda: changes)
    assert changes[0] is False
    assert not registration.is_registered


async def test_lost_lease_is_taken_again(registration, registry, serve, running, eventually):
    await serve(registry)
    running(registration.run())
    await eventually(lambda: registry.heartbeats)
    registry.loss = lost()
    await eventually(lambda: len(registry.registrations) == 2)
    count = len(registry.heartbeats)
    await eventually(lambda: len(registry.heartbeats) > count + 2)
    assert registration.is_registered
    assert registry.registrations[0] == registry.registrations[1]
    numbers = [one.heartbeat_sequence for one in registry.heartbeats]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_lease_is_taken_again_from_an_agent_that_restarted(
    registration, registry, serve, running, eventually
):
    server = await serve(registry)
    running(registration.run())
    await eventually(lambda: registry.heartbeats)
    await server.drain(0)
    await eventually(lambda: not registration.is_registered)
    await serve(registry)
    await eventually(lambda: registration.is_registered)
    assert len(registry.registrations) == 2


async def test_instance_that_was_superseded_while_it_ran_stops(
    registration, registry, serve, running, eventually
):
    await serve(registry)
    task = running(registration.run())
    await eventually(lambda: registry.heartbeats)
    registry.loss = superseded()
    with pytest.raises(ConflictError, match="epoch 8 has taken over") as ended:
        async with asyncio.timeout(GUARD_S):
            await task
    assert ended.value.reason is ErrorReason.SUPERSEDED
    assert not registration.is_registered
    assert len(registry.registrations) == 1


async def test_instance_that_was_superseded_before_it_registered_stops(
    registration, registry, serve
):
    registry.refusal = superseded()
    await serve(registry)
    with pytest.raises(ConflictError, match="epoch 8 has taken over"):
        async with asyncio.timeout(GUARD_S):
            await registration.run()
    assert len(registry.registrations) == 1


async def test_refused_registration_is_tried_again(
    registration, registry, serve, running, eventually
):
    registry.refusal = lost()
    await serve(registry)
    running(registration.run())
    await eventually(lambda: len(registry.registrations) >= 2)
    registry.refusal = None
    await eventually(lambda: registration.is_registered)


async def test_lease_that_was_given_back_is_not_taken_again(
    registration, registry, serve, running, eventually
):
    await serve(registry)
    task = running(registration.run())
    await eventually(lambda: registry.heartbeats)
    async with asyncio.timeout(GUARD_S):
        await registration.deregister("stopping: SIGTERM")
        await task  # the fake agent has ended the stream, as the real one does
    (departure,) = registry.departures
    assert (departure.collector_id, departure.instance_epoch) == ("unit", 7)
    assert departure.reason == "stopping: SIGTERM"
    assert len(registry.registrations) == 1
    assert not registration.is_registered


async def test_nothing_is_given_back_without_a_lease(registration, registry, serve):
    await serve(registry)
    await registration.deregister("bye")
    assert not registry.departures


async def test_leaving_an_agent_that_is_gone_is_no_error(
    registration, registry, serve, running, eventually
):
    server = await serve(registry)
    registry.interval_s = 3_600
    running(registration.run())
    await eventually(lambda: registration.is_registered)
    await server.drain(0)
    registration.is_registered = True  # it has not noticed yet
    async with asyncio.timeout(GUARD_S):
        await registration.deregister("bye")
