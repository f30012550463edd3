import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import timedelta

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import AuthInterceptor, caller
from daemoneye_mesh.errors import DaemoneyeError, ErrorReason, InternalError
from daemoneye_mesh.identity import Identity, IdentityKind
from daemoneye_mesh.interception import HandlerInterceptor
from daemoneye_mesh.token import TokenIssuer, TokenVerifier, write_trust_bundle

SERVICE = "daemoneye.eventbus.v1.EventBusService"
HEALTH = "grpc.health.v1.Health"
TTL = timedelta(minutes=5)
TIMEOUT_S = 10
METHODS = ["Unary", "ServerStream", "ClientStream", "BothStream"]


class Translator(HandlerInterceptor):
    """Stands where the error interceptor stands; tells the peer reason and message."""

    @asynccontextmanager
    async def around(self, context, details):
        try:
            yield
        except DaemoneyeError as error:
            code = {status.value[0]: status for status in grpc.StatusCode}[error.code]
            await context.abort(code, f"{error.reason}: {error.message}")


def who():
    verified = caller()
    return f"{verified.identity.name} {','.join(sorted(verified.domains))}".encode()


class Bus:
    """Handlers of all four kinds that answer with the caller, and count how often they ran."""

    def __init__(self):
        self.runs = 0

    async def unary(self, request, context):
        self.runs += 1
        await asyncio.sleep(0)
        return who()

    async def server_stream(self, request, context):
        self.runs += 1
        for _ in range(2):
            await asyncio.sleep(0)
            yield who()

    async def client_stream(self, requests, context):
        self.runs += 1
        async for _ in requests:
            pass
        return who()

    async def both_stream(self, requests, context):
        self.runs += 1
        async for _ in requests:
            yield who()

    async def check(self, request, context):
        try:
            return who()
        except InternalError:
            return b"nobody"

    def register(self, server):
        kinds = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),
            "ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),
            "BothStream": grpc.stream_stream_rpc_method_handler(self.both_stream),
        }
        health = {"Check": grpc.unary_unary_rpc_method_handler(self.check)}
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, kinds),
                grpc.method_handlers_generic_handler(HEALTH, health),
            )
        )


class Mesh:
    def __init__(self, directory):
        self.issuer = TokenIssuer(ec.generate_private_key(ec.SECP256R1()), "mesh")
        self.bundle_path = directory / "trust.json"
        write_trust_bundle(self.bundle_path, [self.issuer.public_key])
        self.access = AccessTable.load()
        verifier = TokenVerifier(self.bundle_path, "eventbus", "mesh")
        self.interceptor = AuthInterceptor(verifier, self.access)
        self.bus = Bus()

    def token(self, kind=IdentityKind.AGENT, name="agent", audience="eventbus", domains=()):
        return self.issuer.issue(Identity("mesh", kind, name), audience, TTL, domains)

    async def call(self, method, *metadata, service=SERVICE):
        """Calls a method of any kind and returns every answer."""
        path = f"/{service}/{method}"
        options = {"metadata": metadata, "timeout": TIMEOUT_S}

        async def requests():
            yield b"request"

        match method:
            case "ServerStream":
                call = self.channel.unary_stream(path)(b"", **options)
            case "ClientStream":
                return [await self.channel.stream_unary(path)(requests(), **options)]
            case "BothStream":
                call = self.channel.stream_stream(path)(requests(), **options)
            case _:
                return [await self.channel.unary_unary(path)(b"", **options)]
        return [answer async for answer in call]

    async def refusal(self, method, *metadata):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(method, *metadata)
        reason, _, message = caught.value.details().partition(": ")
        return caught.value.code(), reason, message


@pytest.fixture
async def mesh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a relative address stays within the 107 bytes of a socket path
    mesh = Mesh(tmp_path)
    server = grpc.aio.server(interceptors=[Translator(), mesh.interceptor])
    mesh.bus.register(server)
    server.add_insecure_port("unix:bus.sock")
    await server.start()
    options = [("grpc.default_authority", "localhost")]
    try:
        async with grpc.aio.insecure_channel("unix:bus.sock", options=options) as mesh.channel:
            yield mesh
    finally:
        await server.stop(None)


def bearer(token):
    return ("authorization", f"Bearer {token}")


@pytest.mark.parametrize("method", METHODS)
async def test_handler_of_every_kind_learns_its_caller(mesh, method):
    answers = await mesh.call(method, bearer(mesh.token(domains=["process"])))

    assert set(answers) == {b"agent/agent process"}


@pytest.mark.parametrize("method", METHODS)
async def test_handler_of_every_kind_stays_shut_without_a_token(mesh, method):
    code, reason, message = await mesh.refusal(method)

    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    assert f"/{SERVICE}/{method} needs a token" in message
    assert "authorization: Bearer <token>" in message
    assert mesh.bus.runs == 0


