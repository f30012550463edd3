"""One source through its life: prepared, watched, stopped, closed, and started again when it fails.

Invariant: nothing a source does, short of blocking the loop, reaches beyond it. It may raise anywhere,
hang anywhere and swallow its cancellation; then it counts as failed, and while a call of it does not
end it is not started again.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeVar

from collector_core.capability import ChecksHealth, Closes, Prepares, Reconfigures, Stops, Watches
from collector_core.event import Emit
from collector_core.interval import sleep_interval
from collector_core.source import EventSource, SourceContext
from daemoneye_mesh.error_interceptor import is_cancelled_from_outside
from daemoneye_mesh.errors import (
    DaemoneyeError,
    InvalidRequestError,
    PermissionDeniedError,
    PreconditionError,
    UnsupportedError,
)

__all__ = ["RunnerLimits", "SourceRunner", "Wanted"]

T = TypeVar("T")

_LASTING = (InvalidRequestError, PreconditionError, PermissionDeniedError, UnsupportedError)
"""What a source that raises it will raise again, until somebody changes something."""

MAX_UNWELL = 3
"""Health checks in a row that fail before a source is started again."""

log = logging.getLogger("daemoneye.monitor")


class Wanted(Enum):
    """What a source shall do."""

    CLOSED = auto()
    PREPARED = auto()
    WATCHING = auto()


@dataclass(frozen=True, slots=True)
class RunnerLimits:
    """Times in the life of a source, seconds."""

    prepare_s: float = 10.0
    stop_s: float = 2.0
    """How long ``stop``, the cancelled ``watch`` and ``close`` may take, each."""
    health_interval_s: float = 10.0
    health_s: float = 5.0
    """How long one health check may take."""
    first_restart_s: float = 0.5
    max_restart_s: float = 30.0
    """Pauses before a failed source is started again; they double from the first to the last."""


class SourceFailedError(Exception):
    """A source does not do what it should; the text is for the log and the health."""


class SourceRunner:
    """Runs one source.

    Args:
        source: what to run.
        emit: takes its events.
        limits: times; asked for whenever they are needed.
        on_change: hears of every change of ``failure`` and ``is_watching``.
    """

    def __init__(
        self,
        source: EventSource,
        emit: Emit,
        limits: Callable[[], RunnerLimits],
        on_change: Callable[["SourceRunner"], None],
    ) -> None:
        self.source = source
        self._emit = emit
        self._limits = limits
        self._on_change = on_change
        self._wanted = Wanted.CLOSED
        self._changed = asyncio.Condition()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._is_open = False
        self.is_prepared = False
        """Whether it can answer tasks."""
        self.is_watching = False
        """Whether it watches, or has ended by itself after it had watched."""
        self.failure = ""
        """Why it does not do what it shall; empty while it does."""
        self.is_lasting = False
        """Whether trying again will not help."""
        self.failure_count = 0
        self.last_error: Exception | None = None
        """What it failed at last."""

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.source.name

    async def run(self, context: SourceContext) -> None:
        """Does what is wanted, until cancelled; then the source is closed."""
        delay_s = self._limits().first_restart_s
        try:
            while True:
                await self._until(lambda: self._wanted is not Wanted.CLOSED)
                started_s = time.monotonic()
                try:
                    await self._live(context)
                except Exception as error:
                    if is_cancelled_from_outside():
                        raise asyncio.CancelledError from None
                    if time.monotonic() - started_s > self._limits().max_restart_s:
                        delay_s = self._limits().first_restart_s  # it has worked since
                    await self._note_failure(error, delay_s)
                    await self._close()
                    await self._pause(delay_s)
                    delay_s = min(delay_s * 2, self._limits().max_restart_s)
                if self._wanted is Wanted.CLOSED:
                    delay_s = self._limits().first_restart_s
                    await self._note(failure="", is_lasting=False)
        finally:
            await self._close()

    async def want(self, wanted: Wanted) -> None:
        """Says what the source shall do from now on."""
        async with self._changed:
            self._wanted = wanted
            self._changed.notify_all()

    async def wait_settled(self) -> None:
        """Returns when the source does what it shall, or has failed at it."""
        await self._until(self._is_settled)

    def _is_settled(self) -> bool:
        if self._wanted is Wanted.CLOSED:
            return not self._is_open and not self.is_watching
        is_watching_wanted = self._wanted is Wanted.WATCHING and isinstance(self.source, Watches)
        if self.failure:
            return is_watching_wanted or not self.is_watching
        return self.is_prepared and self.is_watching is is_watching_wanted

    async def _live(self, context: SourceContext) -> None:
        """One life: from ``prepare`` until it shall be closed; raises when the source fails."""
        await self._prepare(context)
        while self.is_prepared and self._wanted is not Wanted.CLOSED:
            if self._wanted is Wanted.WATCHING and isinstance(self.source, Watches):
                await self._watch(self.source)
            else:
                await self._rest(self._wanted)
        await self._close()

    async def _prepare(self, context: SourceContext) -> None:
        if self._abandoned:
            raise SourceFailedError(
                "an earlier call of it hangs and does not end; restart the collector"
            )
        self._is_open = True
        if isinstance(self.source, Reconfigures):  # it may have been made before the last change
            takeover = self.source.reconfigure(context.settings)
            await self._within(self._limits().prepare_s, takeover, "reconfigure")
        if isinstance(self.source, Prepares):
            prepare = self._within(
                self._limits().prepare_s, self.source.prepare(context), "prepare"
            )
            if not await self._unless_closed(prepare):
                return
        await self._note(is_prepared=True, failure="", is_lasting=False)

    async def _unless_closed(self, work: Coroutine[Any, Any, None]) -> bool:
        """Awaits something for as long as the source shall be open; returns whether it was done."""
        working = asyncio.ensure_future(work)
        unwanted = asyncio.ensure_future(self._until(lambda: self._wanted is Wanted.CLOSED))
        try:
            await asyncio.wait({working, unwanted}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                return True
            return False
        finally:
            unwanted.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})

    async def _watch(self, source: Watches) -> None:
        """Watches until something else is wanted; raises when the source fails."""
        watch = asyncio.ensure_future(source.watch(self._emit))
        rest = asyncio.ensure_future(self._rest(Wanted.WATCHING))
        try:
            await asyncio.sleep(0)  # so that whoever hears of it finds it begun
            await self._note(is_watching=True)
            await asyncio.wait({watch, rest}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and not watch.cancelled() and watch.exception() is None:
                log.info("source %s ended", self.name)
                await asyncio.wait({rest})
            if watch.cancelled():
                raise SourceFailedError("its watch cancelled itself")
            if rest.done():
                rest.result()
        finally:
            rest.cancel()
            await self._end_watch(watch)
        await self._note(is_watching=False)

    async def _rest(self, wanted: Wanted) -> None:
        """Returns when something else is wanted; raises when the source is unwell."""
        health = asyncio.ensure_future(self._check_health())
        unwanted = asyncio.ensure_future(self._until(lambda: self._wanted is not wanted))
        try:
            await asyncio.wait({health, unwanted}, return_when=asyncio.FIRST_COMPLETED)
            if health.done():
                health.result()
        finally:
            health.cancel()
            unwanted.cancel()

    async def _end_watch(self, watch: "asyncio.Future[None]") -> None:
        """Ends a watch: asks, cancels, and abandons it when neither helps."""
        try:
            if not watch.done() and isinstance(self.source, Stops):
                await self._ask_to_stop(self.source, watch)
        finally:
            if not watch.done():
                await self._call_off(watch)
        if not watch.done():
            raise SourceFailedError("its watch does not end when it is cancelled; it was abandoned")
        if not watch.cancelled() and (failure := watch.exception()) is not None:
            raise failure

    async def _ask_to_stop(self, source: Stops, watch: "asyncio.Future[None]") -> None:
        try:
            await self._within(self._limits().stop_s, source.stop(), "stop")
            await asyncio.wait({watch}, timeout=self._limits().stop_s)
        except Exception as error:
            log.warning("source %s could not be asked to stop: %s", self.name, _cause(error))

    async def _check_health(self) -> None:
        """Asks the source how it is, again and again; raises when it is unwell for too long."""
        source = self.source
        if not isinstance(source, ChecksHealth):
            await asyncio.Event().wait()
            return
        unwell_count = 0
        while True:
            await sleep_interval(lambda: self._limits().health_interval_s)
            try:
                wrong = await self._within(
                    self._limits().health_s, source.health_check(), "health_check"
                )
                wrong = wrong or ""
            except Exception as error:
                wrong = _cause(error)
            unwell_count = unwell_count + 1 if wrong else 0
            if unwell_count >= MAX_UNWELL:
                raise SourceFailedError(f"is unwell for {unwell_count} checks: {wrong}")
            if wrong != self.failure:
                await self._note(failure=wrong)

    async def _close(self) -> None:
        await self._note(is_prepared=False, is_watching=False)
        if self._is_open and isinstance(self.source, Closes):
            try:
                await self._within(self._limits().stop_s, self.source.close(), "close")
            except Exception as error:
                log.warning("source %s was not closed: %s", self.name, _cause(error))
        await self._note(_is_open=False)

    async def _within(self, limit_s: float, work: Awaitable[T], what: str) -> T:
        """Awaits a method of the source within a time; one that hangs past it is left behind."""
        task = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait({task}, timeout=limit_s)
        except asyncio.CancelledError:
            await self._call_off(task)
            raise
        if not done:
            await self._call_off(task)
            raise SourceFailedError(f"{what} took longer than {limit_s:g} s")
        if task.cancelled():
            raise SourceFailedError(f"{what} cancelled itself")
        return task.result()

    async def _call_off(self, work: "asyncio.Future[T]") -> None:
        """Cancels something that the source does; what does not end by that is left behind."""
        work.cancel()
        outliving = asyncio.ensure_future(_outlive(work))
        self._abandoned.add(outliving)
        outliving.add_done_callback(self._abandoned.discard)
        await asyncio.wait({outliving}, timeout=self._limits().stop_s)

    async def _note_failure(self, error: Exception, delay_s: float) -> None:
        self.failure_count += 1
        self.last_error = error
        cause = _cause(error)
        log.error(
            "source %s failed, next try in %.1f s: %s",
            self.name,
            delay_s,
            cause,
            exc_info=None if isinstance(error, SourceFailedError | DaemoneyeError) else error,
        )
        is_lasting = isinstance(error, _LASTING) and not self.is_prepared
        await self._note(failure=cause, is_lasting=is_lasting, is_watching=False)

    async def _note(self, **changes: object) -> None:
        async with self._changed:
            for name, value in changes.items():
                setattr(self, name, value)
            self._changed.notify_all()
        self._on_change(self)

    async def _pause(self, delay_s: float) -> None:
        """Waits before the next try; ends early when the source shall be closed."""
        try:
            async with asyncio.timeout(delay_s):
                await self._until(lambda: self._wanted is Wanted.CLOSED)
        except TimeoutError:
            pass  # the usual case

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)


async def _outlive(work: "asyncio.Future[T]") -> None:
    """Waits for the end of what was called off, so that its outcome is not lost."""
    await asyncio.wait({work})
    if not work.cancelled() and (error := work.exception()) is not None:
        log.warning("something that was called off ended: %s", _cause(error))


def _cause(error: BaseException) -> str:
    """Returns what the health may say about an error: no text of foreign origin."""
    if isinstance(error, DaemoneyeError):
        return error.message
    if isinstance(error, SourceFailedError):
        return str(error)
    return f"internal error ({type(error).__name__}); its log has the story"
