"""An operator's session with one mesh: a channel to each process, with the right token on it.

The operator's bootstrap token is for the agent alone. For every other process the agent issues a token
with that process as audience, when it is first needed; long sessions renew it.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from collector_core.bus.reconnect import keep_trying
from daemoneye.agent.v1 import registry_service_pb2, registry_service_pb2_grpc
from daemoneye_cli.calls import Peer, ask
from daemoneye_cli.probe import require_listener
from daemoneye_mesh.channel import TokenSource, open_channel
from daemoneye_mesh.errors import DaemoneyeError, ErrorReason, UnauthenticatedError
from daemoneye_mesh.identity import Identity, IdentityKind
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.token import FileTokenSource

__all__ = ["DEFAULT_TIMEOUT_S", "Link", "OperatorSession"]

DEFAULT_TIMEOUT_S = 10.0
RENEW_SHARE = 0.6
MIN_RENEW_DELAY_S = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """A channel, and whose it is."""

    channel: grpc.aio.Channel
    peer: Peer


class OperatorSession:
    """Channels to the processes of one mesh; use it with ``async with``.

    Args:
        layout: the mesh.
        token_file: the operator's bootstrap token; its place in the runtime dir when left out.
        timeout_s: deadline of a call; None takes the default of each command.
    """

    def __init__(
        self,
        layout: RuntimeLayout,
        *,
        token_file: Path | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.layout = layout
        self.token_file = token_file or layout.token_file(layout.operator())
        self._timeout_s = timeout_s
        self._bootstrap = FileTokenSource(self.token_file)
        self._links: dict[Path, Link] = {}
        self._issued: list[_IssuedToken] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for link in self._links.values():
            await link.channel.close()
        self._links.clear()

    def timeout_s(self, default_s: float = DEFAULT_TIMEOUT_S) -> float:
        """Returns the deadline that was asked for, else ``default_s``."""
        return default_s if self._timeout_s is None else self._timeout_s

    @property
    def given_timeout_s(self) -> float | None:
        """The deadline that was asked for; None when there was none."""
        return self._timeout_s

    async def agent(self) -> Link:
        """Returns the link to the agent.

        Raises:
            UnreachableError: nobody listens on its socket.
            PermissionDeniedError: we may not connect to it.
            UnauthenticatedError: there is no token we could use.
        """
        return await self._link(self.layout.agent_socket, self._bootstrap_source)

    async def broker(self) -> Link:
        """Returns the link to the broker; its token comes from the agent.

        Raises:
            DaemoneyeError: either of the two is not reachable or refuses.
        """
        return await self.to_owner(self.layout.eventbus_socket)

    async def to_owner(self, socket: Path) -> Link:
        """Returns the link to whoever serves ``socket``, with a token for it.

        Raises:
            InvalidConfigError: the socket is none of this mesh.
            DaemoneyeError: it, or the agent, is not reachable or refuses.
        """
        owner = self.layout.owner_of(socket)
        if owner.kind is IdentityKind.AGENT:
            return await self.agent()
        if socket in self._links:
            return self._links[socket]
        await require_listener(socket, describe_owner(owner))
        issued = await self._issue(owner)
        return await self._link(socket, issued.current)

    async def open(self, socket: Path, name: str) -> Link:
        """Returns a link without a token, for health and reflection; close its channel yourself.

        Raises:
            UnreachableError: nobody listens there.
            PermissionDeniedError: we may not connect to it.
        """
        await require_listener(socket, name)
        return Link(open_channel(socket), Peer(name, socket))

    def name_of(self, socket: Path) -> str:
        """Returns what to call the process behind ``socket``."""
        try:
            return describe_owner(self.layout.owner_of(socket))
        except DaemoneyeError:
            return f"the server of {socket}"

    async def keep_tokens(self) -> None:
        """Renews the tokens that were issued so far, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for issued in self._issued:
                group.create_task(issued.keep(), name="renew token")

    async def _link(self, socket: Path, token_source: TokenSource) -> Link:
        if socket not in self._links:
            name = self.name_of(socket)
            await require_listener(socket, name)
            token_source()  # a call without a token fails with a text of gRPC's own
            self._links[socket] = Link(open_channel(socket, token_source), Peer(name, socket))
        return self._links[socket]

    async def _issue(self, audience: Identity) -> "_IssuedToken":
        agent = await self.agent()
        issued = _IssuedToken(agent, audience, self.timeout_s())
        await issued.obtain()
        self._issued.append(issued)
        return issued

    def _bootstrap_source(self) -> str:
        try:
            return self._bootstrap.token()
        except DaemoneyeError as error:
            raise UnauthenticatedError(
                error.message, reason=ErrorReason.FILE_UNUSABLE, token_file=self.token_file
            ) from None


class _IssuedToken:
    """A token that the agent issued to us, for one audience."""

    def __init__(
        self,
        agent: Link,
        audience: Identity,
        timeout_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._audience = audience
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._token = ""
        self._renew_at_s = 0.0

    def current(self) -> str:
        return self._token

    async def obtain(self) -> None:
        stub = registry_service_pb2_grpc.RegistryServiceStub(self._agent.channel)
        request = registry_service_pb2.IssueTokenRequest(audience=self._audience.spiffe_id)
        answer = await ask(stub.IssueToken, request, self._agent.peer, self._timeout_s)
        life_s = answer.expires_at.ToNanoseconds() / 1e9 - time.time()
        self._token = answer.token
        self._renew_at_s = self._monotonic() + max(life_s * RENEW_SHARE, MIN_RENEW_DELAY_S)

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(max(self._renew_at_s - self._monotonic(), 0))
            await keep_trying(f"renew the token for {self._audience.name}", self.obtain)


def describe_owner(owner: Identity) -> str:
    """Returns what to call a process in a message to an operator."""
    names = {IdentityKind.AGENT: "agent", IdentityKind.BROKER: "broker"}
    return names.get(owner.kind, f"collector {owner.id}")
