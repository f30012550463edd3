"""Subscribing to the broker: one stream of batches and gaps that comes back after a reconnect."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc.aio
from google.protobuf.message import DecodeError

from collector_core.publisher import negotiate_version
from collector_core.reconnect import SessionBackoff, explain, keep_trying
from daemoneye.eventbus.v1 import (
    eventbus_pb2,
    eventbus_service_pb2,
    frame_pb2,
    subscription_pb2,
)
from daemoneye_mesh.errors import DaemoneyeError, InvalidRequestError, PermissionDeniedError
from daemoneye_mesh.rpc_status import from_rpc_error
from daemoneye_mesh.topic import validate_pattern

__all__ = ["BusSubscriber", "Delivery", "Gap", "Opened"]

Call = grpc.aio.StreamStreamCall[
    eventbus_service_pb2.SubscribeRequest, eventbus_service_pb2.SubscribeResponse
]

_METHOD = "/daemoneye.eventbus.v1.EventBusService/Subscribe"

log = logging.getLogger("daemoneye.subscriber")


@dataclass(frozen=True, slots=True)
class Opened:
    """The subscription stands; what was published before it may be missing."""

    broker_epoch: str
    """Another value than last time: the broker restarted and its queues are gone."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Messages in order."""

    messages: Sequence[eventbus_pb2.EventBusMessage]
    undecodable_count: int = 0
    """Messages left out because their payload is no valid protobuf: the broker checks envelopes."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages that the broker dropped exactly here."""

    dropped_count: int
    reason: str


class BusSubscriber:
    """One subscription that survives the broker.

    Args:
        channel: channel to the broker, with this process's token.
        subscriber_id: name of the subscription, for operators.
        patterns: topic patterns.
        max_queue_messages: wanted bound of the broker's queue; 0 takes the broker's default.

    Raises:
        InvalidPatternError: a pattern breaks the grammar.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        subscriber_id: str,
        patterns: Sequence[str],
        max_queue_messages: int = 0,
    ) -> None:
        self._channel = channel
        self._subscriber_id = subscriber_id
        for pattern in patterns:
            validate_pattern(pattern)
        self._patterns = list(patterns)
        self._max_queue_messages = max_queue_messages
        self.is_connected = False
        """Whether the subscription stands right now."""

    async def items(self) -> AsyncGenerator[Opened | Delivery | Gap, None]:
        """Yields what the broker tells, over any number of connections, until closed.

        Raises:
            PermissionDeniedError: the access table does not allow a pattern; trying on is no use.
            InvalidRequestError: the broker refuses the subscription as it is.
        """
        backoff = SessionBackoff()
        while True:
            await keep_trying("reach the broker", lambda: negotiate_version(self._channel))
            backoff.begin()
            try:
                async with aclosing(self._session()) as session:
                    async for item in session:
                        yield item
            except grpc.aio.AioRpcError as error:
                known = from_rpc_error(error)
                if isinstance(known, PermissionDeniedError | InvalidRequestError):
                    raise known from None
                log.warning("subscription lost: %s", explain(known))
            except DaemoneyeError as error:
                log.warning("subscription lost: %s", explain(error))
            await backoff.pause()

    async def _session(self) -> AsyncGenerator[Opened | Delivery | Gap, None]:
        # One request and a half-closed stream: with a request stream, grpc.aio may report a refusal
        # that comes before its first write as INTERNAL.
        call = self._channel.unary_stream(
            _METHOD,
            request_serializer=eventbus_service_pb2.SubscribeRequest.SerializeToString,
            response_deserializer=frame_pb2.SubscribeFrames.FromString,
        )(self._request())
        try:
            async for response in call:
                if (item := _to_item(response)) is not None:
                    self.is_connected = True
                    yield item
        finally:
            self.is_connected = False
            call.cancel()

    def _request(self) -> eventbus_service_pb2.SubscribeRequest:
        patterns = [
            subscription_pb2.TopicPattern(
                pattern=pattern, wildcard_enabled="+" in pattern or "#" in pattern
            )
            for pattern in self._patterns
        ]
        config = subscription_pb2.SubscriptionConfig(
            subscriber_id=self._subscriber_id, topic_patterns=patterns
        )
        if self._max_queue_messages:
            config.qos_settings.max_queue_depth = self._max_queue_messages
        opening = eventbus_service_pb2.OpenSubscription(config=config)
        return eventbus_service_pb2.SubscribeRequest(open=opening)


def _decode(frames: Sequence[bytes]) -> Delivery:
    messages: list[eventbus_pb2.EventBusMessage] = []
    for frame in frames:
        try:
            messages.append(eventbus_pb2.EventBusMessage.FromString(frame))
        except DecodeError:
            log.error("a message of %d bytes is no EventBusMessage; left out", len(frame))
    return Delivery(messages, len(frames) - len(messages))


def _to_item(
    response: frame_pb2.SubscribeFrames,
) -> Opened | Delivery | Gap | None:
    match response.WhichOneof("item"):
        case "opened":
            return Opened(response.opened.broker_epoch)
        case "batch":
            return _decode(response.batch.messages)
        case "gap":
            return Gap(response.gap.dropped_count, _reason_of(response.gap))
        case _:
            return None  # an item of a newer broker


def _reason_of(gap: eventbus_service_pb2.GapMarker) -> str:
    known = eventbus_service_pb2.GapReason.values()
    number = gap.reason if gap.reason in known else eventbus_service_pb2.GAP_REASON_UNSPECIFIED
    return eventbus_service_pb2.GapReason.Name(number).removeprefix("GAP_REASON_").lower()
