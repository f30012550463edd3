"""The tokens of one process: a bootstrap token from a file, and the others asked of the agent.

The file's token is for calling the agent only. A token for another service is issued by
``RegistryService.IssueToken`` and renewed before two thirds of its life have passed (MUST-REG-04).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from collector_core.bus.reconnect import keep_trying
from daemoneye.agent.v1 import registry_service_pb2, registry_service_pb2_grpc
from daemoneye_mesh.channel import TokenSource
from daemoneye_mesh.errors import UnavailableError
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.wall_clock import sleep_unless_set

__all__ = ["TokenKeeper"]

ISSUE_TIMEOUT_S = 5.0
RENEW_SHARE = 0.6
MIN_RENEW_DELAY_S = 0.5
"""Less than two thirds of the shortest token, which lives for a second."""

log = logging.getLogger("daemoneye.tokens")


@dataclass(frozen=True, slots=True)
class _Held:
    token: str
    renew_at_s: float


class TokenKeeper:
    """Keeps one token an audience, renewed in the background.

    Args:
        registry: stub of the agent's registry, on a channel with the bootstrap token.
        audiences: the services this process calls.
        monotonic: clock for the renewals, seconds.
    """

    def __init__(
        self,
        registry: "registry_service_pb2_grpc.RegistryServiceAsyncStub",
        audiences: tuple[Identity, ...],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._audiences = audiences
        self._monotonic = monotonic
        self._held: dict[Identity, _Held] = {}

    def source(self, audience: Identity) -> TokenSource:
        """Returns the token source for a channel to ``audience``."""

        def current() -> str:
            held = self._held.get(audience)
            if held is None:
                raise UnavailableError(
                    f"no token for {audience.name} yet; the agent issues it once it is reached",
                    audience=audience.name,
                )
            return held.token

        return current

    async def run(self) -> None:
        """Obtains the tokens and renews them until cancelled."""
        async with asyncio.TaskGroup() as group:
            for audience in self._audiences:
                group.create_task(self._keep(audience), name=f"token {audience.name}")

    async def _keep(self, audience: Identity) -> None:
        while True:
            self._held[audience] = await keep_trying(
                f"get a token for {audience.name}", lambda: self._issue(audience)
            )
            await sleep_unless_set(self._held[audience].renew_at_s - self._monotonic())

    async def _issue(self, audience: Identity) -> _Held:
        answer = await self._registry.IssueToken(
            registry_service_pb2.IssueTokenRequest(audience=audience.spiffe_id),
            timeout=ISSUE_TIMEOUT_S,
        )
        life_s = answer.expires_at.ToNanoseconds() / 1e9 - time.time()
        delay_s = max(life_s * RENEW_SHARE, MIN_RENEW_DELAY_S)
        return _Held(answer.token, self._monotonic() + delay_s)
