"""The life of one ``Subscribe`` stream: delivers, and does what its subscriber asks meanwhile.

Requests are read in a task of their own; what they are answered with goes out between deliveries,
through the mailbox, so that one place writes. Invariant: positions on the wire count from 1, those of
a mailbox from 0.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import NoReturn

from google.protobuf.message import Message

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2, subscription_control_pb2
from daemoneye_eventbus.broker import Broker, Opening
from daemoneye_eventbus.errors import (
    BrokerDrainingError,
    InvalidSubscriptionError,
    SlowConsumerError,
    SupersededSubscriptionError,
)
from daemoneye_eventbus.mailbox import (
    Batch,
    Closed,
    CloseReason,
    DropReason,
    Gap,
    Notice,
)
from daemoneye_eventbus.service_group import GroupContent
from daemoneye_eventbus.service_terms import TermsReader
from daemoneye_mesh.errors import DaemoneyeError, InternalError
from daemoneye_mesh.rpc_status import to_detail

__all__ = ["SubscriptionStream"]

DELIVERY_MESSAGES = 2_000
DELIVERY_BYTES = 256 << 10
"""Bounds of one response; small enough that a stream never waits long for one to be written."""

MESSAGE_BYTES = 1 << 20
"""Bound of one response of single messages, which repeat the envelope of their group; a message that
is larger comes alone."""

MAX_UNREAD_ANSWERS = 64
"""Answers that wait for the subscriber to read them; then its requests have to wait."""

_GAP_REASONS = {
    DropReason.DROPPED_OLDEST: pb.GAP_REASON_DROPPED_OLDEST,
    DropReason.DROPPED_NEWEST: pb.GAP_REASON_DROPPED_NEWEST,
    DropReason.EXPIRED: pb.GAP_REASON_EXPIRED,
    DropReason.DEADLINE: pb.GAP_REASON_DEADLINE,
    DropReason.RETENTION: pb.GAP_REASON_RETENTION,
    DropReason.FLUSHED: pb.GAP_REASON_FLUSHED,
    DropReason.CLOSED: pb.GAP_REASON_UNSPECIFIED,
    DropReason.MOVED: pb.GAP_REASON_UNSPECIFIED,
}


class SubscriptionStream:
    """One stream, from ``open`` to its end.

    Args:
        broker: holds the subscription.
        opening: what was opened.
        is_grouped: whether batches are of groups.
        terms: reads updates.
    """

    def __init__(
        self, broker: Broker, opening: Opening, is_grouped: bool, terms: TermsReader
    ) -> None:
        self._broker = broker
        self._opening = opening
        self._subscription = opening.subscription
        self._mailbox = opening.subscription.mailbox
        self._is_grouped = is_grouped
        self._terms = terms
        self._unread = asyncio.Semaphore(MAX_UNREAD_ANSWERS)

    async def responses(
        self, requests: AsyncIterator[pb.SubscribeRequest], broker_epoch: str
    ) -> AsyncGenerator[Message, None]:
        """Yields what the subscriber is told until it unsubscribes.

        Raises:
            SlowConsumerError: its queue overflowed under the policy ``disconnect``.
            SupersededSubscriptionError: the same durable subscription was opened again.
            BrokerDrainingError: the broker is shutting down.
            DaemoneyeError: a request without a request_id could not be done; a durable subscription
                waits for its return.
        """
        reader = asyncio.ensure_future(self._read(requests))
        try:
            yield self._opened(broker_epoch)
            while True:
                delivery = await self._mailbox.take(DELIVERY_MESSAGES, DELIVERY_BYTES)
                match delivery:
                    case Batch() if self._is_grouped:
                        yield _encode_groups(delivery)
                    case Batch():
                        for response in _encode_messages(delivery):
                            yield response
                    case Gap():
                        yield _encode_gap(delivery)
                    case Notice(content):
                        yield self._answer(content)
                    case Closed(CloseReason.UNSUBSCRIBED):
                        return
                    case Closed(reason):
                        _raise_end(reason, self._opening)
        finally:
            reader.cancel()
            if self._subscription.mailbox is self._mailbox:  # else a newer stream has it
                self._broker.leave(self._subscription)

    async def _read(self, requests: AsyncIterator[pb.SubscribeRequest]) -> None:
        """Does what comes; the end of the requests does not end the subscription."""
        try:
            async for request in requests:
                if self._subscription.mailbox is not self._mailbox:
                    return  # a newer stream has it
                await self._obey(request)
        except Exception as error:
            # The stream ends with it, once what stands before it was told; the subscription need not.
            self._mailbox.post(Notice(error))

    async def _obey(self, request: pb.SubscribeRequest) -> None:
        if not request.request_id:
            self._do(request)
            return
        await self._unread.acquire()
        changed = subscription_control_pb2.SubscriptionChanged(request_id=request.request_id)
        try:
            changed.flushed_count = self._do(request)
        except DaemoneyeError as refusal:
            changed.error.CopyFrom(to_detail(refusal))
        self._mailbox.post(Notice(changed))

    def _do(self, request: pb.SubscribeRequest) -> int:
        """Does one thing; returns how many messages it threw away."""
        mailbox = self._mailbox
        match request.WhichOneof("action"):
            case "ack":
                self._acknowledge(request.ack.position)
            case "pause":
                mailbox.pause()
            case "resume":
                mailbox.resume()
            case "flush":
                return mailbox.flush()
            case "credit":
                self._grant(request.credit.messages)
            case "update":
                self._update(request.update)
            case "unsubscribe":
                # After the answer to this very request, which the subscriber waits for.
                asyncio.get_running_loop().call_soon(self._broker.end, self._subscription)
            case "open":
                raise InvalidSubscriptionError(
                    "the subscription is open already; use another stream for another one"
                )
            case _:
                raise InvalidSubscriptionError("the request has no action; set one")
        return 0

    def _acknowledge(self, position: int) -> None:
        if not self._subscription.terms.acknowledges:
            raise InvalidSubscriptionError(
                "this subscription does not acknowledge; ask for DELIVERY_GUARANTEE_AT_LEAST_ONCE"
            )
        if position:
            self._mailbox.acknowledge(position - 1)

    def _grant(self, messages: int) -> None:
        if self._mailbox.limits.initial_credit is None:
            raise InvalidSubscriptionError(
                "this subscription needs no credit; open it with initial_credit to grant some"
            )
        if messages < 1:
            raise InvalidSubscriptionError("a credit of 0 messages; grant at least 1", messages=0)
        self._mailbox.grant(messages)

    def _update(self, update: subscription_control_pb2.UpdateSubscription) -> None:
        terms = self._terms.read_update(update.config, self._subscription.terms)
        self._broker.update(self._subscription, terms)

    def _opened(self, broker_epoch: str) -> Message:
        limits = self._mailbox.limits
        opened = pb.SubscriptionOpened(
            subscription_id=self._subscription.id,
            max_queue_messages=limits.max_messages,
            max_queue_bytes=limits.max_bytes,
            broker_epoch=broker_epoch,
            resumed=self._opening.is_resumed,
            position=self._mailbox.next_position,
            history_complete=self._opening.is_history_complete,
        )
        if limits.acknowledgement is not None:
            opened.ack_timeout_ms = round(limits.acknowledgement.timeout_s * 1_000)
            opened.max_unacknowledged_messages = limits.acknowledgement.max_unacknowledged
        return pb.SubscribeResponse(opened=opened)

    def _answer(self, content: object) -> Message:
        if isinstance(content, Exception):
            raise content
        self._unread.release()
        assert isinstance(content, subscription_control_pb2.SubscriptionChanged)  # noqa: S101 - we post no other
        return pb.SubscribeResponse(changed=content)


def _encode_gap(gap: Gap) -> Message:
    return pb.SubscribeResponse(
        gap=pb.GapMarker(
            dropped_count=gap.count,
            dropped_bytes=gap.size_bytes,
            reason=_GAP_REASONS[gap.reason],
            position=gap.last_position + 1,
        )
    )


def _encode_groups(batch: Batch) -> Message:
    frames = frame_pb2.MessageBatchFrames(
        groups=[_content(group.content).encoded for group in batch.groups],
        position=batch.last_position + 1,
        redelivered=batch.is_redelivered,
    )
    return frame_pb2.SubscribeFrames(batch=frames)


def _encode_messages(batch: Batch) -> Iterator[Message]:
    """Yields responses of single messages within a bound of their own."""
    position, is_redelivered = batch.first_position, batch.is_redelivered
    messages: list[bytes] = []
    size_bytes = 0
    for group in batch.groups:
        for portion in _content(group.content).messages(MESSAGE_BYTES):
            portion_bytes = sum(map(len, portion))
            if messages and size_bytes + portion_bytes > MESSAGE_BYTES:
                yield _encode_portion(messages, position, is_redelivered)
                messages, size_bytes = [], 0
            messages += portion
            size_bytes += portion_bytes
            position += len(portion)
    yield _encode_portion(messages, position, is_redelivered)


def _encode_portion(messages: list[bytes], position: int, is_redelivered: bool) -> Message:
    frames = frame_pb2.MessageBatchFrames(
        messages=messages, position=position, redelivered=is_redelivered
    )
    return frame_pb2.SubscribeFrames(batch=frames)


def _content(content: object) -> GroupContent:
    assert isinstance(content, GroupContent)  # noqa: S101 - the service makes no other
    return content


def _raise_end(reason: CloseReason, opening: Opening) -> NoReturn:
    limits = opening.subscription.terms.limits
    match reason:
        case CloseReason.SLOW_CONSUMER:
            raise SlowConsumerError(limits.max_messages, limits.max_bytes)
        case CloseReason.DRAINING:
            raise BrokerDrainingError
        case CloseReason.SUPERSEDED:
            raise SupersededSubscriptionError(opening.subscription.label)
        case _:
            raise InternalError("the subscription ended unexpectedly; subscribe again")
