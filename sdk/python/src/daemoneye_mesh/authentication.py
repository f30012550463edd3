"""Lets a call through only with a token that verifies and a table entry that allows it.

The interceptor belongs inside the error interceptor, which turns what it raises into the status of
the call. Invariant: a handler of a method that is not open runs only while ``caller()`` says for
whom, and the token itself reaches no log.
"""

import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import grpc

from daemoneye_mesh.access import AccessTable, RefusalListener
from daemoneye_mesh.errors import (
    DaemoneyeError,
    ErrorReason,
    InternalError,
    UnauthenticatedError,
)
from daemoneye_mesh.identity import VerifiedToken
from daemoneye_mesh.interception import HandlerInterceptor
from daemoneye_mesh.token import TokenVerifier

__all__ = ["AUTHORIZATION_KEY", "AuthInterceptor", "caller", "current_caller"]

AUTHORIZATION_KEY = "authorization"
_UNKNOWN = "unknown"
"""Names, in logs and to listeners, whoever showed no valid signature."""

current_caller: ContextVar[VerifiedToken | None] = ContextVar("current_caller", default=None)
"""Whose call the current task serves. grpc.aio runs every call in a task of its own."""

log = logging.getLogger("daemoneye.authentication")


def caller() -> VerifiedToken:
    """Returns whose call the current task serves.

    Raises:
        InternalError: the code does not run inside an authenticated call, or the method is open.
    """
    verified = current_caller.get()
    if verified is None:
        raise InternalError("there is no caller here; ask only inside an authenticated method")
    return verified


class AuthInterceptor(HandlerInterceptor):
    """Authenticates and authorises every call of a server.

    Args:
        verifier: knows the audience of this server.
        access: the table.
    """

    def __init__(self, verifier: TokenVerifier, access: AccessTable) -> None:
        self._verifier = verifier
        self._access = access
        self.refusals: Counter[ErrorReason] = Counter()
        """How many calls were refused, by reason."""
        self.on_refusal: RefusalListener | None = None
        """Hears of every caller who could not be verified, in the middle of the call: it must return
        at once. What a verified caller may not do is told by ``AccessTable.on_refusal``, so that
        whoever listens to both hears of each refusal once."""

    @asynccontextmanager
    async def around(self, context: Any, details: grpc.HandlerCallDetails) -> AsyncIterator[None]:
        """Runs one call for its verified caller, or raises why not.

        Raises:
            UnauthenticatedError: no token, or one that does not verify.
            PermissionDeniedError: the table does not list the method for this identity.
        """
        # Never reset: the task ends with the call, and an abandoned generator may be closed by
        # another task, where a reset is an error.
        current_caller.set(self._admit(details))
        yield

    def _admit(self, details: grpc.HandlerCallDetails) -> VerifiedToken | None:
        method = details.method
        if self._access.is_open(method):
            return None
        verified: VerifiedToken | None = None
        try:
            verified = self._verifier.verify(find_token(details))
            self._access.require_call(verified, method)
        except DaemoneyeError as error:
            self._record(error, method, verified)
            raise
        return verified

    def _record(self, error: DaemoneyeError, method: str, verified: VerifiedToken | None) -> None:
        self.refusals[error.reason] += 1
        name = verified.identity.name if verified else error.metadata.get("identity", _UNKNOWN)
        log.warning(
            "refused %s to %s: %s",
            method,
            name,
            error.reason,
            extra={"identity": name, "method": method, "reason": str(error.reason)},
        )
        if verified is None and self.on_refusal is not None:
            self.on_refusal(name, "call", error.reason, method)


def find_token(details: grpc.HandlerCallDetails) -> str:
    """Returns the bearer token of a call.

    Raises:
        UnauthenticatedError: TOKEN_MISSING without a token, TOKEN_INVALID with more than one
            authorization or another scheme than Bearer.
    """
    values = [value for key, value in details.invocation_metadata or () if key == AUTHORIZATION_KEY]
    if not values:
        raise UnauthenticatedError(
            f"{details.method} needs a token; send the metadata "
            "'authorization: Bearer <token>', with grpcurl: TOKEN=$(cat FILE) grpcurl "
            "-expand-headers -H 'authorization: Bearer ${TOKEN}'",
            reason=ErrorReason.TOKEN_MISSING,
            method=details.method,
        )
    value = values[0]
    scheme, _, token = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if len(values) > 1 or scheme.lower() != "bearer" or not token:
        raise UnauthenticatedError(
            "the authorization is not understood; send 'authorization: Bearer <token>' once",
            reason=ErrorReason.TOKEN_INVALID,
        )
    return token.strip()
