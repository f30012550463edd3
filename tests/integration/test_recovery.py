"""Each process is killed in turn and the mesh comes back by itself."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemoneye.common.v1 import completeness_pb2

pytestmark = pytest.mark.integration


async def sees_new_processes(mesh: Any) -> None:
    child = await asyncio.create_subprocess_exec("/bin/sleep", "60")
    try:
        sql = f"SELECT pid FROM process_events WHERE pid = {child.pid}"
        await mesh.until(lambda: mesh.find_query(sql), f"process {child.pid} is stored")
        live = f"SELECT pid FROM processes WHERE pid = {child.pid}"
        await mesh.until(lambda: mesh.find_query(live), f"process {child.pid} is listed")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def hears_the_bus(mesh: Any) -> bool:
    # Until then events reach nobody; what is missed is recorded in event_losses.
    return any(
        one.is_serving for one in (await mesh.status()).components if one.component == "eventbus"
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["eventbus", "procmond", "agent"])
async def test_mesh_is_back_in_service_after_kill(mesh: Any, victim: str) -> None:
    await sees_new_processes(mesh)
    before = (await mesh.query("SELECT count(*) AS n FROM process_events"))[0]["n"]

    await mesh.kill(victim)
    assert mesh.socket_of(victim).exists(), "SIGKILL leaves the socket file behind"
    await mesh.start(victim)
    await mesh.wait_serving("agent", "eventbus", "procmond")
    await mesh.until(lambda: hears_the_bus(mesh), "the agent is subscribed again")

    await sees_new_processes(mesh)
    after = (await mesh.query("SELECT count(*) AS n FROM process_events"))[0]["n"]
    assert after > before, "what was stored before the kill is still there"
    duplicates = await mesh.query(
        "SELECT source_epoch, source_sequence FROM process_events"
        " GROUP BY source_id, source_epoch, source_sequence HAVING count(*) > 1"
    )
    assert duplicates == []


@pytest.mark.timeout(120)
async def test_agent_tells_that_a_killed_collector_is_unavailable(mesh: Any) -> None:
    async def states() -> list[bool]:
        components = (await mesh.status()).components
        return [one.is_serving for one in components if one.component == "procmond"]

    async def is_served() -> bool:
        return await states() == [True]

    async def is_missed() -> bool:
        return await states() == [False]

    await mesh.until(is_served, "the agent knows the collector")
    await mesh.kill("procmond")
    await mesh.until(is_missed, "the agent notices")
    causes = (await mesh.status()).completeness.causes
    assert (completeness_pb2.DEGRADED_REASON_COLLECTOR_UNAVAILABLE, "procmond") in {
        (cause.reason, cause.subject) for cause in causes
    }


async def test_processes_wait_for_each_other_in_any_order(cold_mesh: Any) -> None:
    await cold_mesh.start("procmond")
    await cold_mesh.wait_serving("procmond")
    await cold_mesh.start("eventbus")
    await cold_mesh.wait_serving("eventbus")
    await cold_mesh.start("agent")
    await cold_mesh.wait_serving("agent")
    await sees_new_processes(cold_mesh)
    assert set((await cold_mesh.stop()).values()) == {0}
    assert not list(cold_mesh.layout.root.rglob("*.sock"))
    assert not list(cold_mesh.layout.root.rglob("*.lock"))


@pytest.mark.parametrize("name", ["agent", "eventbus", "procmond"])
async def test_second_server_on_one_socket_is_refused(mesh: Any, name: str) -> None:
    first = mesh.processes[name]
    await mesh.start(name)
    second = mesh.processes[name]
    mesh.processes[name] = first
    assert await asyncio.wait_for(second.wait(), 20) == 1
    assert await mesh.is_serving(name), "the first one is unharmed"
    log = (mesh.root / f"{name}.log").read_text()
    assert "SOCKET_UNUSABLE" in log or "FILE_UNUSABLE" in log


async def test_second_agent_with_a_key_of_its_own_harms_no_token(mesh: Any) -> None:
    bundle = mesh.layout.trust_bundle.read_bytes()
    first = mesh.processes["agent"]
    await mesh.start("agent", "--state-dir", str(mesh.root / "other"))
    second = mesh.processes["agent"]
    mesh.processes["agent"] = first
    assert await asyncio.wait_for(second.wait(), 20) == 1
    assert mesh.layout.trust_bundle.read_bytes() == bundle
    assert await mesh.query("SELECT count(*) AS n FROM event_losses") == [{"n": 0}]


async def test_mesh_ends_with_the_command_that_started_it(mesh_dir: Path) -> None:
    """SIGKILL leaves `daemoneye up` no chance to stop anything; the kernel tells its children."""
    environment = {
        **os.environ,
        "DAEMONEYE_RUNTIME_DIR": str(mesh_dir / "run"),
        "DAEMONEYE_STATE_DIR": str(mesh_dir / "state"),
    }
    up = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "daemoneye_cli", "up", "--quiet"),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    sockets = [mesh_dir / "run" / name for name in ("agent.sock", "eventbus.sock")]
    await become(lambda: all(path.exists() for path in sockets), "the mesh is up")
    up.kill()
    await up.wait()
    await become(lambda: not list((mesh_dir / "run").rglob("*.sock*")), "nothing is left")
    logs = [
        json.loads(line) for path in logs_of(mesh_dir) for line in path.read_text().splitlines()
    ]
    assert [line["message"] for line in logs if line["level"] == "critical"] == []


def logs_of(mesh_dir: Path) -> list[Path]:
    return sorted((mesh_dir / "state" / "logs").glob("*.log"))


async def become(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 -- what is waited for is in other processes
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not within 30 s: {what}")
