"""The disk under a collector's log fails: full, limited, read-only."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fault_workers import observer
from tests.integration.fault_workers.disk_fault import FAULTS, mount, unmounting

pytestmark = pytest.mark.integration

RATE = 200
WAITING = 300
"""Events that wait in memory while the disk fails; many times what one append takes."""
MAX_RSS_BYTES = 200 << 20
CONFINED = str(observer.WORKERS / "confined.py")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", list(FAULTS))
async def test_events_wait_for_a_disk_that_fails_and_are_then_stored_in_order(
    cold_mesh: Any, name: str
) -> None:
    mesh, fault = cold_mesh, FAULTS[name]()
    directory = observer.wal_of(mesh)
    with unmounting(directory):
        fault.prepare(directory)
        await start(mesh, is_confined=fault.confined)
        collector = mesh.processes["procmond"]
        async with observer.generating(RATE, 1.0):
            await mesh.until(lambda: observer.event_count(mesh), "events are stored")
            fault.begin(directory, collector)
            async with observer.a_process() as pid:
                await sees_the_fault(mesh, fault.words)
                fault.end(directory, collector)
                await is_well_again(mesh)
                await observer.until_seen(mesh, pid)
        stats = await observer.settle(mesh)
        assert collector.returncode is None, "it lived through it"
        assert observer.rss_bytes(collector, peak=True) < MAX_RSS_BYTES
        assert stats.emitted_count == stats.logged_count == stats.source_sequence
        await observer.stop(mesh)
    keys = observer.check_whole(mesh, (stats.source_epoch, stats.source_sequence))
    assert keys == sorted(keys), "in order"
    assert observer.gaps_of(mesh) == []


async def start(mesh: Any, *, is_confined: bool) -> None:
    await mesh.start("agent")
    await mesh.start("eventbus")
    flags = (*observer.PROCMOND_FLAGS, "--wal-segment-bytes", "1048576")
    if is_confined:
        await observer.run_python(mesh, "procmond", CONFINED, "daemoneye_procmond", *flags)
    else:
        await mesh.start("procmond", *flags)
    await mesh.wait_serving("agent", "eventbus", "procmond")


async def sees_the_fault(mesh: Any, words: str) -> None:
    """The operator is told in the health, in the status and with every answer."""

    async def is_in_health() -> bool:
        status, message = await observer.component(mesh, "log")
        return status == "RECOVERABLE_ERROR" and words in message

    async def is_in_status() -> bool:
        return ("LOG_UNWRITABLE", "procmond") in await observer.causes(mesh)

    async def is_waiting() -> bool:
        stats = await mesh.collector_stats("procmond")
        return stats is not None and stats.pending_count > WAITING

    await mesh.until(is_in_health, f"the health says {words!r}")
    await mesh.until(is_in_status, "the status says that the log cannot be written")
    await mesh.until(is_waiting, "events wait in memory")
    status, text = await observer.ask_cli(mesh, "query", "SELECT count(*) FROM process_events")
    assert (status, "log" in text and words in text) == (3, True), text
    assert await mesh.is_serving("procmond"), "it goes on collecting"


async def is_well_again(mesh: Any) -> None:
    async def is_well() -> bool:
        status, _ = await observer.component(mesh, "log")
        is_told = ("LOG_UNWRITABLE", "procmond") in await observer.causes(mesh)
        return status == "OK" and not is_told

    await mesh.until(is_well, "the log is written again, and everybody says so")


def a_file_in_the_way(directory: Path) -> None:
    directory.parent.mkdir(mode=0o700, parents=True)
    directory.write_text("")


def open_to_others(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True)
    directory.chmod(0o777)


def parent_without_rights(directory: Path) -> None:
    directory.parent.mkdir(mode=0o700, parents=True)
    directory.parent.chmod(0o500)


def read_only_disk(directory: Path) -> None:
    mount(directory, "size=64k,mode=0700,ro")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (a_file_in_the_way, "wal"),
        (open_to_others, "chmod go-w"),
        (parent_without_rights, "not writable"),
        (read_only_disk, "not writable"),
    ],
)
async def test_collector_refuses_to_start_with_a_log_that_it_cannot_write(
    cold_mesh: Any, spoil: Any, words: str
) -> None:
    mesh, directory = cold_mesh, observer.wal_of(cold_mesh)
    with unmounting(directory):
        spoil(directory)
        await observer.run_python(mesh, "procmond", CONFINED, "daemoneye_procmond")
        assert await asyncio.wait_for(mesh.processes["procmond"].wait(), 20) == 1
        directory.parent.chmod(0o700)  # or nobody could clear it away
    last = observer.log_lines(mesh, "procmond")[-1]
    assert last["level"] == "critical"
    assert "cannot go on" in last["message"]
    assert words in last["message"]
    assert str(directory.parent) in last["message"]
    assert not mesh.socket_of("procmond").exists()
