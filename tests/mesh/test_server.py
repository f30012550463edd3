import asyncio
import os
import stat

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import ErrorReason, InvalidConfigError
from daemoneye_mesh.limits import MAX_RECEIVE_BYTES
from daemoneye_mesh.rpc_status import from_rpc_error
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.sockets import SocketUnusableError

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15


@pytest.fixture
async def make_server(mesh_identity):
    made = []

    def make(path):
        made.append(MeshServer(path, mesh_identity.auth(mesh_identity.layout.agent)))
        return made[-1]

    yield make
    for server in made:
        await server.drain(0)


@pytest.fixture
def wide_umask():
    before = os.umask(0)
    yield
    os.umask(before)


async def check_health(path, service=""):
    async with open_channel(path) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=GUARD_S)
        return answer.status


def echo():
    async def unary(request, context):
        return request

    return grpc.unary_unary_rpc_method_handler(unary)


async def test_second_server_is_refused_and_the_first_goes_on(make_server, short_dir):
    path = short_dir / "agent.sock"
    first, second = make_server(path), make_server(path)
    await first.start()
    inode = path.stat().st_ino
    with pytest.raises(SocketUnusableError) as refused:
        await second.start()
    assert refused.value.reason is ErrorReason.SOCKET_UNUSABLE
    await second.drain()
    assert path.stat().st_ino == inode
    assert await check_health(path) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_path_is_gone_after_drain_and_can_be_served_again(make_server, short_dir):
    path = short_dir / "agent.sock"
    for _ in range(2):
        server = make_server(path)
        await server.start()
        assert stat.S_ISSOCK(path.lstat().st_mode)
        await server.drain()
        assert not [one.name for one in short_dir.iterdir() if "sock" in one.name]


@pytest.mark.usefixtures("wide_umask")
async def test_socket_is_never_wider_than_owner_and_group(make_server, short_dir, monkeypatch):
    server = make_server(short_dir / "agent.sock")
    bind, modes = server._server.add_insecure_port, []

    def bind_and_look(target):
        port = bind(target)
        modes.append(stat.S_IMODE(server.path.lstat().st_mode))
        return port

    monkeypatch.setattr(server._server, "add_insecure_port", bind_and_look)
    await server.start()
    assert modes == [0o660]
    assert stat.S_IMODE(server.path.lstat().st_mode) == 0o660
    assert os.umask(0) == 0


async def test_socket_that_came_up_too_wide_is_refused_and_removed(
    make_server, short_dir, monkeypatch
):
    server = make_server(short_dir / "agent.sock")
    bind = server._server.add_insecure_port

    def bind_too_wide(target):
        port = bind(target)
        server.path.chmod(0o666)
        return port

    monkeypatch.setattr(server._server, "add_insecure_port", bind_too_wide)
    with pytest.raises(SocketUnusableError, match="came up with mode 666"):
        await server.start()
    assert not [one.name for one in short_dir.iterdir() if "sock" in one.name]


async def test_failed_bind_is_told_as_our_error_and_frees_the_path(
    make_server, short_dir, monkeypatch
):
    server = make_server(short_dir / "agent.sock")

    def fail(target):
        raise RuntimeError("Failed to bind to address")

    monkeypatch.setattr(server._server, "add_insecure_port", fail)
    with pytest.raises(SocketUnusableError, match="cannot bind"):
        await server.start()
    assert not [one.name for one in short_dir.iterdir() if "sock" in one.name]


async def test_too_long_path_is_refused_before_anything_is_made(make_server, short_dir):
    with pytest.raises(InvalidConfigError, match="at most 107"):
        await make_server(short_dir / ("x" * 120)).start()
    assert [one.name for one in short_dir.iterdir()] == ["trust-bundle.json"]


async def test_health_is_not_serving_until_told(serve_methods):
    served = await serve_methods({"Unary": echo()})
    path = served.server.path
    services = ("", "daemoneye.ipc.v1.CollectorService")
    for service in services:
        assert await check_health(path, service) == health_pb2.HealthCheckResponse.NOT_SERVING
    await served.server.set_serving(True)
    for service in services:
        assert await check_health(path, service) == health_pb2.HealthCheckResponse.SERVING


