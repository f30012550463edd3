"""Tokens of the mesh: SPIFFE JWT-SVIDs, signed with ES256 by the agent and by nobody else.

Header: ``alg`` ES256, ``kid``, ``typ``. Claims: ``sub`` (SPIFFE ID), ``aud`` (exactly one service),
``iat``, ``exp``, ``jti`` and the private claim ``domains`` (event domains the bearer may publish
in). Invariant: the algorithm is decided here, never by the token, and nothing a token says is
believed before its signature verified. No token and no key appears in an error, log or repr.
"""

import hashlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from daemoneye_mesh.errors import ErrorReason, InvalidRequestError, UnauthenticatedError
from daemoneye_mesh.identity import Identity, InvalidIdentityError, VerifiedToken, check_domain
from daemoneye_mesh.issuer_key import load_or_create_key
from daemoneye_mesh.token_file import FileTokenSource, write_token_file
from daemoneye_mesh.trust_bundle import TrustBundle, key_id, write_trust_bundle

__all__ = [
    "FileTokenSource",
    "TokenIssuer",
    "TokenVerifier",
    "TrustBundle",
    "load_or_create_key",
    "write_token_file",
    "write_trust_bundle",
]

ALGORITHM = "ES256"
MAX_TOKEN_BYTES = 4096
MAX_TTL = timedelta(hours=24)
MAX_LEEWAY_S = 5.0
MAX_CACHED_TOKENS = 1024
MAX_DOMAINS = 16
_MAX_AUDIENCE_CHARS = 128

_TIME_CLAIMS = ("exp", "iat", "nbf")
# Signature only: the claims are checked below, against our own clock and with our own errors.
_OPTIONS: Any = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
    "verify_aud": False,
    "require": ["sub", "aud", "exp", "iat"],
}


