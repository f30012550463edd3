"""The peers' servers from the distribution's packages: quiet, on no disk, bounded by nothing.

Each is started in a directory of its own, on a Unix socket where it can, else on the loopback.
Their own bounds for slow subscribers are lifted: the benchmark wants every event through.
"""

import asyncio
import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mesh import Mesh, Process
from benchmarks.report import BenchmarkError

__all__ = ["PEERS", "Peer", "Server", "start_peer"]

START_TIMEOUT_S = 10.0
POLL_S = 0.02
SBIN = "/usr/sbin:/usr/local/sbin"
"""Where distributions put servers, often outside of a user's PATH."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    process: Process
    address: str


@dataclass(frozen=True, slots=True)
class Peer:
    """How one system is found, configured and reached."""

    name: str
    program: str
    package: str
    """Of the distribution."""
    client: str
    """Distribution name of the Python client."""
    topic: str
    configure: Callable[[Path], str]
    """The configuration for a directory."""
    arguments: tuple[str, ...]
    """What stands before the path of the configuration."""
    locate: Callable[[Path], str]
    """The address, or nothing as long as the server is not there."""

    def find(self) -> str | None:
        """The path of the server's program."""
        return shutil.which(self.program) or shutil.which(self.program, path=SBIN)

    def version(self) -> str:
        """The server's version, as it says itself."""
        program = self.find() or self.program
        flag = "-h" if self.program == "mosquitto" else "--version"
        said = subprocess.run([program, flag], capture_output=True, text=True, check=False)
        found = re.search(r"\d+\.\d+\.\d+", said.stdout + said.stderr)
        return found.group() if found else "unknown"

    async def client_version(self, python: str) -> str:
        """Name and version of the client that an interpreter has.

        Raises:
            BenchmarkError: it has none.
        """
        code = f"import importlib.metadata as m; print(m.version({self.client!r}))"
        process = await asyncio.create_subprocess_exec(
            *(python, "-c", code),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _nothing = await process.communicate()
        if process.returncode:
            raise BenchmarkError(f"{python} has no {self.client}; see benchmarks/requirements.txt")
        return f"{self.client} {said.decode().strip()}"


async def start_peer(mesh: Mesh, peer: Peer) -> Server:
    """Starts the server of a peer and returns when it can be reached.

    Raises:
        BenchmarkError: it cannot.
    """
    program = peer.find()
    if program is None:
        raise BenchmarkError(f"{peer.program} is not installed")
    directory = mesh.directory(peer.name)
    config = directory / "server.conf"
    config.write_text(peer.configure(directory))
    process = await mesh.spawn(peer.name, _bound_to_us(program, *peer.arguments, str(config)))
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (address := peer.locate(directory)):
                if process.returncode is not None:
                    raise BenchmarkError(f"{peer.program} ended with {process.returncode}")
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise BenchmarkError(f"{peer.program} is not there after {START_TIMEOUT_S} s") from None
    return Server(process, address)


def _bound_to_us(*command: str) -> list[str]:
    """The command, made to end with this process where util-linux is there to do so."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", *command] if setpriv else [*command]


def _nats_config(directory: Path) -> str:
    return (
        'host: "127.0.0.1"\n'
        "port: -1\n"
        f'ports_file_dir: "{directory}"\n'
        f'logfile: "{directory}/nats.log"\n'
        "max_pending: 4GB\n"
        'write_deadline: "60s"\n'
    )


def _nats_address(directory: Path) -> str:
    for path in directory.glob("*.ports"):
        urls = json.loads(path.read_text() or "{}").get("nats", [])
        return str(urls[0]) if urls else ""
    return ""


def _redis_config(directory: Path) -> str:
    return (
        "port 0\n"
        f"unixsocket {directory}/server.sock\n"
        "unixsocketperm 700\n"
        f"dir {directory}\n"
        'save ""\n'
        "appendonly no\n"
        "daemonize no\n"
        "loglevel warning\n"
        f"logfile {directory}/redis.log\n"
        "client-output-buffer-limit pubsub 0 0 0\n"
    )


def _mosquitto_config(directory: Path) -> str:
    return (
        "user root\n"
        f"listener 0 {directory}/server.sock\n"
        "allow_anonymous true\n"
        "persistence false\n"
        f"log_dest file {directory}/mosquitto.log\n"
        "log_type error\n"
        "max_inflight_messages 0\n"
        "max_queued_messages 0\n"
        "max_queued_bytes 0\n"
        "set_tcp_nodelay true\n"
    )


def _unix_socket(directory: Path) -> str:
    path = str(directory / "server.sock")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return ""
    return path


_EVERY_PEER = (
    Peer(
        name="nats",
        program="nats-server",
        package="nats-server",
        client="nats-py",
        topic="events.process.lifecycle",
        configure=_nats_config,
        arguments=("-c",),
        locate=_nats_address,
    ),
    Peer(
        name="redis",
        program="redis-server",
        package="redis-server",
        client="redis",
        topic="events.process.lifecycle",
        configure=_redis_config,
        arguments=(),
        locate=_unix_socket,
    ),
    Peer(
        name="mosquitto",
        program="mosquitto",
        package="mosquitto",
        client="paho-mqtt",
        topic="events/process/lifecycle",
        configure=_mosquitto_config,
        arguments=("-c",),
        locate=_unix_socket,
    ),
)
PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _EVERY_PEER}
"""By name, as in results."""
