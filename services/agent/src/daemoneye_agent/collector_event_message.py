"""Messages of events that are not about processes as rows of the schema.

Invariant: every event that a collector numbers has a row, those that this build does not know
included; what it cannot read is kept encoded.
"""

import base64
import json

from google.protobuf.json_format import MessageToDict

from daemoneye.eventbus.v1 import collection_gap_pb2, eventbus_pb2
from daemoneye_agent.collector_event import CollectorEventRow, GapRow
from daemoneye_agent.event import NS_PER_SECOND, format_time
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["to_collector_row"]

_MAX_INTEGER = 2**63 - 1
_MAX_NAME_CHARS = 128
_MAX_MESSAGE_CHARS = 1_024


def to_collector_row(message: eventbus_pb2.EventBusMessage) -> CollectorEventRow | GapRow:
    """Returns the row of an event that is not about a process.

    Raises:
        InvalidRequestError: the message carries no event.
    """
    metadata = message.metadata
    if not message.HasField("collection_event"):
        raise InvalidRequestError("the message carries no event", topic=metadata.topic)
    if message.collection_event.WhichOneof("event_data") == "collection_gap":
        return _to_gap(metadata, message.collection_event.collection_gap)
    event_type, data = _read(message.collection_event)
    return CollectorEventRow(
        metadata.source_id,
        metadata.source_epoch,
        metadata.source_sequence,
        metadata.timestamp,
        format_time(metadata.timestamp),
        metadata.topic,
        event_type,
        json.dumps(data, ensure_ascii=False),
    )


def _read(event: eventbus_pb2.CollectionEventPayload) -> tuple[str, dict[str, object]]:
    known = event.WhichOneof("event_data")
    if known is None:
        encoded = base64.b64encode(event.SerializeToString()).decode()
        return f"unknown_{event.event_type}", {"encoded_event": encoded}
    data = MessageToDict(getattr(event, known), preserving_proto_field_name=True)
    return known.removesuffix("_event"), data


def _to_gap(
    metadata: eventbus_pb2.MessageMetadata, gap: collection_gap_pb2.CollectionGapData
) -> GapRow:
    return GapRow(
        metadata.source_id,
        metadata.source_epoch,
        metadata.source_sequence,
        metadata.timestamp,
        _reason_of(gap.reason),
        gap.source_name[:_MAX_NAME_CHARS],
        _to_ns(gap, "started_at"),
        _to_ns(gap, "ended_at"),
        min(gap.event_count, _MAX_INTEGER) if gap.HasField("event_count") else None,
        gap.message[:_MAX_MESSAGE_CHARS],
    )


def _reason_of(number: int) -> str:
    reasons = collection_gap_pb2.CollectionGapReason
    if number not in reasons.values():
        number = collection_gap_pb2.COLLECTION_GAP_REASON_UNSPECIFIED
    name = reasons.Name(reasons.ValueType(number))
    return name.removeprefix("COLLECTION_GAP_REASON_").lower()


def _to_ns(gap: collection_gap_pb2.CollectionGapData, field: str) -> int | None:
    if not gap.HasField(field):  # type: ignore[arg-type]
        return None
    moment = getattr(gap, field)
    time_ns = int(moment.seconds) * NS_PER_SECOND + int(moment.nanos)
    return min(max(time_ns, -_MAX_INTEGER), _MAX_INTEGER)
