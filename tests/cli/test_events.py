import pytest


def test_events_prints_a_line_an_event_and_stops_after_count(mesh, fakes, daemoneye):
    mesh.bus.items = [fakes.batch(*(fakes.process_message(pid=pid) for pid in (41, 42, 43)))]
    result = daemoneye("events", "--count", "2")
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert [line[1:] for line in lines] == [
        ["start", "41", "sleep", "/bin/sleep", "5"],
        ["start", "42", "sleep", "/bin/sleep", "5"],
    ]


def test_events_subscribes_with_a_token_for_the_broker(mesh, fakes, daemoneye):
    mesh.bus.items = [fakes.batch(fakes.process_message())]
    assert daemoneye("events", "--count", "1", "events.process.#", "alerts.+.#").code == 0
    assert mesh.bus.patterns == ["events.process.#", "alerts.+.#"]
    assert mesh.registry.audiences == [mesh.layout.broker.spiffe_id]


def test_events_follows_all_events_by_default(mesh, fakes, daemoneye):
    mesh.bus.items = [fakes.batch(fakes.process_message())]
    daemoneye("events", "--count", "1")
    assert mesh.bus.patterns == ["events.#"]


def test_events_as_json_is_one_document_a_line(mesh, fakes, daemoneye):
    mesh.bus.items = [fakes.batch(fakes.process_message(pid=7), fakes.alert_message())]
    event, alert = daemoneye("events", "#", "--count", "2", "--format", "json").lines
    assert event["kind"] == "start"
    assert event["time_ns"] == 1_700_000_000_123_456_789
    assert event["time"] == "2023-11-14T22:13:20.123456789Z"
    assert event["source_sequence"] == 7
    assert event["process_event"]["process"]["command_line"] == ["/bin/sleep", "5"]
    assert event["process_event"]["process"]["uid"] is None
    assert alert["kind"] is None
    assert alert["alert"]["rule_id"] == "reverse-shell"


def test_events_shows_only_the_kinds_asked_for(mesh, fakes, daemoneye):
    messages = [
        fakes.process_message("CREATED", 1),
        fakes.process_message("EXECUTED", 2),
        fakes.process_message("TERMINATED", 3, exit_code=-9),
        fakes.alert_message(),
    ]
    mesh.bus.items = [fakes.batch(*messages)]
    result = daemoneye("events", "--kind", "exec,stop", "--count", "2")
    assert [line.split()[1] for line in result.out.splitlines()] == ["exec", "stop"]
    assert "signal 9" in result.out


def test_missing_messages_are_marked_in_their_place_and_degrade_a_count(mesh, fakes, daemoneye):
    mesh.bus.items = [
        fakes.batch(fakes.process_message(pid=1)),
        fakes.gap(12),
        fakes.batch(fakes.process_message(pid=2)),
    ]
    result = daemoneye("events", "--count", "2")
    assert result.code == 3
    assert "12 messages are missing here (dropped_oldest)" in result.out.splitlines()[1]
    lines = daemoneye("events", "--count", "2", "--format", "json").lines
    assert lines[1] == {"type": "gap", "dropped_count": 12, "reason": "dropped_oldest"}


def test_event_line_never_lets_a_terminal_obey_a_process(mesh, fakes, daemoneye):
    message = fakes.process_message()
    message.collection_event.process_event.process.name = "\x1b[2Jx"
    message.collection_event.process_event.process.command_line[:] = ["a\r\nb", "[bold]c"]
    mesh.bus.items = [fakes.batch(message)]
    result = daemoneye("events", "--count", "1")
    assert len(result.out.splitlines()) == 1
    assert "\x1b" not in result.out
    assert "\\x1b[2Jx" in result.out
    assert "[bold]c" in result.out


def test_exec_line_says_what_it_was_before(mesh, fakes, daemoneye):
    message = fakes.process_message("EXECUTED")
    event = message.collection_event.process_event
    event.previous.executable_path = "/bin/bash"
    event.process.command_line[:] = ["sleep", "5"]
    mesh.bus.items = [fakes.batch(message)]
    assert "/bin/sleep  sleep 5  (was /bin/bash)" in daemoneye("events", "--count", "1").out


def test_alert_on_the_bus_stands_out(mesh, fakes, daemoneye):
    message = fakes.alert_message(count=1)
    message.alert.metadata.update({"pid": "7", "cmdline": "bash -i", "user_name": "www"})
    mesh.bus.items = [fakes.batch(message)]
    head, what = daemoneye("events", "alerts.#", "--count", "1").out.splitlines()
    assert head.endswith("ALERT HIGH  reverse-shell: Reverse shell")
    assert what.strip() == "pid 7  bash -i  by www"


def test_repeated_alert_is_one_line_with_its_count(mesh, fakes, daemoneye):
    mesh.bus.items = [fakes.batch(fakes.alert_message(count=3))]
    (line,) = daemoneye("events", "alerts.#", "--count", "1").out.splitlines()
    assert line.endswith("reverse-shell: Reverse shell (seen 3 times)")


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["events", "events.*"], 5, "events.*"),
        (["events", "--kind", "born"], 2, "kind 'born' is none of start"),
        (["events", "--count", "0"], 2, "no whole number from 1"),
        (["events", "--format", "csv"], 2, "no csv format"),
    ],
)
def test_wrong_request_for_events_is_refused(mesh, daemoneye, argv, code, message):
    result = daemoneye(*argv)
    assert (result.code, result.out) == (code, "")
    assert message in result.err


def test_events_without_a_broker_fail_at_once(mesh, daemoneye):
    mesh.layout.eventbus_socket.unlink()
    result = daemoneye("events")
    assert result.code == 4
    assert f"no broker: there is no socket {mesh.layout.eventbus_socket}" in result.err
