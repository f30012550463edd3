"""``daemoneye collectors config``: reading, changing, and what is refused before it is sent."""

import csv
import io

import pytest

from daemoneye_mesh.errors import (
    ConflictError,
    ErrorReason,
    InternalError,
    InvalidRequestError,
    UnavailableError,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("daemoneye_cli.collector_call.REPEAT_DELAY_S", 0)


@pytest.fixture
def configure(mesh, daemoneye):
    """Runs ``config procmond set``."""
    return lambda *argv: daemoneye("collectors", "config", "procmond", "set", *argv)


@pytest.mark.parametrize("action", [[], ["get"]])
def test_config_shows_values_with_their_origin(mesh, daemoneye, action):
    result = daemoneye("collectors", "config", "procmond", *action)
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert ["scan_interval_s", "2", "live", "agent", "yes"] in lines
    assert ["token_file", "(unset)", "default", "no"] in lines
    assert "procmond: never changed while it ran (version 0)" in result.out


def test_config_that_was_changed_says_when_and_by_whom(mesh, daemoneye):
    mesh.admin.config.version = 4
    mesh.admin.config.applied_by = "agent/agent"
    mesh.admin.config.applied_at.FromSeconds(1_700_000_000)
    out = daemoneye("collectors", "config", "procmond").out
    assert "version 4, set at 2023-11-14T22:13:20.000000000Z by agent/agent" in out


def test_config_is_for_programs_too(mesh, daemoneye):
    document = daemoneye("collectors", "config", "procmond", "--format", "json").document
    assert (document["collector_id"], document["version"]) == ("procmond", 0)
    assert document["applied_at"] is None
    assert document["fields"][0] == {
        "name": "scan_interval_s",
        "value": "2",
        "origin": "live",
        "origin_detail": "agent",
        "is_live": True,
        "help": "",
    }
    out = daemoneye("collectors", "config", "procmond", "--format", "csv").out
    assert [row["value"] for row in csv.DictReader(io.StringIO(out))] == ["2", "/proc", ""]


def test_set_shows_before_and_after(mesh, configure):
    result = configure("scan_interval_s=5", "proc_dir=/p=q")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert ["scan_interval_s", "-", "2", "+", "5"] in lines
    assert ["proc_dir", "-", "/proc", "+", "/p=q"] in lines
    assert "version 1 is in force in procmond" in result.err
    (request,) = mesh.admin.requests
    assert dict(request.update.changes) == {"scan_interval_s": "5", "proc_dir": "/p=q"}
    assert request.update.expected_version == 0
    assert 1 <= len(request.update.idempotency_key) <= 64


def test_set_is_for_programs_too(mesh, configure):
    document = configure("scan_interval_s=5", "--format", "json").document
    assert document == {
        "changes": [{"name": "scan_interval_s", "before": "2", "after": "5"}],
        "collector_id": "procmond",
        "version": 1,
        "is_applied": True,
    }
    rows = list(csv.reader(io.StringIO(configure("scan_interval_s=6", "--format", "csv").out)))
    assert rows == [["name", "before", "after"], ["scan_interval_s", "5", "6"]]


def test_validate_changes_nothing_and_says_so(mesh, configure):
    result = configure("scan_interval_s=5", "--validate")
    assert result.code == 0
    assert "this would change; it was only checked, version 0 is in force" in result.err
    assert mesh.admin.requests[0].update.validate_only is True
    assert mesh.admin.config.version == 0
    assert (
        configure("scan_interval_s=5", "--validate", "--format", "json").document["is_applied"]
        is False
    )


def test_set_to_the_value_in_force_says_that_nothing_changed(mesh, configure):
    result = configure("scan_interval_s=2")
    assert (result.code, result.out) == (0, "")
    assert "nothing changed, the values were so already; version 0" in result.err


@pytest.mark.parametrize(
    "argv",
    [
        ["proc_dir=/p", "--reset", "scan_interval_s", "--reset", "token_file"],
        ["--reset", "scan_interval_s", "--reset", "token_file", "proc_dir=/p"],
    ],
)
def test_reset_goes_with_changes_in_any_order(mesh, configure, argv):
    assert configure(*argv).code == 0
    (request,) = mesh.admin.requests
    assert list(request.update.reset_fields) == ["scan_interval_s", "token_file"]
    assert dict(request.update.changes) == {"proc_dir": "/p"}


def test_empty_value_is_a_value(mesh, configure):
    assert configure("proc_dir=", "--expect-version", "7").code == 0
    (request,) = mesh.admin.requests
    assert dict(request.update.changes) == {"proc_dir": ""}
    assert request.update.expected_version == 7


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "nothing is to be changed"),
        (["--validate"], "nothing is to be changed"),
        (["scan_interval_s"], "write NAME=VALUE"),
        (["=2"], "write NAME=VALUE"),
        (["Scan=2"], "write NAME=VALUE"),
        (["x" * 65 + "=2"], "write NAME=VALUE"),
        (["a=1", "a=2"], "a is given twice"),
        (["a=1", "--reset", "a"], "a is both set and reset"),
        (["--reset", "a=1"], "no name of a setting"),
        (["a=1", "--expect-version", "0"], "no whole number from 1"),
        (["a=1", "--expect-version", "x"], "no whole number from 1"),
        ([f"a{number}=1" for number in range(65)], "65 settings are more than 64"),
        ([f"--reset=a{number}" for number in range(65)], "65 settings are more than 64"),
    ],
)
def test_wrong_change_exits_2_without_being_sent(mesh, configure, argv, said):
    result = configure(*argv)
    assert (result.code, result.out) == (2, "")
    assert said in result.err
    assert mesh.admin.requests == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            InvalidRequestError(
                "scan_interval_s = '0' must be at least 0.05",
                reason=ErrorReason.CONFIG_INVALID,
                field="scan_interval_s",
            ),
            5,
        ),
        (
            ConflictError(
                "version 3 is in force, not 2; read it again",
                reason=ErrorReason.CONFIG_CONFLICT,
                version="3",
            ),
            1,
        ),
        (
            InternalError(
                "source proc failed to apply it; the former values are in force",
                reason=ErrorReason.APPLY_FAILED,
                source="proc",
            ),
            1,
        ),
    ],
)
def test_refused_change_is_told_with_reason_and_metadata_and_not_repeated(
    mesh, configure, error, code
):
    mesh.admin.failures = [error]
    result = configure("scan_interval_s=0", "--format", "json")
    assert (result.code, result.out) == (code, "")
    assert (result.error["reason"], result.error["metadata"]) == (error.reason, error.metadata)
    assert result.error["message"] == error.message
    assert len(mesh.admin.requests) == 1


def test_change_without_an_answer_is_sent_once_more_under_the_same_key(mesh, configure):
    mesh.admin.failures = [UnavailableError("collector procmond cannot be asked; see the log")]
    assert configure("scan_interval_s=5").code == 0
    first, second = mesh.admin.requests
    assert first == second


def test_value_that_would_move_the_cursor_is_escaped(mesh, daemoneye):
    mesh.admin.config.fields[1].value = "\x1b[2J"
    out = daemoneye("collectors", "config", "procmond").out
    assert "\x1b" not in out
    assert "\\x1b[2J" in out
