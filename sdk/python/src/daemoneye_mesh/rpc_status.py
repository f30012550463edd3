"""Errors as gRPC statuses and back: the one place that translates.

Status details carry a ``google.rpc.ErrorInfo`` (AIP-193) with domain ``daemoneye``, the reason and
the variables of the message; an error that says when to come back has a ``google.rpc.RetryInfo``
beside it (MUST-ERR-04). Waiting times are rounded up on the way, so that nobody comes back early.
"""

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from daemoneye.common.v1 import error_pb2
from daemoneye_mesh import errors
from daemoneye_mesh.errors import Code, DaemoneyeError, ErrorReason

__all__ = ["ERROR_DOMAIN", "from_detail", "from_rpc_error", "to_detail", "to_status"]

ERROR_DOMAIN = "daemoneye"

_MAX_MESSAGE_BYTES = 1_024
_MAX_VALUE_BYTES = 256
_MAX_METADATA_BYTES = 2_048
"""A status travels in trailing metadata, message percent-encoded: gRPC may drop it from 8 KiB on."""

_MAX_RETRY_AFTER_S = 315_576_000_000
"""The longest google.protobuf.Duration; whatever is computed, the error itself can be sent."""

_CLASSES: dict[int, type[DaemoneyeError]] = {
    cls.code: cls
    for cls in (
        errors.InvalidRequestError,
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.UnauthenticatedError,
        errors.PermissionDeniedError,
        errors.PreconditionError,
        errors.ConflictError,
        errors.OverloadedError,
        errors.UnsupportedError,
        errors.UnavailableError,
        errors.DeadlineError,
        errors.InternalError,
    )
}


def to_status(error: DaemoneyeError) -> grpc.Status:
    """Returns the status that carries ``error`` with its reason and metadata."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=ERROR_DOMAIN, metadata=_fit_all(error.metadata)
    )
    details = [_pack(info)]
    if error.retry_after_s is not None:
        details.append(_pack(_retry_info(error.retry_after_s)))
    message = _fit(error.message, _MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=error.code.value, message=message, details=details)
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.aio.AioRpcError) -> DaemoneyeError:
    """Returns the error of ours that a failed call stands for.

    A status without our ErrorInfo (the transport, a foreign server) is told by its code alone.
    """
    code = error.code().value[0]
    cls = _CLASSES.get(code, errors.InternalError)
    details = _details_of(error)
    text = error.details() or error.code().name.lower()
    info, retry_after_s = _find_info(details), _find_retry_after(details)
    if info is None:
        return _build(cls, text, cls.default_reason, {}, retry_after_s)
    return _build(cls, text, info.reason, dict(info.metadata), retry_after_s)


def to_detail(error: DaemoneyeError) -> error_pb2.ErrorDetail:
    """Returns ``error`` as a message, for streams that go on after it."""
    detail = error_pb2.ErrorDetail(
        code=error.code.value,
        reason=error_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason}"),
        message=_fit(error.message, _MAX_MESSAGE_BYTES),
        metadata=_fit_all(error.metadata),
    )
    if error.retry_after_s is not None:
        detail.retry_after_ms = _count_up(error.retry_after_s, per_second=1_000)
    return detail


def from_detail(detail: error_pb2.ErrorDetail) -> DaemoneyeError:
    """Returns the error that ``detail`` stands for."""
    cls = _CLASSES.get(detail.code, errors.InternalError)
    known = error_pb2.ErrorReason.values()
    number = detail.reason if detail.reason in known else error_pb2.ERROR_REASON_UNSPECIFIED
    reason = error_pb2.ErrorReason.Name(number).removeprefix("ERROR_REASON_")
    has_delay = detail.HasField("retry_after_ms")
    retry_after_s = detail.retry_after_ms / 1_000 if has_delay else None
    return _build(cls, detail.message, reason, dict(detail.metadata), retry_after_s)


def _fit(text: str, limit_bytes: int) -> str:
    """Returns ``text`` as a status can carry it: bounded, and without lone surrogates of a path."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= limit_bytes:
        return encoded.decode("utf-8")
    return encoded[: limit_bytes - 3].decode("utf-8", "ignore") + "..."


def _fit_all(metadata: dict[str, str]) -> dict[str, str]:
    fitting: dict[str, str] = {}
    left_bytes = _MAX_METADATA_BYTES
    for key, value in metadata.items():
        text = _fit(value, _MAX_VALUE_BYTES)
        left_bytes -= len(key) + len(text.encode())
        if left_bytes < 0:
            break
        fitting[key] = text
    return fitting


def _build(
    cls: type[DaemoneyeError],
    message: str,
    reason: str,
    metadata: dict[str, str],
    retry_after_s: float | None,
) -> DaemoneyeError:
    known = ErrorReason(reason if reason in ErrorReason.__members__ else cls.default_reason)
    is_limited = cls is errors.OverloadedError and known is ErrorReason.RATE_LIMITED
    built: DaemoneyeError
    if is_limited and retry_after_s is not None:
        built = errors.RateLimitedError(message, retry_after_s=retry_after_s)
    else:
        built = cls(message, reason=known)
        built.retry_after_s = retry_after_s
    built.metadata = metadata
    return built


def _pack(message: Message) -> any_pb2.Any:
    detail = any_pb2.Any()
    detail.Pack(message)
    return detail


def _unpack(detail: any_pb2.Any, message: Message) -> bool:
    try:
        return detail.Unpack(message)
    except DecodeError:  # the right type around garbage
        return False


def _retry_info(retry_after_s: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(_count_up(retry_after_s, per_second=1_000_000_000))
    return info


def _count_up(seconds: float, per_second: int) -> int:
    # Whole numbers all the way: a product of floats may be rounded down.
    numerator, denominator = min(max(0.0, seconds), _MAX_RETRY_AFTER_S).as_integer_ratio()
    return -(-numerator * per_second // denominator)


def _details_of(error: grpc.aio.AioRpcError) -> list[any_pb2.Any]:
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type] # has what it reads
    except (DecodeError, ValueError):  # garbage, or it contradicts the status: not written by us
        return []
    return list(status.details) if status is not None else []


def _find_info(details: list[any_pb2.Any]) -> error_details_pb2.ErrorInfo | None:
    for detail in details:
        info = error_details_pb2.ErrorInfo()
        if _unpack(detail, info) and info.domain == ERROR_DOMAIN:
            return info
    return None


def _find_retry_after(details: list[any_pb2.Any]) -> float | None:
    for detail in details:
        info = error_details_pb2.RetryInfo()
        if _unpack(detail, info):
            seconds, nanos = int(info.retry_delay.seconds), int(info.retry_delay.nanos)
            return max(0.0, (seconds * 1_000_000_000 + nanos) / 1_000_000_000)
    return None


assert set(_CLASSES) == set(Code), "every code needs its class"  # noqa: S101 -- holds at import
