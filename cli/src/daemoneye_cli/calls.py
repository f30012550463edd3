"""Calls to the mesh with a deadline, whose failures are errors of ours that name the peer.

The text that gRPC itself writes about a broken connection helps nobody; it is replaced. What a server
of the mesh says about a refused request is passed on as it is.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio

from daemoneye_cli.errors import UnreachableError
from daemoneye_mesh.channel import correlation_metadata
from daemoneye_mesh.errors import DaemoneyeError, DeadlineError, ErrorReason, UnavailableError
from daemoneye_mesh.rpc_status import from_rpc_error

__all__ = ["Peer", "ask", "explain_failure", "read_stream"]

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is called, for messages."""

    name: str
    """Such as ``agent`` or ``collector procmond``."""
    socket: Path


async def ask(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    peer: Peer,
    timeout_s: float,
) -> Response:
    """Makes one call.

    Raises:
        DaemoneyeError: the call failed.
    """
    try:
        return await method(request, timeout=timeout_s, metadata=correlation_metadata())
    except grpc.aio.AioRpcError as error:
        raise explain_failure(error, peer, timeout_s) from None


async def read_stream(
    call: grpc.aio.UnaryStreamCall[Request, Response]
    | grpc.aio.StreamStreamCall[Request, Response],
    peer: Peer,
    timeout_s: float | None,
) -> AsyncGenerator[Response, None]:
    """Yields the responses of a call and cancels it when the reader stops early.

    Raises:
        DaemoneyeError: the call failed.
    """
    try:
        async for response in call:
            yield response
    except grpc.aio.AioRpcError as error:
        raise explain_failure(error, peer, timeout_s) from None
    finally:
        call.cancel()


def explain_failure(
    error: grpc.aio.AioRpcError, peer: Peer, timeout_s: float | None
) -> DaemoneyeError:
    """Returns the error that a failed call stands for."""
    known = from_rpc_error(error)
    if _has_details(error):
        return known
    if isinstance(known, DeadlineError):
        limit = f" within {timeout_s:g} s" if timeout_s else ""
        return DeadlineError(
            f"no answer from {peer.name}{limit}; allow it more time, or look at its log",
            peer=peer.name,
            timeout_s=timeout_s,
        )
    if isinstance(known, UnavailableError) and known.reason is ErrorReason.PEER_UNAVAILABLE:
        return UnreachableError(
            f"lost {peer.name} at {peer.socket}; look at its log, then ask again",
            peer=peer.name,
            socket=peer.socket,
        )
    return known


def _has_details(error: grpc.aio.AioRpcError) -> bool:
    """Whether a server of the mesh wrote this status, and not gRPC."""
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
