"""Publishing to the broker: micro-batches over one stream, resent after a reconnect.

Whatever queued up while the last write was in flight goes out in one message; that is where the
throughput comes from. A batch without an answer, or refused for a reason that passes, is sent again on
the next connection, so the broker gets every event at least once; receivers tell repeats by (source_id,
source_epoch, source_sequence).
"""

import asyncio
import logging
from typing import Any

import grpc.aio

from collector_core.outbox import Outbox
from collector_core.reconnect import SessionBackoff, explain, keep_trying
from daemoneye.eventbus.v1 import (
    eventbus_pb2,
    eventbus_service_pb2,
    eventbus_service_pb2_grpc,
    frame_pb2,
)
from daemoneye_mesh.error_interceptor import is_cancelled_from_outside, unwrap
from daemoneye_mesh.errors import DaemoneyeError, PreconditionError
from daemoneye_mesh.rpc_status import from_detail

__all__ = ["BusPublisher", "negotiate_version"]

BATCH_MESSAGES = 2_000
BATCH_BYTES = 256 << 10
HOLD_MESSAGES = 256
"""Fewer wait while the broker still owes an answer; see ``Outbox.take``."""
WINDOW_BATCHES = 8
"""Batches in flight; enough to keep broker and client busy at once."""

NEGOTIATE_TIMEOUT_S = 5.0
ENVELOPE_VERSION = eventbus_pb2.MessageVersion(
    major=1, minor=0, patch=0, protocol_version="daemoneye"
)

Call = grpc.aio.StreamStreamCall[Any, eventbus_service_pb2.PublishStreamResponse]

_METHOD = "/daemoneye.eventbus.v1.EventBusService/PublishStream"

log = logging.getLogger("daemoneye.publisher")


async def negotiate_version(channel: grpc.aio.Channel) -> None:
    """Agrees with the broker on the message envelope.

    Raises:
        PreconditionError: no common version; one side must be upgraded.
        grpc.aio.AioRpcError: the broker cannot be reached, or refuses the caller.
    """
    stub: eventbus_service_pb2_grpc.EventBusServiceAsyncStub
    stub = eventbus_service_pb2_grpc.EventBusServiceStub(channel)
    request = eventbus_pb2.VersionNegotiationRequest(
        supported_versions=[ENVELOPE_VERSION], preferred_version=ENVELOPE_VERSION
    )
    answer = await stub.NegotiateVersion(
        eventbus_service_pb2.NegotiateVersionRequest(request=request), timeout=NEGOTIATE_TIMEOUT_S
    )
    if not answer.response.negotiation_success:
        raise PreconditionError("the broker speaks no version of the envelope that we do; upgrade")


class BusPublisher:
    """Sends what is in an outbox, forever.

    Args:
        channel: channel to the broker, with this process's token.
        outbox: frames to send; each is an encoded EventBusMessage.
    """

    def __init__(self, channel: grpc.aio.Channel, outbox: Outbox) -> None:
        self._channel = channel
        self._outbox = outbox
        self._window = asyncio.Semaphore(WINDOW_BATCHES)
        self.is_connected = False
        """Whether a stream to the broker stands right now."""

    async def run(self) -> None:
        """Connects, sends, and connects again until cancelled."""
        backoff = SessionBackoff()
        while True:
            await keep_trying("reach the broker", lambda: negotiate_version(self._channel))
            backoff.begin()
            try:
                await self._run_session()
            except (DaemoneyeError, grpc.aio.AioRpcError) as error:
                log.warning("connection to the broker lost: %s", explain(error))
            await backoff.pause()

    async def _run_session(self) -> None:
        self._outbox.rewind()
        self._window = asyncio.Semaphore(WINDOW_BATCHES)
        call = self._channel.stream_stream(
            _METHOD,
            request_serializer=frame_pb2.PublishStreamFrames.SerializeToString,
            response_deserializer=eventbus_service_pb2.PublishStreamResponse.FromString,
        )()
        self.is_connected = True
        try:
            async with asyncio.TaskGroup() as group:
                sender = group.create_task(self._send(call), name="sender")
                await self._receive(call)
                sender.cancel()
        except BaseExceptionGroup as failed:
            # Not `except*`: before Python 3.11.4 it wraps what is raised here in a group again.
            if is_cancelled_from_outside():  # the group was busy ending and has swallowed it
                raise asyncio.CancelledError from None
            raise unwrap(failed) from None
        finally:
            self.is_connected = False
            call.cancel()

    async def _send(self, call: Call) -> None:
        while True:
            await self._window.acquire()
            batch = await self._outbox.take(BATCH_MESSAGES, BATCH_BYTES, HOLD_MESSAGES)
            request = frame_pb2.PublishStreamFrames(batch_id=batch.batch_id, messages=batch.frames)
            try:
                await call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return  # the call has ended; the receiving side says why

    async def _receive(self, call: Call) -> None:
        async for response in call:
            error = from_detail(response.error) if response.HasField("error") else None
            if error is not None and error.retryable:
                raise error  # nothing is wrong with the batch: it goes out again on a new stream
            count = self._outbox.settle(response.batch_id, error.reason if error else None)
            self._window.release()
            if error is not None:
                log.error("the broker refused %d events: %s", count, error.message)
