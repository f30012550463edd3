"""Requests and results of analyses as they go over the wire, checked against the contract."""

from collections.abc import Iterable, Sequence

from collector_core.analysis import (
    AnalysisFinding,
    AnalysisRequest,
    AnalysisTarget,
    TriggerPriority,
)
from daemoneye.common.v1 import analysis_pb2
from daemoneye.ipc.v1 import analysis_pb2 as pb
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

__all__ = ["to_request", "to_result"]

MAX_TRIGGER_ID_BYTES = 128
MAX_CUSTOM_TYPE_BYTES = 64
MAX_BOOT_ID_BYTES = 64
MAX_PATH_BYTES = 4096
MAX_ENTRIES = 100
MAX_ENTRIES_BYTES = 64 << 10
MAX_RESULT_BYTES = 1 << 20
"""A hundred digests of the longest paths fit."""

_CUSTOM = analysis_pb2.ANALYSIS_TYPE_CUSTOM


def to_request(message: pb.AnalyzeRequest) -> AnalysisRequest:
    """Returns what is asked for, checked.

    Raises:
        InvalidRequestError: it makes no sense; the metadata names the field.
    """
    _check_size("trigger_id", message.trigger_id, 1, MAX_TRIGGER_ID_BYTES)
    _check_type(message)
    arguments = dict(message.arguments)
    if len(arguments) > MAX_ENTRIES or _size_of(arguments.items()) > MAX_ENTRIES_BYTES:
        raise _invalid(
            "arguments", f"must have at most {MAX_ENTRIES} entries and {MAX_ENTRIES_BYTES} bytes"
        )
    return AnalysisRequest(
        trigger_id=message.trigger_id,
        analysis_type=message.analysis_type,
        target=_to_target(message.target),
        priority=TriggerPriority.of(message.priority),
        custom_type=message.custom_type,
        arguments=arguments,
    )


def to_result(finding: AnalysisFinding) -> pb.AnalysisResult:
    """Returns what leaves the process.

    Raises:
        ValueError: it is beyond the bounds of the contract, which is a defect of its source.
    """
    _check_bounds(finding.hashes, finding.findings.items())
    if not 0.0 <= finding.confidence <= 1.0:
        raise ValueError(f"the confidence is {finding.confidence}, not from 0 to 1")
    result = pb.AnalysisResult(
        hashes=finding.hashes, findings=finding.findings, confidence=finding.confidence
    )
    if result.ByteSize() > MAX_RESULT_BYTES:
        raise ValueError(f"the result has {result.ByteSize()} bytes, more than {MAX_RESULT_BYTES}")
    return result


def _check_type(message: pb.AnalyzeRequest) -> None:
    number = message.analysis_type
    if number not in analysis_pb2.AnalysisType.values():
        raise InvalidRequestError(
            f"analysis_type {number} is not known here; upgrade this collector",
            reason=ErrorReason.ENUM_UNKNOWN,
            field="analysis_type",
            number=number,
        )
    if number == analysis_pb2.ANALYSIS_TYPE_UNSPECIFIED:
        raise _invalid("analysis_type", "is not set; say what to find out")
    if number == _CUSTOM:
        _check_size("custom_type", message.custom_type, 1, MAX_CUSTOM_TYPE_BYTES)
    elif message.custom_type:
        raise _invalid("custom_type", "is for ANALYSIS_TYPE_CUSTOM; leave it out")


def _to_target(message: analysis_pb2.AnalysisTarget) -> AnalysisTarget:
    path = message.path if message.HasField("path") else None
    if path is not None:
        _check_size("target.path", path, 1, MAX_PATH_BYTES)
        if not path.startswith("/") or "\0" in path:
            raise _invalid("target.path", "must be absolute and without NUL; correct it")
    if not message.HasField("pid"):
        if path is None:
            raise _invalid("target", "has neither pid nor path; give one")
        if message.boot_id or message.HasField("start_ticks"):
            raise _invalid("target.pid", "is missing beside boot_id or start_ticks; give all three")
        return AnalysisTarget(path=path)
    if not 0 < message.pid < 1 << 31:
        raise _invalid("target.pid", "must be from 1 to 2147483647; correct it")
    if not message.HasField("start_ticks"):
        raise _invalid("target.start_ticks", "is missing beside pid; a pid alone is used again")
    _check_size("target.boot_id", message.boot_id, 1, MAX_BOOT_ID_BYTES)
    return AnalysisTarget(message.boot_id, message.pid, message.start_ticks, path)


def _check_size(name: str, text: str, minimum: int, limit_bytes: int) -> None:
    if not minimum <= len(text.encode()) <= limit_bytes:
        raise _invalid(name, f"must have {minimum} to {limit_bytes} bytes; correct it")


def _invalid(name: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} {problem}", field=name)


def _size_of(pairs: Iterable[tuple[str, str]]) -> int:
    return sum(len(key.encode()) + len(value.encode()) for key, value in pairs)


def _check_bounds(hashes: Sequence[object], findings: Iterable[tuple[str, str]]) -> None:
    pairs = list(findings)
    if len(hashes) > MAX_ENTRIES or len(pairs) > MAX_ENTRIES:
        raise ValueError(f"there are more than {MAX_ENTRIES} hashes or findings")
    if _size_of(pairs) > MAX_ENTRIES_BYTES:
        raise ValueError(f"the findings have more than {MAX_ENTRIES_BYTES} bytes")
