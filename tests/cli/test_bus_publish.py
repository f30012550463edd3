"""``daemoneye bus publish``."""

import json

import pytest
from google.protobuf import json_format

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_mesh.errors import PermissionDeniedError

NOTE = "control.operator.local.note"


@pytest.fixture
def bus(fakes, monkeypatch, request):
    """The broker of the fake mesh, which takes messages."""

    class TakingBus(fakes.FakeBus):
        def __init__(self):
            super().__init__()
            self.published = []
            self.routed_count = 2

        async def Publish(self, request, context):
            self.published += request.messages
            if "other" in request.messages[0].metadata.topic:
                raise PermissionDeniedError(
                    "operator/local may not publish there", action="publish"
                )
            return pb.PublishResponse(accepted_count=1, routed_count=self.routed_count)

    monkeypatch.setattr(fakes, "FakeBus", TakingBus)
    return request.getfixturevalue("mesh").bus


def test_publish_sends_a_control_message_and_says_to_how_many(bus, daemoneye):
    result = daemoneye("bus", "publish", NOTE, "--param", "text=drill = begins", "--param", "n=")
    assert (result.code, result.out) == (0, "")
    (message,) = bus.published
    assert f"published {message.metadata.message_id}; it went to 2 subscribers" in result.err
    assert message.metadata.topic == NOTE
    assert message.metadata.source_id == "local"
    assert message.metadata.message_type == eventbus_pb2.MESSAGE_TYPE_CONTROL_MESSAGE
    assert message.metadata.timestamp > 1_700_000_000_000_000_000
    assert message.control_message.operation == eventbus_pb2.CONTROL_OPERATION_STATUS_REPORT
    assert dict(message.control_message.parameters) == {"text": "drill = begins", "n": ""}


def test_publish_sets_the_envelope_as_asked(bus, daemoneye):
    argv = ["--header", "ticket=42", "--priority", "9", "--ttl", "1.5", "--target", "procmond"]
    assert daemoneye("bus", "publish", NOTE, *argv, "--operation", "flush-queues").code == 0
    (message,) = bus.published
    assert dict(message.metadata.headers) == {"ticket": "42"}
    assert (message.metadata.priority, message.metadata.ttl_ms) == (9, 1_500)
    assert message.control_message.target == "procmond"
    assert message.control_message.operation == eventbus_pb2.CONTROL_OPERATION_FLUSH_QUEUES


@pytest.mark.parametrize(
    ("kind", "message_type", "operation"),
    [
        ("config-update", "MESSAGE_TYPE_CONFIG_UPDATE", "CONTROL_OPERATION_UPDATE_CONFIG"),
        ("shutdown", "MESSAGE_TYPE_SHUTDOWN", "CONTROL_OPERATION_GRACEFUL_SHUTDOWN"),
    ],
)
def test_type_brings_its_operation(bus, daemoneye, kind, message_type, operation):
    assert daemoneye("bus", "publish", NOTE, "--type", kind).code == 0
    message = json_format.MessageToDict(bus.published[0], preserving_proto_field_name=True)
    assert message["metadata"]["message_type"] == message_type
    assert message["control_message"]["operation"] == operation


def test_publish_as_json_is_one_document(bus, daemoneye):
    document = daemoneye("bus", "publish", NOTE, "--format", "json").document
    assert document == {
        "topic": NOTE,
        "message_id": bus.published[0].metadata.message_id,
        "source_id": "local",
        "accepted_count": 1,
        "routed_count": 2,
    }


def test_message_that_nobody_wants_is_said(bus, daemoneye):
    bus.routed_count = 0
    result = daemoneye("bus", "publish", NOTE)
    assert result.code == 0
    assert f"nobody subscribes to {NOTE}" in result.err


def test_message_that_nobody_wants_fails_when_a_subscriber_is_required(bus, daemoneye):
    bus.routed_count = 0
    result = daemoneye("bus", "publish", NOTE, "--require-subscriber", "--format", "json")
    assert (result.code, result.error["reason"]) == (4, "NO_SUBSCRIBER")
    assert result.document["routed_count"] == 0
    bus.routed_count = 1
    assert daemoneye("bus", "publish", NOTE, "--require-subscriber").code == 0


def test_topic_of_somebody_else_is_denied(bus, daemoneye):
    result = daemoneye("bus", "publish", "control.operator.other.note")
    assert (result.code, result.out) == (6, "")


