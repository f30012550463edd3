"""Collectors as processes: signals, statuses, logs, and nothing left behind."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from collector_core.testing import (
    CollectorEndedError,
    ConditionTimeoutError,
    FakeMesh,
    SpawnedCollector,
    spawn,
)

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_leftover_tasks")]

ENVIRONMENT = """
import os
for name in ("DAEMONEYE_RUNTIME_DIR", "DAEMONEYE_STATE_DIR", "COLOUR"):
    print(name, os.environ.get(name))
"""
PATIENT = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: exit(7))
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
async def mesh() -> AsyncIterator[FakeMesh]:
    async with FakeMesh() as mesh:
        yield mesh


def run(mesh: FakeMesh, program: str, **environment: str):
    argv = [sys.executable, "-c", program]
    return spawn(mesh, argv, "unit", ["performance"], environment)


async def wait_for(harness: SpawnedCollector, text: str) -> None:
    await harness.mesh.until(lambda: text in harness.log_text, f"the log has {text!r}")


def state_of(pid: int) -> str:
    """The state letter of a process; empty when it is gone."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return status.rpartition(")")[2].split()[0]


async def test_a_process_finds_the_mesh_by_its_environment(mesh: FakeMesh) -> None:
    async with run(mesh, ENVIRONMENT, COLOUR="red") as harness:
        assert await harness.wait_ended() == 0
        lines = harness.log_text.splitlines()
    assert lines == [
        f"DAEMONEYE_RUNTIME_DIR {mesh.layout.root}",
        f"DAEMONEYE_STATE_DIR {mesh.state_dir}",
        "COLOUR red",
    ]
    assert mesh.layout.token_file(mesh.layout.collector("unit")).is_file()


async def test_a_process_that_is_asked_to_stop_gives_its_status(mesh: FakeMesh) -> None:
    async with run(mesh, PATIENT) as harness:
        await wait_for(harness, "ready")
        assert harness.exit_status is None
        assert await harness.terminate() == 7
        assert harness.exit_status == 7


async def test_a_process_that_is_killed_says_by_what(mesh: FakeMesh) -> None:
    async with run(mesh, PATIENT) as harness:
        await wait_for(harness, "ready")
        assert await harness.kill() == -signal.SIGKILL


async def test_a_process_stands_still_and_goes_on(mesh: FakeMesh) -> None:
    async with run(mesh, PATIENT) as harness:
        await wait_for(harness, "ready")
        harness.stop()
        await mesh.until(lambda: state_of(harness.pid) == "T", "it stands still")
        harness.cont()
        await mesh.until(lambda: state_of(harness.pid) == "S", "it goes on")


async def test_nothing_is_left_of_a_process_that_stands_still(mesh: FakeMesh) -> None:
    async with run(mesh, PATIENT) as harness:
        await wait_for(harness, "ready")
        harness.stop()
    assert harness.exit_status == 7


async def test_what_a_process_started_ends_with_it(mesh: FakeMesh) -> None:
    async with run(mesh, PARENT) as harness:
        await wait_for(harness, "child ")
        child = int(harness.log_text.split()[1])
        assert state_of(child)
    await mesh.until(lambda: state_of(child) in ("", "Z"), "the child has ended")


async def test_a_test_that_fails_leaves_no_process(mesh: FakeMesh) -> None:
    pids: list[int] = []

    async def fail() -> None:
        async with run(mesh, PATIENT) as harness:
            await wait_for(harness, "ready")
            pids.append(harness.pid)
            raise RuntimeError("the test failed")

    with pytest.raises(RuntimeError, match="the test failed"):
        await fail()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_waiting_for_a_process_that_has_ended_shows_its_log(mesh: FakeMesh) -> None:
    async with run(mesh, "raise SystemExit('no such sensor')") as harness:
        with pytest.raises(CollectorEndedError, match="no such sensor"):
            await harness.wait_ready()
        with pytest.raises(CollectorEndedError, match="exit status 1"):
            await harness.next_event()


async def test_waiting_in_vain_shows_the_log(mesh: FakeMesh) -> None:
    async with run(mesh, PATIENT) as harness:
        await wait_for(harness, "ready")
        with pytest.raises(ConditionTimeoutError, match=r"unit\.log\nready"):
            await harness.wait_ready(timeout_s=0.05)


async def test_the_next_life_writes_into_the_same_log(mesh: FakeMesh) -> None:
    for _ in range(2):
        async with run(mesh, "print('a life')") as harness:
            await harness.wait_ended()
    assert harness.log_text == "a life\na life\n"
