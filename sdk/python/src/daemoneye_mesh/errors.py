"""The one error tree of the mesh, and what each branch means to a caller.

::

    DaemoneyeError                      INTERNAL
      InvalidRequestError               INVALID_ARGUMENT      the caller must change the request
        InvalidConfigError              INVALID_ARGUMENT      the operator must change a setting
      NotFoundError                     NOT_FOUND             the named thing does not exist
      AlreadyExistsError                ALREADY_EXISTS        the named thing exists already
      UnauthenticatedError              UNAUTHENTICATED       no token, or one that does not verify
      PermissionDeniedError             PERMISSION_DENIED     verified, but the access table says no
      PreconditionError                 FAILED_PRECONDITION   the callee must change state first
      ConflictError                     ABORTED               another actor won; read again, retry
      OverloadedError                   RESOURCE_EXHAUSTED    a bound was reached; retry later
        RateLimitedError                RESOURCE_EXHAUSTED    too much a second; it says until when
      UnsupportedError                  UNIMPLEMENTED         this build does not offer it
      UnavailableError                  UNAVAILABLE           nobody serves it now; retry
      DeadlineError                     DEADLINE_EXCEEDED     time ran out
      InternalError                     INTERNAL              a defect of ours

``code`` says what to do, ``reason`` (the proto enum ``daemoneye.common.v1.ErrorReason``) what
happened. Messages are lower case, carry no final period and end with what to do next; every variable
in a message stands in ``metadata`` too, so that programs need not parse prose. An error that knows
when asking again makes sense says so in ``retry_after_s``; nobody comes back before. Nothing here
imports gRPC: domain modules raise these errors, and one interceptor translates them.
"""

from enum import IntEnum
from typing import ClassVar

from daemoneye_mesh.reasons import ErrorReason

__all__ = [
    "AlreadyExistsError",
    "Code",
    "ConflictError",
    "DaemoneyeError",
    "DeadlineError",
    "ErrorReason",
    "InternalError",
    "InvalidConfigError",
    "InvalidRequestError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "PreconditionError",
    "RateLimitedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnsupportedError",
]


class Code(IntEnum):
    """The gRPC status codes the mesh uses, by their wire numbers (grpc/doc/statuscodes.md)."""

    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class DaemoneyeError(Exception):
    """Root of every error this project raises on purpose.

    Args:
        message: one sentence for a person, ending with what to do next.
        reason: what happened, for a program; the class default when left out.
        metadata: the variables of the message. Values are sent to the peer: no secrets.
    """

    code: ClassVar[Code] = Code.INTERNAL
    default_reason: ClassVar[ErrorReason] = ErrorReason.INTERNAL
    retryable: ClassVar[bool] = False

    retry_after_s: float | None = None
    """How long to wait before asking again; None when nobody can tell."""

    def __init__(
        self, message: str, *, reason: ErrorReason | None = None, **metadata: object
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}


class InvalidRequestError(DaemoneyeError):
    """The request can never succeed as it is; the caller must change it."""

    code = Code.INVALID_ARGUMENT
    default_reason = ErrorReason.REQUEST_INVALID


class InvalidConfigError(InvalidRequestError):
    """A setting is unknown, malformed or out of range; the process does not start with it."""

    default_reason = ErrorReason.CONFIG_INVALID


class NotFoundError(DaemoneyeError):
    """The named thing does not exist."""

    code = Code.NOT_FOUND
    default_reason = ErrorReason.NOT_FOUND


class AlreadyExistsError(DaemoneyeError):
    """The named thing exists already."""

    code = Code.ALREADY_EXISTS
    default_reason = ErrorReason.ALREADY_EXISTS


class UnauthenticatedError(DaemoneyeError):
    """No token came with the call, or one that does not verify."""

    code = Code.UNAUTHENTICATED
    default_reason = ErrorReason.TOKEN_INVALID


class PermissionDeniedError(DaemoneyeError):
    """The identity is verified, but the access table does not allow the call or topic."""

    code = Code.PERMISSION_DENIED
    default_reason = ErrorReason.ACCESS_DENIED


class PreconditionError(DaemoneyeError):
    """The callee is in a state in which the request makes no sense."""

    code = Code.FAILED_PRECONDITION
    default_reason = ErrorReason.STATE_INVALID


class ConflictError(DaemoneyeError):
    """Another actor won; read the current state and decide again."""

    code = Code.ABORTED
    default_reason = ErrorReason.SUPERSEDED


class OverloadedError(DaemoneyeError):
    """A declared bound was reached; the request is fine and may be repeated later."""

    code = Code.RESOURCE_EXHAUSTED
    default_reason = ErrorReason.LIMIT_REACHED
    retryable = True


class RateLimitedError(OverloadedError):
    """Too much was asked in too short a time (MUST-ERR-04).

    Args:
        message: as for every error.
        retry_after_s: how long to wait before the same request can succeed; not negative.
        reason: as for every error.
        metadata: as for every error.
    """

    default_reason = ErrorReason.RATE_LIMITED

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float,
        reason: ErrorReason | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message, reason=reason, **metadata)
        self.retry_after_s = retry_after_s


class UnsupportedError(DaemoneyeError):
    """This build does not offer the feature; asking again does not help."""

    code = Code.UNIMPLEMENTED
    default_reason = ErrorReason.FEATURE_UNSUPPORTED


class UnavailableError(DaemoneyeError):
    """Nobody serves the request now; repeating it later may succeed."""

    code = Code.UNAVAILABLE
    default_reason = ErrorReason.PEER_UNAVAILABLE
    retryable = True


class DeadlineError(DaemoneyeError):
    """Time ran out before the work was done."""

    code = Code.DEADLINE_EXCEEDED
    default_reason = ErrorReason.DEADLINE_EXCEEDED


class InternalError(DaemoneyeError):
    """A defect of ours; the log has the story under the incident id."""
