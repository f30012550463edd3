"""How a benchmark speaks with its workers: one line out, one line back, an exit status."""

import asyncio

from benchmarks.mesh import Process
from benchmarks.report import BenchmarkError

__all__ = ["expect_answer", "expect_open"]

ANSWER_TIMEOUT_S = 120.0


async def expect_open(process: Process) -> None:
    """Returns when a subscriber says that it stands.

    Raises:
        BenchmarkError: it ended before.
    """
    if await _read_line(process) != b"open\n":
        raise BenchmarkError("a subscriber ended before its subscriptions stood")


async def expect_answer(process: Process, said: str | None = None) -> bytes:
    """The one line that a worker prints in the end, after it was told something.

    Raises:
        BenchmarkError: it failed.
    """
    assert process.stdin is not None
    if said is not None:
        process.stdin.write(said.encode() + b"\n")
        await process.stdin.drain()
    line = await _read_line(process)
    if await process.wait() != 0 or not line:
        raise BenchmarkError(f"a worker ended with status {process.returncode}")
    return line


async def _read_line(process: Process) -> bytes:
    assert process.stdout is not None
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        return await process.stdout.readline()
