"""``daemoneye bus top``."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_mesh.errors import UnavailableError

ALT_SCREEN_ON, ALT_SCREEN_OFF = b"\x1b[?1049h", b"\x1b[?1049l"
CURSOR_OFF, CURSOR_ON = b"\x1b[?25l", b"\x1b[?25h"


@pytest.fixture
def bus(fakes, monkeypatch, request):
    """The broker of the fake mesh; every question finds ten messages more."""

    class BusyBus(fakes.FakeBus):
        def __init__(self):
            super().__init__()
            self.question_count = 0
            self.extra_offered = 0
            self.is_away = False

        async def GetBusStats(self, request, context):
            if self.is_away:
                raise UnavailableError("the broker is shutting down; connect again")
            self.question_count += 1
            count = 10 * self.question_count
            stats = pb.GetBusStatsResponse(
                broker_epoch="epoch-1",
                published_count=count,
                published_bytes=100 * count,
                unrouted_count=3,
                subscription_count=1,
                refused_count={"RATE_LIMITED": 4},
                flow=self._flow(count),
            )
            stats.started_at.GetCurrentTime()
            stats.topics.add(topic="events.a", published_count=count, published_bytes=100 * count)
            return stats

        async def ListSubscriptions(self, request, context):
            one = pb.SubscriptionInfo(
                subscription_id="s1",
                subscriber_id="watcher",
                identity="operator/local",
                flow=self._flow(10 * self.question_count),
                is_attached=True,
                max_queue_messages=1000,
            )
            return pb.ListSubscriptionsResponse(subscriptions=[one])

        def _flow(self, count):
            return pb.FlowCounters(
                offered_count=count + self.extra_offered,
                delivered_count=count - 5,
                dropped_count={"expired": 5},
            )

    monkeypatch.setattr(fakes, "FakeBus", BusyBus)
    return request.getfixturevalue("mesh").bus


def top(daemoneye, *argv):
    return daemoneye("bus", "top", "--interval", "0.01", *argv)


def test_top_prints_frames_one_after_the_other_where_there_is_no_terminal(bus, daemoneye):
    result = top(daemoneye, "--count", "2")
    assert result.code == 0
    assert result.out.count("bus of epoch epoch-1") == 2
    assert "\x1b" not in result.out
    assert "20 offered = 15 delivered + 0 filtered + 5 dropped + 0 pending: adds up" in result.out
    assert "refused RATE_LIMITED 4" in result.out
    assert "dropped   expired 5" in result.out
    topics, subscribers = (
        next(line for line in result.out.splitlines() if line.startswith(start)).split()
        for start in ("events.a", "s1 ")
    )
    assert topics[3:] == ["KiB/s", "20", "0", "0"] or topics[3:] == ["B/s", "20", "0", "0"]
    assert subscribers[1:6] == ["operator/local", "attached", "0", "of", "1,000"]


def test_top_as_json_is_one_document_a_frame(bus, daemoneye):
    first, second = top(daemoneye, "--count", "2", "--format", "json").lines
    assert (first["type"], first["published_count"], second["published_count"]) == ("frame", 20, 30)
    for frame in (first, second):
        assert frame["published_per_s"] == pytest.approx(10 / frame["elapsed_s"], rel=0.01)
        assert frame["is_balanced"] is True
        assert frame["topics"][0]["topic"] == "events.a"
        assert frame["subscriptions"][0]["dropped"] == {"expired": 5}


def test_top_as_csv_is_one_record_of_totals_a_frame(bus, daemoneye):
    out = top(daemoneye, "--count", "2", "--format", "csv").out
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["published_count"] for row in rows] == ["20", "30"]
    assert {row["unaccounted_count"] for row in rows} == {"0"}


def test_top_shows_as_many_rows_as_asked(bus, daemoneye):
    frame = top(daemoneye, "--count", "1", "--rows", "1", "--format", "json").lines[0]
    assert (len(frame["topics"]), len(frame["subscriptions"])) == (1, 1)


def test_counters_that_do_not_add_up_degrade_a_counted_top(bus, daemoneye):
    bus.extra_offered = 2
    result = top(daemoneye, "--count", "1")
    assert result.code == 3
    assert "0 pending: off by 2" in result.out
    assert top(daemoneye, "--count", "1", "--format", "json").code == 3


def test_counted_top_fails_with_the_broker(bus, mesh, daemoneye):
    mesh.layout.eventbus_socket.unlink()
    result = top(daemoneye, "--count", "1")
    assert (result.code, result.out) == (4, "")


@pytest.mark.parametrize("argv", [["--interval", "0"], ["--count", "0"], ["--rows", "257"]])
def test_wrong_usage_of_top_exits_2(bus, daemoneye, argv):
    assert daemoneye("bus", "top", *argv).code == 2


@pytest.fixture
def terminal(runtime_dir):
    """Starts ``bus top`` on a terminal of its own; gives the process and the terminal."""
    primary, secondary = pty.openpty()
    started = []

    def start(*argv):
        process = subprocess.Popen(
            [sys.executable, "-m", "daemoneye_cli", "bus", "top", *argv],
            stdin=secondary,
            stdout=secondary,
            stderr=subprocess.PIPE,
            env={
                **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
                "DAEMONEYE_RUNTIME_DIR": str(runtime_dir),
                "TERM": "xterm-256color",
                "COLUMNS": "120",
                "LINES": "12",
            },
        )
        os.close(secondary)
        started.append(process)
        return process, primary

    yield start
    for process in started:
        process.kill()
        process.communicate()
    os.close(primary)


@pytest.fixture
def start(runtime_dir):
    """Starts ``bus top`` with pipes; whatever is left of it is killed."""
    started = []

    def call(*argv):
        process = subprocess.Popen(
            [sys.executable, "-m", "daemoneye_cli", "bus", "top", *argv],
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


def read_until(descriptor, marker):
    seen = b""
    while marker not in seen:
        seen += os.read(descriptor, 4096)
    return seen


def read_rest(descriptor):
    seen = b""
    try:
        while chunk := os.read(descriptor, 4096):
            seen += chunk
    except OSError:  # how Linux says that nobody has the other side open any more
        pass
    return seen


def test_top_is_redrawn_in_place_and_leaves_the_terminal_as_it_was(bus, terminal):
    process, descriptor = terminal("--interval", "0.01")
    seen = read_until(descriptor, b"\x1b[J")  # the first frame is whole
    seen += read_until(descriptor, b"\x1b[J")
    process.send_signal(signal.SIGINT)
    rest = read_rest(descriptor)
    assert process.wait(timeout=20) == 0
    assert process.stderr.read() == b""
    assert seen.startswith(ALT_SCREEN_ON)
    assert CURSOR_OFF in seen
    assert rest.endswith(ALT_SCREEN_OFF)
    assert CURSOR_ON in rest
    first = seen.split(b"\x1b[H")[2]  # the other screen begins at home too
    assert first.count(b"\n") <= 11, "taller than the terminal"


def test_top_waits_for_a_broker_that_goes_away(bus, terminal):
    process, descriptor = terminal("--interval", "0.01")
    read_until(descriptor, b"\x1b[J")
    bus.is_away = True
    read_until(descriptor, b"shutting down; connect again; trying again every 0.01 s")
    bus.is_away = False
    read_until(descriptor, b"bus of epoch epoch-1")
    process.send_signal(signal.SIGINT)
    read_rest(descriptor)
    assert process.wait(timeout=20) == 0


def test_broker_that_is_away_is_told_once_where_there_is_no_terminal(bus, start):
    process = start("--interval", "0.01", "--format", "json")
    process.stdout.readline()
    bus.is_away = True
    assert "trying again" in process.stderr.readline()
    asked = bus.question_count
    bus.is_away = False
    frame = json.loads(process.stdout.readline())
    while frame["published_count"] <= 10 * asked:
        frame = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 0
