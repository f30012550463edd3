"""Broker, agent and collector are killed at random while processes come and go at 500 a second.

What reached the collector's log is in the event store exactly once, and what the collector could not
see while it was dead is told as gaps. The seed of the moments is printed; CHAOS_SECONDS and CHAOS_SEED
make it another run.
"""

import asyncio
import os
import random
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.integration.chaos_workers.archive import Archive

pytestmark = pytest.mark.integration

SECONDS = float(os.environ.get("CHAOS_SECONDS", "180"))
SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
RATE = "500"
LIFE_S = "0.9"
"""Longer than the distance of two scans, so that each child is seen by a collector that lives."""
PAUSE_S = 0.5, 3.0
SETTLE_S = 90.0
GENERATOR = Path(__file__).parent / "chaos_workers" / "generator.py"
FLAGS = {
    "procmond": (
        "--scan-interval-s",
        "0.3",
        "--scan-cpu-share",
        "1.0",
        "--wal-segment-bytes",
        "1048576",
    ),
    "eventbus": (),
    "agent": (),
}
MARK_NS = 3_000_000_000
"""The mark of life is left every second; on a busy machine somewhat later."""

EVENTS = "SELECT source_epoch, source_sequence, time_ns, pid FROM process_events"
GAPS = "SELECT source_epoch, source_sequence, reason, started_ns, ended_ns FROM collection_gaps"


class Deaths:
    """When the collector was dead."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []
        self.killed: Counter[str] = Counter()


@pytest.mark.timeout(300 + 3 * SECONDS)
async def test_what_reached_the_log_is_stored_exactly_once_whoever_is_killed(
    cold_mesh: Any, tmp_path: Path
) -> None:
    sys.stdout.write(f"CHAOS_SEED={SEED}\n")
    archive = Archive(
        cold_mesh.state_dir / "collectors" / "procmond" / "wal", cold_mesh.root / "archive"
    )
    for name in ("agent", "eventbus", "procmond"):
        await cold_mesh.start(name, *FLAGS[name])
    await cold_mesh.wait_serving("agent", "eventbus", "procmond")
    keeper = asyncio.create_task(archive.run())
    try:
        deaths = await make_chaos(cold_mesh)
        last = await settle(cold_mesh)
    finally:
        keeper.cancel()
    check_store(cold_mesh, archive, deaths, last)


async def make_chaos(mesh: Any) -> Deaths:
    """Kills one after the other, at random, while processes come and go."""
    moments, deaths = random.Random(SEED), Deaths()
    generator = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(GENERATOR), RATE, LIFE_S),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        end_s = time.monotonic() + SECONDS
        while time.monotonic() < end_s:
            await asyncio.sleep(moments.uniform(*PAUSE_S))  # the random moment
            victim = moments.choice(("agent", "eventbus", "procmond"))
            killed_ns = time.time_ns()
            await mesh.kill(victim)
            await asyncio.sleep(moments.choice((0.0, 0.0, 0.5, 2.0)))  # how long it stays dead
            started_ns = time.time_ns()
            await mesh.start(victim, *FLAGS[victim])
            await mesh.wait_serving(victim)
            deaths.killed[victim] += 1
            if victim == "procmond":
                deaths.spans.append((killed_ns, started_ns))
    finally:
        out, _ = await generator.communicate(b"")
        sys.stdout.write(f"{out.decode().split()[-1]} processes, killed {dict(deaths.killed)}\n")
    return deaths


async def settle(mesh: Any) -> tuple[int, int]:
    """Waits until all that is in the log is acknowledged; returns the last of it, by epoch."""

    async def find_last() -> tuple[int, int] | None:
        stats = await mesh.collector_stats("procmond")
        if stats is None or stats.unacknowledged_count or stats.pending_count:
            return None
        return stats.source_epoch, stats.source_sequence

    last: tuple[int, int] = await mesh.until(find_last, "all in the log is stored", SETTLE_S)
    statuses = await mesh.stop()
    assert set(statuses.values()) <= {0}, mesh.logs()
    return last


def check_store(mesh: Any, archive: Archive, deaths: Deaths, last: tuple[int, int]) -> None:
    """Compares the event store with the log, event by event."""
    store = sqlite3.connect(f"file:{mesh.state_dir / 'events.db'}?mode=ro", uri=True)
    store.row_factory = sqlite3.Row
    rows = store.execute(EVENTS).fetchall()
    stored = Counter((row["source_epoch"], row["source_sequence"]) for row in rows)
    gaps = [dict(row) for row in store.execute(GAPS)]
    stored += Counter((row["source_epoch"], row["source_sequence"]) for row in gaps)
    assert [key for key, count in stored.items() if count > 1] == []

    facts = {
        (row["source_epoch"], row["source_sequence"]): (row["time_ns"], row["pid"]) for row in rows
    }
    logged = {(one.epoch, one.sequence): one for one in archive.read()}
    assert len(logged) > 100 * SECONDS, "there was a load"
    missing = [key for key, one in logged.items() if key not in stored and key <= last]
    assert missing == [], f"{len(missing)} of {len(logged)} events in the log are not stored"
    altered = [
        key
        for key, fact in facts.items()
        if key in logged and fact != (logged[key].time_ns, logged[key].pid)
    ]
    assert altered == []
    assert store.execute("SELECT * FROM event_losses").fetchall() == []
    for killed_ns, started_ns in deaths.spans:
        assert any(
            gap["reason"] == "killed"
            and gap["started_ns"] <= killed_ns + 1_000_000
            and gap["started_ns"] >= killed_ns - MARK_NS
            and gap["ended_ns"] >= started_ns
            for gap in gaps
        ), f"nobody was told that procmond was dead from {killed_ns} to {started_ns}: {gaps}"
    sys.stdout.write(
        f"{len(logged)} events in the log, {sum(stored.values())} stored, {len(gaps)} gaps\n"
    )
