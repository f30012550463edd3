import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from daemoneye_cli.child import ChildSpec, bound_log, describe_status, read_log_tail, rotate_log
from daemoneye_cli.errors import ChildFailedError
from daemoneye_cli.supervisor import Supervisor

FAKE = Path(__file__).with_name("fake_mesh.py")


class Notes:
    """Remembers what it was told, and lets a test wait for it."""

    def __init__(self):
        self.lines = []
        self._changed = asyncio.Condition()

    def progress(self, text):
        self.lines.append(text)

    def alarm(self, text):
        self.lines.append(f"alarm: {text}")

    def has(self, text):
        return any(text in line for line in self.lines)


@pytest.fixture
def make(runtime_dir):
    """Makes a supervisor of small processes: one for each ``name=behaviours``."""
    made = []

    def call(**children):
        specs = [
            ChildSpec(
                name,
                (sys.executable, str(FAKE), str(runtime_dir / f"{name}.sock"), *behaviours.split()),
                runtime_dir / f"{name}.sock",
                runtime_dir / f"{name}.log",
            )
            for name, behaviours in children.items()
        ]
        supervisor = Supervisor(specs, Notes(), first_backoff_s=0.01)
        made.append(supervisor)
        return supervisor, supervisor._narrator

    yield call
    for supervisor in made:
        for child in supervisor.children:
            child.kill_group()


def pid_of(supervisor, place=0):
    return supervisor.children[place]._process.pid


async def test_children_come_up_and_stop_without_leaving_a_process_or_a_socket(make, runtime_dir):
    supervisor, notes = make(one="", two="")
    await supervisor.start()
    pids = [pid_of(supervisor, place) for place in (0, 1)]
    assert notes.has("one is in service after")
    assert await supervisor.stop(asyncio.Event())
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert list(runtime_dir.glob("*.sock*")) == []


async def test_child_that_dies_at_the_start_fails_the_start_with_its_last_words(make):
    supervisor, _ = make(one="", two="die")
    with pytest.raises(ExceptionGroup) as failed:
        await supervisor.start()
    error = failed.value.exceptions[0]
    assert isinstance(error, ChildFailedError)
    assert "two ended with status 3 before it was in service" in error.message
    assert "| critical: no \\x1b[31mluck today" in error.message
    assert await supervisor.stop(asyncio.Event())
    assert not supervisor.children[0].has_group


async def test_child_that_never_serves_is_too_late(make, runtime_dir):
    spec = ChildSpec("slow", ("sleep", "600"), runtime_dir / "slow.sock", runtime_dir / "slow.log")
    supervisor = Supervisor([spec], Notes())
    with pytest.raises(ChildFailedError, match=r"did not come into service within 0\.2 s"):
        await supervisor.start(limit_s=0.2)
    assert await supervisor.stop(asyncio.Event())


async def test_command_that_does_not_exist_fails_the_start(runtime_dir):
    spec = ChildSpec("none", ("/nonexistent",), runtime_dir / "s", runtime_dir / "none.log")
    supervisor = Supervisor([spec], Notes())
    with pytest.raises(ExceptionGroup) as failed:
        await supervisor.start()
    assert "cannot start none (no such file or directory)" in failed.value.exceptions[0].message


async def test_child_that_is_killed_is_started_again(make, eventually):
    supervisor, notes = make(one="")
    await supervisor.start()
    first = pid_of(supervisor)
    watch = asyncio.ensure_future(supervisor.watch())
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: sum("one is in service" in line for line in notes.lines) == 2)
    assert pid_of(supervisor) != first
    assert notes.has("alarm: one ended with signal SIGKILL; starting it again in 0.01 s")
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert await supervisor.stop(asyncio.Event())


