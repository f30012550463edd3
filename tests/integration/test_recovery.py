"""Each process is killed in turn and the mesh comes back by itself."""

import asyncio
import contextlib
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
