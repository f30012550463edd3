"""Connecting again and again, with full jitter and without giving up.

A lost peer is normal in a mesh whose processes restart; what must not happen is that all of its
clients come back at the same instant, or that one of them stops trying.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio
import tenacity

from daemoneye_mesh.errors import ConflictError, DaemoneyeError, InternalError
from daemoneye_mesh.rpc_status import from_rpc_error

__all__ = ["MAX_DELAY_S", "SessionBackoff", "explain", "keep_trying", "to_known"]

T = TypeVar("T")

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 2.0
"""A Unix socket that is back should not wait long for its clients."""

STEADY_S = 1.0
"""A session that lasted this long was not broken from the start. Were it longer, a broker that dies
every few seconds would keep its subscribers away for longer than it retains what they miss."""

MAX_PAUSE_S = 30.0

log = logging.getLogger("daemoneye.reconnect")

_wait = tenacity.wait_random_exponential(multiplier=FIRST_DELAY_S, max=MAX_DELAY_S)


def _wait_as_told(state: tenacity.RetryCallState) -> float:
    """The pause of full jitter, or what the peer asked for where that is longer (MUST-ERR-04)."""
    outcome = state.outcome.exception() if state.outcome else None
    told_s = (to_known(outcome).retry_after_s or 0.0) if outcome is not None else 0.0
    return told_s + float(_wait(state))


async def keep_trying(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Calls ``attempt`` until it succeeds; the first failure and every tenth are logged.

    Args:
        what: for the log, such as "register with the agent".
        attempt: raises DaemoneyeError or a failed call's error when it should be tried again;
            anything else passes through.

    Raises:
        ConflictError: somebody newer has taken our place; trying on would fight it.
    """

    def report(state: tenacity.RetryCallState) -> None:
        outcome = state.outcome.exception() if state.outcome else None
        if state.attempt_number % 10 == 1 and outcome is not None:
            log.warning("cannot %s yet, trying on: %s", what, explain(outcome))

    async def once() -> T:  # tenacity awaits coroutine functions only, and a lambda is none
        return await attempt()

    retrying = tenacity.AsyncRetrying(
        wait=_wait_as_told,
        retry=tenacity.retry_if_exception(is_worth_retrying),
        before_sleep=report,
        sleep=asyncio.sleep,
    )
    try:
        return await retrying(once)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


class SessionBackoff:
    """The pause before a session that broke is opened again.

    Sessions that break at once are spaced further and further, so that one that is refused each time
    neither spins nor fills the log; one that lasted starts over.

    Args:
        monotonic: seconds on a clock that is never set.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._begun_s = monotonic()
        self._broken_count = 0

    def begin(self) -> None:
        """Notes that a session was opened."""
        self._begun_s = self._monotonic()

    async def pause(self, at_least_s: float = 0.0) -> None:
        """Waits before the next session, with full jitter.

        Args:
            at_least_s: how long the peer asked to be left alone; the jitter comes after it.
        """
        jitter_s = random.uniform(FIRST_DELAY_S / 2, self.next_limit_s())  # noqa: S311
        await asyncio.sleep(at_least_s + jitter_s)

    def next_limit_s(self) -> float:
        """The longest that the next pause may be, in seconds."""
        if self._monotonic() - self._begun_s >= STEADY_S:
            self._broken_count = 0
        self._broken_count += 1
        return float(min(FIRST_DELAY_S * 2**self._broken_count, MAX_PAUSE_S))


def is_worth_retrying(error: BaseException) -> bool:
    """Whether an attempt that failed so may succeed later: all but having been superseded."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() is not grpc.StatusCode.ABORTED
    return isinstance(error, DaemoneyeError) and not isinstance(error, ConflictError)


def to_known(error: BaseException) -> DaemoneyeError:
    """Returns the error of ours that a failed attempt stands for."""
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    return error if isinstance(error, DaemoneyeError) else InternalError(type(error).__name__)


def explain(error: BaseException) -> str:
    """Returns one sentence about a failed attempt."""
    if isinstance(error, grpc.aio.AioRpcError):
        if _is_from_transport(error):
            return "nobody answers on its socket"
        error = from_rpc_error(error)
    return error.message if isinstance(error, DaemoneyeError) else type(error).__name__


def _is_from_transport(error: grpc.aio.AioRpcError) -> bool:
    text = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and "connect" in text
