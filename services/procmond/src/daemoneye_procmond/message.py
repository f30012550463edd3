"""Records and events of the domain as messages of the contract.

``missing_fields`` and the like hold names of the contract's fields on the wire, where the domain has
names of columns.
"""

from collections.abc import Iterable

from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2
from daemoneye_procmond.event import EventKind, ProcessEvent
from daemoneye_procmond.record import ProcessRecord

__all__ = ["TOPICS", "to_event_message", "to_record_message"]

LIFECYCLE_TOPIC = "events.process.lifecycle"
METADATA_TOPIC = "events.process.metadata"
BATCH_TOPIC = "events.process.batch"

TOPICS = {
    EventKind.INVENTORY: BATCH_TOPIC,
    EventKind.START: LIFECYCLE_TOPIC,
    EventKind.EXEC: LIFECYCLE_TOPIC,
    EventKind.STOP: LIFECYCLE_TOPIC,
    EventKind.SUSPEND: LIFECYCLE_TOPIC,
    EventKind.RESUME: LIFECYCLE_TOPIC,
    EventKind.MODIFIED: METADATA_TOPIC,
}

_SUBTYPES = {
    EventKind.INVENTORY: event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_INVENTORIED,
    EventKind.START: event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_CREATED,
    EventKind.EXEC: event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_EXECUTED,
    EventKind.STOP: event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_TERMINATED,
    EventKind.SUSPEND: event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_SUSPENDED,
    EventKind.RESUME: event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_RESUMED,
    EventKind.MODIFIED: event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_UPDATED,
}

_FIELD_OF_COLUMN = {
    "exe": "executable_path",
    "argv": "command_line",
    "cmdline": "command_line",
    "memory_bytes": "memory_usage",
    "cgroup": "cgroup_path",
    "exe_deleted": "executable_deleted",
    "exe_memfd": "executable_memfd",
}


def to_record_message(record: ProcessRecord) -> common_pb2.ProcessRecord:
    """Returns the whole record; what is None in the record is absent in the message."""
    return common_pb2.ProcessRecord(
        pid=record.pid,
        ppid=record.ppid,
        name=record.name,
        executable_path=record.exe,
        command_line=record.argv or (),
        start_time=record.start_time_ns // 1_000_000_000,
        memory_usage=record.memory_bytes,
        user_id=None if record.uid is None else str(record.uid),
        accessible=not record.missing_fields,
        file_exists=record.exe is not None and not (record.exe_deleted or record.exe_memfd),
        collection_time=record.collected_at_ms,
        boot_id=record.boot_id,
        start_ticks=record.start_ticks,
        start_time_ns=record.start_time_ns,
        cwd=record.cwd,
        uid=record.uid,
        euid=record.euid,
        gid=record.gid,
        egid=record.egid,
        login_uid=record.login_uid,
        user_name=record.user_name,
        session_id=record.session_id,
        process_group_id=record.process_group_id,
        tty=record.tty,
        state=record.state,
        thread_count=record.thread_count,
        fd_count=record.fd_count,
        cpu_time_ms=record.cpu_time_ms,
        cgroup_path=record.cgroup,
        container_id=record.container_id,
        executable_deleted=bool(record.exe_deleted),
        executable_memfd=bool(record.exe_memfd),
        kernel_thread=record.kernel_thread,
        missing_fields=_field_names(record.missing_fields),
        truncated_fields=_field_names(record.truncated_fields),
    )


def to_event_message(event: ProcessEvent) -> event_data_pb2.ProcessEventData:
    """Returns the event with the images of its parent and of what was before."""
    message = event_data_pb2.ProcessEventData(
        process=to_record_message(event.record),
        subtype=_SUBTYPES[event.kind],
        changed_fields=_field_names(event.changed_fields),
        exit_code=event.exit_code,
        observation=event_data_pb2.OBSERVATION_METHOD_SCAN,
    )
    if event.previous is not None:
        message.previous.CopyFrom(to_record_message(event.previous))
    if event.parent is not None:
        message.tree_context.parent_process.CopyFrom(_to_image(event.parent))
    return message


def _to_image(record: ProcessRecord) -> common_pb2.ProcessRecord:
    """Returns what tells another process: identity and image, not its whole state."""
    return common_pb2.ProcessRecord(
        pid=record.pid,
        ppid=record.ppid,
        name=record.name,
        executable_path=record.exe,
        command_line=record.argv or (),
        accessible=not record.missing_fields,
        collection_time=record.collected_at_ms,
        boot_id=record.boot_id,
        start_ticks=record.start_ticks,
        uid=record.uid,
        missing_fields=_field_names(record.missing_fields),
    )


def _field_names(columns: Iterable[str]) -> list[str]:
    return sorted({_FIELD_OF_COLUMN.get(column, column) for column in columns})