async def test_pause_before_a_restart_doubles(make, eventually):
    supervisor, notes = make(one="")
    await supervisor.start()
    supervisor.children[0].spec = ChildSpec(
        "one", ("false",), supervisor.children[0].spec.socket, supervisor.children[0].spec.log
    )
    watch = asyncio.ensure_future(supervisor.watch())
    os.kill(pid_of(supervisor), signal.SIGKILL)
    await eventually(lambda: notes.has("starting it again in 0.04 s"))
    assert notes.has("starting it again in 0.01 s")
    assert notes.has("starting it again in 0.02 s")
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def test_child_that_ignores_the_request_is_killed_and_its_socket_removed(make, runtime_dir):
    supervisor, notes = make(one="stubborn")
    await supervisor.start()
    assert await supervisor.stop(asyncio.Event(), limit_s=0.2)
    assert notes.has("alarm: one did not stop within 0.2 s; killed")
    assert not supervisor.children[0].has_group
    assert not (runtime_dir / "one.sock").exists()


async def test_hurry_does_not_wait_for_anybody(make, runtime_dir):
    supervisor, _ = make(one="stubborn", two="stubborn")
    await supervisor.start()
    hurry = asyncio.Event()
    hurry.set()
    async with asyncio.timeout(7):  # one limit of 8 s would be longer
        assert await supervisor.stop(hurry)
    assert list(runtime_dir.glob("*.sock")) == []


async def test_what_a_child_started_is_stopped_with_it(make, eventually):
    supervisor, _ = make(one="child")
    await supervisor.start()
    leader = psutil.Process(pid_of(supervisor))
    await eventually(leader.children)
    grandchild = leader.children()[0]
    assert await supervisor.stop(asyncio.Event())
    assert not psutil.pid_exists(grandchild.pid) or grandchild.status() == psutil.STATUS_ZOMBIE


async def test_socket_that_a_child_left_is_removed(make, runtime_dir):
    supervisor, _ = make(one="leave")
    await supervisor.start()
    assert await supervisor.stop(asyncio.Event())
    assert list(runtime_dir.glob("*.sock")) == []


def test_log_of_the_run_before_is_kept_once(tmp_path):
    log = tmp_path / "x.log"
    for text in ("first", "second"):
        log.write_text(text)
        rotate_log(log)
    rotate_log(log)  # nothing there to rotate
    assert (tmp_path / "x.log.1").read_text() == "second"


async def test_log_that_grew_too_large_is_moved_aside_while_its_writer_goes_on(
    make, runtime_dir, eventually
):
    supervisor, _ = make(one="serve")
    supervisor._max_log_bytes = 10
    (child,) = supervisor.children
    await supervisor.start()
    with child.spec.log.open("a") as writer:
        writer.write("more than ten bytes")
        writer.flush()
        watch = asyncio.ensure_future(supervisor.watch())
        await eventually(lambda: child.spec.log.stat().st_size == 0, "the log is emptied")
        writer.write("after")
    assert child.spec.log.read_text() == "after"
    assert child.spec.log.with_name(child.spec.log.name + ".1").read_text().endswith("ten bytes")
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert await supervisor.stop(asyncio.Event())


def test_log_within_its_bound_is_left_alone(tmp_path):
    log = tmp_path / "x.log"
    assert not bound_log(log, 10), "there is none yet"
    log.write_text("0123456789")
    assert not bound_log(log, 10)
    assert log.read_text() == "0123456789"


def test_tail_of_a_log_is_bounded_and_readable(tmp_path):
    log = tmp_path / "x.log"
    lines = ['{"level": "error", "message": "bad", "exception": "T\\n  ValueError: x"}', "plain"]
    log.write_text("y" * 100_000 + "\n" + "\n".join(lines * 20))
    tail = read_log_tail(log)
    assert tail[-2:] == ["error: bad (ValueError: x)", "plain"]
    assert len(tail) == 12
    assert read_log_tail(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("status", "text"), [(0, "status 0"), (-9, "signal SIGKILL"), (-200, "signal 200")]
)
def test_status_is_said_in_words(status, text):
    assert describe_status(status) == text


def test_children_stop_when_their_parent_is_gone_is_left_to_their_flag():
    from daemoneye_cli.up import _specs
    from daemoneye_mesh.layout import RuntimeLayout

    for spec in _specs(RuntimeLayout(Path("/r")), Path("/s")):
        assert "--stop-with-parent" in spec.command
        shown = subprocess.run([spec.command[0], "--help"], capture_output=True, check=True)
        for flag in spec.command[1:]:
            assert not flag.startswith("--") or flag.encode() in shown.stdout