def test_publisher_is_whom_the_token_names(bus, mesh, daemoneye):
    mesh.write_token(identity=mesh.layout.operator("anna"))
    daemoneye("bus", "publish", "control.operator.anna.note")
    assert bus.published[0].metadata.source_id == "anna"


# -- whole messages -------------------------------------------------------------------------------


def test_whole_message_comes_from_a_file_or_standard_input(bus, daemoneye, tmp_path):
    text = json.dumps({"heartbeat": {"component_id": "x"}, "metadata": {"priority": 7}})
    (tmp_path / "message.json").write_text(text)
    assert daemoneye("bus", "publish", NOTE, "--json", str(tmp_path / "message.json")).code == 0
    assert daemoneye("bus", "publish", NOTE, "--json", "-", stdin=text).code == 0
    first, second = bus.published
    for message in (first, second):
        assert message.metadata.message_type == eventbus_pb2.MESSAGE_TYPE_HEARTBEAT
        assert (message.metadata.topic, message.metadata.source_id) == (NOTE, "local")
        assert message.metadata.priority == 7
        assert message.heartbeat.component_id == "x"
    assert first.metadata.message_id != second.metadata.message_id


def test_whole_message_keeps_what_it_says(bus, daemoneye):
    metadata = {"message_id": "m1", "timestamp": "5", "topic": NOTE, "message_type": 7}
    text = json.dumps({"metadata": metadata, "control_message": {"operation": 8}})
    assert daemoneye("bus", "publish", NOTE, "--json", "-", stdin=text).code == 0
    (message,) = bus.published
    assert (message.metadata.message_id, message.metadata.timestamp) == ("m1", 5)
    assert message.metadata.message_type == eventbus_pb2.MESSAGE_TYPE_SHUTDOWN


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there are 0 messages"),
        ("{} {}", "there are 2 messages"),
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ('{"nope": 1}', "no EventBusMessage"),
        ("{}", "has no payload"),
        ('{"alert": {}, "heartbeat": {}}', "no EventBusMessage"),
        ('{"alert": {}, "metadata": {"topic": "control.x"}}', "topic 'control.x'"),
        ('{"alert": {}, "metadata": {"source_id": "agent"}}', "source_id 'agent'"),
        ('{"alert": {}, "metadata": {"message_type": 4}}', "message_type 4 does not go with"),
    ],
)
def test_whole_message_that_is_none_is_refused(bus, daemoneye, text, problem):
    result = daemoneye("bus", "publish", NOTE, "--json", "-", stdin=text)
    assert (result.code, result.out) == (5, "")
    assert problem in result.err
    assert bus.published == []


# -- wrong usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--param", "text"], "write --param KEY=VALUE"),
        (["--header", "=x"], "write --header KEY=VALUE"),
        (["--param", "a=1", "--param", "a=2"], "'a' is given twice"),
        (["--priority", "256"], "from 0 to 255"),
        (["--ttl", "0"], "no number of seconds above 0"),
        (["--type", "alert"], "invalid choice"),
        (["--type", "shutdown", "--operation", "status-report"], "an operation of its own"),
        (["--json", "-", "--param", "a=1"], "--param does not go with --json"),
        (["--json", "-", "--priority", "0"], "--priority does not go with --json"),
        (["--json", "/nonexistent/file"], "cannot read /nonexistent/file"),
        (["--header", "a=" + "x" * 1025], "--header 'a' is too long"),
        ([part for n in range(65) for part in ("--param", f"p{n}=")], "given 65 times"),
    ],
)
def test_wrong_usage_of_publish_exits_2_and_publishes_nothing(bus, daemoneye, argv, problem):
    result = daemoneye("bus", "publish", NOTE, *argv)
    assert (result.code, result.out) == (2, "")
    assert problem in result.err
    assert bus.published == []


def test_entries_at_the_edge_of_the_bounds_are_published(bus, daemoneye):
    argv = [part for number in range(64) for part in ("--param", f"p{number}=")]
    argv += ["--header", f"{'k' * 128}={'v' * 1024}"]
    assert daemoneye("bus", "publish", NOTE, *argv).code == 0


def test_malformed_topic_exits_5(bus, daemoneye):
    result = daemoneye("bus", "publish", "control.operator.local.#")
    assert (result.code, bus.published) == (5, [])
