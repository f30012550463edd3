"""The one interceptor that turns what handlers raise into gRPC statuses.

Errors of ours keep their code, reason and metadata. Anything else is a defect: the peer learns an
incident id and nothing more, the log has the story. ``context.abort`` is used nowhere else.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from daemoneye_mesh.errors import Code, DaemoneyeError, InternalError, UnavailableError
from daemoneye_mesh.errors import ErrorReason as Reason
from daemoneye_mesh.interception import HandlerInterceptor
from daemoneye_mesh.logs import bind_correlation
from daemoneye_mesh.rpc_status import to_status

__all__ = ["CORRELATION_KEY", "ErrorInterceptor"]

CORRELATION_KEY = "daemoneye-correlation-id"
"""Call metadata that links the log lines of one request across processes."""

_MAX_CORRELATION_CHARS = 64

log = logging.getLogger("daemoneye.rpc")


class ErrorInterceptor(HandlerInterceptor):
    """Maps exceptions of any handler kind to a status, and binds the correlation id for the logs."""

    @asynccontextmanager
    async def around(self, context: Any, details: grpc.HandlerCallDetails) -> AsyncIterator[None]:
        """Runs one call; raises only what gRPC itself understands."""
        with bind_correlation(find_correlation(details)):
            try:
                yield
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError as error:
                if is_cancelled_from_outside():
                    raise
                # A cancellation of the handler's own making would leave the peer without a status
                # until its deadline (grpc#29248).
                await abort(context, unwrap(error), details.method)
            except Exception as error:
                await abort(context, unwrap(error), details.method)


async def abort(context: Any, error: BaseException, method: str) -> None:
    """Ends the call with the status of ``error``."""
    known = error if isinstance(error, DaemoneyeError) else conceal(error, method)
    if known.code is Code.INTERNAL and known is error:
        log.error("%s failed: %s", method, known.message, extra={"method": method})
    await context.abort_with_status(to_status(known))


def conceal(error: BaseException, method: str) -> DaemoneyeError:
    """Logs an unforeseen exception and returns what the peer may know of it."""
    if isinstance(error, asyncio.CancelledError):
        return UnavailableError(
            "the server is shutting down; connect again", reason=Reason.DRAINING
        )
    incident = uuid.uuid4().hex[:12]
    log.error(
        "unforeseen error in %s, incident %s",
        method,
        incident,
        exc_info=error,
        extra={"incident": incident, "method": method},
    )
    return InternalError(
        f"internal error, incident {incident}; the log of this server explains it",
        incident=incident,
    )


def unwrap(error: BaseException) -> BaseException:
    """Returns the first error of ours inside exception groups, else the first leaf."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    ours = error.subgroup(DaemoneyeError)
    return unwrap((ours or error).exceptions[0])


def is_cancelled_from_outside() -> bool:
    """Whether somebody asked the current task to stop: the peer left, or the server stops."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def find_correlation(details: grpc.HandlerCallDetails) -> str:
    """Returns the caller's correlation id when it is well-formed, else a new one."""
    for key, value in details.invocation_metadata or ():
        if key == CORRELATION_KEY and isinstance(value, str) and is_well_formed(value):
            return value
    return uuid.uuid4().hex[:16]


def is_well_formed(value: str) -> bool:
    """Whether ``value`` can go into a log line as it is."""
    return 0 < len(value) <= _MAX_CORRELATION_CHARS and value.replace("-", "").isalnum()
