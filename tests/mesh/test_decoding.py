from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_mesh.decoding import DecodingInterceptor
from daemoneye_mesh.errors import InvalidRequestError

KINDS = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]
decode = eventbus_pb2.MessageVersion.FromString
GOOD = eventbus_pb2.MessageVersion(major=7).SerializeToString()


def handler(kind: str, deserializer: Callable[[bytes], Any] | None) -> Any:
    """Returns a handler of any kind that gives back the requests as they came to it."""

    async def unary(requests: Any, context: Any) -> Any:
        return [one async for one in several(requests, context)]

    async def several(requests: Any, context: Any) -> AsyncIterator[Any]:
        if kind.startswith("unary"):
            yield requests
        else:
            async for request in requests:
                yield request

    inner = unary if kind.endswith("unary") else several
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(inner, request_deserializer=deserializer)


async def feed(*encoded: bytes) -> AsyncIterator[bytes]:
    for one in encoded:
        yield one


async def call(kind: str, encoded: bytes, deserializer: Any = decode) -> list[Any]:
    async def find(details: Any) -> Any:
        return handler(kind, deserializer)

    details: Any = None
    wrapped: Any = await DecodingInterceptor().intercept_service(find, details)
    assert wrapped.request_deserializer is None
    request = encoded if kind.startswith("unary") else feed(encoded)
    answer = getattr(wrapped, kind)(request, None)
    return await answer if kind.endswith("unary") else [one async for one in answer]


@pytest.mark.parametrize("kind", KINDS)
async def test_handler_gets_the_decoded_request(kind):
    assert await call(kind, GOOD) == [eventbus_pb2.MessageVersion(major=7)]


@pytest.mark.parametrize("kind", KINDS)
async def test_request_that_does_not_decode_is_an_error_of_ours(kind):
    with pytest.raises(InvalidRequestError, match="does not decode; send the message of") as it:
        await call(kind, b"\xff")
    assert it.value.__cause__ is None


@pytest.mark.parametrize("kind", KINDS)
async def test_handler_that_asked_for_bytes_gets_bytes(kind):
    assert await call(kind, b"\xff", None) == [b"\xff"]


async def test_unknown_method_stays_unknown():
    async def find(details: Any) -> Any:
        return None

    details: Any = None
    assert await DecodingInterceptor().intercept_service(find, details) is None
