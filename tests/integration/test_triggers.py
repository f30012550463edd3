"""A collector asks for an analysis, the agent has it done, and the answer can be queried."""

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

PADDING_BYTES = 12 << 20
"""Takes twelve seconds at the slowest rate there is: long enough to kill somebody meanwhile."""


def write_triggers(path: Path, directory: Path) -> None:
    path.write_text(
        f"""
[[trigger]]
id = "private-directory"
description = "A program was started from the directory of the test."
condition = {{ kind = "executable_path_pattern", pattern = "{directory}/*" }}
analysis_type = "binary_hash"
priority = "high"
target_collector = "procmond"
"""
    )


def copy_sleep(directory: Path, padding_bytes: int = 0) -> Path:
    """A program of its own; what follows the end of an ELF file does no harm."""
    directory.mkdir(mode=0o700)
    program = directory / "rest"
    shutil.copy(os.path.realpath("/bin/sleep"), program)
    with program.open("ab") as file:
        file.truncate(program.stat().st_size + padding_bytes)
    program.chmod(0o700)
    return program


@contextlib.asynccontextmanager
async def running(program: Path) -> AsyncIterator[int]:
    child = await asyncio.create_subprocess_exec(str(program), "300")
    try:
        yield child.pid
    finally:
        child.kill()
        await child.wait()


async def start_mesh(mesh: Any, directory: Path, *flags: str) -> None:
    triggers = mesh.root / "triggers.toml"
    write_triggers(triggers, directory)
    await mesh.start("agent")
    await mesh.start("eventbus")
    await mesh.start(
        "procmond",
        *("--scan-interval-s", "0.1", "--scan-cpu-share", "0.5"),
        *("--trigger-file", str(triggers)),
        *flags,
    )
    await mesh.wait_serving("agent", "eventbus", "procmond")


async def result_of(mesh: Any, pid: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = await mesh.until(
        lambda: mesh.find_query(f"SELECT * FROM analysis_results WHERE pid = {pid}"),
        f"process {pid} was looked at",
        timeout_s=90,
    )
    (row,) = rows
    return row


@pytest.mark.timeout(120)
async def test_a_started_program_is_hashed_because_a_trigger_asks_for_it(cold_mesh: Any) -> None:
    program = copy_sleep(cold_mesh.root / "programs")
    await start_mesh(cold_mesh, program.parent)
    async with running(program) as pid:
        row = await result_of(cold_mesh, pid)
    assert (row["outcome"], row["error_kind"]) == ("done", None), cold_mesh.logs()
    assert row["sha256"] == hashlib.sha256(program.read_bytes()).hexdigest()
    assert (row["source_id"], row["target_collector"]) == ("procmond", "procmond")
    assert (row["analysis_type"], row["priority"]) == ("binary_hash", "high")
    assert row["trigger_id"].startswith("private-directory-")
    assert row["path"] == str(program)
    assert 0 < row["requested_ns"] < row["finished_ns"]
    # A result triggers nothing: the image is looked at once.
    counted = "SELECT count(*) AS n FROM collector_events WHERE event_type = 'trigger'"
    assert await cold_mesh.query(counted) == [{"n": 1}]
    assert set((await cold_mesh.stop()).values()) == {0}


@pytest.mark.timeout(240)
async def test_a_request_survives_the_death_of_the_agent(cold_mesh: Any) -> None:
    program = copy_sleep(cold_mesh.root / "programs", PADDING_BYTES)
    slow = ("--hash-bytes-per-s", str(1 << 20), "--hash-timeout-s", "60")
    await start_mesh(cold_mesh, program.parent, *slow)
    async with running(program) as pid:
        asked = (
            "SELECT event_id FROM collector_events WHERE event_type = 'trigger'"
            f" AND json_extract(data, '$.target.pid') = {pid}"
        )
        await cold_mesh.until(lambda: cold_mesh.find_query(asked), "the request is stored")
        answered = await cold_mesh.query("SELECT result_id FROM analysis_results")
        await cold_mesh.kill("agent")
        assert answered == [], "it was answered before the agent could be killed"
        await cold_mesh.start("agent")
        await cold_mesh.wait_serving("agent")
        row = await result_of(cold_mesh, pid)
    assert (row["outcome"], row["error_kind"]) == ("done", None), cold_mesh.logs()
    assert row["sha256"] == hashlib.sha256(program.read_bytes()).hexdigest()
    rows = await cold_mesh.query("SELECT count(*) AS n FROM analysis_results")
    assert rows == [{"n": 1}]
    assert set((await cold_mesh.stop()).values()) == {0}
