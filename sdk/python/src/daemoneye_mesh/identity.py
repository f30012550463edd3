"""Who a process is: SPIFFE identities of the mesh, and what a verified token says about its bearer.

An identity is ``spiffe://<trust domain>/<kind>/<id>``. Invariant: an ``Identity`` that exists is
valid, so its parts may be put into topics and table lookups without looking at them again; the
grammar of ``id`` and of domains leaves out dots, wildcards and slashes for that reason.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from daemoneye_mesh.errors import InvalidRequestError

__all__ = [
    "Caller",
    "Identity",
    "IdentityKind",
    "InvalidIdentityError",
    "Principal",
    "VerifiedToken",
    "check_domain",
]

_SCHEME = "spiffe://"
_MAX_SPIFFE_ID_BYTES = 2048  # SPIFFE-ID.md section 2.3
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_ID = re.compile(r"[a-z0-9_-]{1,64}")


class InvalidIdentityError(InvalidRequestError):
    """A text is not an identity of this mesh."""


class IdentityKind(StrEnum):
    """The roles a process can have; the access table has one section for each."""

    AGENT = "agent"
    BROKER = "broker"
    COLLECTOR = "collector"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Identity:
    """One process of the mesh, as its tokens name it.

    Args:
        trust_domain: the mesh the identity belongs to, ``[a-z0-9._-]{1,255}``.
        kind: the role, an ``IdentityKind`` (its text is accepted too).
        id: the name within the role, ``[a-z0-9_-]{1,64}``.

    Raises:
        InvalidIdentityError: a part breaks its grammar.
    """

    trust_domain: str
    kind: IdentityKind
    id: str

    def __post_init__(self) -> None:
        _check("trust domain", self.trust_domain, _TRUST_DOMAIN)
        object.__setattr__(self, "kind", _kind_of(self.kind))
        _check("identity id", self.id, _ID)

    @property
    def spiffe_id(self) -> str:
        """The identity as a SPIFFE ID, the ``sub`` of its tokens."""
        return f"{_SCHEME}{self.trust_domain}/{self.kind}/{self.id}"

    @property
    def name(self) -> str:
        """The short name for logs and messages, ``kind/id``."""
        return f"{self.kind}/{self.id}"

    @classmethod
    def parse(cls, spiffe_id: str) -> "Identity":
        """Reads a SPIFFE ID of this mesh.

        Raises:
            InvalidIdentityError: not ``spiffe://<trust domain>/<kind>/<id>``. Ports, user info,
                queries, fragments, percent-encoding and empty segments break the grammar too.
        """
        if len(spiffe_id) > _MAX_SPIFFE_ID_BYTES or not spiffe_id.startswith(_SCHEME):
            raise _malformed(spiffe_id)
        parts = spiffe_id.removeprefix(_SCHEME).split("/")
        if len(parts) != 3:
            raise _malformed(spiffe_id)
        return cls(parts[0], _kind_of(parts[1]), parts[2])


class Caller(Protocol):
    """What the access table needs to know of whoever asks."""

    @property
    def identity(self) -> Identity:
        """Who asks."""

    @property
    def domains(self) -> frozenset[str]:
        """The event domains granted, such as ``process``."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An identity with its granted domains, for a process that asks about itself."""

    identity: Identity
    domains: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """The claims of a token whose signature, audience and expiry were checked."""

    identity: Identity
    audience: str
    """The service the token is for."""
    domains: frozenset[str]
    """The event domains the bearer may publish in."""
    issued_at: datetime
    expires_at: datetime


def check_domain(domain: str) -> str:
    """Returns an event domain such as ``process`` when it is one topic segment.

    Raises:
        InvalidIdentityError: it holds anything but ``[a-z0-9_-]{1,64}``; a wildcard here would
            widen every topic of the access table that mentions the domain.
    """
    _check("domain", domain, _ID)
    return domain


def _check(what: str, text: str, grammar: re.Pattern[str]) -> None:
    if not grammar.fullmatch(text):
        shown = _shown(text)
        raise InvalidIdentityError(
            f"{what} {shown} is not valid; it must match {grammar.pattern}",
            what=what,
            value=shown,
            grammar=grammar.pattern,
        )


def _kind_of(text: str) -> IdentityKind:
    try:
        return IdentityKind(text)
    except ValueError:
        shown, kinds = _shown(text), ", ".join(IdentityKind)
        raise InvalidIdentityError(
            f"identity kind {shown} is unknown; use one of {kinds}", kind=shown, kinds=kinds
        ) from None


def _malformed(spiffe_id: str) -> InvalidIdentityError:
    shown = _shown(spiffe_id)
    return InvalidIdentityError(
        f"{shown} is no identity of the mesh; write spiffe://<trust domain>/<kind>/<id>",
        spiffe_id=shown,
    )


def _shown(text: str) -> str:
    return ascii(text[:80])
