"""A subscriber that is stopped costs the others nothing and the broker no memory beyond its queue.

It is stopped by SIGSTOP for BUS_STALL_S seconds, 60 unless set otherwise.
"""

import asyncio
import os
import signal
import sys
import time
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.integration.bus_workers.field import BusField, Log

pytestmark = pytest.mark.integration

STALL_S = float(os.environ.get("BUS_STALL_S", "60"))
BEFORE_S = 15.0
"""How long latencies are measured for comparison."""
RATE = 2_000
EVEN = {
    "rate": RATE,
    "min_burst": 10,
    "max_burst": 10,
    "assurance": "ACCEPTED",
    "padding_bytes": 200,
}
QUEUE_MESSAGES = 10_000
QUEUE_BYTES = 4 << 20
MOST_GROWTH_BYTES = QUEUE_BYTES + (64 << 20)

HEALTHY = ("healthy", "second-healthy")


@pytest.mark.timeout(BEFORE_S + STALL_S + 120)
async def test_stopped_subscriber_delays_nobody_and_is_told_what_it_missed(cold_mesh: Any) -> None:
    async with BusField(cold_mesh) as bus, asyncio.TaskGroup() as group:
        auditor = group.create_task(bus.audit())
        stalled = await start_all(bus)
        broker = psutil.Process(cold_mesh.processes["eventbus"].pid)

        begun_ns = time.monotonic_ns()
        await watch_memory(broker, BEFORE_S)
        bus.signal("stalled", signal.SIGSTOP)
        stopped_ns, held_bytes = time.monotonic_ns(), broker.memory_info().rss
        peak_bytes = await watch_memory(broker, STALL_S)
        row = (await bus.subscriptions())["stalled"]
        bus.signal("stalled", signal.SIGCONT)
        ended_ns = time.monotonic_ns()

        await bus.stop("publisher")
        await require_all_accounted_for(bus, stalled)
        auditor.cancel()
        for name in (*HEALTHY, "stalled"):
            await bus.stop(name)

    assert row.flow.pending_count > QUEUE_MESSAGES / 2, "its queue was full while it was stopped"
    assert row.flow.dropped_count["dropped_oldest"] > RATE * STALL_S / 4, "and had overflowed"
    assert peak_bytes - held_bytes < MOST_GROWTH_BYTES
    for name in HEALTHY:
        pairs = read_pairs(cold_mesh.root / f"{name}.latencies")
        before = [took for made, took in pairs if begun_ns <= made < stopped_ns]
        during = [took for made, took in pairs if stopped_ns <= made < ended_ns]
        sys.stdout.write(f"{name}: {describe(before)} before, {describe(during)} during\n")
        assert len(before) > RATE * BEFORE_S / 2
        assert len(during) > RATE * STALL_S / 2
        for share in (0.5, 0.99):
            assert percentile_s(during, share) <= 3 * percentile_s(before, share) + 0.005
    sys.stdout.write(f"memory of the broker grew by {(peak_bytes - held_bytes) >> 10} KiB\n")


async def start_all(bus: BusField) -> Log:
    """Starts everybody and returns the journal of the one to be stopped, once all are served."""
    await bus.start_broker()
    bounds = {"max_queue_messages": QUEUE_MESSAGES, "max_queue_bytes": QUEUE_BYTES}
    logs = [await bus.start_subscriber("watcher", "stalled", options=bounds)]
    for name in HEALTHY:
        path = str(bus.mesh.root / f"{name}.latencies")
        logs.append(await bus.start_subscriber("watcher", name, options={}, latencies=path))
    for log in logs:
        await bus.until(lambda log=log: log.read() and log.counts["open"], "all have subscribed")
    await bus.start_publisher(**EVEN)
    for log in logs:
        # A second of it, so that everything has been used once before anything is measured.
        await bus.until(lambda log=log: log.count("got") > RATE, "all are served")
    return logs[0]


async def watch_memory(broker: psutil.Process, duration_s: float) -> int:
    """Lets time go by; returns the most memory that the broker had meanwhile, in bytes."""
    peak_bytes = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(duration_s):
            while True:
                peak_bytes = max(peak_bytes, broker.memory_info().rss)
                await asyncio.sleep(0.25)
    return peak_bytes


async def require_all_accounted_for(bus: BusField, stalled: Log) -> None:
    """Waits until the stopped one has caught up, and compares what it knows with the broker."""

    async def has_caught_up() -> bool:
        return (await bus.subscriptions())["stalled"].flow.pending_count == 0

    await bus.until(has_caught_up, "the queue of the stopped one is empty")
    flow = (await bus.subscriptions())["stalled"].flow
    total = bus.watermark
    assert flow.offered_count == total
    await bus.until(
        lambda: stalled.count("got") + stalled.count("gap") == total,
        "what the stopped one got and what was announced is all there was",
    )
    assert stalled.count("gap") == flow.dropped_count["dropped_oldest"]
    assert stalled.counts["open"] == 1, "it kept its subscription"
    check_places(stalled, total)


def check_places(log: Log, total: int) -> None:
    """Each gap is announced where the missing messages would have been."""
    expected = 1
    for entry in log.read():
        if entry[0] == "gap":
            expected += int(entry[1])
        elif entry[0] == "got":
            assert int(entry[2]) == expected
            expected += int(entry[3])
    assert expected == total + 1


def read_pairs(path: Path) -> list[tuple[int, int]]:
    """When each message was made and how long it took, in nanoseconds."""
    numbers = array("Q", path.read_bytes())
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def percentile_s(values_ns: list[int], share: float) -> float:
    """A percentile in seconds."""
    return sorted(values_ns)[int(share * (len(values_ns) - 1))] / 1e9


def describe(values_ns: list[int]) -> str:
    """What the latencies were, for a person."""
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return ", ".join(
        f"{name} {percentile_s(values_ns, share) * 1e3:.2f} ms" for name, share in shares.items()
    )
