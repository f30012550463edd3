import asyncio

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import ErrorReason
from daemoneye_mesh.rpc_status import from_rpc_error

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15
SERVICE = "daemoneye.ipc.v1.CollectorService"
Status = health_pb2.HealthCheckResponse


@pytest.fixture
async def served(serve_methods):
    return await serve_methods({})


@pytest.fixture
async def stub(served):
    async with open_channel(served.server.path) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def request(service=""):
    return health_pb2.HealthCheckRequest(service=service)


async def test_check_of_an_unknown_service_is_not_found(stub):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(request("no.Such"), timeout=GUARD_S)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    error = from_rpc_error(refused.value)
    assert error.reason is ErrorReason.NOT_FOUND
    assert error.metadata == {"service": "no.Such"}


async def test_watch_tells_the_status_now_and_each_change(served, stub):
    call = stub.Watch(request(SERVICE))
    async with asyncio.timeout(GUARD_S):
        seen = [(await call.read()).status]
        for is_serving in (True, False, True):
            await served.server.health.set_serving(SERVICE, is_serving)
            seen.append((await call.read()).status)
    call.cancel()
    assert seen == [Status.NOT_SERVING, Status.SERVING, Status.NOT_SERVING, Status.SERVING]


async def test_watch_of_an_unknown_service_stays_open_until_it_is_known(served, stub):
    call = stub.Watch(request("later.Service"))
    async with asyncio.timeout(GUARD_S):
        assert (await call.read()).status == Status.SERVICE_UNKNOWN
        await served.server.health.set_serving("later.Service", True)
        assert (await call.read()).status == Status.SERVING
    call.cancel()


async def test_watch_ends_with_not_serving_when_the_server_drains(served, stub):
    await served.server.set_serving(True)
    call = stub.Watch(request())
    async with asyncio.timeout(GUARD_S):
        assert (await call.read()).status == Status.SERVING
        # A grace that is longer than the guard: the watch must not use it up.
        await served.server.drain(grace_s=600)
        assert (await call.read()).status == Status.NOT_SERVING
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_nothing_turns_serving_again_after_a_drain(served):
    health = served.server.health
    await health.set_serving(SERVICE, True)
    await health.drain()
    await health.set_serving(SERVICE, True)
    await health.set_serving("new.Service", True)
    for service in ("", SERVICE, "new.Service"):
        assert (await health.Check(request(service), None)).status == Status.NOT_SERVING


async def test_watchers_that_leave_do_not_disturb_the_others(served, stub):
    calls = [stub.Watch(request()) for _ in range(5)]
    async with asyncio.timeout(GUARD_S):
        for call in calls:
            await call.read()
        for call in calls[1:]:
            call.cancel()
        await served.server.set_serving(True)
        assert (await calls[0].read()).status == Status.SERVING
    calls[0].cancel()
