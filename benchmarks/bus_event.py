"""The event that every system carries: one real, encoded EventBusMessage of FRAME_BYTES.

Sequence and time stand in a field that no schema knows, at its end, so that every publisher can
stamp the bytes in place, whatever its language knows of protobuf; the message stays a valid one.
"""

from benchmarks.bus_stamp import STAMP_BYTES, Template
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2

__all__ = ["FRAME_BYTES", "SOURCE_ID", "TOPIC", "make_template"]

TOPIC = "events.process.lifecycle"
SOURCE_ID = "bench"
FRAME_BYTES = 300
STAMP_FIELD = 19_990
LENGTH_DELIMITED = 2


def make_template() -> Template:
    """Encodes the event, with room for its stamp at the end."""
    head = _varint(STAMP_FIELD << 3 | LENGTH_DELIMITED) + _varint(STAMP_BYTES)
    body_bytes = FRAME_BYTES - len(head) - STAMP_BYTES
    message = _message()
    process = message.collection_event.process_event.process
    for padding in range(FRAME_BYTES):
        process.cwd = "/" + "d" * padding
        if message.ByteSize() == body_bytes:
            frame = message.SerializeToString() + head + bytes(STAMP_BYTES)
            return Template(frame, FRAME_BYTES - STAMP_BYTES)
    raise AssertionError(f"no padding makes an event of {FRAME_BYTES} bytes")


def _message() -> eventbus_pb2.EventBusMessage:
    record = common_pb2.ProcessRecord(
        pid=4_242,
        ppid=1,
        name="sleep",
        executable_path="/usr/bin/sleep",
        command_line=["sleep", "5"],
        accessible=True,
        file_exists=True,
        boot_id="00000000-0000-0000-0000-000000000000",
        start_ticks=123_456,
        uid=1_000,
        user_name="someone",
        state="S",
    )
    event = event_data_pb2.ProcessEventData(
        process=record, observation=event_data_pb2.OBSERVATION_METHOD_SCAN
    )
    return eventbus_pb2.EventBusMessage(
        metadata=eventbus_pb2.MessageMetadata(
            topic=TOPIC, source_id=SOURCE_ID, timestamp=1_700_000_000_000_000_000
        ),
        collection_event=eventbus_pb2.CollectionEventPayload(process_event=event),
    )


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