class TokenIssuer:
    """Signs tokens for the identities of one trust domain.

    Args:
        key: the P-256 private key, see ``load_or_create_key``.
        trust_domain: the only trust domain it issues for.
        clock: wall clock in seconds since the epoch.
    """

    def __init__(
        self,
        key: ec.EllipticCurvePrivateKey,
        trust_domain: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._trust_domain = trust_domain
        self._clock = clock
        self._key_id = key_id(key.public_key())

    @property
    def trust_domain(self) -> str:
        """The trust domain of every identity it issues for."""
        return self._trust_domain

    @property
    def public_key(self) -> ec.EllipticCurvePublicKey:
        """What verifiers need; goes into the trust bundle."""
        return self._key.public_key()

    def issue(
        self, identity: Identity, audience: str, ttl: timedelta, domains: Iterable[str] = ()
    ) -> str:
        """Signs a token.

        Args:
            identity: the bearer.
            audience: the one service the token is for.
            ttl: how long it is valid, from one second to ``MAX_TTL``.
            domains: event domains the bearer may publish in, at most ``MAX_DOMAINS``.

        Raises:
            InvalidRequestError: an argument is out of bounds; nothing was signed.
        """
        granted = sorted({check_domain(domain) for domain in domains})
        self._check_request(identity, audience, ttl, granted)
        issued_at = int(self._clock())
        claims = {
            "sub": identity.spiffe_id,
            "aud": [audience],
            "iat": issued_at,
            "exp": issued_at + int(ttl.total_seconds()),
            "jti": uuid.uuid4().hex,
            "domains": granted,
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM, headers={"kid": self._key_id})

    def _check_request(
        self, identity: Identity, audience: str, ttl: timedelta, domains: list[str]
    ) -> None:
        if identity.trust_domain != self._trust_domain:
            raise InvalidRequestError(
                f"{identity.spiffe_id} is not of trust domain {self._trust_domain}; "
                "ask the agent of its own mesh",
                identity=identity.spiffe_id,
                trust_domain=self._trust_domain,
            )
        if not audience.isprintable() or not 1 <= len(audience) <= _MAX_AUDIENCE_CHARS:
            raise InvalidRequestError(
                f"an audience has 1 to {_MAX_AUDIENCE_CHARS} printable characters; "
                "name the service to be called",
                limit_chars=_MAX_AUDIENCE_CHARS,
            )
        if not timedelta(seconds=1) <= ttl <= MAX_TTL:
            raise InvalidRequestError(
                f"a token lives from 1 s to {MAX_TTL}, not {ttl}; ask for less and renew it",
                ttl=ttl,
                maximum=MAX_TTL,
            )
        if len(domains) > MAX_DOMAINS:
            raise InvalidRequestError(
                f"{len(domains)} domains are more than {MAX_DOMAINS}; ask for fewer",
                count=len(domains),
                maximum=MAX_DOMAINS,
            )


class TokenVerifier:
    """Says who bears a token, or why it is refused. For use by one event loop or thread.

    Args:
        bundle_path: the trust bundle of the agent; may appear later than the verifier.
        audience: this service; a token must be for it and for nothing else.
        trust_domain: the only trust domain believed.
        leeway_s: how far clocks may disagree, at most ``MAX_LEEWAY_S``.
        clock: wall clock in seconds since the epoch.
    """

    def __init__(
        self,
        bundle_path: Path,
        audience: str,
        trust_domain: str,
        *,
        leeway_s: float = MAX_LEEWAY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 <= leeway_s <= MAX_LEEWAY_S:
            raise InvalidRequestError(
                f"leeway {leeway_s} s is not within 0 and {MAX_LEEWAY_S} s; correct it",
                leeway_s=leeway_s,
                maximum_s=MAX_LEEWAY_S,
            )
        self._bundle = TrustBundle(bundle_path)
        self._audience = audience
        self._trust_domain = trust_domain
        self._leeway_s = leeway_s
        self._clock = clock
        self._cache: OrderedDict[bytes, VerifiedToken] = OrderedDict()
        self._cached_generation = 0

    def verify(self, token: str) -> VerifiedToken:
        """Checks a token and returns what it says.

        Raises:
            UnauthenticatedError: TOKEN_INVALID, TOKEN_EXPIRED or TOKEN_AUDIENCE.
            FileMissingError: there is no usable trust bundle (yet).
            FileUnusableError: the trust bundle must not be used.
        """
        if len(token) > MAX_TOKEN_BYTES or not token.isascii():
            raise _invalid("the token is no JWT of at most 4096 bytes")
        keys = self._bundle.keys()
        if self._cached_generation != self._bundle.generation:
            self._cache.clear()
            self._cached_generation = self._bundle.generation
        digest = hashlib.sha256(token.encode()).digest()
        verified = self._cache.get(digest)
        if verified is None:
            key = keys.get(_key_id_of(token))
            if key is None:
                raise _invalid("the token was not signed by the agent of this mesh")
            verified = self._read_claims(_decode(token, key))
        self._check_expiry(verified)
        self._remember(digest, verified)
        return verified

    def _read_claims(self, claims: dict[str, Any]) -> VerifiedToken:
        exp_s, iat_s, nbf_s = (_seconds(claims, name) for name in _TIME_CLAIMS)
        if max(iat_s, nbf_s) > self._clock() + self._leeway_s:
            raise _invalid("the token is not valid yet; compare the clocks")
        return VerifiedToken(
            identity=self._identity(claims["sub"]),
            audience=self._check_audience(claims["aud"]),
            domains=_domains(claims.get("domains", [])),
            issued_at=_instant(iat_s),
            expires_at=_instant(exp_s),
        )

    def _identity(self, subject: object) -> Identity:
        with suppress(InvalidIdentityError):
            if isinstance(subject, str):
                identity = Identity.parse(subject)
                if identity.trust_domain == self._trust_domain:
                    return identity
        raise _invalid(f"the token names no identity of trust domain {self._trust_domain}")

    def _check_audience(self, claimed: object) -> str:
        if claimed in (self._audience, [self._audience]):
            return self._audience
        raise UnauthenticatedError(
            f"the token is not for {self._audience} alone; ask the agent for one that is",
            reason=ErrorReason.TOKEN_AUDIENCE,
            audience=self._audience,
        )

    def _check_expiry(self, verified: VerifiedToken) -> None:
        if self._clock() >= verified.expires_at.timestamp() + self._leeway_s:
            raise UnauthenticatedError(
                f"the token of {verified.identity.name} expired at {verified.expires_at:%FT%TZ}; "
                "ask the agent for a new one",
                reason=ErrorReason.TOKEN_EXPIRED,
                identity=verified.identity.name,
                expired_at=f"{verified.expires_at:%FT%TZ}",
            )

    def _remember(self, digest: bytes, verified: VerifiedToken) -> None:
        self._cache[digest] = verified
        self._cache.move_to_end(digest)
        if len(self._cache) > MAX_CACHED_TOKENS:
            self._cache.popitem(last=False)


def _key_id_of(token: str) -> str:
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _invalid("the token is no JWT") from None
    if header.get("alg") != ALGORITHM or header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise _invalid("the token is not signed with ES256")
    if header.keys() - {"alg", "kid", "typ"}:
        raise _invalid("the token has headers which a JWT-SVID may not have")
    return str(header.get("kid", ""))


def _decode(token: str, key: ec.EllipticCurvePublicKey) -> dict[str, Any]:
    try:
        return jwt.decode(token, key, algorithms=[ALGORITHM], options=_OPTIONS)
    except jwt.MissingRequiredClaimError:
        raise _invalid("the token lacks one of sub, aud, exp, iat") from None
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise _invalid("the token was not signed by the agent of this mesh") from None


def _seconds(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name, 0)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 2**33:  # false for a NaN too
        raise _invalid(f"claim {name} of the token is no time")
    return float(value)


def _instant(epoch_s: float) -> datetime:
    return datetime.fromtimestamp(epoch_s, UTC)


def _domains(claimed: object) -> frozenset[str]:
    with suppress(InvalidIdentityError, TypeError):
        if isinstance(claimed, list) and len(claimed) <= MAX_DOMAINS:
            return frozenset(check_domain(domain) for domain in claimed)
    raise _invalid("claim domains of the token is no list of domains")


def _invalid(what: str) -> UnauthenticatedError:
    return UnauthenticatedError(
        f"{what}; ask the agent for a new token", reason=ErrorReason.TOKEN_INVALID, problem=what
    )
