"""Names of user ids, remembered for a while because a lookup may go over the network.

Invariant: at most ``LIMIT_COUNT`` names are kept, none longer than ``MAX_AGE_S``.
"""

import os
import pwd
import time
from collections.abc import Callable

from daemoneye_procmond.escape import escape_text

__all__ = ["AccountNames"]

LIMIT_COUNT = 4096
MAX_AGE_S = 300.0
_NAME_LIMIT_BYTES = 256


def _look_up(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


class AccountNames:
    """Looks up and remembers the names of user ids."""

    def __init__(
        self,
        look_up: Callable[[int], str] = _look_up,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._look_up = look_up
        self._monotonic = monotonic
        self._names: dict[int, str | None] = {}
        self._filled_at_s = monotonic()

    def name_of(self, uid: int) -> str | None:
        """The user name of ``uid``; None when the host has no such user."""
        self._expire()
        if uid not in self._names:
            self._names[uid] = self._find(uid)
        return self._names[uid]

    def _find(self, uid: int) -> str | None:
        try:
            name = self._look_up(uid)
        except (KeyError, OverflowError):
            return None
        return escape_text(os.fsencode(name), _NAME_LIMIT_BYTES)[0]

    def _expire(self) -> None:
        now_s = self._monotonic()
        if len(self._names) >= LIMIT_COUNT or now_s - self._filled_at_s >= MAX_AGE_S:
            self._names.clear()
            self._filled_at_s = now_s
