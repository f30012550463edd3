from pathlib import Path

import pytest

from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.identity import InvalidIdentityError
from daemoneye_mesh.layout import DEFAULT_TRUST_DOMAIN, RuntimeLayout

LAYOUT = RuntimeLayout(Path("/run/daemoneye"))


def test_paths_are_those_that_are_documented():
    root = Path("/run/daemoneye")
    assert LAYOUT.eventbus_socket == root / "eventbus.sock"
    assert LAYOUT.agent_socket == root / "agent.sock"
    assert LAYOUT.trust_bundle == root / "trust-bundle.json"
    assert LAYOUT.collector_socket("procmond") == root / "collectors" / "procmond.sock"
    token = LAYOUT.token_file(LAYOUT.collector("procmond"))
    assert token == root / "tokens" / "collector-procmond.token"


def test_identities_are_of_the_trust_domain():
    assert LAYOUT.agent.spiffe_id == f"spiffe://{DEFAULT_TRUST_DOMAIN}/agent/agent"
    assert LAYOUT.broker.spiffe_id == f"spiffe://{DEFAULT_TRUST_DOMAIN}/broker/eventbus"
    assert LAYOUT.operator().spiffe_id == f"spiffe://{DEFAULT_TRUST_DOMAIN}/operator/local"
    lab = RuntimeLayout(Path("/r"), "lab.example")
    assert lab.collector("x").spiffe_id == "spiffe://lab.example/collector/x"


@pytest.mark.parametrize(
    ("socket", "owner"),
    [
        (LAYOUT.eventbus_socket, LAYOUT.broker),
        (LAYOUT.agent_socket, LAYOUT.agent),
        (LAYOUT.collector_socket("procmond"), LAYOUT.collector("procmond")),
    ],
)
def test_owner_of_each_socket_is_known(socket, owner):
    assert LAYOUT.owner_of(socket) == owner


@pytest.mark.parametrize(
    "socket",
    ["other.sock", "collectors/x.txt", "collectors/.sock", "collectors/a/b.sock", "../agent.sock"],
)
def test_path_outside_the_layout_has_no_owner(socket):
    with pytest.raises(InvalidConfigError, match="is no socket of the mesh"):
        LAYOUT.owner_of(LAYOUT.root / socket)


@pytest.mark.parametrize("name", ["A", "a.b", "a b", "é"])
def test_socket_named_after_no_collector_has_no_owner(name):
    with pytest.raises(InvalidIdentityError):
        LAYOUT.owner_of(LAYOUT.root / "collectors" / f"{name}.sock")
