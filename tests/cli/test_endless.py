"""Commands that go on until Ctrl-C, as processes of their own."""

import json
import os
import signal
import subprocess
import sys

import pytest


@pytest.fixture
def start(runtime_dir):
    """Starts the command; whatever is left of it is killed."""
    started = []

    def call(*argv):
        process = subprocess.Popen(
            [sys.executable, "-m", "daemoneye_cli", *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DAEMONEYE_RUNTIME_DIR": str(runtime_dir)},
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def interrupt(process):
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def test_interrupted_tail_exits_0(mesh, fakes, start):
    mesh.bus.items = [fakes.batch(fakes.process_message())]
    process = start("events", "--format", "json")
    assert json.loads(process.stdout.readline())["kind"] == "start"
    assert interrupt(process) == (0, "", "")


def test_interrupted_finite_command_exits_130(mesh, fakes, start):
    mesh.bus.items = [fakes.batch(fakes.process_message())]
    process = start("events", "--count", "2")
    assert "start" in process.stdout.readline()
    assert interrupt(process) == (130, "", "")


def test_followed_alerts_are_the_stored_ones_and_then_the_new_ones_once_each(mesh, fakes, start):
    mesh.alerts.alerts = [fakes.alert_payload("old"), fakes.alert_payload("older")]
    mesh.bus.items = [
        fakes.batch(
            fakes.alert_message(alert_id="old"),
            fakes.alert_message(alert_id="low", severity="LOW"),
            fakes.alert_message(alert_id="old", count=2),
            fakes.alert_message(alert_id="new"),
        )
    ]
    process = start("alerts", "--follow", "--severity", "medium", "--format", "json")
    lines = [json.loads(process.stdout.readline()) for _ in range(4)]
    assert [(line["alert_id"], line["count"]) for line in lines] == [
        ("older", 1),
        ("old", 1),
        ("old", 2),
        ("new", 1),
    ]
    assert interrupt(process)[0] == 0


def test_tail_survives_a_broken_pipe(mesh, fakes, start):
    mesh.bus.items = [
        fakes.batch(*(fakes.process_message(pid=pid) for pid in range(100))) for _ in range(100)
    ]
    process = start("events")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == ""
