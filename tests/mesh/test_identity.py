import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_mesh.identity import Identity, IdentityKind, InvalidIdentityError, check_domain


def test_identity_has_a_spiffe_id_and_a_short_name():
    identity = Identity("host.example", IdentityKind.COLLECTOR, "procmond")

    assert identity.spiffe_id == "spiffe://host.example/collector/procmond"
    assert identity.name == "collector/procmond"


@given(
    st.from_regex(r"[a-z0-9._-]{1,255}", fullmatch=True),
    st.sampled_from(IdentityKind),
    st.from_regex(r"[a-z0-9_-]{1,64}", fullmatch=True),
)
def test_identity_survives_the_way_through_its_spiffe_id(trust_domain, kind, name):
    identity = Identity(trust_domain, kind, name)

    assert Identity.parse(identity.spiffe_id) == identity


@pytest.mark.parametrize(
    "spiffe_id",
    [
        "",
        "spiffe://",
        "spiffe://mesh",
        "spiffe://mesh/agent",
        "spiffe://mesh/agent/",
        "spiffe://mesh/agent/a/",
        "spiffe://mesh/agent/a/b",
        "spiffe://mesh//a",
        "spiffe:///agent/a",
        "SPIFFE://mesh/agent/a",
        "https://mesh/agent/a",
        "spiffe://Mesh/agent/a",
        "spiffe://mesh:80/agent/a",
        "spiffe://user@mesh/agent/a",
        "spiffe://mesh/agent/a?q=1",
        "spiffe://mesh/agent/a#f",
        "spiffe://mesh/agent/%61",
        "spiffe://mesh/agent/..",
        "spiffe://mesh/agent/a.b",
        "spiffe://mesh/agent/A",
        "spiffe://mesh/agent/a\n",
        "spiffe://mesh/agent/+",
        "spiffe://mesh/root/a",
        "spiffe://mesh/agent/" + "a" * 65,
        "spiffe://" + "a" * 256 + "/agent/a",
        "spiffe://mesh/agent/" + "a" * 4000,
    ],
)
def test_identity_parse_refuses_whatever_is_no_identity_of_the_mesh(spiffe_id):
    with pytest.raises(InvalidIdentityError):
        Identity.parse(spiffe_id)


def test_identity_accepts_the_longest_parts():
    longest = Identity("a" * 255, IdentityKind.AGENT, "b" * 64)

    assert Identity.parse(longest.spiffe_id) == longest


def test_identity_refuses_an_unknown_kind_and_lists_the_known_ones():
    with pytest.raises(InvalidIdentityError, match="agent, broker, collector, operator") as caught:
        Identity.parse("spiffe://mesh/root/a")

    assert caught.value.metadata["kind"] == "'root'"


def test_identity_error_escapes_and_shortens_what_it_quotes():
    with pytest.raises(InvalidIdentityError) as caught:
        Identity("mesh", IdentityKind.AGENT, "\x1b[2J" + "x" * 1000)

    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("domain", ["", "+", "#", "a.b", "Process", "process\n", "{id}"])
def test_domain_is_refused_when_it_is_not_one_plain_segment(domain):
    with pytest.raises(InvalidIdentityError):
        check_domain(domain)


def test_domain_is_returned_when_it_is_one_plain_segment():
    assert check_domain("process") == "process"
