"""Wraps gRPC handlers of all four kinds with one context manager around each call.

Interceptors built on this write their logic once. House rule that makes it possible: a handler that
streams responses is an async generator; ``context.write`` is not used.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import grpc
import grpc.aio

__all__ = ["Around", "HandlerInterceptor", "wrap_handler"]

Around = Callable[[Any, grpc.HandlerCallDetails], AbstractAsyncContextManager[None]]
"""Takes the servicer context and the call details; what it raises reaches the layer outside."""


class HandlerInterceptor(grpc.aio.ServerInterceptor):
    """Runs ``around`` for every call the server knows a handler for."""

    def around(
        self, context: Any, details: grpc.HandlerCallDetails
    ) -> AbstractAsyncContextManager[None]:
        """Returns the context manager in which the call runs."""
        raise NotImplementedError

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler; an unknown method stays unknown (UNIMPLEMENTED)."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return wrap_handler(handler, self.around, handler_call_details)


def wrap_handler(handler: Any, around: Around, details: grpc.HandlerCallDetails) -> Any:
    """Returns a handler of the same kind whose calls run inside ``around``."""

    def unary(inner: Any) -> Any:
        async def call(request: Any, context: Any) -> Any:
            async with around(context, details):
                return await inner(request, context)

        return call

    def stream(inner: Any) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            # Closed here, not by the garbage collector, when the peer leaves in between.
            async with around(context, details), aclosing(inner(request, context)) as responses:
                async for response in responses:
                    yield response

        return call

    codecs = (handler.request_deserializer, handler.response_serializer)
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(unary(handler.unary_unary), *codecs)
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(unary(handler.stream_unary), *codecs)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(stream(handler.unary_stream), *codecs)
    return grpc.stream_stream_rpc_method_handler(stream(handler.stream_stream), *codecs)
