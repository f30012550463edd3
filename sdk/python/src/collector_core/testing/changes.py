"""Waiting for something to come true, without sleeping through it.

Invariant: whoever waits looks again after every change that is told, and now and then in between for
what nobody tells (a log file, a process); a wait that ends in vain says what was there instead.
"""

import asyncio
import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["DEFAULT_TIMEOUT_S", "Changes", "ConditionTimeoutError"]

DEFAULT_TIMEOUT_S = 10.0
LOOK_INTERVAL_S = 0.05
"""Time between two looks while no change is told."""


class ConditionTimeoutError(AssertionError):
    """Something did not come true in time; the message shows what was seen.

    Args:
        what: the condition, as a sentence.
        timeout_s: how long was waited for it.
        seen: what was there instead.
    """

    def __init__(self, what: str, timeout_s: float, seen: str) -> None:
        super().__init__(f"not within {timeout_s:g} s: {what}\n{seen}")
        self.what = what
        self.timeout_s = timeout_s
        self.seen = seen


class Changes:
    """Tells those who wait that something has changed.

    Args:
        describe: what there is, for the error of a wait in vain.
    """

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """Makes everybody who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(
        self,
        predicate: Callable[[], Any],
        what: str,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Any:
        """Returns the first true value of ``predicate``, which may be a coroutine function.

        Args:
            predicate: asked at once and after every change.
            what: the condition as a sentence, for the error.
            timeout_s: longest wait, seconds.

        Raises:
            ConditionTimeoutError: it did not come true in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._look_until(predicate)
        except TimeoutError:
            raise ConditionTimeoutError(what, timeout_s, self._describe()) from None

    async def _look_until(self, predicate: Callable[[], Any]) -> Any:
        while True:
            changed = self._changed  # taken first: what changes while we look makes us look again
            found = predicate()
            value = await found if inspect.isawaitable(found) else found
            if value:
                return value
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await changed.wait()
