"""``daemoneye bus tail``."""

import argparse
import json
import os
import signal
import subprocess
import sys

import pytest

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_cli.bus_tail import parse_types

EVENT, ALERT = eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT, eventbus_pb2.MESSAGE_TYPE_ALERT
PROCESS, FILE = eventbus_pb2.EVENT_TYPE_PROCESS_EVENT, eventbus_pb2.EVENT_TYPE_FILESYSTEM_EVENT


@pytest.fixture
def bus(fakes, monkeypatch, request):
    """The broker of the fake mesh, which remembers what it was asked for."""

    class AskedBus(fakes.FakeBus):
        def __init__(self):
            super().__init__()
            self.openings = []
            self.is_history_complete = True

        async def Subscribe(self, requests, context):
            self.openings.append((await anext(aiter(requests))).open)
            opened = pb.SubscriptionOpened(
                broker_epoch=self.epoch, history_complete=self.is_history_complete
            )
            yield pb.SubscribeResponse(opened=opened)
            for item in self.items:
                yield item
            await self.closed.wait()

    monkeypatch.setattr(fakes, "FakeBus", AskedBus)
    return request.getfixturevalue("mesh").bus


def control_message(**metadata):
    return eventbus_pb2.EventBusMessage(
        metadata=eventbus_pb2.MessageMetadata(
            topic="control.operator.local.note",
            message_type=eventbus_pb2.MESSAGE_TYPE_CONTROL_MESSAGE,
            source_id="local",
            timestamp=1_700_000_000_123_456_789,
            **metadata,
        ),
        control_message=eventbus_pb2.ControlMessagePayload(
            operation=eventbus_pb2.CONTROL_OPERATION_STATUS_REPORT,
            parameters={"text": "drill begins", "n": "1"},
        ),
    )


def tail(daemoneye, *argv):
    return daemoneye("bus", "tail", *argv)


def test_tail_prints_the_envelope_of_each_message(bus, fakes, daemoneye):
    event = fakes.process_message(pid=42)
    event.metadata.source_epoch = 1_700
    bus.items = [fakes.batch(event, control_message(message_id="m1"))]
    result = tail(daemoneye, "#", "--count", "2")
    assert result.code == 0
    first, second = result.out.splitlines()
    assert first.split()[1:] == ["process_event", "events.process.lifecycle", "procmond", "1700/42"]
    assert second.partition("control_message ")[2].split() == [
        "control.operator.local.note",
        *("local", "id", "m1"),
        *("status_report", "n=1", "text='drill", "begins'"),
    ]


def test_tail_shows_what_differs_from_the_usual(bus, fakes, daemoneye):
    message = control_message(priority=9, ttl_ms=1_500, target_id="procmond", headers={"a": "b c"})
    message.correlation.correlation_id = "c2"
    message.correlation.root_correlation_id = "c1"
    message.correlation.sequence_number = 3
    message.correlation.workflow_stage = "judge"
    message.correlation.correlation_tags["case"] = "42"
    bus.items = [fakes.batch(message)]
    (line,) = tail(daemoneye, "#", "--count", "1").out.splitlines()
    assert "  priority 9  ttl 1.5 s  for procmond  headers a='b c'" in line
    assert "  correlation c2#3 of c1 in judge case=42" in line


def test_tail_as_json_is_the_whole_message_a_line(bus, fakes, daemoneye):
    bus.items = [fakes.batch(control_message(priority=9), fakes.process_message())]
    control, event = tail(daemoneye, "#", "--count", "2", "--format", "json").lines
    assert (control["type"], control["time"]) == ("message", "2023-11-14T22:13:20.123456789Z")
    assert control["metadata"]["priority"] == 9
    assert control["metadata"]["message_type"] == "control_message"
    assert control["correlation"] is None
    assert control["control_message"]["parameters"] == {"n": "1", "text": "drill begins"}
    assert event["collection_event"]["process_event"]["process"]["pid"] == 42


def test_tail_never_lets_a_terminal_obey_a_message(bus, fakes, daemoneye):
    message = control_message(headers={"\x1b[2J": "[bold]\r\n"})
    message.correlation.correlation_id = "\x1b]0;x\x07"
    bus.items = [fakes.batch(message)]
    result = tail(daemoneye, "#", "--count", "1")
    assert len(result.out.splitlines()) == 1
    assert "\x1b" not in result.out


def test_missing_messages_are_marked_in_their_place_and_degrade_a_count(bus, fakes, daemoneye):
    bus.items = [fakes.batch(control_message()), fakes.gap(12), fakes.batch(control_message())]
    result = tail(daemoneye, "#", "--count", "2")
    assert result.code == 3
    assert "12 messages are missing here (dropped_oldest)" in result.out.splitlines()[1]
    lines = tail(daemoneye, "#", "--count", "2", "--format", "json").lines
    assert lines[1] == {"type": "gap", "dropped_count": 12, "reason": "dropped_oldest"}


