"""Fixtures that every area may use: short paths, identities of one mesh, and watching for leaks."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import settings

from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.token import TokenIssuer, TokenVerifier, write_token_file, write_trust_bundle

# A shell starts background jobs with SIGINT ignored, and every child would inherit that: Ctrl-C could
# not be tested from one.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long one example takes says nothing on a shared machine.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

WAIT_S = 10.0
POLL_S = 0.005
COLLECTOR_SERVICE = "daemoneye.ipc.v1.CollectorService"
SETTLE_S = 3.0


@dataclass(frozen=True)
class MeshIdentity:
    """The agent's side of identity: it issues what a test needs."""

    layout: RuntimeLayout
    issuer: TokenIssuer

    def token(
        self,
        identity: Identity,
        audience: Identity,
        ttl_s: float = 300,
        domains: tuple[str, ...] = ("process",),
    ) -> str:
        """Returns a token of ``identity`` for calling ``audience``."""
        ttl = timedelta(seconds=ttl_s)
        return self.issuer.issue(identity, audience.spiffe_id, ttl, domains)

    def source(self, identity: Identity, audience: Identity) -> Callable[[], str]:
        """Returns a token source for a channel."""
        token = self.token(identity, audience)
        return lambda: token

    def enrol(self, identity: Identity) -> Path:
        """Writes the bootstrap token of ``identity``."""
        path = self.layout.token_file(identity)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_token_file(path, self.token(identity, self.layout.agent))
        return path

    def auth(self, audience: Identity) -> AuthInterceptor:
        """Returns the interceptor of the server that is ``audience``."""
        verifier = TokenVerifier(
            self.layout.trust_bundle, audience.spiffe_id, self.layout.trust_domain
        )
        return AuthInterceptor(verifier, AccessTable.load())


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A private directory whose path leaves room for socket names: they have 107 bytes in all."""
    path = Path(tempfile.mkdtemp(prefix="de-", dir="/tmp"))
    yield path
    path.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def mesh_identity(short_dir: Path) -> MeshIdentity:
    """A mesh in ``short_dir`` with a trust bundle and an issuer."""
    layout = RuntimeLayout(short_dir)
    issuer = TokenIssuer(ec.generate_private_key(ec.SECP256R1()), layout.trust_domain)
    write_trust_bundle(layout.trust_bundle, [issuer.public_key])
    return MeshIdentity(layout, issuer)


@dataclass(frozen=True)
class Served:
    """A server of a collector and a channel of the agent to it."""

    server: MeshServer
    channel: grpc.aio.Channel

    def method(self, name: str) -> str:
        """Returns the full name of a served method."""
        return f"/{COLLECTOR_SERVICE}/{name}"


@pytest.fixture
async def serve_methods(
    mesh_identity: MeshIdentity,
) -> AsyncIterator[Callable[[dict[str, object]], Awaitable[Served]]]:
    """Serves handlers of raw bytes under a service that the agent may call."""
    opened: list[Served] = []
    layout = mesh_identity.layout
    collector = layout.collector("procmond")

    async def serve(handlers: dict[str, object]) -> Served:
        def add(servicer: object, server: grpc.aio.Server) -> None:
            generic = grpc.method_handlers_generic_handler(COLLECTOR_SERVICE, handlers)
            server.add_generic_rpc_handlers((generic,))

        path = layout.collector_socket("procmond")
        server = MeshServer(path, mesh_identity.auth(collector))
        server.add(add, None, COLLECTOR_SERVICE)
        await server.start()
        channel = open_channel(path, mesh_identity.source(layout.agent, collector))
        opened.append(Served(server, channel))
        return opened[-1]

    yield serve
    for one in opened:
        await one.channel.close()
        await one.server.drain(0)


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits until a condition holds; fails after ``WAIT_S``."""

    async def wait(condition: Callable[[], object], what: str = "the condition") -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                while not condition():  # noqa: ASYNC110 -- any condition at all
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            pytest.fail(f"{what} did not come true within {WAIT_S} s")

    return wait


@pytest.fixture
async def no_leftover_tasks() -> AsyncIterator[None]:
    """Fails a test that leaves asyncio tasks behind; use it with ``usefixtures``."""
    before = asyncio.all_tasks()
    yield
    ours = {asyncio.current_task(), *before}

    def leftover() -> set[object]:
        return {task for task in asyncio.all_tasks() if task not in ours}

    try:
        async with asyncio.timeout(SETTLE_S):
            while leftover():  # noqa: ASYNC110 -- tasks end by themselves
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        pytest.fail(f"tasks left behind: {leftover()}")
