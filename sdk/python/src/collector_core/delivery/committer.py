"""Group commit: what is buffered is written to the log as one append, and then handed on.

Invariant: a group is handed on exactly once, after it is in the log, in the order of the sequences. A
log that cannot be written keeps everything waiting: nothing is thrown away, sources slow down.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from collector_core.bus.outbox import Outbox
from collector_core.bus.outbox_group import OutboxGroup
from collector_core.wal import EventLog, LogUnwritableError

__all__ = ["RETRY_S", "Committer", "in_thread"]

T = TypeVar("T")

COMMIT_MESSAGES = 20_000
COMMIT_BYTES = 4 << 20
"""Bounds of one append."""

PACE_S = 0.004
"""Time between two small appends: each costs two thread switches and a sync, however small it is."""

PACED_BELOW_MESSAGES = 512
"""So many events are worth an append at once."""

RETRY_S = 1.0
"""Pause before a log that could not be written is tried again."""

log = logging.getLogger("daemoneye.wal")


async def in_thread(work: Callable[[], T]) -> T:
    """Runs blocking work in a thread and waits for its end even when cancelled.

    What a thread does cannot be called off, and must not be repeated while it still goes on.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # whoever cancelled us is not interested any more
        raise


class Committer:
    """Moves groups from the intake into the log.

    Args:
        intake: where events wait.
        event_log: where they go.
        hand_on: takes groups that are in the log.
        on_trouble: hears why the log cannot be written, and an empty text when it can again.
        retry_s: pause before a log that could not be written is tried again.
    """

    def __init__(
        self,
        intake: Outbox,
        event_log: EventLog,
        hand_on: Callable[[Sequence[OutboxGroup]], None],
        on_trouble: Callable[[str], None],
        retry_s: float = RETRY_S,
    ) -> None:
        self._intake = intake
        self._log = event_log
        self._hand_on = hand_on
        self._on_trouble = on_trouble
        self._retry_s = retry_s
        self.trouble = ""
        """Why events wait for the log; empty while they do not."""

    async def run(self) -> None:
        """Commits until cancelled; a commit under way ends first."""
        while True:
            await self._intake.wait_waiting(1)
            await self._commit()
            await self._pace()

    async def _commit(self) -> None:
        batch = self._intake.take(COMMIT_MESSAGES, COMMIT_BYTES)
        if batch is None:
            return
        running = asyncio.ensure_future(asyncio.to_thread(self._log.append, batch.groups))
        is_cancelled = await _wait_whole(running)
        try:
            running.result()
        except LogUnwritableError as error:
            self._intake.rewind()
            self._note(error.message)
            if not is_cancelled:
                await asyncio.sleep(self._retry_s)
        else:
            self._intake.settle(batch.batch_id)
            self._hand_on(batch.groups)
            self._note("")
        if is_cancelled:
            raise asyncio.CancelledError

    async def _pace(self) -> None:
        try:
            async with asyncio.timeout(PACE_S):
                await self._intake.wait_waiting(PACED_BELOW_MESSAGES)
        except TimeoutError:
            pass  # few came, and those that came have waited long enough

    def _note(self, trouble: str) -> None:
        if trouble == self.trouble:
            return
        if trouble:
            log.error("events wait in memory, because the log cannot be written: %s", trouble)
        else:
            log.info("the log is written again")
        self.trouble = trouble
        self._on_trouble(trouble)


async def _wait_whole(running: Awaitable[None]) -> bool:
    """Waits for the end of something that cannot be called off; returns whether we were cancelled."""
    task = asyncio.ensure_future(running)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        await asyncio.wait({task})
        return True
    return False