# -- what is asked of the broker ------------------------------------------------------------------


def test_tail_asks_for_patterns_with_a_floor(bus, fakes, daemoneye):
    bus.items = [fakes.batch(control_message())]
    assert tail(daemoneye, "events.#", "alerts.+", "--min-priority", "7", "--count", "1").code == 0
    (opening,) = bus.openings
    patterns = opening.config.topic_patterns
    assert [(one.pattern, one.priority) for one in patterns] == [("events.#", 7), ("alerts.+", 7)]
    assert all(one.wildcard_enabled for one in patterns)
    assert not opening.HasField("history")
    assert not opening.config.HasField("correlation_filter")


def test_tail_asks_for_types_and_correlations(bus, fakes, daemoneye):
    bus.items = [fakes.batch(control_message())]
    argv = ["--filter-type", "process_event,alert", "--correlation-id", "a"]
    assert tail(daemoneye, "#", *argv, "--correlation-id", "b", "--count", "1").code == 0
    config = bus.openings[0].config
    assert list(config.message_type_filters) == [EVENT, ALERT]
    assert list(config.event_type_filters) == [PROCESS]
    assert list(config.correlation_filter.correlation_ids) == ["a", "b"]


@pytest.mark.parametrize(
    ("argv", "max_age_ms"), [(["--history", "1.5"], 1_500), (["--from-start"], 0)]
)
def test_tail_asks_for_the_past(bus, fakes, daemoneye, argv, max_age_ms):
    bus.items = [fakes.batch(control_message())]
    assert tail(daemoneye, "#", *argv, "--count", "1").code == 0
    (opening,) = bus.openings
    assert opening.HasField("history")
    assert (opening.history.max_age_ms, opening.history.max_messages) == (max_age_ms, 0)


def test_past_that_begins_later_than_asked_is_said(bus, fakes, daemoneye):
    bus.items = [fakes.batch(control_message())]
    bus.is_history_complete = False
    result = tail(daemoneye, "#", "--history", "3600", "--count", "1")
    assert result.code == 3
    assert "the past begins later than asked" in result.err
    result = tail(daemoneye, "#", "--from-start", "--count", "1")
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize(
    ("text", "message_types", "event_types"),
    [
        ("alert", [ALERT], []),
        ("process_event", [EVENT], [PROCESS]),
        ("process-event, filesystem_event", [EVENT], [PROCESS, FILE]),
        ("alert,process_event", [EVENT, ALERT], [PROCESS]),
        ("collection_event", [EVENT], []),
        ("process_event,collection_event", [EVENT], []),
    ],
)
def test_types_are_read_as_what_to_let_through(text, message_types, event_types):
    wanted = parse_types(text)
    assert list(wanted.message_types) == message_types
    assert list(wanted.event_types) == event_types


@pytest.mark.parametrize("text", ["", "alert,", "nope", "ALERT"])
def test_unknown_type_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is none of collection_event"):
        parse_types(text)


@pytest.mark.parametrize(
    ("argv", "code", "problem"),
    [
        ([], 2, "PATTERN"),
        (["events.*"], 5, "events.*"),
        (["#", "--filter-type", "nope"], 2, "none of collection_event"),
        (["#", "--min-priority", "256"], 2, "from 0 to 255"),
        (["#", "--history", "0"], 2, "no number of seconds above 0"),
        (["#", "--history", "1", "--from-start"], 2, "not allowed with"),
        (["#", "--format", "csv"], 2, "no csv format"),
        (["#", *(["--correlation-id", "x"] * 65)], 2, "65 times"),
    ],
)
def test_wrong_usage_of_tail_is_refused(bus, daemoneye, argv, code, problem):
    result = tail(daemoneye, *argv)
    assert (result.code, result.out) == (code, "")
    assert problem in result.err
    assert bus.openings == []


def test_tail_without_a_broker_fails_at_once(mesh, daemoneye):
    mesh.layout.eventbus_socket.unlink()
    result = tail(daemoneye, "#")
    assert result.code == 4
    assert "no broker: there is no socket" in result.err


def test_interrupted_tail_exits_0(bus, fakes, runtime_dir):
    bus.items = [fakes.batch(control_message())]
    process = subprocess.Popen(
        [sys.executable, "-m", "daemoneye_cli", "bus", "tail", "#", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DAEMONEYE_RUNTIME_DIR": str(runtime_dir)},
    )
    try:
        assert json.loads(process.stdout.readline())["type"] == "message"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
