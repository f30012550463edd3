"""The agent is killed while it stores, and comes back with what it had or with nothing."""

import shutil
from typing import Any

import pytest
from tests.integration.fault_workers import observer
from tests.integration.fault_workers.flood_control import FloodControl

pytestmark = pytest.mark.integration

EVENTS = 40_000
KILLS = 3
LET_GO = "the collector's log let go of them"
STORED = 10_000
WAITING = 5_000


async def start(mesh: Any) -> FloodControl:
    await mesh.start("agent", *observer.FLOOD_AGENT_FLAGS)
    await mesh.start("eventbus")
    flood = await FloodControl.start(mesh)
    await mesh.wait_serving("agent", "eventbus")
    await flood.until_in_service()
    return flood


async def stored_count(mesh: Any) -> int:
    rows = await mesh.find_query("SELECT count(*) AS n FROM collector_events")
    return int(rows[0]["n"]) if rows else 0


@pytest.mark.timeout(120)
async def test_agent_that_is_killed_while_it_stores_has_everything_once_in_the_end(
    cold_mesh: Any,
) -> None:
    mesh = cold_mesh
    flood = await start(mesh)
    flood.ask_for(lifecycle=EVENTS, sample=0)
    for part in range(1, KILLS + 1):
        wanted = part * EVENTS // (2 * KILLS)

        async def has_stored(wanted: int = wanted) -> bool:
            return await stored_count(mesh) >= wanted

        await mesh.until(has_stored, f"{wanted} events are stored")
        await mesh.kill("agent")
        await mesh.start("agent", *observer.FLOOD_AGENT_FLAGS)
        await mesh.wait_serving("agent")
    await flood.emit(lifecycle=EVENTS, sample=0)
    stats = await observer.settle(mesh, "flood")
    assert (stats.lost_count, stats.dropped_count) == ({}, {})
    await observer.stop(mesh)
    observer.check_whole(mesh, (stats.source_epoch, stats.source_sequence), "flood")
    rows = observer.read_store(mesh, "SELECT data FROM collector_events")
    assert len({row["data"] for row in rows}) == EVENTS


@pytest.mark.timeout(120)
async def test_agent_that_has_lost_its_state_gets_what_is_left_and_tells_the_rest(
    cold_mesh: Any,
) -> None:
    mesh = cold_mesh
    flood = await start(mesh)
    await flood.emit(lifecycle=STORED, sample=0)
    before = await observer.settle(mesh, "flood")
    await mesh.kill("agent")
    stats = await flood.emit(lifecycle=STORED + WAITING, sample=0)
    acknowledged = stats.log_positions[0].acknowledged_sequence
    assert acknowledged == before.source_sequence
    wipe(mesh)
    await mesh.start("agent", *observer.FLOOD_AGENT_FLAGS)
    await mesh.wait_serving("agent")
    alerts = await mesh.until(lambda: mesh.alerts("events_lost"), "an alert is raised")
    stats = await observer.settle(mesh, "flood")
    assert alerts[-1].description.startswith(f"{acknowledged} events of flood are lost: 1 to")
    assert ("EVENTS_LOST", "event store") in await observer.causes(mesh)
    await observer.stop(mesh)
    keys = observer.stored_keys(mesh, "flood")
    assert observer.twice(keys) == []
    epoch = stats.source_epoch
    assert set(keys) == {
        (epoch, number) for number in range(acknowledged + 1, stats.source_sequence + 1)
    }
    losses = observer.losses_of(mesh, "flood")
    assert observer.lost_keys(losses) == {(epoch, number) for number in range(1, acknowledged + 1)}
    assert {(one["state"], one["reason"]) for one in losses} == {("lost", LET_GO)}


def wipe(mesh: Any) -> None:
    """Removes all that the agent has on disk, its keys too; not what belongs to collectors."""
    for path in mesh.state_dir.iterdir():
        if path.name == "collectors":
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
