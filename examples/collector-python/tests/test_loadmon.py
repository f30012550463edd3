"""loadmon does its job: in the loop of a test, and as a process that is killed."""

import sys
import tomllib
from pathlib import Path

from collector_core import CollectorSettings
from collector_core.testing import FakeMesh, spawn
from daemoneye.eventbus.v1.collection_gap_pb2 import COLLECTION_GAP_REASON_KILLED

from loadmon import LoadAverage

FOLDER = Path(__file__).resolve().parents[1]
TOPIC = "events.performance.utilization"


async def test_the_load_average_arrives(collector_harness):
    loadmon = await collector_harness("loadmon", LoadAverage())
    event = await loadmon.next_event(TOPIC)
    assert event.data.performance.metric_name == "load1"
    assert event.data.performance.value >= 0


async def test_what_it_said_of_itself_is_true(collector_harness):
    loadmon = await collector_harness("loadmon", LoadAverage())
    answer = await loadmon.peer.negotiate()
    assert answer.supports_replay
    assert not answer.supported_task_types


async def test_nothing_that_was_logged_is_lost_when_it_is_killed(fake_mesh: FakeMesh):
    command = [sys.executable, str(FOLDER / "loadmon.py")]
    await fake_mesh.stop_bus()  # nobody takes its events now
    async with spawn(fake_mesh, command, "loadmon", ["performance"]) as first_life:
        await fake_mesh.until(lambda: logged_count(fake_mesh) >= 2, "two events are in the log")
        await first_life.kill()
    await fake_mesh.start_bus()
    async with spawn(fake_mesh, command, "loadmon", ["performance"]) as second_life:
        await fake_mesh.until(lambda: len(second_life.events(TOPIC)) >= 3, "all events arrive")
    assert fake_mesh.agent.missing() == {}
    assert COLLECTION_GAP_REASON_KILLED in [gap.reason for gap in fake_mesh.agent.gaps()]


def logged_count(mesh: FakeMesh) -> int:
    heartbeat = mesh.agent.last_heartbeat("loadmon")
    return (
        max((one.last_sequence for one in heartbeat.log_positions), default=0) if heartbeat else 0
    )


def test_the_example_settings_are_settings():
    settings = tomllib.loads((FOLDER / "loadmon.toml").read_text())
    assert CollectorSettings(**settings).heartbeat_interval_s == 2.0
