"""Events of the wire as subjects, and requests as events of the wire."""

import shlex

from collector_core.event import Event, EventClass
from collector_core.trigger.request import TriggerRequest
from collector_core.trigger.spec import AnalysisKind
from collector_core.trigger.subject import Subject
from daemoneye.common.v1 import analysis_pb2, common_pb2
from daemoneye.eventbus.v1 import event_data_pb2

__all__ = ["to_event", "to_subject"]

_KINDS: dict[int, str] = {
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_CREATED: "start",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_UPDATED: "modified",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_TERMINATED: "stop",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_SUSPENDED: "suspend",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_RESUMED: "resume",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_EXECUTED: "exec",
    event_data_pb2.PROCESS_EVENT_SUBTYPE_PROCESS_INVENTORIED: "inventory",
}
_ANALYSES: dict[AnalysisKind, analysis_pb2.AnalysisType.ValueType] = {
    kind: analysis_pb2.AnalysisType.Value(f"ANALYSIS_TYPE_{kind.name}") for kind in AnalysisKind
}


def to_subject(data: event_data_pb2.ProcessEventData, *, has_cmdline: bool) -> Subject:
    """Returns what conditions look at.

    Args:
        data: an event of a process.
        has_cmdline: whether a condition looks at the arguments; quoting them takes a while.
    """
    process = data.process
    has = process.HasField
    path = process.executable_path if has("executable_path") else None
    parent_name, parent_path = _parent_of(data)
    return Subject(
        kind=_KINDS.get(data.subtype),
        name=process.name or None,
        path=path,
        cmdline=_cmdline_of(process) if has_cmdline else None,
        pid=process.pid or None,
        ppid=process.ppid if has("ppid") else None,
        user=_user_of(process),
        cpu_percent=_cpu_of(data),
        memory_bytes=process.memory_usage if has("memory_usage") else None,
        sha256=_sha256_of(process),
        file_exists=None if path is None else process.file_exists,
        parent_name=parent_name,
        parent_path=parent_path,
        boot_id=process.boot_id,
        start_ticks=process.start_ticks if process.boot_id else None,
        has_on_disk_mismatch=process.on_disk_mismatch,
    )


def to_event(request: TriggerRequest) -> Event:
    """Returns the event that asks for the analysis."""
    data = event_data_pb2.TriggerEventData(
        trigger_id=request.trigger_id,
        target_collector=request.target_collector,
        priority=request.priority,
        trigger_reason=request.reason,
        trigger_metadata=request.arguments,
        analysis_type=_ANALYSES[request.analysis_type],
        custom_type=request.custom_type,
        target=analysis_pb2.AnalysisTarget(
            boot_id=request.target.boot_id,
            pid=request.target.pid,
            start_ticks=request.target.start_ticks,
            path=request.target.path,
        ),
    )
    return Event(request.topic, data, request.time_ns, EventClass.LIFECYCLE)


def _parent_of(data: event_data_pb2.ProcessEventData) -> tuple[str | None, str | None]:
    if not data.HasField("tree_context") or not data.tree_context.HasField("parent_process"):
        return None, None
    parent = data.tree_context.parent_process
    path = parent.executable_path if parent.HasField("executable_path") else None
    return parent.name or None, path


def _cmdline_of(process: common_pb2.ProcessRecord) -> str | None:
    if "command_line" in process.missing_fields:
        return None
    return shlex.join(process.command_line)


def _user_of(process: common_pb2.ProcessRecord) -> str | None:
    if process.HasField("user_name"):
        return process.user_name
    return process.user_id if process.HasField("user_id") else None


def _cpu_of(data: event_data_pb2.ProcessEventData) -> float | None:
    if data.process.HasField("cpu_usage"):
        percent = data.process.cpu_usage
    elif data.performance.HasField("cpu_percent"):
        percent = data.performance.cpu_percent
    else:
        return None
    return percent if percent == percent else None  # noqa: PLR0124 - NaN is not equal to itself


def _sha256_of(process: common_pb2.ProcessRecord) -> str | None:
    if process.hash_algorithm != "sha256" or not process.HasField("executable_hash"):
        return None
    return process.executable_hash.lower()
