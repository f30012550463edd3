"""Signals of ``daemoneye up``: the first asks for an orderly stop, the second for a quick one."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["StopSignals"]

_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Whether a stop was asked for, and whether it is urgent."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()

    def receive(self) -> None:
        """Takes one signal."""
        if self.stop.is_set():
            self.hurry.set()
        self.stop.set()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Receives SIGINT, SIGTERM and SIGHUP while the block runs; call it inside the loop."""
        loop = asyncio.get_running_loop()
        for number in _WATCHED:
            loop.add_signal_handler(number, self.receive)
        try:
            yield
        finally:
            for number in _WATCHED:
                loop.remove_signal_handler(number)