@pytest.mark.parametrize("method", METHODS)
async def test_handler_of_every_kind_stays_shut_to_whom_the_table_does_not_list(mesh, method):
    token = mesh.token(IdentityKind.OPERATOR, "alice")
    code, reason, message = await mesh.refusal(method, bearer(token))

    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
    assert f"operator/alice may not call method /{SERVICE}/{method}" in message
    assert mesh.access.refusals == {("operator/alice", "call"): 1}
    assert mesh.bus.runs == 0


async def test_call_is_refused_when_the_token_is_for_another_service(mesh):
    code, reason, _ = await mesh.refusal("Unary", bearer(mesh.token(audience="agent")))

    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_AUDIENCE")


async def test_call_is_refused_when_the_token_is_of_another_mesh(mesh):
    foreign = TokenIssuer(ec.generate_private_key(ec.SECP256R1()), "mesh")
    token = foreign.issue(Identity("mesh", IdentityKind.AGENT, "agent"), "eventbus", TTL)

    code, reason, _ = await mesh.refusal("Unary", bearer(token))

    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_call_is_refused_when_the_authorization_is_not_one_bearer_token(mesh):
    good = bearer(mesh.token())
    cases = [
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Basic {mesh.token()}")],
        [("authorization", mesh.token())],
        [good, good],
    ]

    for metadata in cases:
        code, reason, _ = await mesh.refusal("Unary", *metadata)
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_call_accepts_the_scheme_in_any_case(mesh):
    answers = await mesh.call("Unary", ("authorization", f"bearer {mesh.token()}"))

    assert answers == [b"agent/agent "]


async def test_call_is_unavailable_while_there_is_no_trust_bundle(mesh):
    token = mesh.token()
    mesh.bundle_path.unlink()

    code, reason, message = await mesh.refusal("Unary", bearer(token))

    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "FILE_MISSING")
    assert "is the agent running?" in message


async def test_open_method_needs_no_token_and_has_no_caller(mesh):
    assert await mesh.call("Check", service=HEALTH) == [b"nobody"]


async def test_open_method_believes_no_token_it_did_not_verify(mesh):
    assert await mesh.call("Check", bearer(mesh.token()), service=HEALTH) == [b"nobody"]


async def test_unknown_method_stays_unknown(mesh):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mesh.call("Nothing", bearer(mesh.token()))

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_concurrent_calls_never_see_each_others_caller(mesh):
    names = [f"agent-{number}" for number in range(20)]
    tokens = {name: mesh.token(name=name) for name in names}

    async with asyncio.TaskGroup() as group:
        tasks = {
            (name, method): group.create_task(mesh.call(method, bearer(tokens[name])))
            for name in names
            for method in METHODS
        }

    for (name, _), task in tasks.items():
        assert set(task.result()) == {f"agent/{name} ".encode()}


async def test_refusals_are_counted_and_logged_without_the_token(mesh, caplog):
    caplog.set_level(logging.WARNING, logger="daemoneye.authentication")
    denied = mesh.token(IdentityKind.BROKER, "eventbus")
    misdirected = mesh.token(audience="agent")
    await mesh.refusal("Unary", bearer(denied))
    await mesh.refusal("Unary", bearer(misdirected))
    await mesh.refusal("Unary")

    assert mesh.interceptor.refusals == {
        ErrorReason.ACCESS_DENIED: 1,
        ErrorReason.TOKEN_AUDIENCE: 1,
        ErrorReason.TOKEN_MISSING: 1,
    }
    logged = [(record.identity, record.method, record.reason) for record in caplog.records]
    assert logged == [
        ("broker/eventbus", f"/{SERVICE}/Unary", "ACCESS_DENIED"),
        ("unknown", f"/{SERVICE}/Unary", "TOKEN_AUDIENCE"),
        ("unknown", f"/{SERVICE}/Unary", "TOKEN_MISSING"),
    ]
    everything = "".join(str(vars(record)) for record in caplog.records)
    assert denied not in everything
    assert misdirected not in everything


async def test_listener_of_both_hears_of_each_refusal_once(mesh):
    heard = []

    def listen(identity, action, reason, target):
        heard.append((identity, action, reason, target))

    mesh.interceptor.on_refusal = mesh.access.on_refusal = listen
    await mesh.call("Unary", bearer(mesh.token()))
    await mesh.refusal("Unary", bearer(mesh.token(IdentityKind.BROKER, "eventbus")))
    await mesh.refusal("Unary", bearer(mesh.token(audience="agent")))
    await mesh.refusal("Unary")

    method = f"/{SERVICE}/Unary"
    assert heard == [
        ("broker/eventbus", "call", ErrorReason.ACCESS_DENIED, method),
        ("unknown", "call", ErrorReason.TOKEN_AUDIENCE, method),
        ("unknown", "call", ErrorReason.TOKEN_MISSING, method),
    ]


def test_caller_is_an_error_outside_a_call():
    with pytest.raises(InternalError):
        caller()
