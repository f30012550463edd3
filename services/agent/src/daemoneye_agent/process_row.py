"""Process records and events of the wire as rows of the schema.

Invariant: a row has exactly the columns of the schema in their order. Written for speed: this runs
once for every event of the host.
"""

import json
import shlex
from collections.abc import Iterable

from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2
from daemoneye_agent.event import EventRow, SqlValue, format_time
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

__all__ = ["NotAboutProcessError", "to_event_row", "to_process_row"]


class NotAboutProcessError(InvalidRequestError):
    """The message carries another event, or none."""


KINDS: dict[int, str] = {
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_CREATED: "start",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_UPDATED: "modified",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_TERMINATED: "stop",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_SUSPENDED: "suspend",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_RESUMED: "resume",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_EXECUTED: "exec",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_INVENTORIED: "inventory",
}

_COLUMN_OF_FIELD = {
    "executable_path": "exe",
    "command_line": "argv,cmdline",
    "memory_usage": "memory_bytes",
    "cgroup_path": "cgroup",
    "executable_deleted": "exe_deleted",
    "executable_memfd": "exe_memfd",
}

_NOTHING: frozenset[str] = frozenset()
_NO_IMAGE: EventRow = (None, None, None)


def to_process_row(record: common_pb2.ProcessRecord) -> EventRow:
    """Returns a row of ``processes``: the process columns in their order."""
    has = record.HasField
    argv = list(record.command_line)
    # Where nothing is missing, nothing has to be looked for: the path of nearly every record.
    missing = frozenset(record.missing_fields) if record.missing_fields else _NOTHING
    is_argv_known = "command_line" not in missing
    return (
        record.pid,
        record.ppid if has("ppid") else None,
        record.boot_id,
        record.start_ticks,
        record.start_time_ns if has("start_time_ns") else None,
        record.name,
        record.executable_path if has("executable_path") else None,
        shlex.join(argv) if is_argv_known else None,
        json.dumps(argv, ensure_ascii=False) if is_argv_known else None,
        record.cwd if has("cwd") else None,
        record.uid if has("uid") else None,
        record.euid if has("euid") else None,
        record.gid if has("gid") else None,
        record.egid if has("egid") else None,
        record.login_uid if has("login_uid") else None,
        record.user_name if has("user_name") else None,
        record.session_id if has("session_id") else None,
        record.process_group_id if has("process_group_id") else None,
        record.tty if has("tty") else None,
        record.state or None,
        record.thread_count if has("thread_count") else None,
        record.fd_count if has("fd_count") else None,
        record.cpu_time_ms if has("cpu_time_ms") else None,
        record.memory_usage if has("memory_usage") else None,
        record.cgroup_path if has("cgroup_path") else None,
        record.container_id if has("container_id") else None,
        None if "executable_deleted" in missing else int(record.executable_deleted),
        None if "executable_memfd" in missing else int(record.executable_memfd),
        int(record.kernel_thread),
        to_column_names(record.missing_fields),
    )


def to_event_row(message: eventbus_pb2.EventBusMessage) -> EventRow:
    """Returns a row in the order of ``EVENT_INSERT_COLUMNS``.

    Raises:
        NotAboutProcessError: the message is no process event.
        InvalidRequestError: its process event is unusable, or of a kind this build does not know.
    """
    metadata = message.metadata
    if message.collection_event.WhichOneof("event_data") != "process_event":
        raise NotAboutProcessError("the message carries no process event", topic=metadata.topic)
    event = message.collection_event.process_event
    if not event.process.pid or not event.process.boot_id:
        raise InvalidRequestError(
            "the event does not say which process it is about", topic=metadata.topic
        )
    kind = KINDS.get(event.subtype)
    if kind is None:
        raise InvalidRequestError(
            f"process event subtype {event.subtype} is not known here",
            reason=ErrorReason.ENUM_UNKNOWN,
            number=event.subtype,
        )
    head: EventRow = (
        metadata.source_id,
        metadata.source_epoch,
        metadata.source_sequence,
        metadata.timestamp,
        format_time(metadata.timestamp),
        kind,
    )
    tail: tuple[SqlValue, ...] = (
        to_column_names(event.changed_fields),
        event.exit_code if event.HasField("exit_code") else None,
    )
    return head + to_process_row(event.process) + _parent(event) + _previous(event) + tail


def to_column_names(fields: Iterable[str]) -> str:
    """Returns names of the contract's fields as column names, joined by a comma."""
    return ",".join(_COLUMN_OF_FIELD.get(name, name) for name in fields)


def _parent(event: event_data_pb2.ProcessEventData) -> EventRow:
    if not event.HasField("tree_context") or not event.tree_context.HasField("parent_process"):
        return _NO_IMAGE
    return _image(event.tree_context.parent_process)


def _previous(event: event_data_pb2.ProcessEventData) -> EventRow:
    return _image(event.previous) if event.HasField("previous") else _NO_IMAGE


def _image(record: common_pb2.ProcessRecord) -> EventRow:
    path = record.executable_path if record.HasField("executable_path") else None
    is_argv_known = "command_line" not in record.missing_fields
    return record.name, path, shlex.join(record.command_line) if is_argv_known else None
