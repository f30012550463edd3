"""A fake mesh in this process, and a way to run the command against it."""

import asyncio
import importlib.util
import io
import json
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

FAKE_MESH = Path(__file__).with_name("fake_mesh.py")


def _load_fakes():
    spec = importlib.util.spec_from_file_location("daemoneye_cli_fake_mesh", FAKE_MESH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_FAKES = _load_fakes()


@dataclass(frozen=True)
class Result:
    """What one run of the command did."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        """Standard output as one JSON document; fails when there is anything else on it."""
        return json.loads(self.out)

    @property
    def lines(self):
        """Standard output as JSON Lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self):
        """The error document on standard error."""
        return json.loads(self.err.splitlines()[-1])["error"]


class MeshThread:
    """Runs the fake mesh in a loop of its own, since the command brings its own loop."""

    def __init__(self, root):
        self.root = root
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fake mesh")

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(30)
        return self.mesh

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self):
        asyncio.run(self._serve())

    async def _serve(self):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.mesh = _FAKES.FakeMesh(self.root)
        await self.mesh.start()
        self._ready.set()
        await self._stop.wait()
        await self.mesh.stop()


@pytest.fixture
def fakes():
    """The module with the fakes and makers of messages."""
    return _FAKES


@pytest.fixture
def runtime_dir():
    """A runtime dir with a short path, since a socket path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def mesh(runtime_dir):
    """A mesh that runs."""
    with MeshThread(runtime_dir) as mesh:
        yield mesh


@pytest.fixture
def daemoneye(runtime_dir, monkeypatch):
    """Runs the command in this process against ``runtime_dir``."""
    from daemoneye_cli.app import run

    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("DAEMONEYE_RUNTIME_DIR", str(runtime_dir))

    def call(*argv, stdin=""):
        out, err = io.StringIO(), io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            code = run(argv)
        return Result(int(code), out.getvalue(), err.getvalue())

    return call
