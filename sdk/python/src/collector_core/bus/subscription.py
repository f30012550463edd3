"""Subscribing to the broker: one stream of batches and gaps that comes back after a reconnect.

A task reads the stream, reconnects and subscribes again; whoever iterates takes from its inbox, and
is not needed for any of that. Invariant: what the broker told is yielded in its order, and the reason
why it ended comes after the last item.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

import grpc.aio

from collector_core.bus.acknowledgement import AcknowledgementLedger
from collector_core.bus.errors import BusyError, ClosedError
from collector_core.bus.items import Delivery, Item, Opened
from collector_core.bus.options import Guarantee, SubscriptionOptions
from collector_core.bus.processed import ProcessedMessages
from collector_core.bus.state import LinkState, LinkStateListener, ObservedLink
from collector_core.bus.subscribe_request import to_selection
from collector_core.bus.subscription_link import SubscriptionLink
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_control_pb2
from daemoneye_mesh.errors import DeadlineError, InvalidRequestError
from daemoneye_mesh.rpc_status import from_detail

__all__ = ["BusSubscription"]

REQUEST_TIMEOUT_S = 5.0


class BusSubscription:
    """One subscription that survives the broker.

    Either iterate over ``items()``, which subscribes and ends the subscription with it::

        async with aclosing(subscription.items()) as items:
            async for item in items: ...

    or hold it open and iterate over it::

        async with BusSubscription(channel, options) as subscription:
            async for item in subscription: ...

    Args:
        channel: channel to the broker, with this process's token.
        options: what is wanted.
        on_state: hears of every change of ``state``.
        monotonic: seconds on a clock that is never set.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        options: SubscriptionOptions,
        on_state: LinkStateListener | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        is_exact = options.guarantee is Guarantee.EXACTLY_ONCE
        self._ledger = AcknowledgementLedger(ProcessedMessages() if is_exact else None)
        self.link = ObservedLink(on_state)
        """What it is doing, to be watched."""
        self._stream = SubscriptionLink(channel, self.link, monotonic)
        self._running: asyncio.Task[None] | None = None
        self._is_iterated = False

    @property
    def options(self) -> SubscriptionOptions:
        """What is wanted, updates included."""
        return self._options

    @property
    def state(self) -> LinkState:
        """What it is doing."""
        return self.link.state

    @property
    def is_connected(self) -> bool:
        """Whether the subscription stands right now."""
        return self.link.is_connected

    @property
    def suppressed_count(self) -> int:
        """Messages that came again after they were acknowledged, and were not yielded."""
        return self._ledger.suppressed_count

    async def wait_for_state(self, *states: LinkState) -> LinkState:
        """Returns once the state is one of ``states``."""
        return await self.link.wait_for_state(*states)

    async def items(self) -> AsyncGenerator[Item, None]:
        """Yields what the broker tells, over any number of connections, until unsubscribed.

        Raises:
            BrokenError: the broker refuses it for good, or was away for ``give_up_after_s``.
            SlowConsumerError: the broker ended it, and ``resubscribe_when_slow`` is off.
            ClosedError: it was closed.
            BusyError: somebody else iterates over it.
        """
        self._start()
        try:
            while True:
                try:
                    item = await self._next()
                except StopAsyncIteration:
                    return
                yield item
        finally:
            await self._stop()

    async def __aenter__(self) -> Self:
        self._start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        return await self._next()

    async def aclose(self) -> None:
        """Ends it for good; a durable one waits at the broker for ``durable_for_s``."""
        self.link.move_to(LinkState.CLOSED)
        await self._stop()

    async def acknowledge(self, delivery: Delivery) -> None:
        """Says that a delivery and everything before it is done.

        It returns before the broker knows: a delivery whose acknowledgement is lost comes again.

        Raises:
            InvalidRequestError: the guarantee is at most once, which has no acknowledgements.
            ClosedError: it was closed.
        """
        if not self._options.acknowledges:
            raise InvalidRequestError(
                "nothing is acknowledged at most once; choose Guarantee.AT_LEAST_ONCE",
                guarantee=self._options.guarantee,
            )
        self._require_open()
        self._stream.tell_done(self._ledger.acknowledge(delivery), delivery.life)

    async def pause(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Stops delivery, across reconnects too; messages queue at the broker within its bounds.

        Raises:
            DaemoneyeError: the broker refuses, cannot be reached or does not answer in time.
        """
        await self._ask(pb.SubscribeRequest(pause=pb.PauseDelivery()), timeout_s)
        self._stream.is_paused = True

    async def resume(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Starts delivery again; errors as for ``pause``."""
        await self._ask(pb.SubscribeRequest(resume=pb.ResumeDelivery()), timeout_s)
        self._stream.is_paused = False

    async def flush(self, timeout_s: float = REQUEST_TIMEOUT_S) -> int:
        """Throws away what waits at the broker; returns how much. Errors as for ``pause``.

        What was thrown away is told as a gap too.
        """
        changed = await self._ask(
            pb.SubscribeRequest(flush=subscription_control_pb2.FlushQueue()), timeout_s
        )
        return changed.flushed_count

    async def update(
        self, options: SubscriptionOptions, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        """Takes patterns and filters from other options, from here on; errors as for ``pause``.

        Args:
            options: whatever else they say is not looked at.
            timeout_s: how long the broker may take.
        """
        wanted = self._options.with_selection(options)
        update = subscription_control_pb2.UpdateSubscription(config=to_selection(wanted))
        await self._ask(pb.SubscribeRequest(update=update), timeout_s)
        self._options = self._stream.options = wanted

    async def grant(self, messages: int, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Lets the broker hand over so many messages more; errors as for ``pause``."""
        if self._stream.credit is None:
            raise InvalidRequestError("credit is granted only with the option credit; set it")
        await self._ask(
            pb.SubscribeRequest(credit=subscription_control_pb2.GrantCredit(messages=messages)),
            timeout_s,
        )
        self._stream.credit += messages

    async def unsubscribe(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Ends the subscription, a durable one for good; iteration ends after what has come.

        Errors as for ``pause``; the subscription goes on then.
        """
        self._stream.is_leaving = True
        try:
            await self._ask(
                pb.SubscribeRequest(unsubscribe=subscription_control_pb2.Unsubscribe()), timeout_s
            )
        except BaseException:
            self._stream.is_leaving = False
            raise

    async def _ask(
        self, request: pb.SubscribeRequest, timeout_s: float
    ) -> subscription_control_pb2.SubscriptionChanged:
        self._require_open()
        inbox = self._stream.inbox
        try:
            async with asyncio.timeout(timeout_s):
                await self.link.wait_for_state(LinkState.READY, LinkState.DRAINING)
                inbox.hurry(True)
                changed = await self._stream.lane.ask(request)
        except TimeoutError:
            raise DeadlineError(
                f"the broker did not answer within {timeout_s} s; ask again", timeout_s=timeout_s
            ) from None
        finally:
            inbox.hurry(self._stream.lane.is_awaited)
        if changed.HasField("error"):
            raise from_detail(changed.error)
        return changed

    async def _next(self) -> Item:
        if self._running is None:
            raise ClosedError
        if self._is_iterated:
            raise BusyError
        self._is_iterated = True
        try:
            while True:
                item = await self._stream.inbox.get()
                if isinstance(item, Opened):
                    self._ledger.begin_life(item.life)
                if not isinstance(item, Delivery) or not self._options.acknowledges:
                    return item
                kept, position = self._ledger.sift(item)
                self._stream.tell_done(position, item.life)
                if kept is not None:
                    return kept
        finally:
            self._is_iterated = False

    def _require_open(self) -> None:
        if self._running is None or self.link.state is LinkState.CLOSED:
            raise ClosedError

    def _start(self) -> None:
        if self.link.state is LinkState.CLOSED:
            raise ClosedError
        if self._running is not None:
            raise BusyError
        self._stream.begin(self._options)
        self._running = asyncio.ensure_future(self._stream.run())
        self._running.add_done_callback(self._note_end)

    def _note_end(self, running: "asyncio.Task[None]") -> None:
        if running.cancelled():
            self._stream.inbox.end(ClosedError())
        else:
            self._stream.inbox.end(running.exception())

    async def _stop(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        running.cancel()
        await asyncio.wait([running])
        self._note_end(running)
