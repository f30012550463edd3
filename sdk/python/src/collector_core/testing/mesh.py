"""A mesh for tests of collectors: broker and agent in the loop of the test, on real sockets.

Transport, tokens and the access table are those of a real mesh; what is fake is what lies behind.
Invariant: after ``close`` no task, socket or file of it is left.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc.aio
from cryptography.hazmat.primitives.asymmetric import ec

from collector_core.testing.agent import FakeAgent
from collector_core.testing.changes import DEFAULT_TIMEOUT_S, Changes
from collector_core.testing.service_bus import FakeBus
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye.eventbus.v1 import eventbus_service_pb2_grpc
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.directories import RUNTIME_DIR_VARIABLE, STATE_DIR_VARIABLE, prepare_directory
from daemoneye_mesh.identity import Identity, VerifiedToken
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.server import MeshServer
from daemoneye_mesh.sockets import check_socket_path
from daemoneye_mesh.token import TokenIssuer, TokenVerifier, write_token_file, write_trust_bundle

__all__ = ["FakeMesh"]

TOKEN_TTL_S = 3600.0
LOG_TAIL_LINES = 15
LONGEST_ID = "x" * 16


class FakeMesh:
    """One mesh; use it with ``async with``.

    Args:
        root: where sockets, tokens, state and logs go; its path must be short, as a socket path has
            107 bytes at most. A directory of its own, removed at the end, when left out.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._is_own_root = root is None
        self.root = root or Path(tempfile.mkdtemp(prefix="de-"))
        self.layout = RuntimeLayout(self.root / "run")
        self.state_dir = self.root / "state"
        self.changes = Changes(self.describe)
        """Is told whenever something arrives."""
        self.agent = FakeAgent(self._issue, self.changes, self._open_collector)
        self.bus = FakeBus(self.changes, self.agent.store)
        self.domains: dict[str, frozenset[str]] = {}
        """The domains of the collectors that are enrolled."""
        self._issuer = TokenIssuer(
            ec.generate_private_key(ec.SECP256R1()), self.layout.trust_domain
        )
        self._servers: dict[Path, MeshServer] = {}
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "FakeMesh":
        """Serves."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stops."""
        await self.close()

    async def start(self) -> None:
        """Serves broker and agent.

        Raises:
            SocketUnusableError: the root is too long for a socket path, or in use.
        """
        check_socket_path(self.layout.collector_socket(LONGEST_ID))
        for path in (self.layout.root, self.layout.tokens_dir, self.state_dir):
            prepare_directory(path, 0o700)
        write_trust_bundle(self.layout.trust_bundle, [self._issuer.public_key])
        try:
            await self.start_agent()
            await self.start_bus()
        except BaseException:
            await self.close()
            raise
        self._worker = asyncio.create_task(self.agent.run(), name="fake agent")

    async def close(self) -> None:
        """Stops everything and removes a root of its own."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker
        await self.agent.close()
        for path in [*self._servers]:
            await self._stop(path)
        if self._is_own_root:
            shutil.rmtree(self.root, ignore_errors=True)

    # -- identities ---------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """What a collector of this mesh is started with: ours without settings of other meshes."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DAEMONEYE_", "XDG_"))
        }
        return {
            **kept,
            RUNTIME_DIR_VARIABLE: str(self.layout.root),
            STATE_DIR_VARIABLE: str(self.state_dir),
            "HOME": str(self.root),
        }

    def enrol(self, collector_id: str, *domains: str) -> Path:
        """Makes a collector known, as the agent's setting ``collectors`` does.

        Args:
            collector_id: ``[a-z0-9_-]{1,64}``.
            domains: of ``process``, ``network``, ``filesystem``, ``performance``.

        Returns:
            The file with its token.
        """
        self.domains[collector_id] = frozenset(domains)
        identity = self.layout.collector(collector_id)
        path = self.layout.token_file(identity)
        write_token_file(path, self.token(identity, self.layout.agent))
        return path

    def token(self, identity: Identity, audience: Identity, ttl_s: float = TOKEN_TTL_S) -> str:
        """Issues a token of an identity for calling another one."""
        domains = self.domains.get(identity.id, frozenset())
        return self._issuer.issue(identity, audience.spiffe_id, timedelta(seconds=ttl_s), domains)

    # -- conditions ---------------------------------------------------------------------------------

    async def until(
        self,
        predicate: Callable[[], Any],
        what: str,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Any:
        """Returns the first true value of ``predicate``; it is asked whenever something arrives.

        Args:
            predicate: a function or coroutine function without arguments.
            what: the condition as a sentence, for the error.
            timeout_s: longest wait, seconds.

        Raises:
            ConditionTimeoutError: it did not come true in time; it shows what was seen.
        """
        return await self.changes.until(predicate, what, timeout_s)

    def describe(self) -> str:
        """What has arrived, and the last lines of the logs."""
        topics = ", ".join(f"{topic}: {count}" for topic, count in self.bus.topics.items())
        lines = [
            *self.agent.describe(),
            f"published: {topics or 'nothing'}; batches: {self.bus.batch_count},"
            f" refused: {dict(self.bus.refused)}",
        ]
        for path in sorted(self.root.glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            lines += [f"-- {path.name}", *tail]
        return "\n".join(lines)

    # -- what goes wrong ----------------------------------------------------------------------------

    async def stop_bus(self) -> None:
        """Ends the broker: its streams break and its socket goes."""
        await self._stop(self.layout.eventbus_socket)

    async def start_bus(self) -> None:
        """Serves the broker."""
        await self._serve(
            self.layout.eventbus_socket,
            eventbus_service_pb2_grpc.add_EventBusServiceServicer_to_server,
            self.bus,
            "daemoneye.eventbus.v1.EventBusService",
        )

    async def restart_bus(self) -> int:
        """Ends the broker and serves one that knows nothing; returns how many messages it lost.

        What the agent has stays; what was held back from it is gone.
        """
        await self.stop_bus()
        lost_count = self.bus.forget()
        await self.start_bus()
        return lost_count

    async def stop_agent(self) -> None:
        """Ends the agent: leases cannot be kept and its socket goes."""
        await self._stop(self.layout.agent_socket)

    async def start_agent(self) -> None:
        """Serves the agent."""
        await self._serve(
            self.layout.agent_socket,
            registry_service_pb2_grpc.add_RegistryServiceServicer_to_server,
            self.agent,
            "daemoneye.agent.v1.RegistryService",
        )

    async def restart_agent(self) -> None:
        """Ends the agent and serves it again; what it stored stays, leases do not."""
        await self.stop_agent()
        self.agent.end_leases()
        await self.start_agent()

    async def _serve(self, path: Path, add: Any, servicer: Any, service: str) -> None:
        audience = self.layout.owner_of(path)
        verifier = TokenVerifier(
            self.layout.trust_bundle, audience.spiffe_id, self.layout.trust_domain
        )
        server = MeshServer(path, AuthInterceptor(verifier, AccessTable.load()))
        server.add(add, servicer, service)
        await server.start()
        self._servers[path] = server
        await server.set_serving(True)

    async def _stop(self, path: Path) -> None:
        if server := self._servers.pop(path, None):
            await server.drain(0)

    def _issue(self, own: VerifiedToken, audience: str, ttl_s: float) -> str:
        ttl, known = timedelta(seconds=ttl_s), Identity.parse(audience)
        return self._issuer.issue(own.identity, known.spiffe_id, ttl, own.domains)

    def _open_collector(self, collector_id: str) -> grpc.aio.Channel:
        path = self.layout.collector_socket(collector_id)
        token = self.token(self.layout.agent, self.layout.collector(collector_id))
        return open_channel(path, lambda: token)
