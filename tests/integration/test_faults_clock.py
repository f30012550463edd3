"""The wall clock of the host is set by an hour and back while everything runs."""

import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fault_workers import observer
from tests.integration.fault_workers.flood_control import FloodControl

pytestmark = pytest.mark.integration

RATE = 100
HOUR_S = 3660.0
"""And a minute more: a token may be used for some seconds after its end."""
LIMITS = ("--wal-max-age-s", "60", "--wal-segment-bytes", str(1 << 20))
"""Less than the step: a log that believes the wall clock would throw everything away."""
PART = 6_000
"""Events that fill more than one segment."""
LONG_TOKENS = ("--token-ttl-s", "14400")
BEATS = 1


class WallClock:
    """The offset that all processes of a mesh add to the time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(struct.pack("<d", 0.0))

    def __call__(self) -> float:
        """Returns what time it is in the mesh, seconds since the Unix epoch."""
        seconds: float = struct.unpack("<d", self._path.read_bytes())[0]
        return time.time() + seconds

    def step(self, offset_s: float) -> None:
        """Sets the clock to the real time and this."""
        with self._path.open("r+b") as file:
            file.write(struct.pack("<d", offset_s))


@pytest.fixture
def wall_clock(cold_mesh: Any, monkeypatch: pytest.MonkeyPatch) -> WallClock:
    path: Path = cold_mesh.root / "offset"
    clock = WallClock(path)
    monkeypatch.setenv("STEPPED_CLOCK", str(path))
    monkeypatch.setenv("PYTHONPATH", str(observer.WORKERS / "stepped_clock"), prepend=os.pathsep)
    return clock


@pytest.mark.timeout(120)
@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
async def test_wall_clock_that_is_set_and_set_again_loses_doubles_and_invents_nothing(
    cold_mesh: Any, wall_clock: WallClock, offset_s: float
) -> None:
    mesh = cold_mesh
    await mesh.start("agent", *LONG_TOKENS)
    await mesh.start("eventbus")
    await mesh.start("procmond", *observer.PROCMOND_FLAGS)
    await mesh.wait_serving("agent", "eventbus", "procmond")
    await mesh.until(has_registered(mesh), "the collector is in service")
    async with observer.generating(RATE, 1.0):
        await mesh.until(lambda: observer.event_count(mesh), "events are stored")
        for count, step_s in enumerate((offset_s, 0.0), start=1):
            wall_clock.step(step_s)
            await mesh.until(has_noticed(mesh, count), "the step is noticed")
            await goes_on(mesh)
    stats = await observer.settle(mesh)
    assert stats.lost_count == {}
    await observer.stop(mesh)
    observer.check_whole(mesh, (stats.source_epoch, stats.source_sequence))
    assert observer.gaps_of(mesh) == []
    words = [line["message"] for line in observer.log_lines(mesh, "procmond")]
    # What was said before is about the start.
    told = words[1 + next(index for index, one in enumerate(words) if "STEPPED" in one) :]
    assert [one for one in told if re.search(r"-> \w*ERROR", one)] == [], "no false failure"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
async def test_wall_clock_that_is_set_locks_nobody_out(
    cold_mesh: Any, wall_clock: WallClock, offset_s: float
) -> None:
    """Tokens live for an hour: after the step they are over, or not valid yet."""
    mesh = cold_mesh
    await observer.start_mesh(mesh)
    await mesh.until(lambda: observer.event_count(mesh), "events are stored")
    wall_clock.step(offset_s)
    await mesh.until(has_noticed(mesh, 1), "the step is noticed")
    await mesh.kill("eventbus")  # it will have to be told anew who everybody is
    await mesh.start("eventbus")
    await mesh.wait_serving("eventbus")
    await goes_on(mesh)
    stats = await observer.settle(mesh)
    await observer.stop(mesh)
    observer.check_whole(mesh, (stats.source_epoch, stats.source_sequence))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S], ids=["forward", "back"])
async def test_wall_clock_that_is_set_makes_no_event_too_old_for_the_log(
    cold_mesh: Any, wall_clock: WallClock, offset_s: float
) -> None:
    mesh = cold_mesh
    await mesh.start("agent", *observer.FLOOD_AGENT_FLAGS)
    await mesh.start("eventbus")
    flood = await FloodControl.start(mesh, *LIMITS, clock=wall_clock)
    await mesh.wait_serving("agent", "eventbus")
    await flood.until_in_service()
    await mesh.kill("agent")  # what nobody stores stays in the log
    for count, step_s in enumerate((0.0, offset_s, 0.0), start=1):
        wall_clock.step(step_s)
        stats = await flood.emit(lifecycle=count * PART, sample=0)
        assert stats.lost_count == {}
    await mesh.start("agent", *observer.FLOOD_AGENT_FLAGS)
    await mesh.wait_serving("agent")
    stats = await observer.settle(mesh, "flood")
    await observer.stop(mesh)
    observer.check_whole(mesh, (stats.source_epoch, stats.source_sequence), "flood")
    assert observer.gaps_of(mesh, "flood") == []


def has_registered(mesh: Any) -> Callable[[], Any]:
    async def is_registered() -> bool:
        return await mesh.collector_stats("procmond") is not None

    return is_registered


def has_noticed(mesh: Any, count: int) -> Callable[[], Any]:
    async def is_logged() -> bool:
        lines = observer.log_lines(mesh, "procmond")
        return sum("WALL_STEPPED" in line["message"] for line in lines) >= count

    return is_logged


async def goes_on(mesh: Any) -> None:
    """Events are stored, calls are answered, and the lease is kept by heartbeats."""
    beats: set[int] = set()

    async def has_beaten() -> bool:
        info = await observer.collector(mesh)
        assert "UNAVAILABLE" not in observer.state_name(info), mesh.logs()
        beats.add(info.last_heartbeat_at.ToNanoseconds())
        return len(beats) > BEATS

    async with observer.a_process() as pid:
        await observer.until_seen(mesh, pid)
        live = f"SELECT pid FROM processes WHERE pid = {pid}"
        await mesh.until(lambda: mesh.find_query(live), "what runs now is listed")
    await mesh.until(has_beaten, "the collector is in service")
