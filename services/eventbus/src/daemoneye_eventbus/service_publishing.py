"""One open ``PublishStream``: reads batches, publishes them, and answers them in order.

Reading runs in a task of its own, because a stream that waits for its next request could not be
ended when the broker drains. Answers to accepted batches are held back for a moment and given in one:
at a thousand small batches a second the answers would cost as much as the batches. Invariant: a batch
that was published is answered, also when the broker drains right after it, as long as the publisher
reads; and nothing is published after a batch that was refused for a reason that passes.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2
from daemoneye_eventbus.errors import BrokerDrainingError
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.service_intake import Intake
from daemoneye_mesh.errors import DaemoneyeError, InvalidRequestError
from daemoneye_mesh.rpc_status import to_detail

__all__ = ["PublishingStream"]

MAX_UNREAD_ANSWERS = 64
"""Answers waiting for the publisher to read them; then its batches have to wait."""

ANSWER_DELAY_S = 0.01
ANSWER_BATCHES = 4
ANSWER_MESSAGES = 1_000
"""An answer waits for others so long, or until it stands for so many batches or messages: few enough
that a publisher with a window of eight batches never runs dry."""


@dataclass(frozen=True, slots=True)
class _Due:
    """A batch that has to be answered."""

    batch_id: int
    count: int = 0
    """Messages accepted."""
    routed_count: int = 0
    receipt: Receipt | None = None
    refusal: DaemoneyeError | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its answer may be part of another one."""
        return self.receipt is None and self.refusal is None


class PublishingStream:
    """The life of one stream.

    Args:
        requests: encoded ``PublishStreamRequest`` messages.
        intake: takes the batches.
    """

    def __init__(self, requests: AsyncIterator[bytes], intake: Intake) -> None:
        self._requests = requests
        self._intake = intake
        self._due: deque[_Due] = deque()
        self._due_messages = 0
        self._ripe = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._has_ended = False
        self._unread = asyncio.Semaphore(MAX_UNREAD_ANSWERS)
        self._last_batch_id = 0
        self._reader: asyncio.Task[None] | None = None
        self._is_drained = False

    async def answers(self) -> AsyncGenerator[pb.PublishStreamResponse, None]:
        """Yields the answers until the publisher ends the stream.

        Raises:
            InvalidRequestError: a request does not decode, so there is no batch to answer.
            BrokerDrainingError: the broker is shutting down.
            DaemoneyeError: a refusal that may pass; nothing after it was published.
        """
        self._reader = asyncio.ensure_future(self._read())
        try:
            while self._due or not self._has_ended:
                await self._ripe.wait()
                self._ripe.clear()
                while self._due:
                    yield await self._answer()
            await asyncio.wait([self._reader])
            if self._is_drained:
                raise BrokerDrainingError
            self._reader.result()
        finally:
            self._stop_timer()
            self._reader.cancel()

    def drain(self) -> None:
        """Ends the stream after the answers that are due."""
        self._is_drained = True
        if self._reader is not None:
            self._reader.cancel()

    async def _answer(self) -> pb.PublishStreamResponse:
        """Answers the batch that is due first, and all that may be answered with it."""
        due = self._take_due()
        if due.refusal is not None:
            return pb.PublishStreamResponse(batch_id=due.batch_id, error=to_detail(due.refusal))
        batch_id, count, routed = due.batch_id, due.count, due.routed_count
        if due.receipt is not None:
            await due.receipt.wait()
        while due.is_plain and self._due and self._due[0].is_plain:
            due = self._take_due()
            batch_id, count, routed = due.batch_id, count + due.count, routed + due.routed_count
        return pb.PublishStreamResponse(
            batch_id=batch_id, accepted_count=count, routed_count=routed
        )

    def _take_due(self) -> _Due:
        due = self._due.popleft()
        self._due_messages -= due.count
        self._unread.release()
        return due

    def _add_due(self, due: _Due) -> None:
        self._due.append(due)
        self._due_messages += due.count
        is_enough = len(self._due) >= ANSWER_BATCHES or self._due_messages >= ANSWER_MESSAGES
        if is_enough or not due.is_plain:
            self._ripen()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(ANSWER_DELAY_S, self._ripen)

    def _ripen(self) -> None:
        self._stop_timer()
        self._ripe.set()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _read(self) -> None:
        try:
            async for encoded in self._requests:
                await self._unread.acquire()
                self._add_due(await self._take(encoded))
                await asyncio.sleep(0)  # subscribers first: asking for the next batch takes a while
        finally:
            self._has_ended = True
            self._ripen()

    async def _take(self, encoded: bytes) -> _Due:
        try:
            batch = frame_pb2.PublishStreamFrames.FromString(encoded)
        except DecodeError:
            error = InvalidRequestError(
                "a request does not decode; send an encoded PublishStreamRequest"
            )
            self._intake.refuse(error)
            raise error from None
        try:
            self._require_rising(batch.batch_id)
            accepted = await self._intake.accept(
                list(batch.messages), list(batch.groups), batch.assurance
            )
        except DaemoneyeError as refusal:
            if refusal.retryable:
                raise
            return _Due(batch.batch_id, refusal=refusal)
        return _Due(batch.batch_id, accepted.count, accepted.routed_count, receipt=accepted.receipt)

    def _require_rising(self, batch_id: int) -> None:
        last, self._last_batch_id = self._last_batch_id, max(batch_id, self._last_batch_id)
        if batch_id <= last:
            raise InvalidRequestError(
                f"batch_id {batch_id} does not rise above {last}; number batches upwards from 1",
                batch_id=batch_id,
                last_batch_id=last,
            )
