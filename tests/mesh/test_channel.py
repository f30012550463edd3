import asyncio
import threading
import time
from datetime import timedelta

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from daemoneye_mesh.channel import correlation_metadata, open_channel
from daemoneye_mesh.error_interceptor import CORRELATION_KEY
from daemoneye_mesh.errors import ErrorReason, InvalidConfigError, UnavailableError
from daemoneye_mesh.logs import bind_correlation
from daemoneye_mesh.rpc_status import from_rpc_error
from daemoneye_mesh.token import TokenIssuer

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15


@pytest.fixture
async def served(serve_methods):
    async def tell(request, context):
        pairs = [f"{key}={value}" for key, value in context.invocation_metadata()]
        return "\n".join(pairs).encode()

    return await serve_methods({"Tell": grpc.unary_unary_rpc_method_handler(tell)})


async def ask(served, source, method="Tell"):
    async with open_channel(served.server.path, source) as channel:
        return await channel.unary_unary(served.method(method))(b"", timeout=GUARD_S)


async def refusal(served, source, method="Tell"):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(served, source, method)
    return refused.value.code(), from_rpc_error(refused.value).reason


async def test_authority_is_localhost_and_not_the_path(short_dir):
    """Reads the connection's first bytes: HPACK sends the authority of the first call literally."""
    seen = asyncio.Event()
    received = bytearray()

    async def accept(reader, writer):
        writer.write(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # an empty SETTINGS frame
        while chunk := await reader.read(4096):
            received.extend(chunk)
            if b"/x.Y/Z" in received:
                seen.set()
        writer.close()

    path = short_dir / "raw.sock"
    listener = await asyncio.start_unix_server(accept, path)
    async with asyncio.timeout(GUARD_S), open_channel(path) as channel:
        call = channel.unary_unary("/x.Y/Z")(b"")
        await seen.wait()
        call.cancel()
    listener.close()
    await listener.wait_closed()
    assert b"localhost" in received
    assert b"raw.sock" not in received


async def test_token_is_asked_of_its_source_for_each_call(served, mesh_identity):
    layout = mesh_identity.layout
    tokens = [
        mesh_identity.token(layout.agent, layout.collector("procmond"), ttl_s=60 + i)
        for i in range(3)
    ]
    waiting, threads = list(tokens), []

    def source():
        threads.append(threading.current_thread())
        return waiting.pop(0)

    async with open_channel(served.server.path, source) as channel:
        call = channel.unary_unary(served.method("Tell"))
        for token in tokens:
            assert f"authorization=Bearer {token}" in (await call(b"", timeout=GUARD_S)).decode()
    assert not waiting
    assert len(threads) == 3


async def test_source_that_fails_fails_the_call_before_it_goes_out_bare(served):
    calls = []

    def source():
        calls.append("asked")
        raise UnavailableError("no token for broker/eventbus yet; wait for the agent")

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await ask(served, source)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    assert calls == ["asked"]


async def test_missing_token_is_refused(served):
    assert await refusal(served, None) == (
        grpc.StatusCode.UNAUTHENTICATED,
        ErrorReason.TOKEN_MISSING,
    )


async def test_expired_token_is_refused(served, mesh_identity):
    layout = mesh_identity.layout
    past = TokenIssuer(
        mesh_identity.issuer._key, layout.trust_domain, clock=lambda: time.time() - 600
    )
    audience = layout.collector("procmond").spiffe_id
    token = past.issue(layout.agent, audience, timedelta(seconds=300))
    assert await refusal(served, lambda: token) == (
        grpc.StatusCode.UNAUTHENTICATED,
        ErrorReason.TOKEN_EXPIRED,
    )


async def test_token_of_a_foreign_issuer_is_refused(served, mesh_identity):
    layout = mesh_identity.layout
    foreign = TokenIssuer(ec.generate_private_key(ec.SECP256R1()), layout.trust_domain)
    audience = layout.collector("procmond").spiffe_id
    token = foreign.issue(layout.agent, audience, timedelta(seconds=300))
    assert await refusal(served, lambda: token) == (
        grpc.StatusCode.UNAUTHENTICATED,
        ErrorReason.TOKEN_INVALID,
    )


async def test_token_for_another_service_is_refused(served, mesh_identity):
    layout = mesh_identity.layout
    source = mesh_identity.source(layout.agent, layout.collector("other"))
    assert await refusal(served, source) == (
        grpc.StatusCode.UNAUTHENTICATED,
        ErrorReason.TOKEN_AUDIENCE,
    )


async def test_method_that_the_table_does_not_grant_is_denied(served, mesh_identity):
    layout = mesh_identity.layout
    source = mesh_identity.source(layout.collector("other"), layout.collector("procmond"))
    assert await refusal(served, source) == (
        grpc.StatusCode.PERMISSION_DENIED,
        ErrorReason.ACCESS_DENIED,
    )


async def test_granted_call_passes(served, mesh_identity):
    layout = mesh_identity.layout
    source = mesh_identity.source(layout.agent, layout.collector("procmond"))
    assert await ask(served, source)


async def test_correlation_id_goes_on_to_the_next_server(served):
    call = served.channel.unary_unary(served.method("Tell"))
    assert correlation_metadata() == ()
    with bind_correlation("abc-123"):
        answer = await call(b"", metadata=correlation_metadata(), timeout=GUARD_S)
    assert f"{CORRELATION_KEY}=abc-123" in answer.decode()


async def test_channel_to_an_impossible_path_is_refused(short_dir):
    with pytest.raises(InvalidConfigError):
        open_channel(short_dir / ("x" * 120))


async def test_channel_finds_a_server_that_comes_later(mesh_identity, served, serve_methods):
    path = served.server.path
    async with asyncio.timeout(GUARD_S):
        await served.server.drain(0)
        call = served.channel.unary_unary(served.method("Tell"))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"")
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        await serve_methods({"Tell": served_handler()})
        assert path.exists()
        assert await call(b"", wait_for_ready=True) == b"back"


def served_handler():
    async def answer(request, context):
        return b"back"

    return grpc.unary_unary_rpc_method_handler(answer)
