"""`make run` as a person uses it: in a terminal, ended with Ctrl-C."""

import contextlib
import os
import pty
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
CTRL_C = b"\x03"
LIMIT_S = 60.0


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execvpe(command[0], command, environment)
        self.shown = ""

    def read_until(self, text: str) -> None:
        """Reads until ``text`` is on the screen."""
        deadline_s = time.monotonic() + LIMIT_S
        while text not in self.shown:
            if time.monotonic() > deadline_s:
                pytest.fail(f"{text!r} did not appear in\n{self.shown}")
            try:
                self.shown += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:  # the program has ended and the terminal with it
                pytest.fail(f"ended without {text!r}\n{self.shown}")

    def type(self, keys: bytes) -> None:
        """Types."""
        os.write(self._fd, keys)

    def wait(self) -> int:
        """Reads what is left and returns the exit status."""
        with contextlib.suppress(OSError):
            while chunk := os.read(self._fd, 65536):
                self.shown += chunk.decode(errors="replace")
        _, status = os.waitpid(self.pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(mesh_dir: Path) -> Iterator[Terminal]:
    """`make run` with a mesh of its own."""
    environment = {
        **os.environ,
        "DAEMONEYE_RUNTIME_DIR": str(mesh_dir / "run"),
        "DAEMONEYE_STATE_DIR": str(mesh_dir / "state"),
        "TERM": "xterm",
        "COLUMNS": "200",
    }
    running = Terminal(["make", "--no-print-directory", "run"], environment)
    yield running
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(running.pid, 9)
        os.waitpid(running.pid, 0)


@pytest.mark.timeout(180)
def test_make_run_shows_events_and_alerts_and_ends_cleanly_on_ctrl_c(
    terminal: Terminal, mesh_dir: Path
) -> None:
    terminal.read_until("mesh is up")
    terminal.read_until("inventory")
    program = Path("/tmp") / f"x{os.getpid()}"
    shutil.copy("/bin/sleep", program)
    child = subprocess.Popen([program, "60"])
    try:
        terminal.read_until(f"{program} 60")
        terminal.read_until("execution-from-temporary-directory")
    finally:
        child.kill()
        child.wait()
        program.unlink()

    terminal.type(CTRL_C)
    assert terminal.wait() == 0, terminal.shown

    assert not list((mesh_dir / "run").rglob("*.sock"))
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(mesh_dir) not in listing.stdout
