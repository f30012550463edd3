"""``daemoneye collectors``: the list, steering and ending, and how failures are told."""

import csv
import io
import os
import pty
import signal
import subprocess
import sys

import pytest

from daemoneye.ipc.v1 import collector_health_pb2
from daemoneye_cli.app import build_parser
from daemoneye_cli.exit_code import describe_exit_codes
from daemoneye_mesh.errors import (
    DeadlineError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionError,
    UnavailableError,
    UnsupportedError,
)

AWAY = UnavailableError("collector procmond cannot be asked; see the agent's log")
STATES = {
    "start": "watching",
    "stop": "stopped",
    "restart": "watching",
    "pause": "paused",
}
ACTIONS = [*STATES, "resume", "health", "stats", "config", "shutdown"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("daemoneye_cli.collector_call.REPEAT_DELAY_S", 0)


def arguments_of(action):
    return ["--yes"] if action == "shutdown" else []


@pytest.mark.parametrize("path", [*([one] for one in ACTIONS), ["config", "procmond", "set"]])
def test_help_of_every_action_teaches_with_an_example(capsys, path):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["collectors", *path, "--help"])
    text = capsys.readouterr().out
    assert "examples:\n  daemoneye collectors " in text
    assert describe_exit_codes() in text
    assert max(map(len, text.splitlines())) <= 100


# -- list -----------------------------------------------------------------------------------------


def beat(mesh, **fields):
    collector = mesh.admin.collector
    collector.last_heartbeat_at.GetCurrentTime()
    for name, value in fields.items():
        setattr(collector, name, value)


def test_list_shows_status_backlog_and_shedding_of_the_last_heartbeat(mesh, daemoneye):
    status = collector_health_pb2.COLLECTOR_STATUS_RECOVERABLE_ERROR
    beat(mesh, status=status, unacknowledged_count=12_345, is_shedding=True)
    result = daemoneye("collectors")
    header, row = result.out.splitlines()[0], result.out.splitlines()[2]
    assert header.split()[2:5] == ["status", "backlog", "shedding"]
    assert "recoverable error" in row
    assert row.split()[4:6] == ["12,345", "yes"]
    assert result.code == 0


def test_list_says_nothing_of_the_status_before_the_first_heartbeat(mesh, daemoneye):
    row = daemoneye("collectors", "list").out.splitlines()[2]
    assert row.split()[:5] == ["procmond", "degraded", "-", "-", "-"]


def test_list_is_for_programs_too(mesh, daemoneye):
    beat(mesh, status=collector_health_pb2.COLLECTOR_STATUS_OK, config_version=3)
    one = daemoneye("collectors", "--format", "json").document["collectors"][0]
    assert (one["status"], one["unacknowledged_count"], one["is_shedding"]) == ("ok", 0, False)
    assert one["config_version"] == 3
    (row,) = csv.DictReader(io.StringIO(daemoneye("collectors", "--format", "csv").out))
    assert (row["collector_id"], row["status"], row["is_shedding"]) == ("procmond", "ok", "false")


# -- steering -------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", STATES)
def test_steering_names_the_state_that_was_reached(mesh, daemoneye, action):
    result = daemoneye("collectors", action, "procmond")
    assert (result.code, result.out) == (0, "")
    assert result.err == f"collector procmond is {STATES[action]}\n"
    document = daemoneye("collectors", action, "procmond", "--format", "json").document
    assert document == {"collector_id": "procmond", "state": STATES[action]}


@pytest.mark.parametrize("action", ACTIONS)
def test_unknown_collector_exits_5_and_says_how_to_find_them(mesh, daemoneye, action):
    result = daemoneye("collectors", action, "gone", *arguments_of(action))
    assert (result.code, result.out) == (5, "")
    assert "there is no collector 'gone'; 'daemoneye collectors' lists them" in result.err


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PreconditionError("collector procmond is stopped; start it"), 1),
        (UnsupportedError("collector procmond does not offer this; update it"), 5),
        (PermissionDeniedError("you may not; ask an operator"), 6),
        (OverloadedError("too much; try again"), 1),
    ],
)
def test_refusal_is_passed_on_with_its_exit_status_and_not_repeated(
    mesh, daemoneye, action, error, code
):
    mesh.admin.failures = [error]
    argv = [*arguments_of(action), "--format", "json"]
    result = daemoneye("collectors", action, "procmond", *argv)
    assert (result.code, result.out) == (code, "")
    assert result.error["message"] == error.message
    assert len(mesh.admin.requests) == 1


@pytest.mark.parametrize("action", [one for one in ACTIONS if one != "restart"])
def test_collector_that_does_not_answer_exits_4(mesh, daemoneye, action):
    mesh.admin.failures = [AWAY]
    result = daemoneye("collectors", action, "procmond", *arguments_of(action))
    assert (result.code, result.out) == (4, "")
    assert len(mesh.admin.requests) == 1


