"""Messages of the bus with their envelope: one line for a person, one document for a program."""

import shlex
from collections.abc import Mapping

from rich.text import Text

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_cli.document import Document, enum_name, to_document
from daemoneye_cli.text import format_clock, format_iso, printable

__all__ = ["envelope_line", "message_document"]

_TYPE_WIDTH = 16


def envelope_line(message: eventbus_pb2.EventBusMessage) -> Text:
    """Returns one line: time, type, topic, place in the sequence, and what else is set."""
    metadata = message.metadata
    line = Text(format_clock(metadata.timestamp), style="dim")
    line.append(f" {_type_of(message):<{_TYPE_WIDTH}} ", style="not dim")
    line.append(printable(metadata.topic), style="not dim bold")
    line.append(f"  {printable(metadata.source_id)} {_place_of(metadata)}", style="not dim")
    for part in _remarkable(message):
        line.append(f"  {printable(part)}", style="not dim")
    return line


def message_document(message: eventbus_pb2.EventBusMessage) -> Document:
    """Returns the whole message."""
    return {
        "type": "message",
        "time": format_iso(message.metadata.timestamp),
        **to_document(message),
    }


def _type_of(message: eventbus_pb2.EventBusMessage) -> str:
    """Returns the event type of a collection event, else the message type."""
    number = message.metadata.message_type
    if number == eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT:
        event_type = message.collection_event.event_type
        return enum_name(eventbus_pb2.EventType.DESCRIPTOR, event_type)
    return enum_name(eventbus_pb2.MessageType.DESCRIPTOR, number)


def _place_of(metadata: eventbus_pb2.MessageMetadata) -> str:
    """Returns epoch and sequence, else the message id."""
    if metadata.source_sequence:
        return f"{metadata.source_epoch}/{metadata.source_sequence}"
    return f"id {printable(metadata.message_id)}" if metadata.message_id else "-"


def _remarkable(message: eventbus_pb2.EventBusMessage) -> list[str]:
    """Returns what differs from the usual."""
    metadata = message.metadata
    parts = []
    if metadata.priority:
        parts.append(f"priority {metadata.priority}")
    if metadata.ttl_ms:
        parts.append(f"ttl {metadata.ttl_ms / 1_000:g} s")
    if metadata.target_id:
        parts.append(f"for {metadata.target_id}")
    if metadata.headers:
        parts.append(f"headers {_pairs(metadata.headers)}")
    if message.HasField("correlation"):
        parts.append(_describe_correlation(message.correlation))
    if message.HasField("control_message"):
        parts.append(_describe_control(message.control_message))
    return parts


def _describe_correlation(correlation: eventbus_pb2.CorrelationMetadata) -> str:
    text = f"correlation {correlation.correlation_id}#{correlation.sequence_number}"
    if correlation.root_correlation_id != correlation.correlation_id:
        text += f" of {correlation.root_correlation_id}"
    if correlation.workflow_stage:
        text += f" in {correlation.workflow_stage}"
    if correlation.correlation_tags:
        text += f" {_pairs(correlation.correlation_tags)}"
    return text


def _describe_control(control: eventbus_pb2.ControlMessagePayload) -> str:
    operation = enum_name(eventbus_pb2.ControlOperation.DESCRIPTOR, control.operation)
    return f"{operation} {_pairs(control.parameters)}".rstrip()


def _pairs(entries: Mapping[str, str]) -> str:
    return " ".join(f"{shlex.quote(key)}={shlex.quote(entries[key])}" for key in sorted(entries))
