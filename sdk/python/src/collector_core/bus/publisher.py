"""Publishing to the broker: groups over one stream, resent after a reconnect.

Whatever queued up while the last write was in flight goes out in one message; that is where the
throughput comes from. A batch without an answer, or refused for a reason that passes, is sent again on
the next connection, in order, so the broker gets every event at least once; receivers tell repeats by
(source_id, source_epoch, source_sequence).
"""

import asyncio
import logging
import time
from enum import IntEnum

import grpc.aio

from collector_core.bus.duplex import Call, run_duplex, write
from collector_core.bus.limits import PublishLimits
from collector_core.bus.negotiation import negotiate
from collector_core.bus.outbox import BatchSource, OutboxBatch
from collector_core.bus.outbox_group import GROUP_BYTES, GROUP_MESSAGES
from collector_core.bus.reconnect import SessionBackoff, explain, keep_trying, to_known
from collector_core.bus.state import LinkState, LinkStateListener, ObservedLink
from collector_core.bus.wire import encode_group_parts, encode_publish_request
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye_mesh.bus_feature import BusFeature
from daemoneye_mesh.errors import DaemoneyeError
from daemoneye_mesh.rpc_status import from_detail

__all__ = ["BusPublisher", "PublishAssurance"]

WINDOW_BATCHES = 8
"""Batches in flight; enough to keep broker and client busy at once."""

PACE_S = 0.0005
"""Mean time between writes that are far from full: many tiny batches cost both sides more than they
gain."""

PACE_SLACK_S = 0.001
"""By how much writes may run ahead of the pace, so that one event a millisecond never waits: timers
round up to whole milliseconds."""

PACED_BELOW_MESSAGES = 256
"""So many messages are worth a write at once."""

_METHOD = "/daemoneye.eventbus.v1.EventBusService/PublishStream"

log = logging.getLogger("daemoneye.publisher")


class PublishAssurance(IntEnum):
    """When a batch counts as published; the numbers are those of the contract."""

    ACCEPTED = eventbus_pb2.PUBLISH_ASSURANCE_ACCEPTED
    """When it is in the queues of its subscribers."""
    ACKNOWLEDGED = eventbus_pb2.PUBLISH_ASSURANCE_ACKNOWLEDGED
    """When those of its subscribers that acknowledge have done so; it waits for one if there is
    none."""


class BusPublisher:
    """Sends what is in an outbox, forever.

    Args:
        channel: channel to the broker, with this process's token.
        outbox: messages to send.
        assurance: when they count as published.
        on_state: hears of every change of ``state``.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        outbox: BatchSource,
        assurance: PublishAssurance = PublishAssurance.ACCEPTED,
        on_state: LinkStateListener | None = None,
    ) -> None:
        self._channel = channel
        self._outbox = outbox
        self._assurance = assurance
        self._needed = {BusFeature.GROUPS}
        if assurance is PublishAssurance.ACKNOWLEDGED:
            self._needed.add(BusFeature.ASSURANCE)
        self._limits = PublishLimits()
        self._answered = asyncio.Event()
        self._is_draining = False
        self.link = ObservedLink(on_state)
        """What it is doing, to be watched."""

    @property
    def state(self) -> LinkState:
        """What it is doing."""
        return self.link.state

    @property
    def is_connected(self) -> bool:
        """Whether a stream to the broker stands right now."""
        return self.link.is_connected

    async def wait_for_state(self, *states: LinkState) -> LinkState:
        """Returns once the state is one of ``states``."""
        return await self.link.wait_for_state(*states)

    async def run(self) -> None:
        """Connects, sends, and connects again until cancelled."""
        backoff = SessionBackoff()
        try:
            while True:
                self.link.move_to(LinkState.CONNECTING)
                self._limits = await keep_trying("reach the broker", self._negotiate)
                backoff.begin()
                retry_after_s = await self._run_until_broken()
                self.link.move_to(LinkState.BACKOFF)
                await backoff.pause(at_least_s=retry_after_s)
        finally:
            self.link.move_to(LinkState.IDLE)

    async def _negotiate(self) -> PublishLimits:
        return await negotiate(self._channel, self._needed)

    async def drain(self) -> None:
        """Returns when everything in the outbox was answered; ``run`` has to run meanwhile."""
        self._is_draining = True
        if self.link.is_connected:
            self.link.move_to(LinkState.DRAINING)
        await self._outbox.wait_empty()

    async def _run_until_broken(self) -> float:
        """Runs one session; returns how long the broker wants to be left alone, in seconds."""
        try:
            await self._run_session()
        except (DaemoneyeError, grpc.aio.AioRpcError) as error:
            log.warning("connection to the broker lost: %s", explain(error))
            return to_known(error).retry_after_s or 0.0
        return 0.0

    async def _run_session(self) -> None:
        self._outbox.rewind()
        self._outbox.apply_limits(self._limits)
        call: Call = self._channel.stream_stream(
            _METHOD, response_deserializer=pb.PublishStreamResponse.FromString
        )()
        self.link.move_to(LinkState.DRAINING if self._is_draining else LinkState.READY)
        await run_duplex(call, self._send(call), self._receive(call))

    async def _send(self, call: Call) -> None:
        max_messages = min(GROUP_MESSAGES, self._limits.max_batch_messages)
        max_bytes = min(GROUP_BYTES, self._limits.max_batch_bytes)
        due_s = -PACE_SLACK_S
        while True:
            await self._wait_window()
            await self._outbox.wait_waiting(1)
            await self._pace(due_s - PACE_SLACK_S - time.monotonic())
            batch = self._outbox.take(max_messages, max_bytes)
            if batch is None:
                continue
            due_s = max(due_s, time.monotonic()) + PACE_S
            if not await write(call, self._encode(batch)):
                return

    async def _wait_window(self) -> None:
        while self._outbox.in_flight_count >= WINDOW_BATCHES:
            self._answered.clear()
            await self._answered.wait()

    async def _pace(self, left_s: float) -> None:
        if left_s <= 0 or self._outbox.waiting_count >= PACED_BELOW_MESSAGES:
            return
        try:
            async with asyncio.timeout(left_s):
                await self._outbox.wait_waiting(PACED_BELOW_MESSAGES)
        except TimeoutError:
            pass  # few came, and they have waited long enough

    def _encode(self, batch: OutboxBatch) -> bytes:
        groups = (
            encode_group_parts(group.key.head, group.first_sequence, group.count, group.block)
            for group in batch.groups
        )
        return encode_publish_request(batch.batch_id, groups, self._assurance)

    async def _receive(self, call: Call) -> None:
        async for response in call:
            error = from_detail(response.error) if response.HasField("error") else None
            if error is not None and error.retryable:
                # Nothing is wrong with the batch: it goes out again on a new stream.
                self._outbox.settle_before(response.batch_id)
                raise error
            count = self._outbox.settle(response.batch_id, error.reason if error else None)
            self._answered.set()
            if error is not None:
                log.error("the broker refused %d events: %s", count, error.message)
