"""More events than a log may keep, while nobody stores them."""

from pathlib import Path
from typing import Any

import pytest
from tests.integration.fault_workers import observer
from tests.integration.fault_workers.flood_control import FloodControl
from tests.integration.fault_workers.segment import list_segments, read_log

pytestmark = pytest.mark.integration

MAX_BYTES = 4 << 20
SEGMENT_BYTES = 1 << 20
LIMITS = ("--wal-max-bytes", str(MAX_BYTES), "--wal-segment-bytes", str(SEGMENT_BYTES))
FULL = "the collector's log was full"
FIRST = 14_000
"""Events of 240 bytes that nearly fill the log, without a loss."""
SAMPLES = 2_000
MORE = 14_000


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in list_segments(directory))


@pytest.mark.timeout(120)
async def test_log_over_its_cap_lets_go_of_the_oldest_and_tells_what_is_lost(
    cold_mesh: Any,
) -> None:
    mesh, directory = cold_mesh, observer.wal_of(cold_mesh, "flood")
    await mesh.start("agent", *observer.FLOOD_AGENT_FLAGS)
    await mesh.start("eventbus")
    flood = await FloodControl.start(mesh, *LIMITS)
    await mesh.wait_serving("agent", "eventbus")
    await flood.until_in_service()
    await flood.emit(lifecycle=1, sample=0)
    await observer.settle(mesh, "flood")  # whatever it publishes now reaches the broker
    await mesh.kill("agent")

    # Lossy events go first, long before anything is lost.
    await flood.emit(lifecycle=FIRST, sample=0)
    assert 0.75 * MAX_BYTES < size_of(directory) < MAX_BYTES
    await flood.until(lambda stats, health: health.is_shedding, "it leaves out lossy events")
    stats = await flood.emit(lifecycle=FIRST, sample=SAMPLES)
    assert (stats.dropped_count, stats.lost_count) == ({"shed_sample": SAMPLES}, {})

    # What is never left out pushes the oldest out.
    stats = await flood.emit(lifecycle=FIRST + MORE, sample=SAMPLES)
    assert stats.dropped_count == {"shed_sample": SAMPLES}
    assert stats.lost_count["log_full"] > 0
    assert size_of(directory) <= MAX_BYTES + SEGMENT_BYTES
    # What it still had in memory would reach the agent after all.
    await flood.until(lambda stats, health: is_published(stats), "all of it is published")
    held = {key for record in read_log(directory) for key in record.keys}

    await mesh.start("agent", *observer.FLOOD_AGENT_FLAGS)
    await mesh.wait_serving("agent")
    alerts = await mesh.until(lambda: mesh.alerts("events_lost"), "an alert is raised")
    stats = await observer.settle(mesh, "flood")
    await flood.until(lambda stats, health: not health.is_shedding, "it leaves out nothing more")
    stats = await observer.settle(mesh, "flood")
    assert "events of flood are lost" in alerts[-1].description
    assert ("EVENTS_LOST", "event store") in await observer.causes(mesh)
    await observer.stop(mesh)
    check_store(mesh, held, stats)


def is_published(stats: Any) -> bool:
    return bool(stats.published_count == stats.logged_count)


def check_store(mesh: Any, held: set[observer.Key], stats: Any) -> None:
    keys = observer.stored_keys(mesh, "flood")
    assert observer.twice(keys) == []
    assert held - set(keys) == set(), "all that the log kept is stored"
    losses = observer.losses_of(mesh, "flood")
    lost = observer.lost_keys(losses)
    assert len(lost) == stats.lost_count["log_full"]
    assert {(one["state"], one["reason"]) for one in losses} == {("lost", FULL)}
    epoch = stats.source_epoch
    every = {(epoch, number) for number in range(1, stats.source_sequence + 1)}
    assert set(keys) | lost == every
    assert set(keys) & lost == set()
    gaps = [gap for gap in observer.gaps_of(mesh, "flood") if gap["reason"] == "shed"]
    assert sum(gap["event_count"] for gap in gaps) == SAMPLES
    # One number was given to each event that was not left out, and to each gap.
    assert stats.source_sequence == FIRST + MORE + len(observer.gaps_of(mesh, "flood"))
