"""One real mesh for the whole module of documents, as an operator's shell sees it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 60.0
STOP_LIMIT_S = 40.0
LIFE_S = "0.8"
"""Longer than the distance of two scans, so that each child is seen."""


class Shell:
    """A shell in which plain ``daemoneye …`` talks to the mesh of this test."""

    def __init__(self, home: Path) -> None:
        binaries = [str(Path(sys.executable).parent), str(ROOT / ".tools"), os.environ["PATH"]]
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DAEMONEYE_", "XDG_"))
        }
        self.environment = {
            **kept,
            "PATH": os.pathsep.join(binaries),
            "HOME": str(home),
            "DAEMONEYE_RUNTIME_DIR": str(home / "run"),
            "DAEMONEYE_STATE_DIR": str(home / "state"),
            "DAEMONEYE_AGENT_RULES_DIR": str(ROOT / "docs" / "examples"),
            "COLUMNS": "200",
            "TERM": "dumb",
        }

    def run(self, command: str, timeout_s: float = 45.0) -> tuple[int, str]:
        """Runs one command as a document shows it; returns its status and all that it printed."""
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout.decode(errors="replace")


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    """The shell, with ``daemoneye up`` running and something happening on the host."""
    home = Path(tempfile.mkdtemp(prefix="de-", dir="/tmp"))
    shell = Shell(home)
    log = home / "up.log"
    with log.open("wb") as output:
        mesh = subprocess.Popen(
            [str(Path(sys.executable).with_name("daemoneye")), "up"],
            cwd=home,
            env=shell.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for_inventory(mesh, log)
        with activity():
            yield shell
    finally:
        mesh.send_signal(signal.SIGINT)
        try:
            status = mesh.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            mesh.kill()
            status = mesh.wait()
        text = log.read_text(errors="replace")
        shutil.rmtree(home, ignore_errors=True)
    assert status == 0, text


def wait_for_inventory(mesh: "subprocess.Popen[bytes]", log: Path) -> None:
    """Returns once the first inventory has arrived."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while "inventory: " not in (text := log.read_text(errors="replace")):
        if mesh.poll() is not None or time.monotonic() > deadline_s:
            pytest.fail(f"the mesh did not come up:\n{text}")
        time.sleep(0.05)


class activity:  # noqa: N801 -- reads as a phrase in a with statement
    """Processes that come and go, so that whoever follows events sees some."""

    def __enter__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="activity")
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.is_set():
            subprocess.run(["sleep", LIFE_S], check=True)
