"""Calls any method with JSON, by the types that reflection gave."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from daemoneye_cli.calls import ask, read_stream
from daemoneye_cli.session import Link
from daemoneye_mesh.channel import correlation_metadata
from daemoneye_mesh.errors import InternalError, InvalidRequestError

__all__ = ["DynamicCall", "parse_documents"]

MAX_REQUESTS = 100_000
UNARY_TIMEOUT_S = 10.0
_WRITE_FAILED = "Internal error from Core"
"""What grpc.aio says when the peer ended a call while a request was being written."""


class DynamicCall:
    """One method of one server.

    Args:
        link: the server, with a token where the method needs one.
        method: from the server's own descriptors.
        pool: the pool those came from.
    """

    def __init__(self, link: Link, method: MethodDescriptor, pool: DescriptorPool) -> None:
        self._link = link
        self._method = method
        self._pool = pool
        self._path = f"/{method.containing_service.full_name}/{method.name}"

    async def run(
        self, documents: Sequence[Any], timeout_s: float | None
    ) -> AsyncGenerator[Any, None]:
        """Makes the call and yields the responses as documents.

        Args:
            documents: the requests; exactly one unless the method takes a stream.
            timeout_s: deadline; None for none, which suits streams without an end.

        Raises:
            InvalidRequestError: a request does not fit the type, or their number does not.
            DaemoneyeError: the call failed.
        """
        requests = [self._request(document) for document in documents]
        if not self._method.client_streaming and len(requests) != 1:
            raise InvalidRequestError(
                f"{self._method.name} takes one request, not {len(requests)}; pass one object",
                count=len(requests),
            )
        if not self._method.client_streaming and not self._method.server_streaming:
            answer = await self._ask(requests[0], timeout_s)
            yield self._document(answer)
            return
        if not self._method.server_streaming:
            timeout_s = timeout_s or UNARY_TIMEOUT_S
        async for answer in self._stream(requests, timeout_s):
            yield self._document(answer)

    async def _ask(self, request: Message, timeout_s: float | None) -> Message:
        method: Any = self._link.channel.unary_unary(self._path, **self._codecs())
        timeout_s = timeout_s or UNARY_TIMEOUT_S
        return self._parse_answer(await ask(method, request, self._link.peer, timeout_s))

    async def _stream(
        self, requests: Sequence[Message], timeout_s: float | None
    ) -> AsyncIterator[Message]:
        async def feed() -> AsyncIterator[Message]:
            for request in requests:
                yield request

        channel, codecs = self._link.channel, self._codecs()
        options: dict[str, Any] = {"timeout": timeout_s, "metadata": correlation_metadata()}
        call: Any
        # One request goes out in one step with the end of the stream, so that a refusal is seen as
        # it is; on the wire a stream of responses is read alike, however many there may be.
        if len(requests) == 1:
            call = channel.unary_stream(self._path, **codecs)(requests[0], **options)
        else:
            call = channel.stream_stream(self._path, **codecs)(feed(), **options)
        try:
            async for answer in read_stream(call, self._link.peer, timeout_s):
                yield self._parse_answer(answer)
        except InternalError as error:
            raise self._explain_early_end(error) from None

    def _explain_early_end(self, error: InternalError) -> InternalError:
        if error.message != _WRITE_FAILED:
            return error
        return InternalError(
            f"{self._link.peer.name} ended {self._method.name} before it took all requests; send one"
            " request alone to see why",
            method=self._method.name,
        )

    def _codecs(self) -> dict[str, Any]:
        # Answers stay bytes: an exception inside a deserializer would get lost in gRPC.
        return {"request_serializer": _serialize, "response_deserializer": None}

    def _request(self, document: Any) -> Message:
        message = _make(self._method.input_type)
        try:
            _require_object(document, message)
            json_format.ParseDict(document, message, descriptor_pool=self._pool)
        except (json_format.ParseError, AttributeError, TypeError, ValueError) as error:
            name = self._method.input_type.full_name
            why = str(error)[:300]
            raise InvalidRequestError(
                f"the request is no {name}: {why}; 'daemoneye inspect SOCKET describe"
                f" {self._method.name}' shows its fields",
                message_type=name,
                problem=why,
            ) from None
        return message

    def _parse_answer(self, content: bytes) -> Message:
        message = _make(self._method.output_type)
        try:
            message.ParseFromString(content)
        except DecodeError:
            raise InternalError(
                f"the answer of {self._method.name} is no {self._method.output_type.full_name};"
                " report it to the author of the server",
                method=self._method.name,
            ) from None
        return message

    def _document(self, message: Message) -> Any:
        try:
            return json_format.MessageToDict(
                message,
                preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
                descriptor_pool=self._pool,
            )
        except (json_format.Error, TypeError, ValueError):
            raise InternalError(
                f"an answer of {self._method.name} cannot be shown as JSON; report it",
                method=self._method.name,
            ) from None


def parse_documents(text: str) -> list[Any]:
    """Reads JSON values one after the other, on one line or many.

    Raises:
        InvalidRequestError: the text is not JSON.
    """
    decoder = json.JSONDecoder()
    documents: list[Any] = []
    place = _skip_space(text, 0)
    while place < len(text):
        try:
            document, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
            raise InvalidRequestError(
                f"request {len(documents) + 1} is no JSON: {why.lower()} at character {place};"
                " correct it",
                problem=why,
                request=len(documents) + 1,
            ) from None
        documents.append(document)
        if len(documents) > MAX_REQUESTS:
            raise InvalidRequestError(
                f"there are more than {MAX_REQUESTS} requests; send fewer", limit=MAX_REQUESTS
            )
        place = _skip_space(text, place)
    return documents


def _require_object(document: Any, message: Message) -> None:
    """Refuses what json_format would take for an empty message, such as a list."""
    is_special = message.DESCRIPTOR.full_name.startswith("google.protobuf.")
    if not isinstance(document, dict) and not is_special:
        raise TypeError("it is no JSON object")


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _make(descriptor: Descriptor) -> Message:
    message: Message = GetMessageClass(descriptor)()
    return message


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
