import os
import stat

import pytest

from daemoneye_cli.app import build_parser
from daemoneye_cli.exit_code import ExitCode, describe_exit_codes, exit_code_of
from daemoneye_mesh.directories import DirectoryUnusableError
from daemoneye_mesh.errors import (
    Code,
    ConflictError,
    DaemoneyeError,
    DeadlineError,
    InvalidConfigError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)

COMMANDS = [
    *("up", "query", "events", "bus", "alerts", "rules", "collectors", "health", "tables"),
    "inspect",
]


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as exited:
        build_parser().parse_args([*argv, "--help"])
    assert exited.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [[], *([one] for one in COMMANDS), ["inspect", "agent", "call"]]
)
def test_every_help_has_examples_global_options_and_exit_statuses(capsys, command):
    text = help_of(capsys, *command)
    assert describe_exit_codes() in text
    assert "examples:\n  daemoneye " in text
    assert "--runtime-dir" in text
    assert max(map(len, text.splitlines())) <= 100


def test_every_exit_status_is_documented():
    text = describe_exit_codes()
    assert all(f"  {code.value:>3}  " in text for code in ExitCode)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequestError("x"), 5),
        (NotFoundError("x"), 5),
        (UnsupportedError("x"), 5),
        (InvalidConfigError("x"), 2),
        (DirectoryUnusableError("x"), 2),
        (UnavailableError("x"), 4),
        (UnauthenticatedError("x"), 6),
        (PermissionDeniedError("x"), 6),
        (DeadlineError("x"), 7),
        (OverloadedError("x"), 1),
        (ConflictError("x"), 1),
        (DaemoneyeError("x"), 1),
    ],
)
def test_error_has_its_exit_status(error, code):
    assert exit_code_of(error) == code


def test_every_code_of_the_mesh_has_an_exit_status_other_than_success():
    class SampleError(DaemoneyeError):
        pass

    for code in Code:
        SampleError.code = code
        assert exit_code_of(SampleError("x")) not in (ExitCode.COMPLETE, ExitCode.DEGRADED)


def test_without_a_mesh_the_error_says_how_to_start_one(daemoneye, runtime_dir):
    result = daemoneye("tables")
    assert (result.code, result.out) == (4, "")
    assert result.err.splitlines() == [
        f"error: no agent: there is no socket {runtime_dir}/agent.sock",
        "hint: is the mesh running? start it with 'daemoneye up', or name it with --runtime-dir",
    ]


def test_error_as_json_is_one_object_on_standard_error(daemoneye, runtime_dir):
    result = daemoneye("tables", "--format", "json")
    assert (result.code, result.out) == (4, "")
    assert result.error["code"] == "UNAVAILABLE"
    assert result.error["reason"] == "PEER_UNAVAILABLE"
    assert result.error["metadata"]["socket"] == f"{runtime_dir}/agent.sock"
    assert "daemoneye up" in result.error["hint"]


def test_socket_that_a_dead_agent_left_is_told_apart(daemoneye, runtime_dir):
    import socket

    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(runtime_dir / "agent.sock"))
    result = daemoneye("tables")
    assert result.code == 4
    assert "it ended without removing its socket" in result.err


def test_runtime_dir_that_is_too_long_for_a_socket_exits_2(daemoneye):
    result = daemoneye("--runtime-dir", "/tmp/" + "x" * 120, "tables")
    assert result.code == 2
    assert "107" in result.err


def test_token_file_that_is_missing_exits_6(mesh, daemoneye):
    result = daemoneye("tables", "--token-file", "/nonexistent/token")
    assert result.code == 6
    assert "token file /nonexistent/token is not there" in result.err


def test_token_file_open_to_others_is_refused(mesh, daemoneye, tmp_path):
    copy = tmp_path / "token"
    copy.write_bytes(mesh.token_file.read_bytes())
    copy.chmod(stat.S_IRUSR | stat.S_IROTH)
    result = daemoneye("tables", "--token-file", str(copy))
    assert result.code == 6
    assert "is open to others" in result.err


def test_token_for_another_service_is_denied_by_the_agent(mesh, daemoneye):
    mesh.write_token(audience=mesh.layout.broker.spiffe_id)
    result = daemoneye("tables", "--format", "json")
    assert (result.code, result.error["reason"]) == (6, "TOKEN_AUDIENCE")


def test_identity_that_may_not_ask_is_denied(mesh, daemoneye):
    mesh.write_token(identity=mesh.layout.collector("procmond"))
    result = daemoneye("tables", "--format", "json")
    assert (result.code, result.error["reason"]) == (6, "ACCESS_DENIED")


def test_token_is_never_shown(mesh, daemoneye):
    mesh.write_token(audience=mesh.layout.broker.spiffe_id)
    token = mesh.token_file.read_text().strip()
    for format_ in ("table", "json"):
        result = daemoneye("tables", "--format", format_)
        assert token not in result.out + result.err


@pytest.mark.parametrize(
    "argv", [[], ["nope"], ["tables", "--nope"], ["tables", "--timeout", "0"], ["tables", "a", "b"]]
)
def test_wrong_usage_exits_2_with_the_usage_on_standard_error(daemoneye, argv):
    result = daemoneye(*argv)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("usage: daemoneye")


def test_wrong_usage_as_json_is_an_error_object(daemoneye):
    result = daemoneye("tables", "--nope", "--format", "json")
    assert (result.code, result.error["reason"]) == (2, "CONFIG_INVALID")


def test_option_behind_the_command_wins_over_one_before_it(mesh, daemoneye):
    result = daemoneye("--format", "csv", "tables", "--format", "json")
    assert result.document["tables"]


def test_reader_that_goes_away_is_no_crash(mesh, tmp_path):
    import subprocess
    import sys

    mesh.queries.batches = [[(number, "x" * 100) for number in range(900)] for _ in range(40)]
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "daemoneye_cli", "query", "SELECT 1", "--format", "csv"],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "DAEMONEYE_RUNTIME_DIR": str(mesh.layout.root)},
    )
    os.close(write)
    os.read(read, 10)
    os.close(read)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (141, b"")
