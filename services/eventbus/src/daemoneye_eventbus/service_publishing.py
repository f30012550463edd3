"""One open ``PublishStream``: reads batches, publishes them, and answers them in order.

Reading runs in a task of its own, because a stream that waits for its next request could not be
ended when the broker drains. Answers to accepted batches are held back for a moment and given in one:
at a thousand small batches a second the answers would cost as much as the batches. Invariant: a batch
that was published is answered, also when the broker drains right after it, as long as the publisher
reads; and nothing is published after a batch that was refused for a reason that passes.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2
from daemoneye_eventbus.errors import BrokerDrainingError
from daemoneye_eventbus.service_intake import Accepted, Intake
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
    accepted: Accepted | None = None
    refusal: DaemoneyeError | None = None

    @property
    def is_plain(self) -> bool:
        """Whether its answer may be part of another one."""
        return self.accepted is not None and self.accepted.receipt is None


class PublishingStream:
    """The life of one stream.

    Args:
        requests: encoded ``PublishStreamRequest`` messages.
        intake: takes the batches.
    """

    def __init__(self, requests: AsyncIterator[bytes], intake: Intake) -> None:
        self._requests = requests
        self._intake = intake
        self._due: asyncio.Queue[_Due | None] = asyncio.Queue()
        self._held: _Due | None = None
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
            while (due := await self._next()) is not None:
                yield await self._answer(due)
            await asyncio.wait([self._reader])
            if self._is_drained:
                raise BrokerDrainingError
            self._reader.result()
        finally:
            self._reader.cancel()

    def drain(self) -> None:
        """Ends the stream after the answers that are due."""
        self._is_drained = True
        if self._reader is not None:
            self._reader.cancel()

    async def _next(self) -> _Due | None:
        held, self._held = self._held, None
        due = held or await self._due.get()
        if due is not None:
            self._unread.release()
        return due

    async def _answer(self, due: _Due) -> pb.PublishStreamResponse:
        if due.refusal is not None:
            return pb.PublishStreamResponse(batch_id=due.batch_id, error=to_detail(due.refusal))
        assert due.accepted is not None  # noqa: S101 - one of the two is set
        if due.accepted.receipt is not None:
            await due.accepted.receipt.wait()
            return _accepted(due.batch_id, due.accepted.count, due.accepted.routed_count)
        return await self._answer_several(due.batch_id, due.accepted)

    async def _answer_several(self, batch_id: int, first: Accepted) -> pb.PublishStreamResponse:
        count, routed, batches = first.count, first.routed_count, 1
        loop = asyncio.get_running_loop()
        end_s = loop.time() + ANSWER_DELAY_S
        while count < ANSWER_MESSAGES and batches < ANSWER_BATCHES:
            due = await self._next_before(end_s)
            if due is None:
                break
            if not due.is_plain or due.accepted is None:
                self._held = due
                break
            self._unread.release()
            batch_id, batches = due.batch_id, batches + 1
            count, routed = count + due.accepted.count, routed + due.accepted.routed_count
        return _accepted(batch_id, count, routed)

    async def _next_before(self, end_s: float) -> _Due | None:
        """The next batch to answer, or None when none comes in time or at all."""
        try:
            async with asyncio.timeout_at(end_s):
                due = await self._due.get()
        except TimeoutError:
            return None
        if due is None:
            self._due.put_nowait(None)  # the end has to be seen again
        return due

    async def _read(self) -> None:
        try:
            async for encoded in self._requests:
                await self._unread.acquire()
                self._due.put_nowait(await self._take(encoded))
        finally:
            self._due.put_nowait(None)

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
        return _Due(batch.batch_id, accepted)

    def _require_rising(self, batch_id: int) -> None:
        last, self._last_batch_id = self._last_batch_id, max(batch_id, self._last_batch_id)
        if batch_id <= last:
            raise InvalidRequestError(
                f"batch_id {batch_id} does not rise above {last}; number batches upwards from 1",
                batch_id=batch_id,
                last_batch_id=last,
            )


def _accepted(batch_id: int, count: int, routed: int) -> pb.PublishStreamResponse:
    return pb.PublishStreamResponse(batch_id=batch_id, accepted_count=count, routed_count=routed)
