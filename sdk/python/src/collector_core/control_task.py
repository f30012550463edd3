"""Work that must reach its end, and work that must end by its deadline.

Invariant: neither loses a cancellation; what asked us to stop hears of it once the work has ended.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from daemoneye_mesh.errors import DeadlineError

__all__ = ["finish", "is_cancelling", "run_within"]

T = TypeVar("T")


def is_cancelling() -> bool:
    """Whether somebody asked the current task to stop; else a cancellation is of its own making."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def finish(work: Awaitable[T]) -> T:
    """Awaits ``work`` to its end, whatever cancels the caller meanwhile.

    Raises:
        CancelledError: the caller was cancelled; the work has ended all the same.
    """
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        if not task.cancelled():
            task.exception()  # seen here: nobody else asks for it any more
        raise cancellation
    return task.result()


async def run_within(
    operation: str, context: Any, ceiling_s: float, work: Callable[[], Awaitable[T]]
) -> T:
    """Runs the work of a call until the caller's deadline, or ours when that is earlier.

    Args:
        operation: name of the method, for the error.
        context: the call.
        ceiling_s: longest time that the method may take.
        work: what to do; cancelled when the time is over.

    Raises:
        DeadlineError: the time was over; when it was over before, nothing was begun.
    """
    remaining_s: float | None = context.time_remaining()
    limit_s = ceiling_s if remaining_s is None else min(remaining_s, ceiling_s)
    if limit_s <= 0:
        raise DeadlineError(
            f"the deadline of {operation} was over before it began; ask with more time",
            operation=operation,
        )
    scope = asyncio.timeout(limit_s)
    try:
        async with scope:
            return await work()
    except TimeoutError:
        if not scope.expired():
            raise
        raise DeadlineError(
            f"{operation} was not done within {limit_s:.3g} s and was cancelled; look at the health"
            " of the collector and ask again",
            operation=operation,
            limit_s=f"{limit_s:.3g}",
        ) from None
