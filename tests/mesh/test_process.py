import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from daemoneye_mesh.errors import ConflictError, InvalidConfigError, PreconditionError
from daemoneye_mesh.process import ProcessSettings, run_process

GUARD_S = 15

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout)
print(child.pid, flush=True)
sys.stdin.read()
"""

CHILD = """
import os
from daemoneye_mesh.process import ProcessSettings, run_process

async def serve(stop):
    print("ready", flush=True)
    await stop.wait()
    print(stop.reason, flush=True)

run_process("child", ProcessSettings(stop_with_parent=True), serve)
"""


@pytest.fixture(autouse=True)
def restored_logging():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def run(capsys):
    """Runs a process and returns its exit status and what it logged."""

    def run_once(serve, **settings):
        status = run_process("unit", ProcessSettings(log_style="json", **settings), serve)
        return status, [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    return run_once


def raising(error):
    async def serve(stop):
        raise error

    return serve


def test_process_that_stops_as_asked_exits_with_0(run):
    async def serve(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(GUARD_S):
            await stop.wait()

    status, lines = run(serve)
    assert status == 0
    assert [line["message"] for line in lines] == ["stopping: received SIGTERM", "unit stopped"]


def test_error_of_ours_exits_with_1_and_one_line(run):
    status, lines = run(raising(PreconditionError("the path is taken; choose another one")))
    assert status == 1
    (line,) = lines
    assert line["message"] == "unit cannot go on: the path is taken; choose another one"
    assert (line["level"], line["reason"]) == ("critical", "STATE_INVALID")
    assert "exception" not in line


def test_error_of_ours_inside_a_group_is_found(run):
    group = ExceptionGroup("tasks", [ExceptionGroup("more", [ConflictError("superseded; stop")])])
    status, lines = run(raising(group))
    assert status == 1
    assert lines[-1]["message"] == "unit cannot go on: superseded; stop"


def test_refused_configuration_exits_with_2(run):
    status, lines = run(raising(InvalidConfigError("the socket path is too long; shorten it")))
    assert status == 2
    assert "too long" in lines[-1]["message"]


def test_unforeseen_error_exits_with_1_and_its_story(run):
    status, lines = run(raising(ValueError("what happened")))
    assert status == 1
    assert lines[-1]["message"] == "unit failed"
    assert "what happened" in lines[-1]["exception"]


def test_log_level_is_obeyed(run):
    async def serve(stop):
        logging.getLogger("daemoneye.x").info("hidden")
        logging.getLogger("daemoneye.x").error("shown")

    _, lines = run(serve, log_level="error")
    assert [line["message"] for line in lines] == ["shown"]


def test_layout_follows_the_settings():
    settings = ProcessSettings(runtime_dir=Path("/r"), trust_domain="lab.example")
    assert settings.layout.root == Path("/r")
    assert settings.layout.agent.spiffe_id == "spiffe://lab.example/agent/agent"


def test_layout_is_found_when_no_directory_is_set(monkeypatch, short_dir):
    monkeypatch.setenv("DAEMONEYE_RUNTIME_DIR", str(short_dir))
    assert ProcessSettings().layout.root == short_dir


def test_process_stops_when_its_parent_is_killed():
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        child_pid = int(parent.stdout.readline())
        try:
            assert parent.stdout.readline() == "ready\n"
            parent.kill()
            assert parent.stdout.readline() == "received SIGTERM\n"
            assert parent.stdout.readline() == ""
        except BaseException:
            os.kill(child_pid, signal.SIGKILL)
            raise
