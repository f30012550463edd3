"""The gRPC face of the broker: proto to domain and back, no logic of its own.

Every method takes undecoded bytes: what is published is forwarded as it came, and what does not
decode is the caller's mistake, which grpc would answer as a defect of ours.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2
from daemoneye_eventbus.broker import Broker
from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_eventbus.service_intake import Intake, IntakeRules
from daemoneye_eventbus.service_publishing import PublishingStream
from daemoneye_eventbus.service_stats import encode_stats, encode_subscriptions, to_timestamp
from daemoneye_eventbus.service_subscription import SubscriptionStream
from daemoneye_eventbus.service_terms import TermsReader
from daemoneye_eventbus.service_version import negotiate_version
from daemoneye_eventbus.subscription import Subscription
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.errors import DeadlineError, InvalidRequestError

__all__ = ["SERVICE_NAME", "EventBusService", "add_event_bus_to_server"]

SERVICE_NAME = "daemoneye.eventbus.v1.EventBusService"

OPEN_TIMEOUT_S = 10.0
"""How long a subscription stream may stand without saying what it subscribes to."""

RequestT = TypeVar("RequestT", bound=Message)

log = logging.getLogger("daemoneye.eventbus")


class EventBusService:
    """Serves ``daemoneye.eventbus.v1.EventBusService``.

    Args:
        broker: does the work.
        rules: what publishers are held to, and the access table for subscribers.
    """

    def __init__(self, broker: Broker, rules: IntakeRules) -> None:
        self._broker = broker
        self._rules = rules
        self._epoch = uuid.uuid4().hex
        self._started_at = to_timestamp(time.time_ns())
        self._publishing: set[PublishingStream] = set()

    async def drain(self) -> None:
        """Ends every stream: publishers after their last answer, subscribers after their queue."""
        self._broker.drain()
        for stream in self._publishing:
            stream.drain()

    async def Publish(self, encoded: bytes, context: Any) -> pb.PublishResponse:
        """Publishes one batch."""
        intake = Intake(self._broker, caller(), self._rules)
        try:
            batch = frame_pb2.PublishFrames.FromString(encoded)
        except DecodeError:
            error = InvalidRequestError(
                "the request does not decode; send an encoded PublishRequest"
            )
            intake.refuse(error)
            raise error from None
        accepted = await intake.accept(list(batch.messages), list(batch.groups), batch.assurance)
        if accepted.receipt is not None:
            await accepted.receipt.wait()
        return pb.PublishResponse(accepted_count=accepted.count, routed_count=accepted.routed_count)

    async def PublishStream(
        self, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[pb.PublishStreamResponse]:
        """Publishes batches and answers each."""
        publisher = caller()
        self._broker.require_open()
        with self._broker.quota.stream(publisher.identity.name):
            stream = PublishingStream(requests, Intake(self._broker, publisher, self._rules))
            self._publishing.add(stream)
            try:
                async with aclosing(stream.answers()) as answers:
                    async for answer in answers:
                        yield answer
            finally:
                self._publishing.discard(stream)

    async def Subscribe(
        self, encoded: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[Message]:
        """Opens one subscription and delivers until its stream ends."""
        subscriber = caller()
        name = subscriber.identity.name
        requests = _SubscribeRequests(encoded)
        with self._broker.quota.stream(name):
            asked = await _first_request(requests)
            terms = TermsReader(subscriber, self._rules.access, self._broker.limits)
            opening = self._broker.subscribe(name, terms.read(asked))
            subscription = opening.subscription
            log.info("opened %s", subscription.id, extra=_describe(subscription))
            stream = SubscriptionStream(self._broker, opening, asked.grouped, terms)
            try:
                async with aclosing(stream.responses(requests, self._epoch)) as responses:
                    async for response in responses:
                        yield response
            finally:
                log.info("ended a stream of %s", subscription.id, extra=_describe(subscription))

    async def NegotiateVersion(
        self, request: pb.NegotiateVersionRequest, context: Any
    ) -> pb.NegotiateVersionResponse:
        """Agrees on the version of the envelope and tells the limits."""
        limits = self._broker.limits
        return pb.NegotiateVersionResponse(
            response=negotiate_version(request.request),
            max_message_bytes=limits.max_message_bytes,
            max_batch_bytes=limits.max_batch_bytes,
            max_batch_messages=limits.max_batch_messages,
        )

    async def GetBusStats(
        self, request: pb.GetBusStatsRequest, context: Any
    ) -> pb.GetBusStatsResponse:
        """Reads the counters."""
        return encode_stats(self._broker, self._rules.refusals, self._epoch, self._started_at)

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, context: Any
    ) -> pb.ListSubscriptionsResponse:
        """Lists the open subscriptions."""
        return encode_subscriptions(self._broker)


def add_event_bus_to_server(servicer: EventBusService, server: grpc.aio.Server) -> None:
    """Registers the service like the generated function would, but with bytes where they stay."""
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    handlers: dict[str, Any] = {
        "Publish": unary(servicer.Publish, None, _encode),
        "PublishStream": stream(servicer.PublishStream, None, _encode),
        "Subscribe": stream(servicer.Subscribe, None, _encode),
    }
    for name, method, kind in (
        ("NegotiateVersion", servicer.NegotiateVersion, pb.NegotiateVersionRequest),
        ("GetBusStats", servicer.GetBusStats, pb.GetBusStatsRequest),
        ("ListSubscriptions", servicer.ListSubscriptions, pb.ListSubscriptionsRequest),
    ):
        handlers[name] = unary(_decoding(method, kind), None, _encode)
    generic = grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)
    server.add_generic_rpc_handlers((generic,))


class _SubscribeRequests:
    """Decodes one after the other; no generator, which would have to be closed before grpc's own."""

    def __init__(self, encoded: AsyncIterator[bytes]) -> None:
        self._encoded = encoded

    def __aiter__(self) -> "_SubscribeRequests":
        return self

    async def __anext__(self) -> pb.SubscribeRequest:
        return _decode(pb.SubscribeRequest, await anext(self._encoded))


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def _decode(kind: type[RequestT], encoded: bytes) -> RequestT:
    try:
        return kind.FromString(encoded)
    except DecodeError:
        name = kind.DESCRIPTOR.name
        raise InvalidRequestError(
            f"the request does not decode; send an encoded {name}", expected=name
        ) from None


def _decoding(
    method: Callable[[Any, Any], Awaitable[Message]], kind: type[Message]
) -> Callable[[bytes, Any], Awaitable[Message]]:
    async def call(encoded: bytes, context: Any) -> Message:
        return await method(_decode(kind, encoded), context)

    return call


async def _first_request(requests: AsyncIterator[pb.SubscribeRequest]) -> pb.OpenSubscription:
    try:
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            first = await anext(requests, None)
    except TimeoutError:
        raise DeadlineError(
            f"no open request within {OPEN_TIMEOUT_S} s; send it first", timeout_s=OPEN_TIMEOUT_S
        ) from None
    if first is None or first.WhichOneof("action") != "open":
        raise InvalidSubscriptionError("the first request must be open; send it first")
    return first.open


def _describe(subscription: Subscription) -> dict[str, object]:
    counters = subscription.mailbox.counters()
    return {
        "identity": subscription.identity,
        "subscriber_id": subscription.label,
        "patterns": [pattern for pattern, _floor in subscription.terms.patterns],
        "offered": counters.offered,
        "delivered": counters.delivered,
        "filtered": counters.filtered,
        "dropped": dict(counters.dropped),
    }
