"""``daemoneye collectors health`` and ``stats``: what is shown, and the exit status of "not OK"."""

import csv
import io
import os
import signal
import subprocess
import sys

import pytest

from daemoneye.ipc.v1 import collector_health_pb2, event_log_pb2
from daemoneye_mesh.completeness_message import to_completeness
from daemoneye_mesh.errors import UnavailableError


@pytest.fixture
def health(mesh):
    """What the collector will say of itself."""
    health = mesh.admin.health
    health.since.FromSeconds(1_700_000_000)
    health.uptime.FromSeconds(7_500)
    add = health.components.add
    add(name="log", status=collector_health_pb2.COLLECTOR_STATUS_OK)
    add(name="source proc", status=collector_health_pb2.COLLECTOR_STATUS_OK, failure_count=2)
    return health


def fail(health, status="PERMANENT_ERROR"):
    number = collector_health_pb2.CollectorStatus.Value(f"COLLECTOR_STATUS_{status}")
    health.status = health.components[1].status = number
    health.components[1].message = "/proc cannot be read; mount it"


def test_health_of_a_collector_that_is_well_exits_0(health, daemoneye):
    result = daemoneye("collectors", "health", "procmond")
    assert (result.code, result.err) == (0, "")
    assert "collector procmond  ok since 2023-11-14T22:13:20.000Z  up 2h 5m" in result.out
    assert "shedding  no" in result.out
    assert ["source", "proc", "ok", "-", "2", "-"] in [
        line.split() for line in result.out.splitlines()
    ]


@pytest.mark.parametrize(
    "status", ["STARTING", "RECOVERABLE_ERROR", "PERMANENT_ERROR", "FATAL_ERROR", "UNSPECIFIED"]
)
def test_health_that_is_not_ok_exits_3_and_says_why(health, daemoneye, status):
    fail(health, status)
    result = daemoneye("collectors", "health", "procmond")
    assert result.code == 3
    assert status.lower().replace("_", " ") in result.out
    assert "/proc cannot be read; mount it" in result.out


def test_collector_that_sheds_exits_3(health, daemoneye):
    health.is_shedding = True
    result = daemoneye("collectors", "health", "procmond")
    assert result.code == 3
    assert "shedding  yes" in result.out


def test_collector_that_cannot_see_everything_exits_3(health, fakes, daemoneye):
    health.completeness.CopyFrom(to_completeness([fakes.POLLING]))
    result = daemoneye("collectors", "health", "procmond")
    assert result.code == 3
    assert "degraded: procmond: polling: processes are polled every second" in result.err


def test_collector_that_does_not_say_what_it_sees_is_not_well(health, daemoneye):
    health.ClearField("completeness")
    assert daemoneye("collectors", "health", "procmond").code == 3


def test_resources_are_shown_against_their_budget(health, daemoneye):
    health.resources.cpu_share = 0.031
    health.resources.cpu_budget_share = 0.05
    health.resources.rss_bytes, health.resources.rss_budget_bytes = 50 << 20, 100 << 20
    health.resources.level = collector_health_pb2.DEGRADATION_LEVEL_NO_HASHING
    out = daemoneye("collectors", "health", "procmond").out
    assert "3.1% of 5.0% of a core, 50.0 MiB of 100.0 MiB" in out
    assert "saves by no hashing" in out


