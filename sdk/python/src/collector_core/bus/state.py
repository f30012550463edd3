"""The state of a link to the broker, for everybody who wants to see it or wait for it."""

import asyncio
from collections.abc import Callable
from enum import StrEnum

__all__ = ["LinkState", "LinkStateListener", "ObservedLink"]


class LinkState(StrEnum):
    """What a publisher or a subscription is doing."""

    IDLE = "idle"
    """It was not started, or has ended and can be started again."""
    CONNECTING = "connecting"
    """It asks the broker for a stream."""
    READY = "ready"
    """Its stream stands."""
    BACKOFF = "backoff"
    """Its stream broke; it waits before it asks again."""
    DRAINING = "draining"
    """Its stream stands, and it takes nothing new."""
    CLOSED = "closed"
    """It was closed for good."""


LinkStateListener = Callable[[LinkState], None]
"""Hears of every change, in order, in the loop; must return at once and raise nothing."""


class ObservedLink:
    """A state that can be watched; for one event loop.

    Args:
        listener: hears of every change.
    """

    def __init__(self, listener: LinkStateListener | None = None) -> None:
        self._listener = listener
        self._state = LinkState.IDLE
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def state(self) -> LinkState:
        """The state now."""
        return self._state

    @property
    def is_connected(self) -> bool:
        """Whether the stream stands."""
        return self._state in (LinkState.READY, LinkState.DRAINING)

    def move_to(self, state: LinkState) -> None:
        """Changes the state and tells everybody; nothing leads out of CLOSED."""
        if state is self._state or self._state is LinkState.CLOSED:
            return
        self._state = state
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self._listener is not None:
            self._listener(state)

    async def wait_for_state(self, *states: LinkState) -> LinkState:
        """Returns once the state is one of ``states``; a state that is only passed may be missed."""
        while self._state not in states:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        return self._state
