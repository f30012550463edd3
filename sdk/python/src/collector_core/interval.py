"""Pauses whose length may change while they last.

Invariant: an interval that is shortened is obeyed within ``MAX_NAP_S``, however long the old one was.
"""

import asyncio
import time
from collections.abc import Callable

__all__ = ["sleep_interval"]

MAX_NAP_S = 1.0


async def sleep_interval(interval_s: Callable[[], float]) -> None:
    """Returns when ``interval_s``, which is asked for again and again, has passed."""
    begun_s = time.monotonic()
    while True:
        left_s = begun_s + interval_s() - time.monotonic()
        if left_s <= 0:
            return
        await asyncio.sleep(min(left_s, MAX_NAP_S))
