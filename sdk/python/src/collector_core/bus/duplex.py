"""One bidirectional stream: raw requests out, while somebody else reads what comes."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc.aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from daemoneye_mesh.error_interceptor import is_cancelled_from_outside, unwrap

__all__ = ["Call", "run_duplex", "write"]

Call = grpc.aio.StreamStreamCall[bytes, Any]
"""A call whose requests are encoded already."""


async def write(call: Call, request: bytes) -> bool:
    """Sends a request; false when the call has ended, and reading from it says why.

    ``call.write`` would overwrite the status that the server ended the call with by INTERNAL, if it
    is sending just when the status arrives; the reason of a refusal, and when to come back, would be
    lost. So what it does is done here without that.
    """
    if call.done():
        return False
    try:
        await call.wait_for_connection()
    except grpc.aio.AioRpcError:
        return False
    try:
        await call._cython_call.send_serialized_message(request)  # type: ignore[attr-defined]
    except cygrpc.InternalError:
        return False
    return True


async def run_duplex(
    call: Call, sending: Coroutine[Any, Any, None], receiving: Coroutine[Any, Any, None]
) -> None:
    """Runs both directions until receiving ends, then ends the call.

    Raises:
        BaseException: what either direction raised, without a group around it.
    """
    try:
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(sending, name="sender")
            try:
                await receiving
            finally:
                sender.cancel()
    except BaseExceptionGroup as failed:
        # Not `except*`: before Python 3.11.4 it wraps what is raised here in a group again.
        if is_cancelled_from_outside():  # the group was busy ending and has swallowed it
            raise asyncio.CancelledError from None
        raise unwrap(failed) from None
    finally:
        call.cancel()