@pytest.mark.parametrize("error", [AWAY, DeadlineError("collector procmond did not answer")])
def test_restart_is_repeated_once_under_the_same_key(mesh, daemoneye, error):
    mesh.admin.failures = [error]
    result = daemoneye("collectors", "restart", "procmond")
    assert result.code == 0
    assert "asking once more" in result.err
    first, second = mesh.admin.requests
    assert first.idempotency_key == second.idempotency_key
    assert 1 <= len(first.idempotency_key) <= 64


def test_restart_that_fails_twice_is_given_up(mesh, daemoneye):
    mesh.admin.failures = [AWAY] * 3
    assert daemoneye("collectors", "restart", "procmond").code == 4
    assert len(mesh.admin.requests) == 2


def test_each_restart_has_a_key_of_its_own(mesh, daemoneye):
    for _ in range(2):
        daemoneye("collectors", "restart", "procmond")
    first, second = mesh.admin.requests
    assert first.idempotency_key != second.idempotency_key


@pytest.mark.parametrize(
    "argv",
    [
        *([one] for one in ACTIONS),
        *([one, "procmond", "extra"] for one in ACTIONS),
        ["end", "procmond"],
        ["health", "procmond", "--count", "0", "--watch"],
    ],
)
def test_wrong_usage_exits_2_without_asking_anybody(mesh, daemoneye, argv):
    result = daemoneye("collectors", *argv)
    assert (result.code, result.out) == (2, "")
    assert mesh.admin.requests == []


# -- shutdown -------------------------------------------------------------------------------------


def test_shutdown_says_that_the_supervisor_may_start_it_again(mesh, daemoneye):
    result = daemoneye("collectors", "shutdown", "procmond", "--yes")
    assert (result.code, result.out) == (0, "")
    assert "procmond drains and ends" in result.err
    assert "may start it again" in result.err
    (request,) = mesh.admin.requests
    assert (request.force, request.reason, request.HasField("timeout")) == (False, "", False)


def test_shutdown_passes_its_options_on(mesh, daemoneye):
    argv = ["--drain-timeout", "2.5", "--reason", "new kernel", "--yes", "--format", "json"]
    result = daemoneye("collectors", "shutdown", "procmond", *argv)
    assert result.document == {
        "collector_id": "procmond",
        "state": "stopping",
        "is_forced": False,
    }
    (request,) = mesh.admin.requests
    assert (request.reason, request.timeout.ToMilliseconds()) == ("new kernel", 2500)


def test_forced_shutdown_is_asked_for_as_such(mesh, daemoneye):
    result = daemoneye("collectors", "shutdown", "procmond", "--force", "--yes")
    assert "ends at once" in result.err
    assert mesh.admin.requests[0].force is True


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--force", "--drain-timeout", "3", "--yes"], "--force does not drain"),
        (["--drain-timeout", "0.05", "--yes"], "from 0.1 to 300"),
        (["--drain-timeout", "301", "--yes"], "from 0.1 to 300"),
        (["--drain-timeout", "nan", "--yes"], "no number of seconds"),
        (["--reason", "x" * 257, "--yes"], "257 characters"),
        ([], "there is no terminal; say --yes"),
    ],
)
def test_shutdown_that_makes_no_sense_exits_2_and_ends_nothing(mesh, daemoneye, argv, said):
    result = daemoneye("collectors", "shutdown", "procmond", *argv)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert mesh.admin.requests == []


@pytest.fixture
def asked(mesh):
    """A shutdown that waits on a terminal for its answer, and the other end of that terminal."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "daemoneye_cli", "collectors", "shutdown", "procmond"],
        stdin=secondary,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "DAEMONEYE_RUNTIME_DIR": str(mesh.layout.root)},
    )
    os.close(secondary)
    with process:
        assert b"may start it again. [y/N]" in process.stderr.readline()
        yield process, primary
        process.kill()
    os.close(primary)


@pytest.mark.parametrize(
    ("typed", "code", "count"),
    [("y\n", 0, 1), ("YES\n", 0, 1), ("n\n", 1, 0), ("\n", 1, 0), ("\x04", 1, 0)],
)
def test_shutdown_asks_on_a_terminal(mesh, asked, typed, code, count):
    process, terminal = asked
    os.write(terminal, typed.encode())
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out, len(mesh.admin.requests)) == (code, b"", count)


def test_shutdown_that_is_interrupted_while_it_asks_ends_nothing(mesh, asked):
    process, _ = asked
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert (process.returncode, mesh.admin.requests) == (130, [])
