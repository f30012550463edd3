"""The life of one ``Subscribe`` stream: delivers, and does what its subscriber asks meanwhile.

Requests are read in a task of their own; what they are answered with goes out between deliveries,
through the mailbox, so that one place writes. Invariant: positions on the wire count from 1, those of
a mailbox from 0.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import NoReturn

from google.protobuf.message import Message

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2
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
    Delivery,
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
        self._refusal: DaemoneyeError | None = None

    async def responses(
        self, requests: AsyncIterator[pb.SubscribeRequest], broker_epoch: str
    ) -> AsyncGenerator[Message, None]:
        """Yields what the subscriber is told until it unsubscribes.

        Raises:
            SlowConsumerError: its queue overflowed under the policy ``disconnect``.
            SupersededSubscriptionError: the same durable subscription was opened again.
            BrokerDrainingError: the broker is shutting down.
            DaemoneyeError: a request without a request_id could not be done.
        """
        reader = asyncio.ensure_future(self._read(requests))
        try:
            yield self._opened(broker_epoch)
            while True:
                delivery = await self._mailbox.take(DELIVERY_MESSAGES, DELIVERY_BYTES)
                if isinstance(delivery, Closed):
                    break
                yield self._encode(delivery)
            self._finish(delivery.reason)
        finally:
            reader.cancel()
            if self._subscription.mailbox is self._mailbox:  # else a newer stream has it
                self._broker.leave(self._subscription)

    def _finish(self, reason: CloseReason) -> None:
        if reason is CloseReason.UNSUBSCRIBED:
            return
        if self._refusal is not None:
            raise self._refusal
        _raise_end(reason, self._opening)

    async def _read(self, requests: AsyncIterator[pb.SubscribeRequest]) -> None:
        """Does what comes; the end of the requests does not end the subscription."""
        async for request in requests:
            if request.request_id:
                await self._unread.acquire()
            changed = pb.SubscriptionChanged(request_id=request.request_id)
            try:
                changed.flushed_count = self._do(request)
            except DaemoneyeError as refusal:
                if not request.request_id:
                    self._refusal = refusal
                    self._mailbox.close(CloseReason.REFUSED)
                    return
                changed.error.CopyFrom(to_detail(refusal))
            if request.request_id:
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

    def _update(self, update: pb.UpdateSubscription) -> None:
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

    def _encode(self, delivery: Delivery) -> Message:
        match delivery:
            case Batch():
                return self._encode_batch(delivery)
            case Gap():
                gap = pb.GapMarker(
                    dropped_count=delivery.count,
                    dropped_bytes=delivery.size_bytes,
                    reason=_GAP_REASONS[delivery.reason],
                    position=delivery.last_position + 1,
                )
                return pb.SubscribeResponse(gap=gap)
            case Notice(content):
                self._unread.release()
                assert isinstance(content, pb.SubscriptionChanged)  # noqa: S101 - we post no other
                return pb.SubscribeResponse(changed=content)
            case _:
                raise InternalError("a delivery of an unknown kind; report this")

    def _encode_batch(self, batch: Batch) -> Message:
        contents = [_content(group.content) for group in batch.groups]
        frames = frame_pb2.MessageBatchFrames(
            position=batch.last_position + 1, redelivered=batch.is_redelivered
        )
        if self._is_grouped:
            frames.groups.extend([content.encoded for content in contents])
        else:
            frames.messages.extend([one for content in contents for one in content.messages()])
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
