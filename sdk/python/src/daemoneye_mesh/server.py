"""The server of every process: one Unix socket with errors, identity, health and reflection.

Order of a life: claim the path, bind under a umask, serve (health NOT_SERVING until told), drain
(health first, then long streams, then grpc's grace), release the path.
"""

import asyncio
import logging
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2_grpc

from daemoneye_mesh.authentication import AuthInterceptor
from daemoneye_mesh.decoding import DecodingInterceptor
from daemoneye_mesh.error_interceptor import ErrorInterceptor
from daemoneye_mesh.health import OVERALL, HealthServicer
from daemoneye_mesh.limits import MAX_CONNECTIONS, MAX_RECEIVE_BYTES
from daemoneye_mesh.reflection import add_reflection
from daemoneye_mesh.sockets import (
    SOCKET_MODE,
    SocketClaim,
    SocketUnusableError,
    restrict_umask,
    socket_target,
)

__all__ = ["DRAIN_GRACE_S", "MeshServer", "server_options"]

DRAIN_GRACE_S = 5.0
"""How long calls in flight may go on after the server stopped taking new ones."""

_HEALTH_SERVICE = "grpc.health.v1.Health"

S = TypeVar("S")

log = logging.getLogger("daemoneye.server")


def server_options() -> list[tuple[str, int]]:
    """Channel arguments of every server; the reasons stand beside them."""
    return [
        ("grpc.so_reuseport", 0),
        # With the probe on, a peer that does not read costs megabytes of our memory each.
        ("grpc.http2.bdp_probe", 0),
        # Room for several batches a stream: with less, each waits for the peer's window to open.
        ("grpc.http2.lookahead_bytes", 1 << 20),
        # A batch in one frame, where 16 KiB would make it twenty.
        ("grpc.http2.max_frame_size", 1 << 20),
        # Past 1,000 waiting calls grpc answers CANCELLED, which no client may retry.
        ("grpc.server.max_pending_requests", 20_000),
        ("grpc.server.max_pending_requests_hard_limit", 40_000),
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        # Clients ping to notice a stopped server; by default they would be thrown out for it.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


class MeshServer:
    """One gRPC server on one Unix socket.

    Args:
        path: socket path, absolute, at most 107 bytes.
        auth: verifies callers; health and reflection are open.
    """

    def __init__(self, path: Path, auth: AuthInterceptor) -> None:
        self.path = path
        self.health = HealthServicer()
        self._services: list[str] = []
        self._drain_hooks: list[Callable[[], Awaitable[None]]] = []
        self._claim: SocketClaim | None = None
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor(), auth, DecodingInterceptor()], options=server_options()
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)

    def add(
        self, add_to_server: Callable[[S, grpc.aio.Server], None], servicer: S, service: str
    ) -> None:
        """Adds a servicer by its generated ``add_XxxServicer_to_server`` and full service name."""
        add_to_server(servicer, self._server)
        self._services.append(service)

    def on_drain(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Registers what ends long streams; called once when the server starts to drain."""
        self._drain_hooks.append(hook)

    async def start(self) -> None:
        """Claims the path and serves, with health still NOT_SERVING.

        Raises:
            InvalidConfigError: the path cannot be a socket path.
            PreconditionError: the directory or the path is not usable.
        """
        add_reflection(self._server, [*self._services, _HEALTH_SERVICE])
        for service in self._services:
            await self.health.set_serving(service, False)
        self._claim = SocketClaim(self.path)
        try:
            self._bind()
            await self._server.start()
        except BaseException:
            self.path.unlink(missing_ok=True)  # a server that never started leaves it
            self._release()
            raise
        log.info("listening on %s", self.path)

    async def set_serving(self, is_serving: bool) -> None:
        """Sets the health of the server and of all its services."""
        for service in (OVERALL, *self._services):
            await self.health.set_serving(service, is_serving)

    async def drain(self, grace_s: float = DRAIN_GRACE_S) -> None:
        """Stops in order: health, long streams, calls in flight for at most ``grace_s``, path.

        A drain that was cancelled, or takes too long, may be followed by one with less grace.
        """
        if self._claim is None:
            return
        await self.health.drain()
        hooks, self._drain_hooks = self._drain_hooks, []
        try:
            async with asyncio.TaskGroup() as group:
                for hook in hooks:
                    group.create_task(_run(hook))
        finally:
            await self._server.stop(grace_s)
            self._release()
        log.info("stopped listening on %s", self.path)

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _bind(self) -> None:
        with restrict_umask(SOCKET_MODE):
            try:
                self._server.add_insecure_port(socket_target(self.path))
            except RuntimeError as error:
                raise SocketUnusableError(
                    f"cannot bind {self.path}; check that its directory is writable",
                    path=self.path,
                ) from error
        mode = stat.S_IMODE(self.path.lstat().st_mode)
        if mode & ~SOCKET_MODE:
            raise SocketUnusableError(
                f"{self.path} came up with mode {mode:o}; check the ACLs of its directory",
                path=self.path,
            )


async def _run(hook: Callable[[], Awaitable[None]]) -> None:
    await hook()
