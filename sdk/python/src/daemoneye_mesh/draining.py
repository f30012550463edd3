"""Reading a request stream that must not outlive its server."""

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
        while True:
            reading = asyncio.ensure_future(anext(requests))
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise UnavailableError(
                    "the server is shutting down; connect again", reason=ErrorReason.DRAINING
                )
            try:
                request = reading.result()
            except StopAsyncIteration:
                return
            yield request
    finally:
        stopping.cancel()
        if reading is not None:
            reading.cancel()
