"""What lies where below the runtime dir, and the identities that go with it.

::

    <runtime dir>/eventbus.sock               the broker
                  agent.sock                  the agent
                  collectors/<id>.sock        collectors
                  trust-bundle.json           public key of the issuer (JWKS)
                  tokens/<kind>-<id>.token    bootstrap tokens, each for its owner to call the agent
"""

from dataclasses import dataclass
from pathlib import Path

from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.identity import Identity, IdentityKind

__all__ = ["DEFAULT_TRUST_DOMAIN", "RuntimeLayout"]

DEFAULT_TRUST_DOMAIN = "daemoneye.local"


@dataclass(frozen=True, slots=True)
class RuntimeLayout:
    """Paths and identities of one mesh.

    Args:
        root: the runtime dir.
        trust_domain: the trust domain of every identity in this mesh.
    """

    root: Path
    trust_domain: str = DEFAULT_TRUST_DOMAIN

    @property
    def eventbus_socket(self) -> Path:
        """Socket of the broker."""
        return self.root / "eventbus.sock"

    @property
    def agent_socket(self) -> Path:
        """Socket of the agent."""
        return self.root / "agent.sock"

    @property
    def trust_bundle(self) -> Path:
        """The issuer's public key."""
        return self.root / "trust-bundle.json"

    @property
    def tokens_dir(self) -> Path:
        """Folder of the bootstrap tokens."""
        return self.root / "tokens"

    @property
    def collectors_dir(self) -> Path:
        """Folder of the collectors' sockets."""
        return self.root / "collectors"

    @property
    def agent(self) -> Identity:
        """Identity of the agent."""
        return Identity(self.trust_domain, IdentityKind.AGENT, "agent")

    @property
    def broker(self) -> Identity:
        """Identity of the broker."""
        return Identity(self.trust_domain, IdentityKind.BROKER, "eventbus")

    def collector(self, collector_id: str) -> Identity:
        """Identity of a collector."""
        return Identity(self.trust_domain, IdentityKind.COLLECTOR, collector_id)

    def operator(self, name: str = "local") -> Identity:
        """Identity of an operator."""
        return Identity(self.trust_domain, IdentityKind.OPERATOR, name)

    def collector_socket(self, collector_id: str) -> Path:
        """Socket of a collector."""
        return self.collectors_dir / f"{collector_id}.sock"

    def token_file(self, identity: Identity) -> Path:
        """Bootstrap token of ``identity``."""
        return self.tokens_dir / f"{identity.kind}-{identity.id}.token"

    def owner_of(self, socket: Path) -> Identity:
        """Returns the identity that serves ``socket``; the audience for calls to it.

        Raises:
            InvalidConfigError: the path is none of this layout.
            InvalidIdentityError: it is named after no possible collector.
        """
        if socket == self.eventbus_socket:
            return self.broker
        if socket == self.agent_socket:
            return self.agent
        if socket.parent == self.collectors_dir and socket.suffix == ".sock":
            return self.collector(socket.stem)
        raise InvalidConfigError(
            f"{socket} is no socket of the mesh in {self.root}; name eventbus.sock, agent.sock or"
            " collectors/<id>.sock",
            socket=socket,
            runtime_dir=self.root,
        )
