"""grpcurl, an independent client in another language, looks into every socket.

CI installs it (`make grpcurl`) and must not skip; elsewhere these tests need `make grpcurl` first.
"""

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
GRPCURL = ROOT / ".tools" / "grpcurl"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.grpcurl,
    pytest.mark.skipif(
        not GRPCURL.exists() and not shutil.which("grpcurl") and "CI" not in os.environ,
        reason="grpcurl is not installed; run 'make grpcurl'",
    ),
]

SERVICES = {
    "agent": {
        "daemoneye.agent.v1.AlertService",
        "daemoneye.agent.v1.CollectorAdminService",
        "daemoneye.agent.v1.QueryService",
        "daemoneye.agent.v1.RegistryService",
        "daemoneye.agent.v1.RuleService",
        "daemoneye.agent.v1.StatusService",
    },
    "eventbus": {"daemoneye.eventbus.v1.EventBusService"},
    "procmond": {
        "daemoneye.ipc.v1.CollectorControlService",
        "daemoneye.ipc.v1.CollectorService",
    },
}
COMMON = {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}


async def grpcurl(mesh: Any, name: str, *arguments: str, token: str = "") -> tuple[int, str, str]:
    """Runs grpcurl on a socket; the token goes through the environment, never the arguments."""
    binary = str(GRPCURL) if GRPCURL.exists() else "grpcurl"
    header = ("-expand-headers", "-H", "authorization: Bearer ${TOKEN}") if token else ()
    process = await asyncio.create_subprocess_exec(
        binary,
        *("-plaintext", "-unix", *header),
        *arguments[:-1],
        str(mesh.socket_of(name)),
        *arguments[-1].split(" "),
        env={**os.environ, "TOKEN": token},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 20)
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.parametrize("name", ["agent", "eventbus", "procmond"])
async def test_grpcurl_lists_describes_and_checks_every_socket(mesh: Any, name: str) -> None:
    status, out, err = await grpcurl(mesh, name, "list")
    assert status == 0, err
    assert set(out.split()) >= SERVICES[name] | COMMON
    for service in SERVICES[name]:
        status, out, err = await grpcurl(mesh, name, f"describe {service}")
        assert status == 0, err
        assert f"{service} is a service" in out
        status, out, err = await grpcurl(
            mesh, name, "-d", json.dumps({"service": service}), "grpc.health.v1.Health/Check"
        )
        assert status == 0, err
        assert json.loads(out) == {"status": "SERVING"}


async def test_grpcurl_queries_with_the_operators_token(mesh: Any) -> None:
    token = mesh.layout.token_file(mesh.layout.operator()).read_text().strip()
    sql = f"SELECT name, pid FROM processes WHERE pid = {os.getpid()}"
    status, out, err = await grpcurl(
        mesh,
        "agent",
        *("-d", json.dumps({"sql": sql})),
        "daemoneye.agent.v1.QueryService/ExecuteQuery",
        token=token,
    )
    assert status == 0, err
    assert f'"integer": "{os.getpid()}"' in out


async def test_grpcurl_without_a_token_is_told_how_to_pass_one(mesh: Any) -> None:
    status, _, err = await grpcurl(
        mesh, "agent", "-d", "{}", "daemoneye.agent.v1.StatusService/GetStatus"
    )
    assert status == 64 + 16
    assert "TOKEN_MISSING" in err
    assert "authorization: Bearer" in err
