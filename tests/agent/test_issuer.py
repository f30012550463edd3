"""Tokens for whoever is enrolled, for the services of this mesh, and for nobody else."""

import asyncio
import stat
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemoneye_agent.issuer import IdentityIssuer, OwnTokens
from daemoneye_mesh.errors import InvalidRequestError, PermissionDeniedError
from daemoneye_mesh.identity import Identity, IdentityKind
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.token import FileTokenSource, TokenVerifier

PROCESS = {"procmond": frozenset({"process"})}


@pytest.fixture
def layout(short_dir: Path) -> RuntimeLayout:
    return RuntimeLayout(short_dir)


@pytest.fixture
def issuer(layout: RuntimeLayout) -> IdentityIssuer:
    issuer = make_issuer(layout)
    issuer.publish()
    return issuer


def make_issuer(layout: RuntimeLayout, ttl_s: float = 60) -> IdentityIssuer:
    return IdentityIssuer(
        layout, layout.root / "state", PROCESS, ("local",), timedelta(seconds=ttl_s)
    )


def verifier(layout: RuntimeLayout, audience: Identity) -> TokenVerifier:
    return TokenVerifier(layout.trust_bundle, audience.spiffe_id, layout.trust_domain)


def test_bootstrap_tokens_let_their_owners_call_the_agent(
    layout: RuntimeLayout, issuer: IdentityIssuer
) -> None:
    for identity in (layout.collector("procmond"), layout.operator()):
        path = layout.token_file(identity)
        assert stat.S_IMODE(path.stat().st_mode) == 0o400
        verified = verifier(layout, layout.agent).verify(FileTokenSource(path).token())
        assert verified.identity == identity
    assert sorted(path.name for path in layout.tokens_dir.iterdir()) == [
        "collector-procmond.token",
        "operator-local.token",
    ]


def test_token_has_the_domains_of_the_enrolment_and_no_more(
    layout: RuntimeLayout, issuer: IdentityIssuer
) -> None:
    check = verifier(layout, layout.broker)
    audience = layout.broker.spiffe_id
    collector = check.verify(issuer.issue(layout.collector("procmond"), audience).token)
    operator = check.verify(issuer.issue(layout.operator(), audience).token)
    assert (collector.domains, operator.domains) == ({"process"}, frozenset())


def test_token_says_when_it_ends(layout: RuntimeLayout, issuer: IdentityIssuer) -> None:
    issued = issuer.issue(layout.operator(), layout.broker.spiffe_id)
    verified = verifier(layout, layout.broker).verify(issued.token)
    assert abs(verified.expires_at - issued.expires_at) <= timedelta(seconds=1)


def test_token_is_refused_to_whoever_is_not_enrolled(
    layout: RuntimeLayout, issuer: IdentityIssuer
) -> None:
    for stranger in (layout.collector("rogue"), layout.operator("eve"), layout.broker):
        with pytest.raises(PermissionDeniedError, match="not enrolled"):
            issuer.issue(stranger, layout.agent.spiffe_id)


@pytest.mark.parametrize(
    "audience",
    [
        "",
        "eventbus",
        "spiffe://elsewhere.local/broker/eventbus",
        "spiffe://daemoneye.local/broker/other",
        "spiffe://daemoneye.local/agent/other",
        "spiffe://daemoneye.local/collector/rogue",
        "spiffe://daemoneye.local/operator/local",
        "spiffe://daemoneye.local/broker/eventbus/",
        "spiffe://daemoneye.local/broker/eventbus " + "x" * 5000,
    ],
)
def test_token_is_refused_for_what_is_no_service_of_this_mesh(
    layout: RuntimeLayout, issuer: IdentityIssuer, audience: str
) -> None:
    with pytest.raises(InvalidRequestError, match="no service of this mesh"):
        issuer.issue(layout.operator(), audience)


def test_token_is_issued_for_each_service_of_this_mesh(
    layout: RuntimeLayout, issuer: IdentityIssuer
) -> None:
    for service in (layout.agent, layout.broker, layout.collector("procmond")):
        token = issuer.issue(layout.operator(), service.spiffe_id).token
        assert verifier(layout, service).verify(token).audience == service.spiffe_id


def test_key_outlives_the_issuer(layout: RuntimeLayout, issuer: IdentityIssuer) -> None:
    again = make_issuer(layout)
    token = again.issue(layout.operator(), layout.agent.spiffe_id).token
    assert verifier(layout, layout.agent).verify(token).identity == layout.operator()


async def test_bootstrap_tokens_are_renewed_also_after_a_failure(
    layout: RuntimeLayout, eventually: Callable[..., Awaitable[None]]
) -> None:
    class Stumbling(IdentityIssuer):
        attempts = 0

        def publish(self) -> None:
            self.attempts += 1
            if self.attempts == 1:
                raise PermissionError(13, "Permission denied")
            super().publish()

    issuer = Stumbling(
        layout, layout.root / "state", PROCESS, ("local",), timedelta(milliseconds=1_000)
    )
    running = asyncio.create_task(issuer.run())
    await eventually(lambda: issuer.attempts >= 2 and layout.token_file(layout.operator()).exists())
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_own_token_is_kept_until_it_is_due(layout: RuntimeLayout, issuer: IdentityIssuer) -> None:
    start = datetime.now(UTC)
    now = start
    own = OwnTokens(issuer, layout.agent, lambda: now)
    first = own.token_for(layout.broker)
    now = start + timedelta(seconds=20)
    assert own.token_for(layout.broker) == first
    now = start + timedelta(seconds=30)
    second = own.token_for(layout.broker)
    assert second != first
    now = start  # somebody set the clock back: the token would be one of the future
    assert own.token_for(layout.broker) != second


def test_own_tokens_differ_by_audience(layout: RuntimeLayout, issuer: IdentityIssuer) -> None:
    own = OwnTokens(issuer, layout.agent)
    procmond = layout.collector("procmond")
    assert verifier(layout, procmond).verify(own.token_for(procmond)).identity == layout.agent
    assert verifier(layout, layout.broker).verify(own.token_for(layout.broker)).identity == (
        Identity(layout.trust_domain, IdentityKind.AGENT, "agent")
    )
