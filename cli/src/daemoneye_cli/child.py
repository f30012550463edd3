"""One process of the mesh as a child of ``daemoneye up``.

Each child leads a session and process group of its own: Ctrl-C on the terminal reaches the parent
alone, which stops the children in order, and what a child leaves behind is found by its group.
"""

import asyncio
import json
import os
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from daemoneye_cli.text import printable
from daemoneye_mesh.errors import InternalError

__all__ = [
    "MAX_LOG_BYTES",
    "Child",
    "ChildSpec",
    "bound_log",
    "describe_status",
    "read_log_tail",
    "rotate_log",
]

TAIL_BYTES = 16 * 1024
TAIL_LINES = 12
MAX_LOG_BYTES = 16 << 20
"""Size past which a log is moved aside; with the one before, a process has at most about twice that."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What is needed to start a process of the mesh."""

    name: str
    command: tuple[str, ...]
    socket: Path
    """It is up when the health service on this socket says so."""
    log: Path
    """Where its output goes."""


class Child:
    """A process that can be started again after it ended.

    Args:
        spec: what to start.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the process; its output is appended to the log.

        Raises:
            OSError: it cannot be started, or the log cannot be written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        log = os.open(self.spec.log, flags, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)

    async def wait(self) -> int:
        """Returns the status with which the process ended, negative for a signal."""
        if self._process is None:
            raise InternalError(f"{self.spec.name} was never started; start it before waiting")
        return await self._process.wait()

    def terminate(self) -> None:
        """Asks the process to stop."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    def kill_group(self) -> None:
        """Kills the process and everything it started in its group."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def has_group(self) -> bool:
        """Whether any process of its group still runs."""
        if self._process is None:
            return False
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return _has_living_member(self._process.pid)


def _has_living_member(group: int) -> bool:
    """Whether a process of a group is more than a zombie, which only its new parent can remove."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name, which may hold anything: state, parent, process group (proc(5)).
            state, _, found = stat.read_bytes().rpartition(b")")[2].split()[:3]
            if int(found) == group and state not in (b"Z", b"X"):
                return True
    return False


def describe_status(status: int) -> str:
    """Returns how a process ended, for a person."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def rotate_log(log: Path) -> None:
    """Keeps the log of the run before as ``<name>.log.1``."""
    with suppress(FileNotFoundError):
        log.replace(log.with_name(log.name + ".1"))


def bound_log(log: Path, max_bytes: int = MAX_LOG_BYTES) -> bool:
    """Moves what a log holds to ``<name>.log.1`` once it is too large; returns whether it was.

    The writer appends on to the emptied file. What it writes between the copy and the emptying is in
    neither: a line or two every 16 MiB, for a file that no writer has to open again.
    """
    try:
        if log.stat().st_size <= max_bytes:
            return False
        shutil.copy(log, log.with_name(log.name + ".1"))
        os.truncate(log, 0)
    except FileNotFoundError:
        return False
    return True


def read_log_tail(log: Path) -> list[str]:
    """Returns the last lines of a log, JSON lines as text, safe to print."""
    try:
        with log.open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(size_bytes - TAIL_BYTES, 0))
            content = file.read(TAIL_BYTES)
    except OSError:
        return []
    lines = content.decode("utf-8", "backslashreplace").splitlines()
    if size_bytes > TAIL_BYTES:
        lines = lines[1:]  # its beginning is cut off
    return [printable(_as_text(line)) for line in lines[-TAIL_LINES:]]


def _as_text(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:
        return line
    if not isinstance(record, dict) or "message" not in record:
        return line
    shown = f"{record.get('level', 'info')}: {record['message']}"
    trace = record.get("exception")
    if isinstance(trace, str) and trace.strip():
        shown += f" ({trace.strip().splitlines()[-1].strip()})"
    return shown
