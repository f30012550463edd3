"""Alerts, rules, collectors and tables."""

import csv
import io

import pytest


def test_alerts_are_listed_as_table_json_and_csv(mesh, fakes, daemoneye):
    mesh.alerts.alerts = [fakes.alert_payload(count=2)]
    assert "reverse-shell" in daemoneye("alerts").out
    document = daemoneye("alerts", "list", "--format", "json").document
    assert document["has_more"] is False
    alert = document["alerts"][0]
    assert (alert["severity"], alert["count"]) == ("high", 2)
    assert alert["last_seen"] == "2023-11-14T22:13:21.000Z"
    assert alert["completeness"] == {"state": "complete", "causes": []}
    rows = list(csv.DictReader(io.StringIO(daemoneye("alerts", "--format", "csv").out)))
    assert rows[0]["rule_id"] == "reverse-shell"


@pytest.mark.parametrize("action", [[], ["list"]])
def test_alerts_pass_their_filters_on(mesh, daemoneye, action):
    argv = ["--severity", "high", "--rule", "r", "--limit", "5", "--since", "2023-11-14T22:00:00Z"]
    assert daemoneye("alerts", *action, *argv).code == 0
    request = mesh.alerts.requests[0]
    assert (request.min_severity, request.rule_id, request.max_alerts) == (3, "r", 5)
    assert request.since.ToJsonString() == "2023-11-14T22:00:00Z"


def test_alert_is_shown_with_the_row_that_raised_it(mesh, fakes, daemoneye):
    mesh.alerts.alerts = [fakes.alert_payload()]
    document = daemoneye("alerts", "show", "a1", "--format", "json").document
    assert document["row"] == {"pid": 7}
    assert "bash talks to 192.0.2.1" in daemoneye("alerts", "show", "a1").out


def test_unknown_alert_exits_5(mesh, daemoneye):
    result = daemoneye("alerts", "show", "nope", "--format", "json")
    assert (result.code, result.out) == (5, "")
    assert (result.error["code"], result.error["metadata"]) == ("NOT_FOUND", {"alert_id": "nope"})


@pytest.mark.parametrize(
    "argv",
    [
        ["--since", "yesterday"],
        ["--severity", "bad"],
        ["--limit", "1001"],
        ["--follow", "--format", "csv"],
    ],
)
def test_wrong_filter_of_alerts_exits_2(mesh, daemoneye, argv):
    assert daemoneye("alerts", *argv).code == 2


def test_rules_are_listed_shown_and_switched(mesh, daemoneye):
    assert "reverse-shell" in daemoneye("rules").out
    document = daemoneye("rules", "show", "reverse-shell", "--format", "json").document
    assert (document["severity"], document["state"]) == ("critical", "enabled")
    assert daemoneye("rules", "disable", "reverse-shell").code == 0
    assert mesh.rules.rule.is_enabled is False
    state = daemoneye("rules", "enable", "reverse-shell", "--format", "json").document["state"]
    assert (state, mesh.rules.rule.is_enabled) == ("enabled", True)


def test_valid_rule_exits_0_and_invalid_one_5(mesh, daemoneye, tmp_path):
    file = tmp_path / "rule.toml"
    file.write_text("good")
    assert daemoneye("rules", "validate", str(file)).code == 0
    result = daemoneye("rules", "validate", "-", "--format", "json", stdin="bad")
    assert result.code == 5
    assert result.document["sample_failures"] == ["sample 1 should match and does not"]


def test_rule_file_that_cannot_be_read_exits_2(mesh, daemoneye, tmp_path):
    assert daemoneye("rules", "validate", str(tmp_path / "none")).code == 2
    (tmp_path / "big").write_bytes(b"x" * 70_000)
    assert "larger than" in daemoneye("rules", "validate", str(tmp_path / "big")).err
    (tmp_path / "binary").write_bytes(b"\xff")
    assert "not UTF-8" in daemoneye("rules", "validate", str(tmp_path / "binary")).err


def test_collectors_say_what_they_cannot_see(mesh, daemoneye):
    assert "processes are polled every second" in daemoneye("collectors").out
    collector = daemoneye("collectors", "list", "--format", "json").document["collectors"][0]
    assert collector["state"] == "degraded"
    assert collector["completeness"]["causes"][0]["reason"] == "polling"
    assert collector["last_heartbeat_at"] is None


def test_collector_is_paused_and_resumed(mesh, daemoneye):
    result = daemoneye("collectors", "pause", "procmond", "--format", "json")
    assert result.document == {"collector_id": "procmond", "state": "paused"}
    assert mesh.admin.paused == ["procmond"]
    assert daemoneye("collectors", "resume", "procmond").code == 0
    assert mesh.admin.paused == []


def test_tables_and_the_columns_of_one_are_listed(mesh, daemoneye):
    tables = daemoneye("tables", "--format", "json").document["tables"]
    assert (tables[0]["name"], tables[0]["kind"]) == ("processes", "live")
    document = daemoneye("tables", "processes", "--format", "json").document
    assert document["columns"][0]["name"] == "pid"


def test_unknown_table_exits_5_with_the_closest_one(mesh, daemoneye):
    result = daemoneye("tables", "process")
    assert (result.code, result.out) == (5, "")
    assert "did you mean processes?" in result.err
    assert "hint: 'daemoneye tables' lists the tables" in result.err
