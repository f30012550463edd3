"""The issuer of identities: signing key, trust bundle, bootstrap tokens.

Invariant: the private key is in the state dir and nowhere else; a token is issued for its own bearer
and one audience, never for more domains than the bearer was enrolled with.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from daemoneye_mesh.directories import prepare_directory
from daemoneye_mesh.errors import DaemoneyeError, InvalidRequestError, PermissionDeniedError
from daemoneye_mesh.identity import Identity
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.token import (
    TokenIssuer,
    load_or_create_key,
    write_token_file,
    write_trust_bundle,
)
from daemoneye_mesh.wall_clock import sleep_unless_set

__all__ = ["IdentityIssuer", "IssuedToken", "OwnTokens"]

KEY_FILE = "issuer-key.pem"
_RENEW_SHARE = 0.4
_RETRY_SHARE = 0.05
_MAX_RETRY_S = 30.0

log = logging.getLogger("daemoneye.issuer")


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A signed token and its end."""

    token: str
    expires_at: datetime


class IdentityIssuer:
    """Issues tokens for the identities that were enrolled.

    Args:
        layout: the runtime dir, for the trust bundle and the bootstrap tokens.
        state_dir: where the key lies, or is made.
        collectors: domains by collector id.
        operators: operator names.
        ttl: life of a token.
    """

    def __init__(
        self,
        layout: RuntimeLayout,
        state_dir: Path,
        collectors: Mapping[str, frozenset[str]],
        operators: tuple[str, ...],
        ttl: timedelta,
    ) -> None:
        self._layout = layout
        self._ttl = ttl
        self._domains = {layout.collector(name): domains for name, domains in collectors.items()}
        self._enrolled = (*self._domains, *(layout.operator(name) for name in operators))
        services = (layout.agent, layout.broker, *self._domains)
        self._audiences = frozenset(service.spiffe_id for service in services)
        key = load_or_create_key(state_dir / KEY_FILE)
        self._issuer = TokenIssuer(key, layout.trust_domain)

    def publish(self) -> None:
        """Writes the trust bundle and a bootstrap token for everybody enrolled."""
        prepare_directory(self._layout.root, 0o750)
        prepare_directory(self._layout.tokens_dir, 0o750)
        write_trust_bundle(self._layout.trust_bundle, [self._issuer.public_key])
        for identity in self._enrolled:
            token = self.issue(identity, self._layout.agent.spiffe_id).token
            write_token_file(self._layout.token_file(identity), token)

    async def run(self) -> None:
        """Renews the bootstrap tokens until cancelled; a failure is tried again before they end."""
        life_s = self._ttl.total_seconds()
        delay_s = life_s * _RENEW_SHARE
        while True:
            await sleep_unless_set(delay_s)
            try:
                await asyncio.to_thread(self.publish)
            except (DaemoneyeError, OSError) as error:
                known = error.message if isinstance(error, DaemoneyeError) else error.strerror
                log.error("bootstrap tokens not renewed, trying again: %s", known)
                delay_s = min(life_s * _RETRY_SHARE, _MAX_RETRY_S)
            else:
                log.debug("bootstrap tokens renewed")
                delay_s = life_s * _RENEW_SHARE

    def issue(self, bearer: Identity, audience: str) -> IssuedToken:
        """Signs a token of ``bearer`` for ``audience``.

        Raises:
            InvalidRequestError: the audience is no service of this mesh.
            PermissionDeniedError: the bearer is not enrolled any more.
        """
        self._check_audience(audience)
        if bearer not in self._enrolled and bearer != self._layout.agent:
            raise PermissionDeniedError(
                f"{bearer.name} is not enrolled; add it to the agent's settings",
                identity=bearer.name,
            )
        expires_at = datetime.now(UTC).replace(microsecond=0) + self._ttl
        domains = self._domains.get(bearer, frozenset())
        token = self._issuer.issue(bearer, audience, self._ttl, domains)
        return IssuedToken(token, expires_at)

    def _check_audience(self, audience: str) -> None:
        if audience not in self._audiences:
            raise InvalidRequestError(
                "the audience is no service of this mesh; name it like"
                f" {self._layout.broker.spiffe_id}",
                field="audience",
                audience=audience,
            )


class OwnTokens:
    """The agent's tokens for the services it calls, issued by itself and renewed when due.

    Args:
        issuer: signs them.
        agent: identity of the agent.
        now: wall clock.
    """

    def __init__(
        self,
        issuer: IdentityIssuer,
        agent: Identity,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._issuer = issuer
        self._agent = agent
        self._now = now
        self._held: dict[str, tuple[IssuedToken, datetime]] = {}

    def token_for(self, audience: Identity) -> str:
        """Returns a token that is valid for a while yet; safe to call from any thread."""
        held = self._held.get(audience.spiffe_id)
        if held is None or not self._is_fresh(*held):
            held = (self._issuer.issue(self._agent, audience.spiffe_id), self._now())
            self._held[audience.spiffe_id] = held
        return held[0].token

    def _is_fresh(self, issued: IssuedToken, issued_at: datetime) -> bool:
        # A clock that was set back would make the token one of the future, which nobody accepts.
        age = self._now() - issued_at
        return timedelta(0) <= age < (issued.expires_at - issued_at) * _RENEW_SHARE
