"""Keeps the processes of a mesh running, and stops them so that nothing stays behind.

Invariants: after ``stop`` no process of any child's group is left and no socket that a child served;
a child that ends by itself is started again, later and later, for as long as the mesh runs.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from daemoneye_cli.child import (
    MAX_LOG_BYTES,
    Child,
    ChildSpec,
    bound_log,
    describe_status,
    read_log_tail,
)
from daemoneye_cli.errors import ChildFailedError
from daemoneye_cli.probe import is_answered
from daemoneye_cli.readiness import wait_until_serving

__all__ = ["Narrator", "Supervisor"]

START_LIMIT_S = 30.0
STOP_LIMIT_S = 8.0
KILL_LIMIT_S = 2.0
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
LOG_CHECK_S = 30.0
STEADY_S = 60.0
"""A child that served this long has earned the first backoff again."""

Readiness = Callable[[Path], Awaitable[None]]


class Narrator(Protocol):
    """Tells a person what happens to the processes."""

    def progress(self, text: str) -> None:
        """Tells of something expected."""

    def alarm(self, text: str) -> None:
        """Tells of something that should not happen."""


class Supervisor:
    """The children of one mesh.

    Args:
        specs: in the order in which they are stopped.
        narrator: is told what happens.
        readiness: returns when the server of a socket serves.
        first_backoff_s: pause before the first restart; it doubles up to ``MAX_BACKOFF_S``.
        max_log_bytes: size past which a child's log is moved aside.
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        narrator: Narrator,
        *,
        readiness: Readiness = wait_until_serving,
        first_backoff_s: float = FIRST_BACKOFF_S,
        max_log_bytes: int = MAX_LOG_BYTES,
    ) -> None:
        self.children = tuple(Child(spec) for spec in specs)
        self._narrator = narrator
        self._readiness = readiness
        self._first_backoff_s = first_backoff_s
        self._max_log_bytes = max_log_bytes

    async def start(self, limit_s: float = START_LIMIT_S) -> None:
        """Starts all children at once and returns when each is in service.

        Raises:
            ChildFailedError: one ended or did not come up in time; call ``stop`` then.
        """
        try:
            async with asyncio.timeout(limit_s), asyncio.TaskGroup() as group:
                for child in self.children:
                    group.create_task(self._bring_up(child), name=f"start {child.spec.name}")
        except TimeoutError:
            raise self._too_late(limit_s) from None

    async def watch(self) -> None:
        """Restarts children that end and bounds their logs, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._bound_logs(), name="logs")
            for child in self.children:
                group.create_task(self._keep(child), name=f"keep {child.spec.name}")

    async def stop(self, hurry: asyncio.Event, limit_s: float = STOP_LIMIT_S) -> bool:
        """Stops the children one after the other and clears what they left.

        Args:
            hurry: once set, nothing is waited for any longer and everything is killed.
            limit_s: how long each may take before it is killed.

        Returns:
            Whether nothing is left.
        """
        for child in self.children:
            await self._stop_child(child, hurry, limit_s)
        gone = [await self._clear_group(child) for child in self.children]
        cleared = [await self._clear_socket(child) for child in self.children]
        return all(gone) and all(cleared)

    async def _bring_up(self, child: Child) -> None:
        """Starts a child and returns when it serves; raises when it ends before that."""
        name, started_s = child.spec.name, time.monotonic()
        try:
            await child.start()
        except OSError as error:
            why = (error.strerror or "unknown reason").lower()
            raise ChildFailedError(
                f"cannot start {name} ({why}); check that it is installed", child=name
            ) from None
        status = await self._first(child)
        if status is not None:
            raise _ended(child, status)
        self._narrator.progress(f"{name} is in service after {time.monotonic() - started_s:.2f} s")

    async def _first(self, child: Child) -> int | None:
        """Returns None when the child serves, its status when it ends before."""
        ready = asyncio.ensure_future(self._readiness(child.spec.socket))
        ended = asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                ready.result()
                return None
            return ended.result()
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    async def _bound_logs(self) -> None:
        while True:
            for child in self.children:
                try:
                    await asyncio.to_thread(bound_log, child.spec.log, self._max_log_bytes)
                except OSError as error:
                    why = (error.strerror or "unknown reason").lower()
                    self._narrator.alarm(f"cannot bound {child.spec.log}: {why}")
            await asyncio.sleep(LOG_CHECK_S)

    async def _keep(self, child: Child) -> None:
        backoff_s = self._first_backoff_s
        while True:
            since_s = time.monotonic()
            status = await child.wait()
            if time.monotonic() - since_s > STEADY_S:
                backoff_s = self._first_backoff_s
            child.kill_group()  # what it started must not outlive it and hold its socket
            self._narrator.alarm(
                f"{child.spec.name} ended with {describe_status(status)};"
                f" starting it again in {backoff_s:g} s{_tail_of(child)}"
            )
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)
            await self._restart(child)

    async def _restart(self, child: Child) -> None:
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await self._bring_up(child)
        except ChildFailedError as error:
            self._narrator.alarm(error.message)
        except TimeoutError:
            self._narrator.alarm(f"{child.spec.name} does not come into service{_tail_of(child)}")
            child.kill_group()

    async def _stop_child(self, child: Child, hurry: asyncio.Event, limit_s: float) -> None:
        if not child.is_running:
            return
        child.terminate()
        if await _ends_within(child, hurry, limit_s):
            return
        if not hurry.is_set():
            self._narrator.alarm(f"{child.spec.name} did not stop within {limit_s:g} s; killed")
        child.kill_group()
        await _ends_within(child, asyncio.Event(), KILL_LIMIT_S)

    async def _clear_group(self, child: Child) -> bool:
        if child.has_group:
            child.kill_group()
            try:
                async with asyncio.timeout(KILL_LIMIT_S):
                    # Nobody is told when a process ends that is not a child of ours.
                    while child.has_group:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            except TimeoutError:
                self._narrator.alarm(f"a process of {child.spec.name} cannot be killed")
                return False
        return True

    async def _clear_socket(self, child: Child) -> bool:
        path = child.spec.socket
        if not path.exists():
            return True
        if await is_answered(path):
            self._narrator.alarm(f"somebody still answers on {path}; find it with 'lsof {path}'")
            return False
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        return True

    def _too_late(self, limit_s: float) -> ChildFailedError:
        tails = "".join(_tail_of(child) for child in self.children)
        return ChildFailedError(
            f"the mesh did not come into service within {limit_s:g} s; look at the logs{tails}",
            limit_s=limit_s,
        )


async def _ends_within(child: Child, hurry: asyncio.Event, limit_s: float) -> bool:
    """Whether the child ends before the limit and before there is a hurry."""
    ended = asyncio.ensure_future(child.wait())
    hurried = asyncio.ensure_future(hurry.wait())
    try:
        await asyncio.wait({ended, hurried}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        return ended.done()
    finally:
        ended.cancel()
        hurried.cancel()
        await asyncio.gather(ended, hurried, return_exceptions=True)


def _ended(child: Child, status: int) -> ChildFailedError:
    name = child.spec.name
    return ChildFailedError(
        f"{name} ended with {describe_status(status)} before it was in service; its log is"
        f" {child.spec.log}{_tail_of(child)}",
        child=name,
        status=status,
        log=child.spec.log,
    )


def _tail_of(child: Child) -> str:
    lines = read_log_tail(child.spec.log)
    if not lines:
        return ""
    return f"\n  last lines of {child.spec.log}:" + "".join(f"\n  | {line}" for line in lines)
