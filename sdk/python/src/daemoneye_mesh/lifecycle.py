"""Signals and the order of a process's end.

SIGTERM and SIGINT ask for a drain; a second one of either ends the process at once with the
conventional status.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["StopRequest", "watch_signals"]

log = logging.getLogger("daemoneye.lifecycle")


class StopRequest:
    """Whether the process was asked to stop, and why."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""

    @property
    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def request(self, reason: str) -> None:
        """Asks for a stop; the first reason stays."""
        if not self._event.is_set():
            self.reason = reason
            log.info("stopping: %s", reason)
            self._event.set()

    async def wait(self) -> None:
        """Returns when a stop was asked for."""
        await self._event.wait()


@contextmanager
def watch_signals(stop: StopRequest) -> Iterator[None]:
    """Turns SIGTERM and SIGINT into ``stop`` while the block runs; call it inside the loop."""
    loop = asyncio.get_running_loop()
    watched = (signal.SIGTERM, signal.SIGINT)

    def receive(number: signal.Signals) -> None:
        if stop.is_set:
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
