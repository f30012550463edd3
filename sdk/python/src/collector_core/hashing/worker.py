"""Threads for calls that block and cannot be interrupted, so that neither the loop nor the exit waits.

Not a ThreadPoolExecutor: the interpreter joins its threads at exit, and a read from a file system
that hangs would keep the process from ending. These are daemon threads. They start with the first
call, so that they have the privileges the process has left by then: Linux keeps capabilities by
thread.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["WorkerThreads"]

T = TypeVar("T")
_JOIN_S = 0.5

_Call = tuple[Callable[[], Any], "asyncio.Future[Any]"]


class WorkerThreads:
    """A fixed number of threads that run calls in order; used from one event loop.

    Invariant: the future of a call is settled in the loop. A call whose future is cancelled before
    a thread has it is not made. The caller bounds how many calls wait.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended: list[asyncio.Future[None]] = []

    def submit(self, call: Callable[[], T]) -> "asyncio.Future[T]":
        """Has a thread make the call; returns the future of its result."""
        loop = asyncio.get_running_loop()
        if not self._threads:
            self._start(loop)
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((call, future))
        return future

    @property
    def backlog(self) -> int:
        """Calls that no thread has taken yet, cancelled ones included."""
        return self._calls.qsize()

    async def stop(self, timeout_s: float) -> int:
        """Lets the threads end; returns how many hang in a call and are left to themselves."""
        for _ in self._threads:
            self._calls.put(None)
        if self._ended:
            await asyncio.wait(self._ended, timeout=timeout_s)
        for thread, ended in zip(self._threads, self._ended, strict=True):
            if ended.done():
                thread.join(_JOIN_S)  # it has nothing left to do but to return
        alive = sum(thread.is_alive() for thread in self._threads)
        self._threads, self._ended = [], []
        return alive

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in range(self._count):
            ended: asyncio.Future[None] = loop.create_future()
            thread = threading.Thread(
                target=self._run,
                args=(loop, ended),
                name=f"{self._name}-{number}",
                daemon=True,
            )
            self._threads.append(thread)
            self._ended.append(ended)
            thread.start()

    def _run(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]") -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is left to work for
            while (item := self._calls.get()) is not None:
                _make(item, loop)
                del item  # a waiting thread keeps nothing alive
            loop.call_soon_threadsafe(_settle, ended, None, None)


def _make(item: _Call, loop: asyncio.AbstractEventLoop) -> None:
    call, future = item
    if future.cancelled():
        return
    result, failure = None, None
    try:
        result = call()
    except BaseException as error:  # it goes to whoever awaits the future
        failure = error
    loop.call_soon_threadsafe(_settle, future, result, failure)
    del failure  # it refers to this frame


def _settle(future: "asyncio.Future[Any]", result: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
