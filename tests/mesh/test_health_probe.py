import asyncio
import socket
import subprocess
import sys

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2_grpc

from daemoneye_mesh.health_probe import main, probe_health
from daemoneye_mesh.sockets import socket_target

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15
SERVICE = "daemoneye.ipc.v1.CollectorService"


@pytest.fixture
async def served(serve_methods):
    return await serve_methods({})


class HangingHealth(health_pb2_grpc.HealthServicer):
    """Takes every call and answers none."""

    async def Check(self, request, context):
        await asyncio.Event().wait()


@pytest.fixture
async def hanging_socket(short_dir):
    path = short_dir / "agent.sock"
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(HangingHealth(), server)
    server.add_insecure_port(socket_target(path))
    await server.start()
    yield path
    await server.stop(0)


async def probe_as_program(*arguments):
    """Runs the module the way a container engine does; returns its status and both outputs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemoneye_mesh.health_probe", *map(str, arguments)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(GUARD_S):
        output, complaints = await process.communicate()
    return process.returncode, output.decode(), complaints.decode()


async def test_probe_ends_with_0_when_the_server_is_serving(served):
    await served.server.set_serving(True)
    assert await probe_as_program(served.server.path) == (0, "SERVING\n", "")


async def test_probe_ends_with_1_when_the_server_is_not_serving(served):
    status, output, _ = await probe_as_program(served.server.path)
    assert status == 1
    assert output == "NOT_SERVING: it answers, but is not ready or is shutting down\n"


async def test_probe_of_one_service_tells_its_own_status(served):
    await served.server.health.set_serving(SERVICE, True)
    assert await probe_health(served.server.path, SERVICE) == "SERVING"
    assert await probe_health(served.server.path) == "NOT_SERVING"


async def test_probe_of_an_unknown_service_ends_with_1_on_a_serving_server(served):
    await served.server.set_serving(True)
    status, output, _ = await probe_as_program(served.server.path, "no.Such")
    assert status == 1
    assert output == "NOT_FOUND: the server has no service of that name\n"


def test_probe_ends_with_1_when_there_is_no_socket(short_dir, capsys):
    assert main([str(short_dir / "agent.sock")]) == 1
    assert capsys.readouterr().out.startswith("UNAVAILABLE: nobody answers there")


def test_probe_ends_with_1_when_the_socket_was_left_behind(short_dir, capsys):
    path = short_dir / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(str(path))
    assert main([str(path)]) == 1
    assert capsys.readouterr().out.startswith("UNAVAILABLE")


async def test_probe_calls_a_socket_unavailable_when_no_server_speaks_there(short_dir):
    path = short_dir / "agent.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(str(path))
        silent.listen()
        assert await probe_health(path, timeout_s=GUARD_S) == "UNAVAILABLE"


async def test_probe_gives_up_on_a_server_that_never_answers(hanging_socket):
    assert await probe_health(hanging_socket, timeout_s=0.5) == "DEADLINE_EXCEEDED"


def test_probe_refuses_a_relative_path_as_wrong_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["agent.sock"])
    assert ended.value.code == 2
    assert "is relative; give an absolute path" in capsys.readouterr().err


def test_probe_refuses_to_be_called_without_a_socket(capsys):
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert "SOCKET" in capsys.readouterr().err
