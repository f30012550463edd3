"""Decodes requests inside the handlers, where a failure is an error of ours.

gRPC decodes before any handler runs and answers what does not decode with UNKNOWN and the text of
the exception. Invariant: a request that does not decode is refused with INVALID_ARGUMENT, and only
after its caller was authenticated.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["DecodingInterceptor"]

Decode = Callable[[bytes], Any]


class DecodingInterceptor(grpc.aio.ServerInterceptor):
    """Takes decoding over from gRPC; the innermost interceptor."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps a handler that has a deserializer; others get bytes as they asked."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        return _decode_inside(handler, handler.request_deserializer)


class _Decoded:
    """A request stream, decoded."""

    def __init__(self, encoded: AsyncIterator[bytes], decode: Decode) -> None:
        self._encoded = encoded
        self._decode = decode

    def __aiter__(self) -> "_Decoded":
        return self

    async def __anext__(self) -> Any:
        return _decode(await anext(self._encoded), self._decode)


def _decode_inside(handler: Any, decode: Decode) -> Any:
    def one(inner: Any) -> Any:
        return lambda encoded, context: inner(_decode(encoded, decode), context)

    def several(inner: Any) -> Any:
        return lambda encoded, context: inner(_Decoded(encoded, decode), context)

    encode = handler.response_serializer
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(one(handler.unary_unary), None, encode)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(one(handler.unary_stream), None, encode)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(several(handler.stream_unary), None, encode)
    return grpc.stream_stream_rpc_method_handler(several(handler.stream_stream), None, encode)


def _decode(encoded: bytes, decode: Decode) -> Any:
    try:
        return decode(encoded)
    except DecodeError:
        raise InvalidRequestError(
            "the request does not decode; send the message of the contract"
        ) from None
