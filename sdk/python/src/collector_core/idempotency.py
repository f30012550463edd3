"""Does once what is asked several times under one key, and answers all who ask the same.

Invariants: work under a key runs at most once at a time; it ends early only when nobody waits for it
any more, and is then forgotten, so that the same key may try again. Remembered are the answers and
the final refusals of the last ``capacity`` keys (MUST-CTL-03); an error that says that asking again
may help is not.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from collector_core.control_task import finish
from daemoneye_mesh.errors import DaemoneyeError, InvalidRequestError, OverloadedError

__all__ = ["MAX_KEY_BYTES", "REMEMBERED_CALLS", "IdempotencyCache"]

MAX_KEY_BYTES = 64
REMEMBERED_CALLS = 256

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Call:
    digest: bytes
    task: "asyncio.Task[Any]"
    waiter_count: int = 0
    is_abandoned: bool = False


class IdempotencyCache:
    """Calls by their key.

    Args:
        capacity: how many finished calls are remembered, and how many may run at once.
    """

    def __init__(self, capacity: int = REMEMBERED_CALLS) -> None:
        self._capacity = capacity
        self._running: dict[str, _Call] = {}
        self._finished: OrderedDict[str, _Call] = OrderedDict()

    async def run(self, key: str, fingerprint: bytes, work: Callable[[], Awaitable[T]]) -> T:
        """Returns the outcome of the call with this key, which runs when there is none yet.

        Args:
            key: chosen by the caller, 1 to 64 bytes.
            fingerprint: the request as bytes; the same key must come with the same.
            work: carries the call out. It runs in a task of its own.

        Raises:
            InvalidRequestError: the key breaks its bounds, or came with another request before.
            OverloadedError: too many calls with a key run at once.
            DaemoneyeError: what the call was refused with, now or the first time.
        """
        check_key(key)
        digest = hashlib.sha256(fingerprint).digest()
        while (call := self._running.get(key)) is not None and call.is_abandoned:
            await asyncio.wait({call.task})
        call = call or self._recall(key) or self._begin(key, digest, work)
        if call.digest != digest:
            raise InvalidRequestError(
                f"idempotency_key {key!a} was used for another request; choose a new one",
                field="idempotency_key",
                idempotency_key=ascii(key),
            )
        outcome: T = await _outcome_of(call)
        return outcome

    def _recall(self, key: str) -> _Call | None:
        call = self._finished.get(key)
        if call is not None:
            self._finished.move_to_end(key)
        return call

    def _begin(self, key: str, digest: bytes, work: Callable[[], Awaitable[Any]]) -> _Call:
        if len(self._running) >= self._capacity:
            raise OverloadedError(
                f"{self._capacity} calls with an idempotency_key run already; ask again later",
                limit=self._capacity,
            )
        call = _Call(digest, asyncio.ensure_future(_carry_out(work)))
        self._running[key] = call
        # Before anybody waits: whoever wakes up at the end finds it settled.
        call.task.add_done_callback(lambda _: self._settle(key, call))
        return call

    def _settle(self, key: str, call: _Call) -> None:
        del self._running[key]
        if not _is_final(call.task):
            return
        self._finished[key] = call
        while len(self._finished) > self._capacity:
            self._finished.popitem(last=False)


def check_key(key: str) -> None:
    """Checks the bounds of a key.

    Raises:
        InvalidRequestError: it is empty or longer than 64 bytes.
    """
    size_bytes = len(key.encode())
    if not 0 < size_bytes <= MAX_KEY_BYTES:
        raise InvalidRequestError(
            f"idempotency_key has {size_bytes} bytes; choose one of 1 to {MAX_KEY_BYTES}",
            field="idempotency_key",
            size_bytes=size_bytes,
            limit_bytes=MAX_KEY_BYTES,
        )


async def _carry_out(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


async def _outcome_of(call: _Call) -> Any:
    call.waiter_count += 1
    try:
        await asyncio.wait({call.task})
    finally:
        call.waiter_count -= 1
        if not call.waiter_count and not call.task.done():
            call.is_abandoned = True
            call.task.cancel()
            # Who leaves last stays until the work has cleaned up: the answer must not overtake it.
            await finish(asyncio.wait({call.task}))
    return call.task.result()


def _is_final(task: "asyncio.Task[Any]") -> bool:
    if task.cancelled():
        return False
    error = task.exception()
    return error is None or (isinstance(error, DaemoneyeError) and not error.retryable)
