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

    async def open(self) -> EventStore:
        """Opens the store; what it raises is raised here."""
        loop = asyncio.get_running_loop()
        self._store = await loop.run_in_executor(self._executor, self._open_store)
        return self._store

    async def run(
        self, work: Callable[Concatenate[EventStore, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs ``work(store, …)`` in the thread and returns its result.

        A caller that is cancelled leaves; the work itself runs to its end, so that a transaction is
        never cut in the middle.
        """
        if self._store is None:
            raise RuntimeError("the store thread is not open")
        store = self._store
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: work(store, *args, **kwargs))

    async def close(self) -> None:
        """Waits for the work under way and closes the store."""
        if self._store is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, self._store.close)
            self._store = None
        self._executor.shutdown(wait=True)
