"""Those who want to be told when something happens.

Invariant: a listener that raises disturbs neither who tells nor the other listeners.
"""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Listeners"]

T = TypeVar("T")

log = logging.getLogger("daemoneye.listeners")


class Listeners(Generic[T]):
    """Functions that are called, in the order they were added, with each piece of news.

    Args:
        subject: what the news is about, for the log.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._listeners: list[Callable[[T], None]] = []

    def add(self, listener: Callable[[T], None]) -> None:
        """Calls ``listener`` from now on; it must not block."""
        self._listeners.append(listener)

    def tell(self, news: T) -> None:
        """Calls every listener; what one raises goes to the log."""
        for listener in tuple(self._listeners):
            try:
                listener(news)
            except Exception:
                log.exception("a listener to %s failed", self._subject)
