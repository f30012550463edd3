"""Reading a request stream that must not outlive its server.

Invariant: every request that was read is yielded; once the server drains, no further one is.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from daemoneye_mesh.errors import ErrorReason, UnavailableError

__all__ = ["read_until_drained"]

T = TypeVar("T")


async def read_until_drained(
    requests: AsyncIterator[T], draining: asyncio.Event
) -> AsyncGenerator[T, None]:
    """Yields the requests of a stream until it ends or the server drains.

    An open stream would hold a stopping server for its whole grace.

    Raises:
        UnavailableError: the server drains; the peer should connect again.
    """
    stopping = asyncio.ensure_future(draining.wait())
    reading: asyncio.Future[T] | None = None
    try:
        # Asked before each read: a peer that always has a request ready must not hold us either.
        while not draining.is_set():
            reading = asyncio.ensure_future(anext(requests))
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                break
            try:
                request = reading.result()
            except StopAsyncIteration:
                return
            yield request
        raise UnavailableError(
            "the server is shutting down; connect again", reason=ErrorReason.DRAINING
        )
    finally:
        stopping.cancel()
        if reading is not None:
            abandon(reading)


def abandon(reading: asyncio.Future[T]) -> None:
    """Cancels a read; one that failed meanwhile has nobody left who would want to know."""
    if not reading.cancel() and not reading.cancelled():
        reading.exception()
