from contextlib import asynccontextmanager

import grpc
import pytest

from daemoneye_mesh.interception import wrap_handler

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


@pytest.fixture
def order():
    return []


@pytest.fixture
def around(order):
    @asynccontextmanager
    async def enclose(context, details):
        order.append("enter")
        try:
            yield
        finally:
            order.append("leave")

    return enclose


def handler(kind, order):
    async def unary(request, context):
        order.append("work")
        return b"one"

    async def stream(request, context):
        try:
            order.append("work")
            yield b"one"
            yield b"two"
        finally:
            order.append("close")

    inner = unary if kind.endswith("unary") else stream
    return getattr(grpc, f"{kind}_rpc_method_handler")(inner)


@pytest.mark.parametrize("kind", KINDS)
async def test_work_of_every_kind_is_enclosed(kind, around, order):
    wrapped = getattr(wrap_handler(handler(kind, order), around, None), kind)
    if kind.endswith("unary"):
        assert await wrapped(b"", None) == b"one"
        assert order == ["enter", "work", "leave"]
    else:
        assert [one async for one in wrapped(b"", None)] == [b"one", b"two"]
        assert order == ["enter", "work", "close", "leave"]


@pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])
async def test_abandoned_stream_is_closed_inside_what_encloses_it(kind, around, order):
    wrapped = getattr(wrap_handler(handler(kind, order), around, None), kind)
    responses = wrapped(b"", None)
    await anext(responses)
    await responses.aclose()
    assert order == ["enter", "work", "close", "leave"]
