"""Messages of the bus as one line for a person and as one document for a program."""

import shlex
from dataclasses import dataclass
from enum import StrEnum

from rich.text import Text

from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2
from daemoneye_cli.document import Document, to_document
from daemoneye_cli.text import format_clock, format_iso, printable

__all__ = ["EventKind", "event_document", "event_line", "gap_line", "kind_of"]


class EventKind(StrEnum):
    """The kinds of process events, by the names that ``process_events.kind`` has."""

    START = "start"
    EXEC = "exec"
    STOP = "stop"
    MODIFIED = "modified"
    SUSPEND = "suspend"
    RESUME = "resume"
    INVENTORY = "inventory"


_KINDS: dict[int, EventKind] = {
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_CREATED: EventKind.START,
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_EXECUTED: EventKind.EXEC,
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_TERMINATED: EventKind.STOP,
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_UPDATED: EventKind.MODIFIED,
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_SUSPENDED: EventKind.SUSPEND,
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_RESUMED: EventKind.RESUME,
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_INVENTORIED: EventKind.INVENTORY,
}
_STYLES = {
    EventKind.START: "green",
    EventKind.EXEC: "yellow",
    EventKind.STOP: "red",
    EventKind.INVENTORY: "dim",
}
_KIND_WIDTH = max(map(len, EventKind))
_PID_WIDTH = 7
_NAME_WIDTH = 15


@dataclass(frozen=True, slots=True)
class _Parts:
    """A message taken apart."""

    metadata: eventbus_pb2.MessageMetadata
    payload: str
    """Name of what it carries: process_event, network_event, …, alert, heartbeat, …"""


def kind_of(message: eventbus_pb2.EventBusMessage) -> EventKind | None:
    """Returns the kind of a process event; None for anything else."""
    if _take_apart(message).payload != "process_event":
        return None
    return _KINDS.get(message.collection_event.process_event.subtype)


def event_line(message: eventbus_pb2.EventBusMessage) -> Text:
    """Returns one line: time, kind, pid, name and what it is about."""
    kind = kind_of(message)
    line = Text(format_clock(message.metadata.timestamp), style="dim")
    if kind is None:
        return line.append(f" {_describe_other(message)}", style="not dim")
    event = message.collection_event.process_event
    process = event.process
    line.append(f" {kind.value:<{_KIND_WIDTH}}", style=f"not dim {_STYLES.get(kind, '')}")
    line.append(f" {process.pid:>{_PID_WIDTH}} ", style="not dim")
    line.append(f"{printable(process.name):<{_NAME_WIDTH}} ", style="not dim bold")
    return line.append(_describe(kind, event), style="not dim")


def gap_line(dropped_count: int, reason: str) -> Text:
    """Returns the line that stands where messages are missing."""
    text = f"!!! {dropped_count} messages are missing here ({reason}); this view was too slow !!!"
    return Text(text, style="bold white on red")


def event_document(message: eventbus_pb2.EventBusMessage) -> Document:
    """Returns a message as a document; what it carries lies under the name of its payload."""
    parts = _take_apart(message)
    metadata = parts.metadata
    kind = kind_of(message)
    return {
        "type": "event",
        "time": format_iso(metadata.timestamp),
        "time_ns": metadata.timestamp,
        "topic": metadata.topic,
        "kind": kind.value if kind else None,
        "source_id": metadata.source_id,
        "source_epoch": metadata.source_epoch,
        "source_sequence": metadata.source_sequence,
        **_payload_document(message, parts.payload),
    }


def _take_apart(message: eventbus_pb2.EventBusMessage) -> _Parts:
    payload: str = message.WhichOneof("payload") or "empty"
    if payload == "collection_event":
        payload = message.collection_event.WhichOneof("event_data") or "empty_event"
    return _Parts(message.metadata, payload)


def _payload_document(message: eventbus_pb2.EventBusMessage, payload: str) -> Document:
    if message.HasField("collection_event"):
        carrier = message.collection_event
        return (
            {payload: to_document(getattr(carrier, payload))} if hasattr(carrier, payload) else {}
        )
    return {payload: to_document(getattr(message, payload))} if hasattr(message, payload) else {}


def _describe(kind: EventKind, event: event_data_pb2.ProcessEventData) -> str:
    match kind:
        case EventKind.STOP:
            return f"{_describe_exit(event)}{_program(event.process)}"
        case EventKind.EXEC if event.HasField("previous"):
            return f"{_program(event.process)}  (was {_short_program(event.previous)})"
        case EventKind.MODIFIED:
            return f"{', '.join(event.changed_fields)}  {_program(event.process)}"
        case _:
            return _program(event.process)


def _describe_exit(event: event_data_pb2.ProcessEventData) -> str:
    if not event.HasField("exit_code"):
        return ""
    if event.exit_code < 0:
        return f"signal {-event.exit_code}  "
    return f"exit {event.exit_code}  "


def _program(process: common_pb2.ProcessRecord) -> str:
    """Returns executable and arguments; the executable alone when it is argv[0] anyway."""
    arguments = [printable(one) for one in process.command_line]
    path = printable(process.executable_path)
    shown = shlex.join(arguments)
    if path and (not arguments or arguments[0] != path):
        shown = f"{path}  {shown}".rstrip()
    marks = [" (deleted)"] if process.executable_deleted else []
    marks += [f"  by {printable(process.user_name)}"] if process.user_name else []
    return (shown or "-") + "".join(marks)


def _short_program(process: common_pb2.ProcessRecord) -> str:
    return printable(process.executable_path or process.name or "unknown")


def _describe_other(message: eventbus_pb2.EventBusMessage) -> str:
    parts = _take_apart(message)
    source = parts.metadata.source_id or "unknown"
    return printable(f"{parts.payload.replace('_', ' ')}  {parts.metadata.topic}  from {source}")
