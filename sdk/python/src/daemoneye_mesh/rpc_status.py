"""Errors as gRPC statuses and back: the one place that translates.

Status details carry a ``google.rpc.ErrorInfo`` (AIP-193) with domain ``daemoneye``, the reason and
the variables of the message.
"""

import grpc
from google.protobuf import any_pb2
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
    detail = any_pb2.Any()
    detail.Pack(info)
    message = _fit(error.message, _MAX_MESSAGE_BYTES)
    status = status_pb2.Status(code=error.code.value, message=message, details=[detail])
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.aio.AioRpcError) -> DaemoneyeError:
    """Returns the error of ours that a failed call stands for.

    A status without our ErrorInfo (the transport, a foreign server) is told by its code alone.
    """
    code = error.code().value[0]
    cls = _CLASSES.get(code, errors.InternalError)
    info = _find_info(error)
    text = error.details() or error.code().name.lower()
    if info is None:
        return cls(text)
    return _build(cls, text, info.reason, dict(info.metadata))


def to_detail(error: DaemoneyeError) -> error_pb2.ErrorDetail:
    """Returns ``error`` as a message, for streams that go on after it."""
    return error_pb2.ErrorDetail(
        code=error.code.value,
        reason=error_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason}"),
        message=_fit(error.message, _MAX_MESSAGE_BYTES),
        metadata=_fit_all(error.metadata),
    )


def from_detail(detail: error_pb2.ErrorDetail) -> DaemoneyeError:
    """Returns the error that ``detail`` stands for."""
    cls = _CLASSES.get(detail.code, errors.InternalError)
    known = error_pb2.ErrorReason.values()
    number = detail.reason if detail.reason in known else error_pb2.ERROR_REASON_UNSPECIFIED
    reason = error_pb2.ErrorReason.Name(number).removeprefix("ERROR_REASON_")
    return _build(cls, detail.message, reason, dict(detail.metadata))


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
    cls: type[DaemoneyeError], message: str, reason: str, metadata: dict[str, str]
) -> DaemoneyeError:
    known = reason if reason in ErrorReason.__members__ else cls.default_reason
    built = cls(message, reason=ErrorReason(known))
    built.metadata = metadata
    return built


def _find_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type] # has what it reads
    except ValueError:  # details that contradict the status: not written by us
        return None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
            return info
    return None


assert set(_CLASSES) == set(Code), "every code needs its class"  # noqa: S101 -- holds at import
