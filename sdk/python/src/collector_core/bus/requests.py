"""What a subscription asks of the broker while its stream stands.

Acknowledgements that queue while a write is in flight collapse into the last one; they are cumulative.
Every other request is answered, and whoever asked waits for that.
"""

import asyncio
from collections import deque

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_control_pb2
from daemoneye_mesh.errors import ErrorReason, UnavailableError

__all__ = ["RequestLane"]


class RequestLane:
    """Requests of one stream; for one event loop."""

    def __init__(self) -> None:
        self._queue: deque[pb.SubscribeRequest] = deque()
        self._asked: dict[int, asyncio.Future[subscription_control_pb2.SubscriptionChanged]] = {}
        self._wanted = asyncio.Event()
        self._last_id = 0
        self._ack_position = 0

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._asked)

    def acknowledge(self, position: int) -> None:
        """Queues a cumulative acknowledgement."""
        self._ack_position = max(self._ack_position, position)
        self._wanted.set()

    def tell(self, request: pb.SubscribeRequest) -> None:
        """Queues a request whose answer nobody waits for."""
        self._queue.append(request)
        self._wanted.set()

    async def ask(
        self, request: pb.SubscribeRequest
    ) -> subscription_control_pb2.SubscriptionChanged:
        """Queues a request and returns its answer.

        Raises:
            UnavailableError: the stream ended before the answer.
        """
        self._last_id += 1
        request.request_id = number = self._last_id
        answer: asyncio.Future[subscription_control_pb2.SubscriptionChanged]
        answer = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.tell(request)
        try:
            return await answer
        finally:
            self._asked.pop(number, None)

    async def next(self) -> pb.SubscribeRequest:
        """Returns what to send next."""
        while not self._queue and not self._ack_position:
            self._wanted.clear()
            await self._wanted.wait()
        # An acknowledgement first: what was asked for may end the subscription.
        if position := self._ack_position:
            self._ack_position = 0
            return pb.SubscribeRequest(ack=pb.AckDeliveries(position=position))
        return self._queue.popleft()

    def settle(self, changed: subscription_control_pb2.SubscriptionChanged) -> None:
        """Gives an answer to whoever asked; they may have given up."""
        answer = self._asked.get(changed.request_id)
        if answer is not None and not answer.done():
            answer.set_result(changed)

    def end(self, is_orderly: bool) -> None:
        """Says that no answer will come.

        Args:
            is_orderly: the broker ended the stream as it was asked to, which answers whoever asked.
        """
        for number, answer in self._asked.items():
            if answer.done():
                continue
            if is_orderly:
                answer.set_result(subscription_control_pb2.SubscriptionChanged(request_id=number))
            else:
                answer.set_exception(_lost())


def _lost() -> UnavailableError:
    return UnavailableError(
        "the subscription was lost before the broker answered; ask again",
        reason=ErrorReason.PEER_UNAVAILABLE,
    )
