"""One analysis to be asked for, and what the contract demands of it."""

import uuid
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from collector_core.analysis import AnalysisTarget, TriggerPriority
from collector_core.trigger.spec import (
    MAX_ARGUMENTS,
    MAX_ARGUMENTS_BYTES,
    AnalysisKind,
    TriggerSpec,
)
from collector_core.trigger.subject import Subject
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["MAX_PATH_BYTES", "MAX_TRIGGER_ID_BYTES", "TriggerRequest", "check_request"]

MAX_TRIGGER_ID_BYTES = 128
MAX_PATH_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerRequest:
    """What a trigger asks of another collector."""

    trigger_id: str
    target_collector: str
    analysis_type: AnalysisKind
    priority: TriggerPriority
    reason: str
    target: AnalysisTarget
    dedup_key: Hashable
    """What makes two requests the same: collector, analysis, process and path."""
    topic: str
    time_ns: int
    """When the event was seen that gave rise to it, nanoseconds since the Unix epoch."""
    custom_type: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: TriggerSpec, subject: Subject, topic: str, time_ns: int) -> "TriggerRequest":
        """Returns what ``spec`` asks about ``subject``.

        Raises:
            InvalidRequestError: the contract does not allow it.
        """
        request = cls(
            trigger_id=f"{spec.id}-{uuid.uuid4().hex}",
            target_collector=spec.target_collector,
            analysis_type=spec.analysis_type,
            priority=spec.priority,
            reason=spec.description,
            target=_target_of(subject),
            dedup_key=key_of(spec, subject),
            topic=topic,
            time_ns=time_ns,
            custom_type=spec.custom_type,
            arguments=spec.arguments,
        )
        check_request(request)
        return request


def key_of(spec: TriggerSpec, subject: Subject) -> Hashable:
    """Returns what makes two requests the same; the same pid at another time is another process."""
    return (
        spec.target_collector,
        spec.analysis_type,
        spec.custom_type,
        subject.boot_id,
        subject.pid,
        subject.start_ticks,
        subject.path,
    )


def check_request(request: TriggerRequest) -> None:
    """Refuses what no collector could answer.

    Raises:
        InvalidRequestError: the metadata names the field.
    """
    _check_size("trigger_id", request.trigger_id, 1, MAX_TRIGGER_ID_BYTES)
    _check_size("target_collector", request.target_collector, 1, 64)
    target = request.target
    if target.pid is None and target.path is None:
        raise InvalidRequestError(
            "target has neither a process nor a path; give one", field="target"
        )
    if target.path is not None:
        _check_size("target.path", target.path, 1, MAX_PATH_BYTES)
    if target.pid is not None and (not target.boot_id or target.start_ticks is None):
        raise InvalidRequestError(
            "target.pid needs boot_id and start_ticks; give all three", field="target.pid"
        )
    if len(request.arguments) > MAX_ARGUMENTS:
        raise InvalidRequestError(
            f"arguments has more than {MAX_ARGUMENTS} entries; leave some out", field="arguments"
        )
    pairs = request.arguments.items()
    _check_size("arguments", "".join(k + v for k, v in pairs), 0, MAX_ARGUMENTS_BYTES)


def _target_of(subject: Subject) -> AnalysisTarget:
    is_gone = subject.kind == "stop" or not subject.boot_id or subject.start_ticks is None
    if is_gone:
        return AnalysisTarget(path=subject.path)
    return AnalysisTarget(subject.boot_id, subject.pid, subject.start_ticks, subject.path)


def _check_size(field_name: str, text: str, minimum: int, limit_bytes: int) -> None:
    size_bytes = len(text.encode())
    if not minimum <= size_bytes <= limit_bytes:
        raise InvalidRequestError(
            f"{field_name} has {size_bytes} bytes; give {minimum} to {limit_bytes}",
            field=field_name,
            size_bytes=size_bytes,
            limit_bytes=limit_bytes,
        )
