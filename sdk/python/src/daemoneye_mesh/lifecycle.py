"""Signals and the order of a process's end.

SIGTERM and SIGINT ask for a drain; a second one of either ends the process at once with the
conventional status. Signals that follow one another within half a second count as one: the kernel
sends a parent-death signal once for each thread of the parent (prctl(2), PR_SET_PDEATHSIG).
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["StopRequest", "watch_signals"]

REPEAT_S = 0.5
"""Signals closer together than this are one wish."""

log = logging.getLogger("daemoneye.lifecycle")


class StopRequest:
    """Whether the process was asked to stop, and why.

    Args:
        monotonic: seconds on a clock that is never set.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._event = asyncio.Event()
        self._requested_s = 0.0
        self.reason = ""

    @property
    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def request(self, reason: str) -> None:
        """Asks for a stop; the first reason stays."""
        if not self._event.is_set():
            self.reason = reason
            self._requested_s = self._monotonic()
            log.info("stopping: %s", reason)
            self._event.set()

    @property
    def is_urgent(self) -> bool:
        """Whether asking again now means that the process shall not take its time."""
        return self.is_set and self._monotonic() - self._requested_s >= REPEAT_S

    async def wait(self) -> None:
        """Returns when a stop was asked for."""
        await self._event.wait()


@contextmanager
def watch_signals(stop: StopRequest) -> Iterator[None]:
    """Turns SIGTERM and SIGINT into ``stop`` while the block runs; call it inside the loop."""
    loop = asyncio.get_running_loop()
    watched = (signal.SIGTERM, signal.SIGINT)

    def receive(number: signal.Signals) -> None:
        if stop.is_urgent:
            log.warning("second %s, leaving at once", number.name)
            os._exit(128 + number)
        stop.request(f"received {number.name}")

    for number in watched:
        loop.add_signal_handler(number, receive, number)
    try:
        yield
    finally:
        for number in watched:
            loop.remove_signal_handler(number)
