"""The interpreter that has the peers' clients: ``PEERS_PYTHON``, or ``.venv-bench`` made on first use.

The clients are no part of our own environment: nothing of ours may come to lean on them.
"""

import asyncio
import hashlib
import os
import sys
from pathlib import Path

from benchmarks.report import BenchmarkError

__all__ = ["find_peers_python"]

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"
DIRECTORY = ROOT / ".venv-bench"
VARIABLE = "PEERS_PYTHON"
STAMP = "requirements.sha256"
INSTALL_TIMEOUT_S = 300.0


async def find_peers_python(directory: Path = DIRECTORY, requirements: Path = REQUIREMENTS) -> str:
    """Returns its path, after making the environment where it is missing or of older pins.

    Raises:
        BenchmarkError: it cannot be made, perhaps because there is no network.
    """
    if chosen := os.environ.get(VARIABLE):
        if not os.access(chosen, os.X_OK):
            raise BenchmarkError(f"{VARIABLE} names {chosen}, which cannot be run; correct it")
        return chosen
    python = str(directory / "bin" / "python")
    if not _is_fresh(directory, requirements):
        print(f"bus: installing the peers' clients into {directory.name} …", flush=True)
        await _run(sys.executable, "-m", "venv", "--clear", str(directory))
        await _run(python, "-m", "pip", "install", "--quiet", "--requirement", str(requirements))
        _mark_fresh(directory, requirements)
    return python


def _is_fresh(directory: Path, requirements: Path) -> bool:
    stamp = directory / STAMP
    return stamp.is_file() and stamp.read_text() == _digest(requirements)


def _mark_fresh(directory: Path, requirements: Path) -> None:
    (directory / ".gitignore").write_text("*\n")
    (directory / STAMP).write_text(_digest(requirements))


def _digest(requirements: Path) -> str:
    return hashlib.sha256(requirements.read_bytes()).hexdigest()


async def _run(*command: str) -> None:
    """Runs one step; our own pins do not bind it."""
    environ = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(INSTALL_TIMEOUT_S):
            said, _nothing = await process.communicate()
    except TimeoutError:
        raise BenchmarkError(f"{command[2]} takes longer than {INSTALL_TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        reason = (said.decode("utf-8", "replace").strip().splitlines() or ["nothing said"])[-1]
        raise BenchmarkError(f"the peers' clients cannot be installed: {reason}")
