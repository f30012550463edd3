import asyncio
import logging
import re
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from daemoneye_mesh import errors
from daemoneye_mesh.error_interceptor import CORRELATION_KEY, find_correlation, unwrap
from daemoneye_mesh.errors import ErrorReason
from daemoneye_mesh.logs import correlation_id
from daemoneye_mesh.rpc_status import from_rpc_error

pytestmark = pytest.mark.usefixtures("no_leftover_tasks")

GUARD_S = 15
SECRET = "secret path /etc/shadow"
KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


def handler(kind, body):
    """Returns a handler of any kind whose work is ``body``; streams answer once before it."""

    async def unary(request, context):
        return await body()

    async def stream(request, context):
        yield b"first"
        yield await body()

    inner = unary if kind.endswith("unary") else stream
    return getattr(grpc, f"{kind}_rpc_method_handler")(inner)


async def call(served, kind, metadata=(), name="Do"):
    method = getattr(served.channel, kind)(served.method(name))
    argument = iter([b"one"]) if kind.startswith("stream") else b"one"
    started = method(argument, metadata=metadata, timeout=GUARD_S)
    if kind.endswith("unary"):
        return [await started]
    return [one async for one in started]


async def fail(served, kind="unary_unary"):
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(served, kind)
    return failed.value


@pytest.fixture
def serve(serve_methods):
    async def serve_body(body, kind="unary_unary"):
        return await serve_methods({"Do": handler(kind, body)})

    return serve_body


@pytest.mark.parametrize("kind", KINDS)
async def test_error_of_ours_keeps_code_reason_and_metadata(serve, kind):
    async def body():
        raise errors.ConflictError(
            "epoch 7 has taken over; stop", reason=ErrorReason.SUPERSEDED, epoch=7
        )

    failed = await fail(await serve(body, kind), kind)
    assert failed.code() is grpc.StatusCode.ABORTED
    assert failed.details() == "epoch 7 has taken over; stop"
    (detail,) = rpc_status.from_call(failed).details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    assert (info.domain, info.reason, dict(info.metadata)) == (
        "daemoneye",
        "SUPERSEDED",
        {"epoch": "7"},
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_unforeseen_error_reaches_the_log_and_not_the_peer(serve, kind, caplog):
    async def body():
        raise ValueError(SECRET)

    failed = await fail(await serve(body, kind), kind)
    assert failed.code() is grpc.StatusCode.INTERNAL
    whole = f"{failed.details()} {failed.debug_error_string()} {failed.trailing_metadata()!r}"
    assert "shadow" not in whole
    assert "ValueError" not in whole
    (incident,) = re.findall(r"incident ([0-9a-f]{12})", failed.details())
    assert from_rpc_error(failed).metadata == {"incident": incident}
    (record,) = [one for one in caplog.records if one.name == "daemoneye.rpc"]
    assert incident in record.getMessage()
    assert SECRET in str(record.exc_info[1])


async def test_error_inside_exception_groups_is_found(serve):
    async def body():
        async with asyncio.TaskGroup() as outer:
            outer.create_task(inner())

    async def inner():
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.Event().wait())
            group.create_task(refuse())

    async def refuse():
        raise errors.NotFoundError("no rule r1; list the rules", rule_id="r1")

    failed = await fail(await serve(body))
    assert failed.code() is grpc.StatusCode.NOT_FOUND
    assert from_rpc_error(failed).metadata == {"rule_id": "r1"}


async def test_foreign_error_inside_a_group_stays_concealed(serve):
    async def body():
        raise ExceptionGroup(SECRET, [ValueError(SECRET)])

    failed = await fail(await serve(body))
    assert failed.code() is grpc.StatusCode.INTERNAL
    assert "shadow" not in failed.details()


def test_unwrap_prefers_our_error_to_one_that_came_first():
    ours = errors.NotFoundError("here")
    group = ExceptionGroup("outer", [ValueError(), ExceptionGroup("inner", [KeyError(), ours])])
    assert unwrap(group) is ours
    assert isinstance(unwrap(ExceptionGroup("outer", [ValueError(), KeyError()])), ValueError)


@pytest.mark.parametrize("kind", KINDS)
async def test_cancellation_of_the_handlers_own_making_does_not_hang_the_client(serve, kind):
    async def body():
        child = asyncio.get_running_loop().create_future()
        child.cancel()
        await child

    failed = await fail(await serve(body, kind), kind)
    assert failed.code() is grpc.StatusCode.UNAVAILABLE
    assert from_rpc_error(failed).reason is ErrorReason.DRAINING


async def test_handler_is_cancelled_when_the_client_leaves(serve):
    started, ended = asyncio.Event(), asyncio.Event()

    async def body():
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    served = await serve(body)
    asked = served.channel.unary_unary(served.method("Do"))(b"")
    async with asyncio.timeout(GUARD_S):
        await started.wait()
        asked.cancel()
        await ended.wait()


async def test_stream_that_is_abandoned_between_responses_is_closed(serve_methods):
    closed = asyncio.Event()

    async def endless(request, context):
        try:
            while True:
                yield b"x" * 65_536
        finally:
            closed.set()

    served = await serve_methods({"Do": grpc.unary_stream_rpc_method_handler(endless)})
    asked = served.channel.unary_stream(served.method("Do"))(b"")
    async with asyncio.timeout(GUARD_S):
        await asked.read()
        asked.cancel()
        await closed.wait()


async def test_stream_keeps_what_it_sent_before_the_error(serve):
    async def body():
        raise errors.OverloadedError("too much; try again later")

    served = await serve(body, "unary_stream")
    asked = served.channel.unary_stream(served.method("Do"))(b"", timeout=GUARD_S)
    assert await asked.read() == b"first"
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await asked.read()
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("text", ["x" * 50_000, "päth \udcff", "two\nlines\r\n", "é" * 5_000])
async def test_error_with_an_awkward_text_still_arrives_as_itself(serve, text):
    async def body():
        raise errors.InvalidRequestError(text, **{f"field{i}": text for i in range(30)})

    failed = await fail(await serve(body))
    assert failed.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert from_rpc_error(failed).reason is ErrorReason.REQUEST_INVALID
    assert failed.details()[:3] == text[:3]


async def test_correlation_id_of_the_caller_is_bound_for_the_log(serve):
    async def body():
        return correlation_id.get().encode()

    served = await serve(body)
    metadata = ((CORRELATION_KEY, "abc-123"),)
    assert await call(served, "unary_unary", metadata) == [b"abc-123"]


@pytest.mark.parametrize("value", ["", "a" * 65, "a b", "a;b", "---", "x=1", "../etc"])
async def test_malformed_correlation_id_is_replaced(serve, value):
    async def body():
        return correlation_id.get().encode()

    served = await serve(body)
    (bound,) = await call(served, "unary_unary", ((CORRELATION_KEY, value),))
    assert re.fullmatch(rb"[0-9a-f]{16}", bound)


def test_each_call_without_a_correlation_id_gets_its_own():
    details = SimpleNamespace(invocation_metadata=())
    assert find_correlation(details) != find_correlation(details)


def test_binary_correlation_id_is_replaced():
    details = SimpleNamespace(invocation_metadata=((CORRELATION_KEY, b"abc"),))
    assert re.fullmatch(r"[0-9a-f]{16}", find_correlation(details))


async def test_internal_error_of_ours_is_logged_too(serve, caplog):
    async def body():
        raise errors.InternalError("the store is broken; restore it")

    with caplog.at_level(logging.ERROR):
        failed = await fail(await serve(body))
    assert failed.details() == "the store is broken; restore it"
    assert "the store is broken" in caplog.text
