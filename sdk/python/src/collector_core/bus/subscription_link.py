"""The task behind a subscription: connects, opens, reads, and connects again.

Invariant: a stream that was refused for good, or broke too long ago, ends the task with an error;
anything else is tried again with full jitter.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import grpc.aio
from google.protobuf.message import DecodeError

from collector_core.bus.duplex import Call, run_duplex, write
from collector_core.bus.errors import BrokenError, SlowConsumerError
from collector_core.bus.inbox import Inbox
from collector_core.bus.negotiation import negotiate
from collector_core.bus.options import SubscriptionOptions
from collector_core.bus.reconnect import SessionBackoff, explain, keep_trying, to_known
from collector_core.bus.requests import RequestLane
from collector_core.bus.state import LinkState, ObservedLink
from collector_core.bus.subscribe_request import to_delivery, to_gap, to_open_request, to_opened
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2
from daemoneye_mesh.errors import (
    ConflictError,
    DaemoneyeError,
    DeadlineError,
    ErrorReason,
    InternalError,
    InvalidRequestError,
    PermissionDeniedError,
    UnavailableError,
    UnsupportedError,
)

__all__ = ["SubscriptionLink"]

HISTORY_MARGIN_S = 1.0
"""What was published so long before the last item of a lost stream is asked for again too: repeats
can be told, messages that never came cannot."""

OPEN_TIMEOUT_S = 10.0

_METHOD = "/daemoneye.eventbus.v1.EventBusService/Subscribe"
_FINAL = (PermissionDeniedError, InvalidRequestError, UnsupportedError, ConflictError)

log = logging.getLogger("daemoneye.subscription")


class SubscriptionLink:
    """The connection of one subscription; for one event loop.

    Args:
        channel: channel to the broker.
        link: is told what happens.
        monotonic: seconds on a clock that is never set.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        link: ObservedLink,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel = channel
        self._link = link
        self._monotonic = monotonic
        self.options = SubscriptionOptions(())
        """What is wanted now."""
        self.inbox = Inbox()
        self.lane = RequestLane()
        self.credit: int | None = None
        """Messages that the broker may still hand over."""
        self.is_paused = False
        self.is_leaving = False
        """Whether the end of the stream is what was asked for."""
        self._life = 0
        self._heard_position = 0
        """Last delivery position that came on this stream."""
        self._heard_s: float | None = None
        """When the last item came; None before the first one."""
        self._lost_s = 0.0
        """Since when there is no stream, as long as there is none."""
        self._last_error: DaemoneyeError | None = None

    def begin(self, options: SubscriptionOptions) -> None:
        """Gets ready for ``run``."""
        self.options = options
        self.credit = options.credit
        self.is_paused = self.is_leaving = False
        self._heard_s = self._last_error = None
        self.inbox, self.lane = Inbox(), RequestLane()

    async def run(self) -> None:
        """Keeps the subscription up until it was unsubscribed.

        Raises:
            BrokenError: it will not come back.
            SlowConsumerError: it shall not come back by itself.
        """
        backoff = SessionBackoff()
        self._lost_s = self._monotonic()
        try:
            while True:
                self._link.move_to(LinkState.CONNECTING)
                await self._reach()
                backoff.begin()
                retry_after_s = await self._run_until_broken()
                if retry_after_s is None:
                    return
                self._link.move_to(LinkState.BACKOFF)
                await self._pause(backoff, retry_after_s)
        finally:
            self._link.move_to(LinkState.IDLE)

    def tell_done(self, position: int, life: int) -> None:
        """Acknowledges up to a position of a life, as far as this stream has handed it over.

        What is beyond that comes again and is acknowledged then: a broker does not know it as
        handed over yet, after a reconnect.
        """
        if life == self._life:
            self.lane.acknowledge(min(position, self._heard_position))

    async def _reach(self) -> None:
        """Agrees with the broker on a version, trying as long as the options say."""
        try:
            async with asyncio.timeout(self._patience_s()):
                await keep_trying("reach the broker", self._negotiate)
        except TimeoutError:
            raise self._broken() from None

    async def _negotiate(self) -> None:
        await negotiate(self._channel, self.options.features)

    async def _pause(self, backoff: SessionBackoff, retry_after_s: float) -> None:
        try:
            async with asyncio.timeout(self._patience_s()):
                await backoff.pause(at_least_s=retry_after_s)
        except TimeoutError:
            raise self._broken() from None

    async def _run_until_broken(self) -> float | None:
        """Runs one stream; returns how long the broker wants to be left alone, in seconds.

        None says that the subscription has ended as it was asked to.
        """
        is_orderly = False
        try:
            await self._run_session()
            is_orderly = self.is_leaving
        except (DaemoneyeError, grpc.aio.AioRpcError) as error:
            self._last_error = to_known(error)
            self._require_passing(self._last_error)
            log.warning("subscription lost: %s", explain(error))
            return self._last_error.retry_after_s or 0.0
        finally:
            if self._link.is_connected:
                self._lost_s = self._monotonic()
            self.lane.end(is_orderly)
        return None if is_orderly else 0.0

    async def _run_session(self) -> None:
        self.lane = RequestLane()
        # Until the broker has opened it this stream has handed over nothing, whatever is done meanwhile.
        self._heard_position = 0
        # Decoded here: what does not decode would come out of grpc as the end of the stream, and None.
        call: Call = self._channel.stream_stream(_METHOD)()
        opening = to_open_request(self.options, self._history_s(), self.credit)
        await run_duplex(call, self._send(call, opening), self._receive(call))

    async def _send(self, call: Call, opening: pb.SubscribeRequest) -> None:
        request = opening
        while await write(call, request.SerializeToString()):
            request = await self.lane.next()

    async def _receive(self, call: Call) -> None:
        responses = aiter(call)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                first = await anext(responses, None)
        except TimeoutError:
            raise DeadlineError(
                f"the broker did not open the subscription within {OPEN_TIMEOUT_S} s; try again",
                timeout_s=OPEN_TIMEOUT_S,
            ) from None
        if first is None:
            return
        self._take(_decode(first))
        async for encoded in responses:
            self._take(_decode(encoded))
            await asyncio.sleep(0)  # whoever iterates first: asking for more takes a while
            await self.inbox.wait_room()

    def _take(self, response: frame_pb2.SubscribeFrames) -> None:
        match response.WhichOneof("item"):
            case "opened":
                self._note_opened(response.opened)
            case "batch":
                delivery = to_delivery(response.batch, self._life)
                if self.credit is not None:
                    self.credit = max(0, self.credit - delivery.count)
                self._note_heard(delivery.position)
                self.inbox.put(delivery)
            case "gap":
                self._note_heard(response.gap.position)
                self.inbox.put(to_gap(response.gap))
            case "changed":
                self.lane.settle(response.changed)
            case _:
                pass  # an item of a newer broker

    def _note_opened(self, opened: pb.SubscriptionOpened) -> None:
        if not opened.resumed:
            self._life += 1
        self._heard_position = opened.position
        self._heard_s = self._monotonic()
        if self.is_paused:
            self.lane.tell(pb.SubscribeRequest(pause=pb.PauseDelivery()))
        self.inbox.put(to_opened(opened, self._life))
        self._link.move_to(LinkState.READY)

    def _note_heard(self, position: int) -> None:
        self._heard_position = max(self._heard_position, position)
        self._heard_s = self._monotonic()

    def _history_s(self) -> float | None:
        history_s = self.options.history_s
        if history_s is None or self._heard_s is None:
            return history_s
        # Durable or not: a broker that has kept our place passes over it, and another one, after a
        # restart, may have taken messages before we came back.
        return self._monotonic() - self._heard_s + HISTORY_MARGIN_S

    def _patience_s(self) -> float | None:
        limit_s = self.options.give_up_after_s
        return None if limit_s is None else self._lost_s + limit_s - self._monotonic()

    def _broken(self) -> BrokenError:
        limit_s = self.options.give_up_after_s
        known = self._last_error or UnavailableError(
            f"no broker answered within {limit_s} s; start it, then subscribe again",
            timeout_s=limit_s,
        )
        return BrokenError(known)

    def _require_passing(self, error: DaemoneyeError) -> None:
        """Raises what ends the subscription for good."""
        if isinstance(error, _FINAL):
            raise BrokenError(error)
        is_slow = error.reason is ErrorReason.SLOW_CONSUMER
        if is_slow and not self.options.resubscribe_when_slow:
            raise SlowConsumerError(error)


def _decode(encoded: bytes) -> frame_pb2.SubscribeFrames:
    try:
        return frame_pb2.SubscribeFrames.FromString(encoded)
    except DecodeError:
        raise InternalError("the broker sent what does not decode; subscribe again") from None
