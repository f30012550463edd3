"""A broker in the loop of a test: it keeps every message it accepts, and fails when it is told to.

Invariant: what the real broker would refuse for its topic, its source or its size is refused here
too, so that a collector which works with the fake works with the real one.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from collector_core.testing.changes import Changes
from collector_core.testing.seen_event import PublishedBatch, messages_of
from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2_grpc
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.authentication import caller
from daemoneye_mesh.bus_feature import BusFeature
from daemoneye_mesh.errors import (
    DaemoneyeError,
    ErrorReason,
    InvalidRequestError,
    OverloadedError,
    UnsupportedError,
)
from daemoneye_mesh.limits import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES
from daemoneye_mesh.rpc_status import to_detail
from daemoneye_mesh.topic import matches

__all__ = ["FakeBus"]

MAX_KEPT_MESSAGES = 500_000
"""Past this the fake refuses: a test that publishes more wants ``clear`` now and then."""

FEATURES = (BusFeature.GROUPS,)

Deliver = Callable[[eventbus_pb2.EventBusMessage], None]


class FakeBus(eventbus_service_pb2_grpc.EventBusServiceServicer):
    """``EventBusService`` as far as publishers need it.

    Args:
        changes: is told of every message.
        deliver: the one subscriber, which is the fake agent.
    """

    def __init__(self, changes: Changes, deliver: Deliver) -> None:
        self.messages: list[eventbus_pb2.EventBusMessage] = []
        """Every message that was accepted, repeats included, with its full envelope."""
        self.refused: Counter[str] = Counter()
        """Batches that were refused, by reason."""
        self.batch_count = 0
        """Batches that arrived, refused ones included."""
        self.stream_count = 0
        """Publishing streams that were opened."""
        self._changes = changes
        self._deliver = deliver
        self._access = AccessTable.load()
        self._refusal: DaemoneyeError | None = None
        self._denial: DaemoneyeError | None = None
        self._may_accept = asyncio.Event()
        self._may_answer = asyncio.Event()
        self._is_holding = False
        self._held: list[eventbus_pb2.EventBusMessage] = []
        self.answer_again()

    # -- what was seen ------------------------------------------------------------------------------

    def on(self, topic_pattern: str) -> list[eventbus_pb2.EventBusMessage]:
        """Returns the accepted messages whose topic matches a pattern, in their order."""
        return [one for one in self.messages if matches(topic_pattern, one.metadata.topic)]

    @property
    def topics(self) -> Counter[str]:
        """How many messages were accepted, by topic."""
        return Counter(one.metadata.topic for one in self.messages)

    def clear(self) -> None:
        """Forgets what was recorded; what is held back for the agent stays."""
        self.messages.clear()

    # -- what goes wrong ----------------------------------------------------------------------------

    def refuse(self, error: DaemoneyeError | None) -> None:
        """Refuses every batch with an error; accepts again with None.

        One that may pass (``error.retryable``) ends the stream as well (MUST-BUS-08).
        """
        self._refusal = error

    def deny(self, error: DaemoneyeError | None) -> None:
        """Refuses every call with an error; takes calls again with None."""
        self._denial = error

    def stop_answering(self, *, accepts: bool = False) -> None:
        """Leaves batches without an answer until ``answer_again``.

        Args:
            accepts: whether they are accepted all the same, so that a publisher repeats them.
        """
        self._may_answer.clear()
        if not accepts:
            self._may_accept.clear()

    def answer_again(self) -> None:
        """Answers what waits, and everything after it."""
        self._may_accept.set()
        self._may_answer.set()

    def hold(self) -> None:
        """Accepts messages and keeps them from the agent until ``release`` or ``forget``."""
        self._is_holding = True

    def release(self) -> None:
        """Hands to the agent what was held back."""
        self._is_holding = False
        held, self._held = self._held, []
        for message in held:
            self._deliver(message)
        self._changes.tell()

    def forget(self) -> int:
        """Loses what is held back, as a broker that restarts does; returns how many messages."""
        count = len(self._held)
        self._held.clear()
        self._is_holding = False
        return count

    # -- EventBusService ----------------------------------------------------------------------------

    async def NegotiateVersion(
        self, request: pb.NegotiateVersionRequest, context: Any
    ) -> pb.NegotiateVersionResponse:
        """Agrees to whatever version is preferred."""
        self._check_denial()
        answer = eventbus_pb2.VersionNegotiationResponse(
            negotiated_version=request.request.preferred_version,
            negotiation_success=True,
            server_capabilities=[str(feature) for feature in FEATURES],
        )
        return pb.NegotiateVersionResponse(
            response=answer,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_batch_bytes=MAX_BATCH_BYTES,
            max_batch_messages=MAX_BATCH_MESSAGES,
        )

    async def Publish(self, request: pb.PublishRequest, context: Any) -> pb.PublishResponse:
        """Takes one batch."""
        self._check_denial()
        self.batch_count += 1
        await self._may_accept.wait()
        try:
            count = self._accept(request)
        except DaemoneyeError as error:
            self._count_refusal(error)
            raise
        await self._may_answer.wait()
        return pb.PublishResponse(accepted_count=count, routed_count=count)

    async def PublishStream(
        self, requests: AsyncIterator[pb.PublishStreamRequest], context: Any
    ) -> AsyncIterator[pb.PublishStreamResponse]:
        """Takes batches and answers each."""
        self._check_denial()
        self.stream_count += 1
        async for request in requests:
            self.batch_count += 1
            await self._may_accept.wait()
            answer = pb.PublishStreamResponse(batch_id=request.batch_id)
            refused: DaemoneyeError | None = None
            try:
                answer.accepted_count = answer.routed_count = self._accept(request)
            except DaemoneyeError as error:
                refused = error
                self._count_refusal(error)
                answer.error.CopyFrom(to_detail(error))
            await self._may_answer.wait()
            yield answer
            if refused is not None and refused.retryable:
                return

    async def Subscribe(
        self, requests: AsyncIterator[pb.SubscribeRequest], context: Any
    ) -> AsyncIterator[pb.SubscribeResponse]:
        """Refused: the fake has one subscriber, the fake agent."""
        raise UnsupportedError("the fake bus offers no subscriptions; read mesh.bus.messages")
        yield pb.SubscribeResponse()  # type: ignore[unreachable] # makes it a generator

    async def GetBusStats(
        self, request: pb.GetBusStatsRequest, context: Any
    ) -> pb.GetBusStatsResponse:
        """Refused: collectors may not ask."""
        raise UnsupportedError("the fake bus keeps no counters; read mesh.bus.messages")

    async def ListSubscriptions(
        self, request: pb.ListSubscriptionsRequest, context: Any
    ) -> pb.ListSubscriptionsResponse:
        """Refused: collectors may not ask."""
        raise UnsupportedError("the fake bus offers no subscriptions; read mesh.bus.messages")

    def _accept(self, batch: PublishedBatch) -> int:
        if self._refusal is not None:
            raise self._refusal
        messages = _unpack(batch)
        if len(self.messages) + len(messages) > MAX_KEPT_MESSAGES:
            raise OverloadedError(
                f"the fake bus keeps {MAX_KEPT_MESSAGES} messages; call mesh.bus.clear() in the test",
                limit=MAX_KEPT_MESSAGES,
            )
        for message in messages:
            self._check(message)
        self.messages += messages
        for message in messages:
            if self._is_holding:
                self._held.append(message)
            else:
                self._deliver(message)
        self._changes.tell()
        return len(messages)

    def _check(self, message: eventbus_pb2.EventBusMessage) -> None:
        """Refuses what the real broker refuses: MUST-ENV-01, MUST-BUS-06, the access table."""
        metadata, own = message.metadata, caller()
        self._access.require_publish(own, metadata.topic)
        if metadata.source_id != own.identity.id:
            raise InvalidRequestError(
                f"source_id is {metadata.source_id!a} and the caller is {own.identity.id};"
                " publish under your own id",
                source_id=metadata.source_id,
                caller=own.identity.id,
            )
        size_bytes = message.ByteSize()
        if size_bytes > MAX_MESSAGE_BYTES:
            raise InvalidRequestError(
                f"a message has {size_bytes} bytes, more than {MAX_MESSAGE_BYTES}; send less",
                reason=ErrorReason.MESSAGE_TOO_LARGE,
                size_bytes=size_bytes,
                limit_bytes=MAX_MESSAGE_BYTES,
            )

    def _check_denial(self) -> None:
        if self._denial is not None:
            raise self._denial

    def _count_refusal(self, error: DaemoneyeError) -> None:
        self.refused[str(error.reason)] += 1
        self._changes.tell()


def _unpack(batch: PublishedBatch) -> list[eventbus_pb2.EventBusMessage]:
    try:
        messages = messages_of(batch)
    except ValueError as error:
        raise InvalidRequestError(f"{error}; send the count that is there", problem=error) from None
    if not messages:
        raise InvalidRequestError(
            "the batch is empty; send one message at least", reason=ErrorReason.BATCH_EMPTY
        )
    return messages
