"""The issuer of identities: signing key, trust bundle, bootstrap tokens.

Invariant: the private key is in the state dir and nowhere else; a token is issued for its own bearer
and one audience, never for more domains than the bearer was enrolled with.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from daemoneye_mesh.directories import prepare_directory
from daemoneye_mesh.errors import InvalidRequestError, PermissionDeniedError
from daemoneye_mesh.identity import Identity, IdentityKind, InvalidIdentityError
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.token import (
    TokenIssuer,
    load_or_create_key,
    write_token_file,
    write_trust_bundle,
)

__all__ = ["IdentityIssuer", "IssuedToken", "OwnTokens"]

KEY_FILE = "issuer-key.pem"
_SERVICES = {IdentityKind.AGENT, IdentityKind.BROKER, IdentityKind.COLLECTOR}
_RENEW_SHARE = 0.4

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
        """Renews the bootstrap tokens until cancelled."""
        while True:
            await asyncio.sleep(self._ttl.total_seconds() * _RENEW_SHARE)
            await asyncio.to_thread(self.publish)
            log.debug("bootstrap tokens renewed")

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
        try:
            known = Identity.parse(audience)
        except InvalidIdentityError:
            known = None
        if known is None or known.kind not in _SERVICES:
            raise InvalidRequestError(
                "the audience is no service of this mesh; name it like"
                f" {self._layout.broker.spiffe_id}",
                field="audience",
            )


class OwnTokens:
    """The agent's tokens for the services it calls, issued by itself and renewed when due."""

    def __init__(self, issuer: IdentityIssuer, agent: Identity) -> None:
        self._issuer = issuer
        self._agent = agent
        self._held: dict[str, IssuedToken] = {}

    def token_for(self, audience: Identity) -> str:
        """Returns a token that is valid for a while yet; safe to call from any thread."""
        held = self._held.get(audience.spiffe_id)
        if held is None or held.expires_at - datetime.now(UTC) < timedelta(seconds=30):
            held = self._issuer.issue(self._agent, audience.spiffe_id)
            self._held[audience.spiffe_id] = held
        return held.token
