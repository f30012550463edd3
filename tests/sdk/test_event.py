import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector_core.event import MAX_KNOWN_KEYS, Event, Sequencer
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2, group_pb2
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError
from daemoneye_mesh.group import apply_envelope
from daemoneye_mesh.limits import MAX_MESSAGE_BYTES

KINDS = [
    (event_data_pb2.ProcessEventData, "process_event", "PROCESS_EVENT"),
    (event_data_pb2.NetworkEventData, "network_event", "NETWORK_EVENT"),
    (event_data_pb2.FilesystemEventData, "filesystem_event", "FILESYSTEM_EVENT"),
    (event_data_pb2.PerformanceEventData, "performance_event", "PERFORMANCE_EVENT"),
    (event_data_pb2.TriggerEventData, "trigger_event", "TRIGGER_EVENT"),
]


def decode(message):
    """Reads a message of the outbox as its receiver does."""
    envelope = group_pb2.GroupEnvelope.FromString(message.key.head)
    envelope.first_sequence = message.sequence
    decoded = eventbus_pb2.EventBusMessage.FromString(message.frame)
    apply_envelope(decoded, envelope, 0)
    return decoded


@pytest.mark.parametrize(("cls", "field", "name"), KINDS)
def test_each_kind_of_data_goes_into_its_field_with_its_type(cls, field, name):
    message = decode(Sequencer("unit", 7).encode(Event("events.x", cls())))
    payload = message.collection_event
    assert payload.WhichOneof("event_data") == field
    assert eventbus_pb2.EventType.Name(payload.event_type) == f"EVENT_TYPE_{name}"


def test_envelope_says_where_from_and_when(new_event):
    event = new_event(42)
    metadata = decode(Sequencer("unit", 7).encode(event)).metadata
    assert metadata.topic == "events.process.lifecycle"
    assert metadata.message_type == eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT
    assert (metadata.source_id, metadata.source_epoch, metadata.source_sequence) == ("unit", 7, 1)
    assert metadata.timestamp == event.time_ns


@given(st.lists(st.booleans(), max_size=30))
def test_sequences_of_published_events_have_no_gap(accepted):
    sequencer = Sequencer("unit", 1)
    given_out = []
    for is_accepted in accepted:
        frame = sequencer.encode(Event("events.x", event_data_pb2.TriggerEventData()))
        if is_accepted:
            sequencer.advance()
            given_out.append(decode(frame).metadata.source_sequence)
    assert given_out == list(range(1, sum(accepted) + 1))
    assert sequencer.sequence == sum(accepted)


def size_of(message):
    return len(message.frame) + message.key.size_bytes


def test_event_of_the_largest_size_is_encoded_and_a_larger_one_refused(new_event):
    sequencer = Sequencer("unit", 1)
    room = MAX_MESSAGE_BYTES - size_of(sequencer.encode(new_event(1, "x" * 900_000)))
    largest = sequencer.encode(new_event(1, "x" * (900_000 + room)))
    assert size_of(largest) == MAX_MESSAGE_BYTES
    assert decode(largest).ByteSize() <= MAX_MESSAGE_BYTES
    with pytest.raises(InvalidRequestError) as refused:
        sequencer.encode(new_event(1, "x" * (900_001 + room)))
    assert refused.value.reason is ErrorReason.MESSAGE_TOO_LARGE
    assert refused.value.metadata["size_bytes"] == str(MAX_MESSAGE_BYTES + 1)
    assert sequencer.sequence == 0


def test_events_of_one_topic_and_type_share_their_envelope(new_event):
    sequencer = Sequencer("unit", 1)
    first, second = sequencer.encode(new_event(1)), sequencer.encode(new_event(2))
    assert first.key is second.key
    trigger = sequencer.encode(Event("events.process.lifecycle", event_data_pb2.TriggerEventData()))
    assert trigger.key.event_type == eventbus_pb2.EVENT_TYPE_TRIGGER_EVENT


def test_more_topics_than_are_kept_are_encoded_all_the_same(new_event):
    sequencer = Sequencer("unit", 1)
    for number in range(MAX_KNOWN_KEYS + 2):
        event = Event(f"events.process.t{number}", event_data_pb2.TriggerEventData())
        assert sequencer.encode(event).key.topic == event.topic
