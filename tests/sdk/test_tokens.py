import asyncio

import pytest

from collector_core import tokens as tokens_module
from collector_core.tokens import TokenKeeper
from daemoneye.agent.v1 import registry_service_pb2_grpc
from daemoneye_mesh.errors import UnavailableError
from daemoneye_mesh.token import TokenVerifier

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15
SHORTEST_LIFE_S = 1.0


@pytest.fixture
def keeper(connect, mesh_identity):
    stub = registry_service_pb2_grpc.RegistryServiceStub(connect(mesh_identity.layout.agent_socket))
    return TokenKeeper(stub, (mesh_identity.layout.broker, mesh_identity.layout.collector("x")))


async def test_source_says_that_there_is_no_token_yet(keeper, mesh_identity):
    with pytest.raises(UnavailableError, match="no token for broker/eventbus yet"):
        keeper.source(mesh_identity.layout.broker)()


async def test_token_is_obtained_for_each_audience(
    keeper, registry, serve, running, eventually, mesh_identity
):
    await serve(registry)
    running(keeper.run())
    await eventually(lambda: len(registry.tokens) == 2)
    layout = mesh_identity.layout
    assert {audience for _, audience, _ in registry.tokens} == {
        layout.broker.spiffe_id,
        layout.collector("x").spiffe_id,
    }
    verifier = TokenVerifier(layout.trust_bundle, layout.broker.spiffe_id, layout.trust_domain)
    await eventually(lambda: len(keeper._held) == 2)
    assert verifier.verify(keeper.source(layout.broker)()).identity == layout.collector("unit")


async def test_token_is_asked_for_again_until_the_agent_is_there(
    keeper, registry, serve, running, eventually, mesh_identity
):
    task = running(keeper.run())
    await asyncio.sleep(0)
    await serve(registry)
    await eventually(lambda: len(keeper._held) == 2)
    assert not task.done()


async def test_token_is_renewed_before_it_ends(
    *, keeper, registry, serve, running, eventually, mesh_identity, monkeypatch
):
    monkeypatch.setattr(tokens_module, "MIN_RENEW_DELAY_S", 0.01)
    registry.token_ttl_s = 0.6
    await serve(registry)
    running(keeper.run())
    audience = mesh_identity.layout.broker.spiffe_id

    def issued():
        return [(when_s, token) for when_s, one, token in registry.tokens if one == audience]

    await eventually(lambda: len(issued()) == 4, "three renewals")
    source = keeper.source(mesh_identity.layout.broker)
    await eventually(lambda: source() == issued()[-1][1], "the renewed token is used")
    waits_s = [later[0] - sooner[0] for sooner, later in zip(issued(), issued()[1:], strict=False)]
    assert min(waits_s) >= registry.token_ttl_s * 0.5  # not in a busy loop


@pytest.mark.parametrize(
    ("ttl_s", "earliest_s", "latest_s"),
    [(300, 100, 200), (SHORTEST_LIFE_S, 0.3, 0.667), (-100, 0.4, 1)],
    ids=["usual", "shortest", "expired already"],
)
async def test_delay_until_the_renewal_follows_the_life_of_the_token(
    *, keeper, registry, serve, running, mesh_identity, monkeypatch, ttl_s, earliest_s, latest_s
):
    delays, is_asleep = [], asyncio.Event()

    async def sleep(delay_s):
        delays.append(delay_s)
        is_asleep.set()
        await asyncio.Event().wait()

    registry.token_ttl_s = ttl_s
    await serve(registry)
    monkeypatch.setattr(tokens_module, "sleep_unless_set", sleep)
    running(keeper.run())
    async with asyncio.timeout(GUARD_S):
        await is_asleep.wait()
    monkeypatch.undo()
    assert earliest_s < delays[0] < latest_s


async def test_held_token_stays_while_the_agent_is_away(
    *, keeper, registry, serve, running, eventually, mesh_identity, monkeypatch
):
    monkeypatch.setattr(tokens_module, "MIN_RENEW_DELAY_S", 0.01)
    registry.token_ttl_s = 0.05
    server = await serve(registry)
    running(keeper.run())
    await eventually(lambda: len(keeper._held) == 2)
    await server.drain(0)
    count = len(registry.tokens)
    assert keeper.source(mesh_identity.layout.broker)()
    await serve(registry)
    await eventually(lambda: len(registry.tokens) > count, "renewal after the agent is back")
