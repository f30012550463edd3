"""The gRPC face of the broker: proto to domain and back, no logic of its own.

``Publish`` and ``PublishStream`` take undecoded bytes, since the messages in them are forwarded as
they came; the other methods use the generated types.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2
from daemoneye_eventbus.broker import Broker, Subscription
from daemoneye_eventbus.errors import InvalidSubscriptionError, UnsupportedSettingError
from daemoneye_eventbus.mailbox import Closed, CloseReason
from daemoneye_eventbus.service_envelope import EnvelopeInspector
from daemoneye_eventbus.service_publishing import PublishingStream
from daemoneye_eventbus.service_stats import encode_stats, encode_subscriptions, to_timestamp
from daemoneye_eventbus.service_subscription import (
    encode_delivery,
    encode_opened,
    open_subscription,
    raise_end,
)
from daemoneye_eventbus.service_version import negotiate_version
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.errors import DeadlineError, InvalidRequestError

__all__ = ["SERVICE_NAME", "EventBusService", "add_event_bus_to_server"]

SERVICE_NAME = "daemoneye.eventbus.v1.EventBusService"

OPEN_TIMEOUT_S = 10.0
"""How long a subscription stream may stand without saying what it subscribes to."""

DELIVERY_MESSAGES = 2_000
DELIVERY_BYTES = 256 << 10
"""Bounds of one response; small enough that a stream never waits long for one to be written."""

log = logging.getLogger("daemoneye.eventbus")


class EventBusService:
    """Serves ``daemoneye.eventbus.v1.EventBusService``.

    Args:
        broker: does the work.
        access: says who may use which topics.
    """

    def __init__(self, broker: Broker, access: AccessTable) -> None:
        self._broker = broker
        self._access = access
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
        try:
            payloads = list(frame_pb2.PublishFrames.FromString(encoded).messages)
        except DecodeError:
            raise InvalidRequestError(
                "the request does not decode; send an encoded PublishRequest"
            ) from None
        publisher = caller()
        inspector = EnvelopeInspector(publisher, self._access)
        routed = self._broker.publish(publisher.identity.name, payloads, inspector)
        return pb.PublishResponse(accepted_count=len(payloads), routed_count=routed)

    async def PublishStream(
        self, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[pb.PublishStreamResponse]:
        """Publishes batches and answers each."""
        publisher = caller()
        name, inspector = publisher.identity.name, EnvelopeInspector(publisher, self._access)

        def publish(payloads: list[bytes]) -> int:
            return self._broker.publish(name, payloads, inspector)

        self._broker.require_open()
        stream = PublishingStream(requests, publish)
        self._publishing.add(stream)
        try:
            async with aclosing(stream.answers()) as answers:
                async for answer in answers:
                    yield answer
        finally:
            self._publishing.discard(stream)

    async def Subscribe(
        self, requests: AsyncIterator[pb.SubscribeRequest], context: Any
    ) -> AsyncIterator[Message]:
        """Opens one subscription and delivers until its stream ends."""
        asked = await _first_request(requests)
        subscription = open_subscription(self._broker, asked, caller(), self._access)
        log.info("opened %s", subscription.id, extra=_describe(subscription))
        watcher = asyncio.ensure_future(_watch_requests(requests))
        watcher.add_done_callback(lambda done: _close_when_failed(done, subscription))
        mailbox = subscription.mailbox
        try:
            yield encode_opened(subscription, self._epoch)
            while True:
                delivery = await mailbox.take(DELIVERY_MESSAGES, DELIVERY_BYTES)
                if isinstance(delivery, Closed):
                    break
                yield encode_delivery(delivery)
            if delivery.reason is CloseReason.REFUSED:
                watcher.result()
            raise_end(mailbox, delivery)
        finally:
            watcher.cancel()
            self._broker.unsubscribe(subscription)
            log.info("ended %s", subscription.id, extra=_describe(subscription))

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
        return encode_stats(self._broker, self._epoch, self._started_at)

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
        "Subscribe": stream(servicer.Subscribe, pb.SubscribeRequest.FromString, _encode),
        "NegotiateVersion": unary(
            servicer.NegotiateVersion, pb.NegotiateVersionRequest.FromString, _encode
        ),
        "GetBusStats": unary(servicer.GetBusStats, pb.GetBusStatsRequest.FromString, _encode),
        "ListSubscriptions": unary(
            servicer.ListSubscriptions, pb.ListSubscriptionsRequest.FromString, _encode
        ),
    }
    generic = grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)
    server.add_generic_rpc_handlers((generic,))


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


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


async def _watch_requests(requests: AsyncIterator[pb.SubscribeRequest]) -> None:
    """Refuses what follows ``open``; the end of the requests does not end the subscription."""
    async for request in requests:
        match request.WhichOneof("action"):
            case "open":
                raise InvalidSubscriptionError(
                    "the subscription is open already; use another stream for another one"
                )
            case None:
                raise InvalidSubscriptionError("the request has no action; set one")
            case action:
                raise UnsupportedSettingError(action, "leave it out")


def _close_when_failed(watcher: "asyncio.Task[None]", subscription: Subscription) -> None:
    if not watcher.cancelled() and watcher.exception() is not None:
        subscription.mailbox.close(CloseReason.REFUSED)


def _describe(subscription: Subscription) -> dict[str, object]:
    counters = subscription.mailbox.counters()
    return {
        "identity": subscription.identity,
        "subscriber_id": subscription.label,
        "patterns": list(subscription.patterns),
        "offered": counters.offered,
        "delivered": counters.delivered,
        "dropped": dict(counters.dropped),
    }
