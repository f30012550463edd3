"""A mesh of real processes in a runtime dir of its own, with the identities it needs.

The benchmark stands in for the agent as issuer: it holds the signing key, writes the trust bundle
and gives every process a token file. Invariant: leaving the mesh ends every process it started and
removes the directory.
"""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc.aio
import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.report import BenchmarkError
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.directories import RUNTIME_DIR_VARIABLE
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.token import TokenIssuer, write_token_file, write_trust_bundle

__all__ = ["Mesh", "cpu_s", "forget_peak_rss", "peak_rss_bytes", "rss_bytes"]

ROOT = Path(__file__).resolve().parent.parent
TOKEN_LIFE = timedelta(hours=1)
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
SERVING_POLL_S = 0.02
LOG_TAIL_BYTES = 4_000
LINE_LIMIT_BYTES = 64 << 20

Process = asyncio.subprocess.Process


class Mesh:
    """Processes that find one another in one runtime dir; an asynchronous context manager."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="de-bench-"))
        self.layout = RuntimeLayout(self._home / "run")
        self.layout.root.mkdir(mode=0o750)
        self.layout.tokens_dir.mkdir(mode=0o750)
        key = ec.generate_private_key(ec.SECP256R1())
        self._issuer = TokenIssuer(key, self.layout.trust_domain)
        write_trust_bundle(self.layout.trust_bundle, [self._issuer.public_key])
        self._started: list[tuple[str, Process]] = []
        self.python = sys.executable

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for _name, process in reversed(self._started):
                await _stop(process)
            if error is not None:
                self._show_logs()
        finally:
            shutil.rmtree(self._home, ignore_errors=True)

    def directory(self, name: str) -> Path:
        """A directory that is gone when the mesh is left; made when it is not there yet."""
        path = self._home / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    def token(self, bearer: Identity, audience: Identity, domains: Iterable[str] = ()) -> str:
        """Signs a token of ``bearer`` for calling ``audience``."""
        return self._issuer.issue(bearer, audience.spiffe_id, TOKEN_LIFE, domains)

    def token_file(self, bearer: Identity, audience: Identity, domains: Iterable[str] = ()) -> Path:
        """Writes such a token where another process can read it."""
        path = self.layout.tokens_dir / f"{bearer.kind}-{bearer.id}-for-{audience.id}.token"
        write_token_file(path, self.token(bearer, audience, domains))
        return path

    def token_source(self, bearer: Identity, audience: Identity) -> Callable[[], str]:
        """Returns such a token as the source of a channel of ours."""
        token = self.token(bearer, audience)
        return lambda: token

    async def serve(self, module: str, socket: Path, *flags: str) -> Process:
        """Starts a service of the mesh as users do, and returns once it is SERVING.

        Raises:
            BenchmarkError: it did not come up.
        """
        process = await self.start(module, "--stop-with-parent", *flags)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._wait_serving(process, module, socket)
        except TimeoutError:
            raise BenchmarkError(f"{module} is not serving after {START_TIMEOUT_S} s") from None
        return process

    async def start(self, module: str, *arguments: str, python: str = sys.executable) -> Process:
        """Starts ``python -m module`` with pipes for input and output and a log file for errors."""
        return await self.spawn(module, [python, "-m", module, *arguments])

    async def spawn(self, name: str, command: Sequence[str]) -> Process:
        """Starts a program likewise; ``name`` names its log."""
        environ = {
            **os.environ,
            RUNTIME_DIR_VARIABLE: str(self.layout.root),
            "HOME": str(self._home),
        }
        with self._log_of(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=ROOT,
                env=environ,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=LINE_LIMIT_BYTES,
            )
        self._started.append((name, process))
        return process

    async def _wait_serving(self, process: Process, module: str, socket: Path) -> None:
        channel = open_channel(socket)
        try:
            while not await _is_serving(channel):
                if process.returncode is not None:
                    raise BenchmarkError(f"{module} ended with status {process.returncode}")
                await asyncio.sleep(SERVING_POLL_S)
        finally:
            await channel.close()

    def _log_of(self, module: str) -> Path:
        return self._home / f"{module}.log"

    def _show_logs(self) -> None:
        for module in dict.fromkeys(name for name, _process in self._started):
            tail = self._log_of(module).read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
            print(f"-- the end of the log of {module}\n{tail}", file=sys.stderr)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, in user and kernel."""
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def rss_bytes(pid: int) -> int:
    """Memory of a process that is resident now."""
    return int(psutil.Process(pid).memory_info().rss)


def forget_peak_rss(pid: int) -> None:
    """Begins the peak anew, see proc(5); a kernel that cannot tells the peak of all times."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_rss_bytes(pid: int) -> int:
    """Most memory of a process that was resident since the peak was forgotten."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError("the kernel does not report the peak of resident memory")


async def _is_serving(channel: grpc.aio.Channel) -> bool:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=START_TIMEOUT_S)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _stop(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.communicate()
        except TimeoutError:
            process.kill()
    await process.wait()
