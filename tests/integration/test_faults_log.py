"""The log of a collector is damaged: torn at its end, overwritten, a byte of it changed."""

import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fault_workers import observer
from tests.integration.fault_workers.segment import (
    Record,
    flip_byte,
    list_segments,
    read_log,
    read_records,
)

pytestmark = pytest.mark.integration

RATE = 200
SEED = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
FACTS = "SELECT source_epoch, source_sequence, time_ns, pid, kind FROM process_events"


def facts_of(mesh: Any) -> dict[observer.Key, tuple[Any, ...]]:
    """What each event in the store says."""
    return {
        (row["source_epoch"], row["source_sequence"]): (row["time_ns"], row["pid"], row["kind"])
        for row in observer.read_store(mesh, FACTS)
    }


@pytest.fixture
def chance() -> random.Random:
    sys.stdout.write(f"FAULT_SEED={SEED}\n")
    return random.Random(SEED)


def cut_last_record(directory: Path, chance: random.Random) -> Record:
    """Cuts the newest segment within its last record."""
    path = [one for one in list_segments(directory) if read_records(one)][-1]
    record = read_records(path)[-1]
    os.truncate(path, record.offset + chance.randrange(1, record.size_bytes))
    return record


def append_garbage(directory: Path, chance: random.Random) -> None:
    """Writes behind the end of the newest segment what is no record."""
    with list_segments(directory)[-1].open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 5000)))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("damage", ["cut", "garbage", "both"])
async def test_torn_end_of_the_log_of_a_killed_collector_confuses_no_event(
    cold_mesh: Any, chance: random.Random, damage: str
) -> None:
    mesh, directory = cold_mesh, observer.wal_of(cold_mesh)
    await observer.start_mesh(mesh)
    async with observer.generating(RATE, 1.0):
        await mesh.until(lambda: observer.event_count(mesh), "events are stored")
        await mesh.kill("agent")  # what is in the log from now on is not stored yet
        whole = {key for record in read_log(directory) for key in record.keys}
        await mesh.until(lambda: has_grown(directory, len(whole) + RATE), "the log has more")
        await mesh.kill("procmond")
        records = read_log(directory)
        cut: set[observer.Key] = set()
        if damage != "garbage":
            cut = cut_last_record(directory, chance).keys
        if damage != "cut":
            append_garbage(directory, chance)
        await mesh.start("agent")
        await mesh.start("procmond", *observer.PROCMOND_FLAGS)
        await mesh.wait_serving("agent", "procmond")
        stats = await observer.settle(mesh)
    assert stats.lost_count == {}
    await observer.stop(mesh)
    keys = observer.stored_keys(mesh)
    assert observer.twice(keys) == []
    kept = {key for record in records for key in record.keys} - cut
    assert kept - set(keys) == set(), "every whole record is stored"
    assert [gap["reason"] for gap in observer.gaps_of(mesh)] == ["killed"]
    if damage == "garbage":
        assert stats.source_epoch > records[-1].epoch, "who may have written there is unknown"
    assert observer.lost_keys(observer.losses_of(mesh)) <= cut


async def has_grown(directory: Path, count: int) -> bool:
    return sum(record.count for record in read_log(directory)) > count


@pytest.mark.timeout(120)
async def test_sequence_of_a_torn_record_that_was_stored_is_never_given_out_again(
    cold_mesh: Any, chance: random.Random
) -> None:
    mesh, directory = cold_mesh, observer.wal_of(cold_mesh)
    await observer.start_mesh(mesh)
    async with observer.generating(RATE, 1.0):
        for _ in range(3):
            await mesh.until(lambda: observer.event_count(mesh), "events are stored")
            await mesh.kill("procmond")
            published = read_log(directory)[-1]
            before = await until_stored(mesh, published)
            cut_last_record(directory, chance)
            await mesh.start("procmond", *observer.PROCMOND_FLAGS)
            await mesh.wait_serving("procmond")
            async with observer.a_process() as pid:
                await observer.until_seen(mesh, pid)
            after = facts_of(mesh)
            assert {key: after.get(key) for key in before} == before
    stats = await observer.settle(mesh)
    await observer.stop(mesh)
    assert observer.twice(observer.stored_keys(mesh)) == []
    epochs = {epoch for epoch, _ in observer.stored_keys(mesh)}
    assert stats.source_epoch in epochs
    assert len([gap for gap in observer.gaps_of(mesh) if gap["reason"] == "killed"]) == 3
    assert observer.losses_of(mesh) == []


async def until_stored(mesh: Any, record: Record) -> dict[observer.Key, tuple[Any, ...]]:
    """Waits for the events of a record; returns everything that is stored."""

    async def is_stored() -> bool:
        return record.keys <= set(observer.stored_keys(mesh))

    await mesh.until(is_stored, "what the killed collector had published is stored")
    return facts_of(mesh)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_restarted", [False, True], ids=["running", "restarted"])
async def test_corrupt_record_that_nobody_has_stored_is_told_as_lost_and_kept_aside(
    cold_mesh: Any, chance: random.Random, is_restarted: bool
) -> None:
    mesh, directory = cold_mesh, observer.wal_of(cold_mesh)
    await observer.start_mesh(mesh)
    async with observer.generating(RATE, 1.0):
        await mesh.until(lambda: observer.event_count(mesh), "events are stored")
        await mesh.kill("agent")
        known = {key for record in read_log(directory) for key in record.keys}
        await mesh.until(lambda: has_grown(directory, len(known) + 2 * RATE), "the log has more")
    if is_restarted:
        await mesh.kill("procmond")
    candidates = [one for one in read_log(directory) if not one.keys & known]
    victim = candidates[len(candidates) // 2]
    flip_byte(victim.path, victim.offset + chance.randrange(64, victim.size_bytes))
    damaged = victim.path.read_bytes()[: victim.offset + victim.size_bytes]
    whole = {key for one in candidates for key in one.keys} - victim.keys
    if is_restarted:
        await mesh.start("procmond", *observer.PROCMOND_FLAGS)
    await mesh.start("agent")
    await mesh.wait_serving("agent", "procmond")
    alerts = await mesh.until(lambda: mesh.alerts("events_lost"), "an alert is raised")
    stats = await observer.settle(mesh)
    assert stats.lost_count == {"log_corrupt": victim.count}
    assert ("EVENTS_LOST", "event store") in await observer.causes(mesh)
    assert f"{victim.count} events of procmond are lost" in alerts[0].description
    await observer.stop(mesh)
    keys = observer.stored_keys(mesh)
    assert observer.twice(keys) == []
    assert whole - set(keys) == set(), "all others are stored"
    losses = observer.losses_of(mesh)
    assert observer.lost_keys(losses) == victim.keys
    assert {(one["state"], one["reason"]) for one in losses} == {
        ("lost", "the collector's log was corrupt")
    }
    kept = [path.read_bytes() for path in (directory / "quarantine").iterdir()]
    assert any(one.startswith(damaged) for one in kept), "the original is kept"
