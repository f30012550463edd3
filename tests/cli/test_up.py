"""``daemoneye up`` with small processes in place of the real ones."""

import asyncio
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from daemoneye_cli.child import ChildSpec
from daemoneye_cli.errors import ChildFailedError
from daemoneye_cli.exit_code import ExitCode
from daemoneye_cli.live_view import LiveView
from daemoneye_cli.output import Format, Output
from daemoneye_cli.session import OperatorSession
from daemoneye_cli.stop_signals import StopSignals
from daemoneye_cli.up import Plan, run_mesh
from daemoneye_mesh.error_interceptor import unwrap
from daemoneye_mesh.errors import PreconditionError
from daemoneye_mesh.layout import RuntimeLayout

FAKE = Path(__file__).with_name("fake_mesh.py")

# What `daemoneye up` does, with the commands exchanged.
RUNNER = """
import asyncio, sys
from pathlib import Path
from daemoneye_cli.child import ChildSpec
from daemoneye_cli.output import Format, Output
from daemoneye_cli.stop_signals import StopSignals
from daemoneye_cli.up import Plan, run_mesh
from daemoneye_mesh.layout import RuntimeLayout

root, fake, *behaviours = sys.argv[1:]
layout, state = RuntimeLayout(Path(root) / "run"), Path(root) / "state"
def spec(name, socket):
    command = (sys.executable, fake, str(socket), *behaviours)
    return ChildSpec(name, command, socket, state / "logs" / f"{name}.log")
specs = (
    spec("procmond", layout.root / "procmond.sock"),
    spec("daemoneye-agent", layout.agent_socket),
    spec("daemoneye-eventbus", layout.eventbus_socket),
)
output = Output(Format.TABLE, is_colour_wanted=False, stdout=sys.stdout, stderr=sys.stderr)
sys.exit(asyncio.run(run_mesh(Plan(layout, state, specs), output, StopSignals())))
"""


def output(answer_format=Format.TABLE):
    return Output(answer_format, is_colour_wanted=False, stdout=io.StringIO(), stderr=io.StringIO())


def plan(root, *behaviours, **more):
    layout, state = RuntimeLayout(root / "run"), root / "state"
    specs = [
        ChildSpec(
            name,
            (sys.executable, str(FAKE), str(socket), *behaviours),
            socket,
            state / "logs" / f"{name}.log",
        )
        for name, socket in (
            ("daemoneye-agent", layout.agent_socket),
            ("daemoneye-eventbus", layout.eventbus_socket),
        )
    ]
    return Plan(layout, state, tuple(specs), **more)


@pytest.fixture
def up(runtime_dir):
    """Starts ``up`` as a process and reads its remarks until the mesh is up."""
    started = []

    def call(*behaviours):
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(runtime_dir), str(FAKE), *behaviours],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DAEMONEYE_RUNTIME_DIR": str(runtime_dir)},
        )
        started.append(process)
        seen = []
        while not any("Ctrl-C stops the mesh" in line for line in seen):
            line = process.stderr.readline()
            assert line, seen
            seen.append(line)
        return process, "".join(seen)

    yield call
    for process in started:
        process.terminate()  # a kill would leave its children, which are fakes and stay
        process.communicate(timeout=30)


def leftovers(runtime_dir):
    commands = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
    return [one for one in commands if str(FAKE) in one and f"{runtime_dir}/run" in " ".join(one)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_up_stops_on_a_signal_with_status_0_and_leaves_nothing(up, runtime_dir, number):
    process, seen = up()
    assert seen.count("is in service after") == 3
    assert len(leftovers(runtime_dir)) == 3
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert leftovers(runtime_dir) == []
    assert list((runtime_dir / "run").rglob("*.sock*")) == []
    assert "0 events shown" in err.splitlines()[-1]
    assert "0 alerts" in err.splitlines()[-1]


def test_up_tells_where_to_look(up, runtime_dir):
    _, err = up()
    assert f"daemoneye --runtime-dir {runtime_dir}/run health" in err
    assert f"TOKEN=$(cat {runtime_dir}/run/tokens/operator-local.token) grpcurl" in err
    assert "-H 'authorization: Bearer ${TOKEN}'" in err, "no secret among the arguments"


def test_second_signal_kills_at_once_and_still_leaves_nothing(up, runtime_dir):
    process, _ = up("stubborn")
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=7) == 130  # a stubborn child alone would take 8 s
    assert leftovers(runtime_dir) == []
    assert list((runtime_dir / "run").rglob("*.sock")) == []


async def test_up_stops_by_itself_after_its_duration(runtime_dir):
    out = output()
    code = await run_mesh(plan(runtime_dir, duration_s=0.1), out, StopSignals())
    assert code is ExitCode.COMPLETE
    assert list((runtime_dir / "run").rglob("*.sock")) == []