def test_health_is_for_programs_too(health, daemoneye):
    fail(health)
    result = daemoneye("collectors", "health", "procmond", "--format", "json")
    assert result.code == 3
    document = result.document
    assert (document["is_healthy"], document["status"]) == (False, "permanent_error")
    assert document["resources"] is None
    assert document["components"][1]["failure_count"] == 2
    assert document["completeness"] == {"state": "complete", "causes": []}
    result = daemoneye("collectors", "health", "procmond", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert (result.code, rows[1]["status"]) == (3, "permanent_error")


@pytest.mark.parametrize("option", [["--count", "2"], ["--interval", "1"]])
def test_option_of_watch_without_watch_exits_2(mesh, daemoneye, option):
    result = daemoneye("collectors", "health", "procmond", *option)
    assert (result.code, result.out) == (2, "")
    assert "goes with --watch" in result.err


def watch(daemoneye, *argv):
    argv = ("--watch", "--interval", "0.01", *argv)
    return daemoneye("collectors", "health", "procmond", *argv)


def test_watch_shows_as_many_looks_as_asked_for(health, daemoneye):
    result = watch(daemoneye, "--count", "3", "--format", "json")
    assert result.code == 0
    assert [line["status"] for line in result.lines] == ["ok"] * 3
    assert [line["type"] for line in result.lines] == ["health"] * 3
    result = watch(daemoneye, "--count", "2")
    assert result.out.count("collector procmond  ok") == 2
    assert "\x1b" not in result.out


def test_watch_as_csv_is_one_record_a_look(health, daemoneye):
    result = watch(daemoneye, "--count", "2", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert [(row["status"], row["cpu_share"], row["uptime"]) for row in rows] == [
        ("ok", "", "7500.0")
    ] * 2


def test_watch_that_saw_an_error_once_exits_3(mesh, health, daemoneye):
    failing = collector_health_pb2.CheckHealthResponse()
    failing.CopyFrom(health)
    fail(failing, "RECOVERABLE_ERROR")
    mesh.admin.former = [failing]
    result = watch(daemoneye, "--count", "2", "--format", "json")
    assert [line["status"] for line in result.lines] == ["recoverable_error", "ok"]
    assert result.code == 3


def test_watch_with_a_count_ends_when_the_collector_goes_away(mesh, health, daemoneye):
    mesh.admin.failures = [UnavailableError("collector procmond cannot be asked; see the log")]
    assert watch(daemoneye, "--count", "2").code == 4


def test_watch_without_a_count_waits_for_a_collector_and_ends_with_0_at_ctrl_c(mesh, health):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "daemoneye_cli", "collectors", "health", "procmond"),
            *("--watch", "--interval", "0.05", "--format", "json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "DAEMONEYE_RUNTIME_DIR": str(mesh.layout.root)},
    )
    with process:
        assert b'"status":"ok"' in process.stdout.readline()
        away = UnavailableError("collector procmond cannot be asked; see the log")
        mesh.admin.failures = [away, away]
        assert b"cannot be asked; see the log; trying again" in process.stderr.readline()
        assert b'"status":"ok"' in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0


# -- stats ----------------------------------------------------------------------------------------


@pytest.fixture
def stats(mesh):
    """Counters that add up."""
    stats = mesh.admin.stats
    stats.emitted_count, stats.logged_count, stats.pending_count = 1_010, 1_000, 3
    stats.dropped_count["shed_metric"] = 7
    stats.unacknowledged_count, stats.log_bytes = 40, 1 << 20
    stats.source_epoch, stats.source_sequence = 9, 1_000
    stats.log_positions.add(
        source_epoch=9, first_sequence=901, last_sequence=1_000, acknowledged_sequence=960
    )
    return stats


def test_stats_show_the_equation_and_the_log(stats, daemoneye):
    result = daemoneye("collectors", "stats", "procmond")
    assert result.code == 0
    assert "1,010 emitted = 1,000 logged + 7 dropped + 3 pending" in result.out
    assert "adds up" in result.out
    assert "shed_metric 7" in result.out
    assert "40 not acknowledged, 1.0 MiB on disk" in result.out
    rows = [line.split() for line in result.out.splitlines()]
    assert ["9", "901", "1,000", "960", "40", "nothing"] in rows


def test_stats_that_do_not_add_up_exit_3_and_say_by_how_much(stats, daemoneye):
    stats.emitted_count += 5
    result = daemoneye("collectors", "stats", "procmond")
    assert result.code == 3
    assert "1,015 emitted ≠ 1,000 logged" in result.out
    assert "off by 5" in result.out
    document = daemoneye("collectors", "stats", "procmond", "--format", "json").document
    assert (document["unaccounted_count"], document["adds_up"]) == (5, False)


def test_stats_with_events_lost_from_the_log_exit_3_and_say_which(stats, daemoneye):
    stats.lost_count["log_full"] = 20
    stats.log_positions[0].losses.add(
        first_sequence=881, last_sequence=900, reason=event_log_pb2.EVENT_LOSS_REASON_LOG_FULL
    )
    result = daemoneye("collectors", "stats", "procmond")
    assert result.code == 3
    assert "881 to 900 (log_full)" in result.out
    assert "log_full 20" in result.out


def test_stats_of_an_empty_log_count_nothing_as_waiting(stats, daemoneye):
    position = stats.log_positions[0]
    position.first_sequence, position.acknowledged_sequence = 1_001, 900
    rows = [line.split() for line in daemoneye("collectors", "stats", "procmond").out.splitlines()]
    assert ["9", "-", "1,000", "900", "0", "nothing"] in rows


def test_stats_are_for_programs_too(stats, daemoneye):
    document = daemoneye("collectors", "stats", "procmond", "--format", "json").document
    assert (document["collector_id"], document["emitted_count"]) == ("procmond", 1_010)
    assert (document["dropped_total"], document["dropped_count"]) == (7, {"shed_metric": 7})
    assert document["log_positions"][0]["acknowledged_sequence"] == 960
    out = daemoneye("collectors", "stats", "procmond", "--format", "csv").out
    (row,) = csv.DictReader(io.StringIO(out))
    assert (row["unacknowledged_count"], row["unaccounted_count"]) == ("40", "0")
