"""One open ``PublishStream``: reads batches, publishes them, and answers each in order.

Reading runs in a task of its own, because a stream that waits for its next request could not be
ended when the broker drains. Invariant: a batch that was published is answered, also when the
broker drains right after it, as long as the publisher reads.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from google.protobuf.message import DecodeError

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2
from daemoneye_eventbus.errors import BrokerDrainingError
from daemoneye_mesh.errors import DaemoneyeError, InvalidRequestError
from daemoneye_mesh.rpc_status import to_detail

__all__ = ["PublishingStream"]

MAX_UNREAD_ANSWERS = 64
"""Answers waiting for the publisher to read them; then its batches have to wait."""

Publish = Callable[[list[bytes]], int]


class PublishingStream:
    """The life of one stream.

    Args:
        requests: encoded ``PublishStreamRequest`` messages.
        publish: takes the encoded messages of one batch; returns the deliveries offered.
    """

    def __init__(self, requests: AsyncIterator[bytes], publish: Publish) -> None:
        self._requests = requests
        self._publish = publish
        self._answers: asyncio.Queue[pb.PublishStreamResponse | None] = asyncio.Queue()
        self._unread = asyncio.Semaphore(MAX_UNREAD_ANSWERS)
        self._last_batch_id = 0
        self._reader: asyncio.Task[None] | None = None
        self._is_drained = False

    async def answers(self) -> AsyncGenerator[pb.PublishStreamResponse, None]:
        """Yields the answer to each batch until the publisher ends the stream.

        Raises:
            InvalidRequestError: a request does not decode, so there is no batch to answer.
            BrokerDrainingError: the broker is shutting down.
        """
        self._reader = asyncio.ensure_future(self._read())
        try:
            while (answer := await self._answers.get()) is not None:
                yield answer
                self._unread.release()
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

    async def _read(self) -> None:
        try:
            async for encoded in self._requests:
                await self._unread.acquire()
                self._answers.put_nowait(self._answer(encoded))
        finally:
            self._answers.put_nowait(None)

    def _answer(self, encoded: bytes) -> pb.PublishStreamResponse:
        try:
            batch = frame_pb2.PublishStreamFrames.FromString(encoded)
        except DecodeError:
            raise InvalidRequestError(
                "a request does not decode; send an encoded PublishStreamRequest"
            ) from None
        payloads = list(batch.messages)
        try:
            self._require_rising(batch.batch_id)
            routed = self._publish(payloads)
        except BrokerDrainingError:
            raise
        except DaemoneyeError as refusal:
            return pb.PublishStreamResponse(batch_id=batch.batch_id, error=to_detail(refusal))
        return pb.PublishStreamResponse(
            batch_id=batch.batch_id, accepted_count=len(payloads), routed_count=routed
        )

    def _require_rising(self, batch_id: int) -> None:
        last, self._last_batch_id = self._last_batch_id, max(batch_id, self._last_batch_id)
        if batch_id <= last:
            raise InvalidRequestError(
                f"batch_id {batch_id} does not rise above {last}; number batches upwards from 1",
                batch_id=batch_id,
                last_batch_id=last,
            )
