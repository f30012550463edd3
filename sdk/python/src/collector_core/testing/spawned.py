"""A collector as a process of its own, in any language: signals, exit status, log.

Invariant: when the block is left, no process of its group is there any more, stopped ones included.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from collector_core.testing.harness import CollectorHarness
from collector_core.testing.mesh import FakeMesh

__all__ = ["SpawnedCollector", "spawn"]

STOP_TIMEOUT_S = 15.0
LOG_TAIL_LINES = 20


class SpawnedCollector(CollectorHarness):
    """One collector in a process of its own.

    Args:
        mesh: the mesh.
        collector_id: its id.
        process: leader of a group of its own.
        log_path: where its output goes.
    """

    def __init__(
        self,
        mesh: FakeMesh,
        collector_id: str,
        process: asyncio.subprocess.Process,
        log_path: Path,
    ) -> None:
        super().__init__(mesh, collector_id)
        self._process = process
        self._log_path = log_path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """Its exit status; None while it runs. Negative: the signal that killed it."""
        return self._process.returncode

    @property
    def log_text(self) -> str:
        """What it wrote to its output and error output, in this life and those before."""
        return self._log_path.read_text(errors="replace")

    def describe_end(self) -> str:
        """Its exit status and the last lines of its log."""
        tail = "\n".join(self.log_text.splitlines()[-LOG_TAIL_LINES:])
        return f"exit status {self.exit_status}\n{tail}"

    async def terminate(self) -> int:
        """Asks it to drain (SIGTERM) and returns its exit status.

        Raises:
            ConditionTimeoutError: it does not end.
        """
        self._send(signal.SIGTERM)
        return await self.wait_ended(STOP_TIMEOUT_S)

    async def kill(self) -> int:
        """Ends it without a chance to clean up (SIGKILL); returns its exit status."""
        self._send(signal.SIGKILL)
        return await self._process.wait()

    def stop(self) -> None:
        """Makes it stand still (SIGSTOP)."""
        self._send(signal.SIGSTOP)

    def cont(self) -> None:
        """Lets it go on (SIGCONT)."""
        self._send(signal.SIGCONT)

    async def end(self) -> None:
        """Ends it and everything it started, whatever they do."""
        self.cont()
        self._send(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()

    def _send(self, number: signal.Signals) -> None:
        if self.exit_status is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


@asynccontextmanager
async def spawn(
    mesh: FakeMesh,
    argv: Sequence[str],
    collector_id: str,
    domains: Iterable[str],
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[SpawnedCollector]:
    """Enrols a collector and runs it as a process while the block runs, then ends it.

    It finds the mesh by ``DAEMONEYE_RUNTIME_DIR`` and ``DAEMONEYE_STATE_DIR``. Spawned again with the
    same mesh and id it is the next life of the same collector.

    Args:
        mesh: the mesh.
        argv: program and arguments.
        collector_id: its id.
        domains: of ``process``, ``network``, ``filesystem``, ``performance``.
        environment: further variables.
    """
    mesh.enrol(collector_id, *domains)
    log_path = mesh.root / f"{collector_id}.log"
    with log_path.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env={**mesh.environment, **(environment or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    harness = SpawnedCollector(mesh, collector_id, process, log_path)
    try:
        yield harness
    finally:
        await harness.end()
