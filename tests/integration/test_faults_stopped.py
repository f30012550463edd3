"""One process after the other is stopped for a while (SIGSTOP) and goes on, at load."""

import asyncio
import signal
from typing import Any

import pytest
from tests.integration.fault_workers import observer

pytestmark = pytest.mark.integration

RATE = 200
STOPPED_S = 10.0
MAX_RSS_BYTES = 250 << 20


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["eventbus", "agent", "procmond"])
async def test_mesh_goes_on_without_a_loss_when_a_process_was_stopped_for_a_while(
    cold_mesh: Any, name: str
) -> None:
    mesh = cold_mesh
    await observer.start_mesh(mesh)
    async with observer.generating(RATE, 1.0):
        await mesh.until(lambda: observer.event_count(mesh), "events are stored")
        mesh.processes[name].send_signal(signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)  # the fault itself
        mesh.processes[name].send_signal(signal.SIGCONT)
        await mesh.wait_serving("agent", "eventbus", "procmond")
        async with observer.a_process() as pid:
            await observer.until_seen(mesh, pid)
    stats = await observer.settle(mesh)
    for one, process in mesh.processes.items():
        assert process.returncode is None, one
        assert observer.rss_bytes(process, peak=True) < MAX_RSS_BYTES, one
    assert await is_served(mesh)
    await observer.stop(mesh)
    observer.check_whole(mesh, (stats.source_epoch, stats.source_sequence))
    check_gaps(mesh, name)
    for one in ("agent", "eventbus", "procmond"):
        lines = observer.log_lines(mesh, one)
        assert [line for line in lines if line["level"] == "critical"] == []
    words = [line["message"] for line in observer.log_lines(mesh, "procmond")]
    assert [line for line in words if "FATAL" in line or "PERMANENT" in line] == []


async def is_served(mesh: Any) -> bool:
    async def is_in_service() -> bool:
        return any(
            one.component == "procmond" and one.is_serving
            for one in (await mesh.status()).components
        )

    return bool(await mesh.until(is_in_service, "the agent holds the collector to be in service"))


def check_gaps(mesh: Any, name: str) -> None:
    """Only who was stopped itself has seen nothing meanwhile, and says so."""
    gaps = observer.gaps_of(mesh)
    assert [gap["reason"] for gap in gaps] == ["suspended"] * (name == "procmond"), gaps
    for gap in gaps:
        duration_s = (gap["ended_ns"] - gap["started_ns"]) / 1e9
        assert STOPPED_S - 2 < duration_s < STOPPED_S + 5, gap
