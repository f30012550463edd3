"""A collector in the loop of the test: quick to start, easy to look into.

Invariant: it is over when the block is left. One that failed makes the block fail, unless the test
itself has asked how it ended.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from collector_core.capability import caps_of
from collector_core.collector import Collector
from collector_core.settings import CollectorSettings
from collector_core.source import EventSource
from collector_core.testing.changes import DEFAULT_TIMEOUT_S
from collector_core.testing.harness import CollectorEndedError, CollectorHarness
from collector_core.testing.mesh import FakeMesh
from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.lifecycle import StopRequest

__all__ = ["InProcessCollector", "run_in_process"]

STOP_TIMEOUT_S = 15.0
EXIT_FAILED = 1
EXIT_REFUSED = 2
QUICK = {"heartbeat_interval_s": 1.0, "shutdown_timeout_s": 3.0}
"""Settings with which tests wait less."""


class InProcessCollector(CollectorHarness):
    """One collector in the loop of the test.

    Args:
        mesh: the mesh.
        collector_id: its id.
        collector: what runs.
    """

    def __init__(self, mesh: FakeMesh, collector_id: str, collector: Collector) -> None:
        super().__init__(mesh, collector_id)
        self.collector = collector
        self.is_end_expected = False
        """Whether the test has asked how it ended."""
        self._stop = StopRequest()
        self._task = asyncio.create_task(collector.run(self._stop), name=f"run {collector_id}")
        self._task.add_done_callback(lambda _: mesh.changes.tell())

    @property
    def failure(self) -> BaseException | None:
        """What it failed with; None while it runs, and when it ended well."""
        if not self._task.done():
            return None
        return asyncio.CancelledError() if self._task.cancelled() else self._task.exception()

    @property
    def exit_status(self) -> int | None:
        """The status with which a process would have ended; None while it runs."""
        if not self._task.done():
            return None
        failure = self.failure
        if failure is None:
            return 0
        return EXIT_REFUSED if isinstance(failure, InvalidConfigError) else EXIT_FAILED

    def describe_end(self) -> str:
        """How it ended."""
        return f"{self.failure!r}" if self.failure else "it was asked to, or its work was done"

    async def wait_ended(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> int:
        """Returns the status once it has ended; a failure is then the test's to look at."""
        self.is_end_expected = True
        return await super().wait_ended(timeout_s)

    async def stop(self, reason: str = "the test is over") -> int:
        """Makes it drain and returns the status.

        Raises:
            ConditionTimeoutError: it does not end.
        """
        self._stop.request(reason)
        return await self.wait_ended(STOP_TIMEOUT_S)

    async def end(self) -> None:
        """Ends it whatever it does."""
        self._stop.request("the test is over")
        done, _ = await asyncio.wait([self._task], timeout=STOP_TIMEOUT_S)
        if not done:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise CollectorEndedError(
                self.collector_id, f"it did not stop within {STOP_TIMEOUT_S:g} s and was cancelled"
            )


@asynccontextmanager
async def run_in_process(
    mesh: FakeMesh,
    collector_id: str,
    *sources: EventSource,
    settings_type: type[CollectorSettings] = CollectorSettings,
    **settings: Any,
) -> AsyncIterator[InProcessCollector]:
    """Enrols and runs a collector while the block runs, then drains it.

    Args:
        mesh: the mesh.
        collector_id: its id.
        sources: what it watches; their domains are those it is enrolled for.
        settings_type: a collector with settings of its own has its own class.
        settings: settings by name; those of the mesh's places are set already.

    Raises:
        BaseException: what the collector failed with, unless ``wait_ended`` was asked.
    """
    settings = {**QUICK, **settings}
    harness = _start(mesh, collector_id, sources, settings_type(**_placed(mesh, settings)))
    try:
        yield harness
    except BaseException:
        await _end_after(harness)
        raise
    await harness.end()
    if harness.failure is not None and not harness.is_end_expected:
        raise harness.failure


def _start(
    mesh: FakeMesh, collector_id: str, sources: Sequence[EventSource], settings: CollectorSettings
) -> InProcessCollector:
    mesh.enrol(collector_id, *sorted(caps_of(sources).domain_names))
    return InProcessCollector(mesh, collector_id, Collector(collector_id, sources, settings))


def _placed(mesh: FakeMesh, settings: dict[str, Any]) -> dict[str, Any]:
    places = {"runtime_dir": mesh.layout.root, "state_dir": mesh.state_dir}
    return {**places, "trust_domain": mesh.layout.trust_domain, **settings}


async def _end_after(harness: InProcessCollector) -> None:
    """Ends a collector of a test that has failed; the failure of the test comes first."""
    try:
        await harness.end()
    except CollectorEndedError:
        return
