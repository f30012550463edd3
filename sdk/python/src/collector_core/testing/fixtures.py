"""Fixtures of pytest for authors of collectors.

Write ``pytest_plugins = ["collector_core.testing.fixtures"]`` into the ``conftest.py`` at the top of
your tests. They need pytest-asyncio, in whatever mode.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest_asyncio

from collector_core.testing.in_process import InProcessCollector, run_in_process
from collector_core.testing.mesh import FakeMesh

__all__ = ["collector_harness", "fake_mesh"]


@pytest_asyncio.fixture
async def fake_mesh() -> AsyncIterator[FakeMesh]:
    """A mesh in a directory of its own."""
    async with FakeMesh() as mesh:
        yield mesh


@pytest_asyncio.fixture
async def collector_harness(
    fake_mesh: FakeMesh,
) -> AsyncIterator[Callable[..., Awaitable[InProcessCollector]]]:
    """Runs collectors in the loop of the test.

    ``await collector_harness("loadmon", LoadAverage())``: it takes what ``run_in_process`` takes after the mesh, and returns once the collector is ready.
    """
    async with AsyncExitStack() as stack:

        async def run(
            collector_id: str, *sources: object, **settings: object
        ) -> InProcessCollector:
            block = run_in_process(fake_mesh, collector_id, *sources, **settings)  # type: ignore[arg-type]
            harness = await stack.enter_async_context(block)
            await harness.wait_ready()
            return harness

        yield run
