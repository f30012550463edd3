"""From a real process to the event store and an alert, through three real processes."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

CHILD_COUNT = 12

# Waits for a line, becomes another program, which waits for a line too.
EXEC_ON_INPUT = (
    "import os, sys; sys.stdin.buffer.raw.read(1);"
    "os.execv('/bin/sh', ['sh', '-c', 'read line', '{marker}'])"
)


async def start_child(*argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*argv, stdin=asyncio.subprocess.PIPE)


async def end_child(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    await child.wait()


async def test_every_start_exec_and_stop_is_stored_exactly_once(mesh: Any) -> None:
    children = [
        await start_child(sys.executable, "-c", EXEC_ON_INPUT.format(marker=f"child-{number}"))
        for number in range(CHILD_COUNT)
    ]
    pids = [child.pid for child in children]
    wanted = ", ".join(map(str, pids))
    try:
        for kind, go_on in (("start", b"x"), ("exec", b"\n")):
            sql = f"SELECT pid FROM process_events WHERE kind = '{kind}' AND pid IN ({wanted})"
            await mesh.until(lambda sql=sql: has_pids(mesh, sql, pids), f"every {kind} is stored")
            for child in children:
                assert child.stdin is not None
                child.stdin.write(go_on)
        stops = f"SELECT pid FROM process_events WHERE kind = 'stop' AND pid IN ({wanted})"
        await mesh.until(lambda: has_pids(mesh, stops, pids), "every stop is stored")
    finally:
        for child in children:
            await end_child(child)

    rows = await mesh.query(
        "SELECT pid, kind, name, cmdline, previous_name, ppid FROM process_events"
        f" WHERE pid IN ({wanted}) AND kind IN ('start', 'exec', 'stop') ORDER BY event_id"
    )
    for number, pid in enumerate(pids):
        mine = [row for row in rows if row["pid"] == pid]
        # A scan between fork and exec of the child sees the fork as a start of its own image.
        kinds = [row["kind"] for row in mine]
        assert kinds.count("start") == 1
        assert kinds.count("stop") == 1
        assert kinds[0] == "start"
        assert kinds[-1] == "stop"
        to_shell = [
            row for row in mine if row["kind"] == "exec" and f"child-{number}" in row["cmdline"]
        ]
        assert len(to_shell) == 1
        assert to_shell[0]["name"] == "sh"
        assert to_shell[0]["previous_name"].startswith("python")
        assert all(row["ppid"] == os.getpid() for row in mine)


async def has_pids(mesh: Any, sql: str, pids: list[int]) -> bool:
    return {row["pid"] for row in await mesh.find_query(sql)} >= set(pids)


async def test_program_run_from_tmp_raises_an_alert_that_is_kept(mesh: Any) -> None:
    program = Path("/tmp") / f"x{os.getpid()}"
    shutil.copy("/bin/sleep", program)
    child = await start_child(str(program), "60")
    try:
        rule_id = "execution-from-temporary-directory"

        async def raised() -> list[Any]:
            return [
                one for one in await mesh.alerts(rule_id) if one.metadata["exe"] == str(program)
            ]

        alerts = await mesh.until(raised, "the alert is raised")
    finally:
        await end_child(child)
        program.unlink()
    assert alerts[0].metadata["pid"] == str(child.pid)
    rows = await mesh.query(
        f"SELECT rule_id, count FROM alerts WHERE alert_id = '{alerts[0].alert_id}'"
    )
    assert rows == [{"rule_id": rule_id, "count": alerts[0].count}]


async def test_live_table_shows_a_running_process_and_its_suspension(mesh: Any) -> None:
    child = await start_child("/bin/sleep", "60")
    try:
        sql = f"SELECT name, exe, argv, state FROM processes WHERE pid = {child.pid}"
        rows = await mesh.until(lambda: mesh.find_query(sql), "the process is listed")
        started = f"SELECT kind FROM process_events WHERE pid = {child.pid} AND kind = 'start'"
        await mesh.until(lambda: mesh.find_query(started), "its start is stored")
        assert rows[0]["name"] == "sleep"
        assert rows[0]["argv"] == '["/bin/sleep", "60"]'
        child.send_signal(signal.SIGSTOP)
        suspended = f"SELECT kind FROM process_events WHERE pid = {child.pid} AND kind = 'suspend'"
        await mesh.until(lambda: mesh.find_query(suspended), "the suspension is stored")
        assert (await mesh.query(sql))[0]["state"] == "T"
    finally:
        await end_child(child)
    assert await mesh.query(sql) == []


async def test_counters_add_up_when_nothing_was_lost(mesh: Any) -> None:
    async def balanced() -> Any:
        ingest = (await mesh.status()).ingest
        settled = ingest.stored_count + ingest.duplicate_count + sum(ingest.refused_count.values())
        # A batch under way is received and nothing else yet.
        return ingest if ingest.received_count == settled > 0 else None

    ingest = await mesh.until(balanced, "received = stored + duplicate + refused")
    assert ingest.lost_count == 0
    assert await mesh.query("SELECT * FROM event_losses") == []
