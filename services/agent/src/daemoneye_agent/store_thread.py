"""The one thread that owns the event store and everything else that writes to SQLite."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from daemoneye_agent.store import EventStore

__all__ = ["StoreThread"]

P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """Runs functions on the store, one after the other, off the event loop.

    Args:
        open_store: opens the store; called in the thread.
    """

    def __init__(self, open_store: Callable[[], EventStore]) -> None:
        self._open_store = open_store
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._store: EventStore | None = None
        self._is_closed = False

    async def open(self) -> EventStore:
        """Opens the store; what it raises is raised here."""

        def work() -> EventStore:
            self._store = self._open_store()  # here, so that a cancelled caller leaves no open file
            return self._store

        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    async def run(
        self, work: Callable[Concatenate[EventStore, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs ``work(store, …)`` in the thread and returns its result.

        When the caller is cancelled, work that has begun runs to its end, so that a transaction is
        never cut in the middle; work that has not begun is left out.
        """
        store = self._store
        if store is None:
            raise RuntimeError("the store thread is not open")
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: work(store, *args, **kwargs))

    async def close(self) -> None:
        """Waits for the work under way and closes the store; calling it again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        closing = asyncio.ensure_future(asyncio.to_thread(self._end))
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await asyncio.wait({closing})
            raise

    def _end(self) -> None:
        try:
            self._executor.submit(self._close_store).result()
        finally:
            self._executor.shutdown(wait=True)

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()