async def test_quiet_up_says_nothing_while_all_is_well(runtime_dir):
    out = output()
    quiet = plan(runtime_dir, duration_s=0.1, is_quiet=True)
    assert await run_mesh(quiet, out, StopSignals()) is ExitCode.COMPLETE
    remarks = out.err.file.getvalue().splitlines()
    assert [line for line in remarks if not line.startswith("warning: no live view")] == []


async def test_up_whose_child_dies_stops_the_others_and_fails(runtime_dir):
    out = output()
    with pytest.raises(ExceptionGroup) as failed:
        await run_mesh(plan(runtime_dir, "die"), out, StopSignals())
    assert isinstance(unwrap(failed.value), ChildFailedError)
    assert leftovers(runtime_dir) == []


async def test_up_refuses_a_place_where_a_mesh_runs(runtime_dir):
    running = plan(runtime_dir)
    running.layout.root.mkdir(mode=0o750)
    listener = await asyncio.start_unix_server(
        lambda _, writer: writer.close(), running.layout.agent_socket
    )
    async with listener:
        with pytest.raises(PreconditionError, match="a mesh runs in"):
            await run_mesh(running, output(), StopSignals())
    assert not (runtime_dir / "state" / "logs" / "daemoneye-agent.log").exists()


def test_up_in_a_runtime_dir_that_others_may_write_exits_2(daemoneye, runtime_dir):
    runtime_dir.chmod(0o777)
    result = daemoneye("up", "--state-dir", str(runtime_dir / "state"))
    assert result.code == 2
    assert "group or others may write" in result.err


def test_up_in_a_runtime_dir_that_is_too_long_exits_2(daemoneye, runtime_dir):
    result = daemoneye("up", "--runtime-dir", str(runtime_dir / ("x" * 110)))
    assert result.code == 2
    assert "107" in result.err


def test_up_refuses_csv(daemoneye):
    assert daemoneye("up", "--format", "csv").code == 2


@pytest.fixture
def show(mesh, eventually):
    """Runs a live view until its tally is enough; returns what it wrote and the tally."""

    async def run(answer_format, is_enough, **options):
        out = output(answer_format)
        async with OperatorSession(mesh.layout) as session:
            view = LiveView(out, session, **options)
            task = asyncio.ensure_future(view.run())
            try:
                await eventually(lambda: is_enough(view.tally))
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        return out.out.file.getvalue(), view.tally

    return run


async def test_live_view_shows_events_and_alerts_and_counts_the_inventory(mesh, fakes, show):
    messages = [
        fakes.process_message("INVENTORIED", 1),
        fakes.process_message("CREATED", 2),
        fakes.process_message("UPDATED", 3),
        fakes.alert_message(),
    ]
    mesh.bus.items = [fakes.batch(*messages), fakes.gap(4)]
    shown, tally = await show(Format.TABLE, lambda tally: tally.missing_count)
    lines = shown.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["start", "ALERT"]
    assert "4 messages are missing here" in lines[-1]
    assert (tally.inventory_count, tally.event_count, tally.alert_count) == (1, 1, 1)


async def test_live_view_as_json_is_one_document_a_line(mesh, fakes, show):
    mesh.bus.items = [fakes.batch(fakes.process_message(), fakes.alert_message()), fakes.gap(4)]
    shown, _ = await show(Format.JSON, lambda tally: tally.missing_count)
    assert [json.loads(line)["type"] for line in shown.splitlines()] == ["event", "alert", "gap"]


async def test_live_view_without_events_asks_for_alerts_only(mesh, fakes, show):
    mesh.bus.items = [fakes.batch(fakes.alert_message())]
    await show(Format.TABLE, lambda tally: tally.alert_count, has_events=False)
    assert mesh.bus.patterns == ["alerts.#"]


async def test_coverage_is_told_once_and_again_when_it_changes(mesh, fakes, eventually):
    out = output()
    mesh.status.degradations = (fakes.POLLING,)

    async def told(text):
        await eventually(lambda: text in out.err.file.getvalue(), text)

    async with OperatorSession(mesh.layout) as session:
        watch = asyncio.ensure_future(LiveView(out, session).watch_coverage())
        await told("coverage degraded: procmond: polling")
        counted = dataclasses.replace(fakes.POLLING, message="another sentence of the same kind")
        mesh.status.degradations = (counted,)
        await eventually(lambda: (counted,) in mesh.status.told, "the other sentence was read")
        mesh.status.degradations = ()
        await told("coverage: complete")
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
    assert out.err.file.getvalue().count("polling") == 1