async def test_call_in_flight_finishes_while_the_server_drains(serve_methods, eventually):
    started, go = asyncio.Event(), asyncio.Event()

    async def slow(request, context):
        started.set()
        await go.wait()
        return b"done"

    served = await serve_methods({"Slow": grpc.unary_unary_rpc_method_handler(slow)})
    order = []

    async def hook():
        order.append("hook")
        assert served.server.path.exists()

    served.server.on_drain(hook)
    async with asyncio.timeout(GUARD_S), asyncio.TaskGroup() as group:
        call = served.channel.unary_unary(served.method("Slow"))(b"")
        await started.wait()
        drain = group.create_task(served.server.drain())
        await eventually(lambda: not served.server.path.exists(), "the listener closes")
        assert not drain.done()
        go.set()
        assert await call == b"done"
    assert order == ["hook"]
    assert not served.server.path.with_name(served.server.path.name + ".lock").exists()


async def test_call_that_outlives_the_grace_is_ended(serve_methods):
    started, ended = asyncio.Event(), asyncio.Event()

    async def endless(request, context):
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    served = await serve_methods({"Endless": grpc.unary_unary_rpc_method_handler(endless)})
    async with asyncio.timeout(GUARD_S):
        call = served.channel.unary_unary(served.method("Endless"))(b"")
        await started.wait()
        await served.server.drain(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as ended_call:
            await call
        await ended.wait()
    assert ended_call.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_hook_runs_once_over_repeated_and_concurrent_drains(serve_methods):
    served = await serve_methods({"Unary": echo()})
    runs = []

    async def hook():
        runs.append("run")
        await asyncio.sleep(0)

    served.server.on_drain(hook)
    async with asyncio.timeout(GUARD_S):
        await asyncio.gather(served.server.drain(), served.server.drain())
        await served.server.drain()
    assert runs == ["run"]
    assert not served.server.path.exists()


async def test_hook_that_fails_does_not_keep_the_path(serve_methods):
    served = await serve_methods({"Unary": echo()})

    async def hook():
        raise ValueError("broken")

    served.server.on_drain(hook)
    with pytest.raises(ExceptionGroup):
        await served.server.drain()
    assert not served.server.path.exists()
    assert not served.server.path.with_name(served.server.path.name + ".lock").exists()


async def test_cancelled_drain_can_be_finished_by_another_one(serve_methods):
    started = asyncio.Event()

    async def endless(request, context):
        started.set()
        await asyncio.Event().wait()

    served = await serve_methods({"Endless": grpc.unary_unary_rpc_method_handler(endless)})
    call = served.channel.unary_unary(served.method("Endless"))(b"")
    async with asyncio.timeout(GUARD_S):
        await started.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await served.server.drain(600)
        await served.server.drain(0)
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    assert not served.server.path.with_name(served.server.path.name + ".lock").exists()


async def test_oversized_message_is_refused_with_resource_exhausted(serve_methods):
    served = await serve_methods({"Unary": echo()})
    call = served.channel.unary_unary(served.method("Unary"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(b"x" * (MAX_RECEIVE_BYTES + 1), timeout=GUARD_S)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert from_rpc_error(refused.value).reason is ErrorReason.LIMIT_REACHED
    assert await call(b"still here", timeout=GUARD_S) == b"still here"


async def test_message_of_the_largest_size_passes(serve_methods):
    served = await serve_methods({"Unary": echo()})
    call = served.channel.unary_unary(served.method("Unary"))
    assert len(await call(b"x" * MAX_RECEIVE_BYTES, timeout=GUARD_S)) == MAX_RECEIVE_BYTES


@pytest.mark.parametrize(
    "method",
    ["/daemoneye.ipc.v1.CollectorService/Nothing", "/no.Such/Method", "/grpc.health.v1.Health/No"],
)
async def test_unknown_method_is_unimplemented(serve_methods, method):
    served = await serve_methods({"Unary": echo()})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.channel.unary_unary(method)(b"", timeout=GUARD_S)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_drain_without_start_does_nothing(make_server, short_dir):
    await make_server(short_dir / "agent.sock").drain()
    assert not (short_dir / "agent.sock").exists()
