"""The publishing process of the bus benchmark: ``python -m benchmarks.bus_publisher PLAN``.

PLAN is a PublishPlan as JSON. When all is settled it prints one JSON line, a PublishReport. Events
are encoded one by one while they are published; ``timestamp`` is CLOCK_MONOTONIC, which all
processes of a host share.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc.aio

from benchmarks.report import BenchmarkError
from collector_core.outbox import Outbox
from collector_core.publisher import BusPublisher, negotiate_version
from collector_core.settings import CollectorSettings
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import (
    event_data_pb2,
    eventbus_pb2,
    eventbus_service_pb2,
    eventbus_service_pb2_grpc,
)
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.process import stop_with_parent
from daemoneye_mesh.token import FileTokenSource

__all__ = ["TOPIC", "EventMaker", "PublishPlan", "PublishReport"]

TOPIC = "events.process.lifecycle"
FRAME_BYTES = 300
TURN_EVENTS = 256
"""Events made before the loop gets to send some."""
CALL_TIMEOUT_S = 5.0
SETTLE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """What to publish."""

    mode: str
    """stream: through Outbox and BusPublisher; unary: one Publish call an event, one at a time."""
    source_id: str
    socket: str
    token_file: str
    duration_s: float
    rate: float = 0.0
    """Events/s; 0 is as fast as it goes."""


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What was published."""

    offered: int
    frame_bytes: int
    begun_ns: int
    ended_ns: int
    """When the last event was made."""
    settled_ns: int
    """When the broker had answered for the last event."""
    lateness_p99_s: float
    """How far the publisher itself lay behind its schedule."""


class EventMaker:
    """Encodes numbered events of FRAME_BYTES; the first few are some bytes shorter."""

    def __init__(self, source_id: str) -> None:
        record = common_pb2.ProcessRecord(
            pid=4_242,
            ppid=1,
            name="sleep",
            executable_path="/usr/bin/sleep",
            command_line=["sleep", "5"],
            accessible=True,
            file_exists=True,
            boot_id="00000000-0000-0000-0000-000000000000",
            start_ticks=123_456,
            uid=1_000,
            user_name="someone",
            state="S",
        )
        event = event_data_pb2.ProcessEventData(
            process=record, observation=event_data_pb2.OBSERVATION_METHOD_SCAN
        )
        self._message = eventbus_pb2.EventBusMessage(
            metadata=eventbus_pb2.MessageMetadata(
                topic=TOPIC, source_id=source_id, source_epoch=time.time_ns()
            ),
            collection_event=eventbus_pb2.CollectionEventPayload(process_event=event),
        )
        self._metadata = self._message.metadata
        self.count = 0
        self._pad()

    def next(self) -> bytes:
        """The next event, stamped with the time it is made."""
        self.count += 1
        self._metadata.source_sequence = self.count
        self._metadata.timestamp = time.monotonic_ns()
        return self._message.SerializeToString()

    def _pad(self) -> None:
        self._metadata.source_sequence = 1 << 16
        self._metadata.timestamp = time.monotonic_ns()
        process = self._message.collection_event.process_event.process
        process.cwd = "/"
        process.cwd = "/" + "d" * (FRAME_BYTES - self._message.ByteSize())
        # A length that grows past 127 takes a second byte, here and in the messages around it.
        surplus = self._message.ByteSize() - FRAME_BYTES
        process.cwd = process.cwd[: len(process.cwd) - surplus] if surplus > 0 else process.cwd


async def publish(plan: PublishPlan) -> PublishReport:
    """Carries the plan out."""
    maker = EventMaker(plan.source_id)
    channel = open_channel(Path(plan.socket), FileTokenSource(Path(plan.token_file)).token)
    begun_ns = time.monotonic_ns()
    try:
        if plan.mode == "unary":
            lateness: list[float] = []
            await _call_one_by_one(channel, maker, plan.duration_s)
            ended_ns = time.monotonic_ns()
        else:
            async with _streaming(channel) as outbox:
                begun_ns = time.monotonic_ns()
                lateness = await _offer(outbox, maker, plan)
                ended_ns = time.monotonic_ns()
        settled_ns = time.monotonic_ns()
    finally:
        await channel.close()
    late_s = sorted(lateness)[int(len(lateness) * 0.99)] if lateness else 0.0
    offered, frame_bytes = maker.count, len(maker.next())
    return PublishReport(offered, frame_bytes, begun_ns, ended_ns, settled_ns, late_s)


@asynccontextmanager
async def _streaming(channel: grpc.aio.Channel) -> AsyncIterator[Outbox]:
    defaults = CollectorSettings()
    outbox = Outbox(defaults.outbox_messages, defaults.outbox_bytes)
    publisher = BusPublisher(channel, outbox)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(publisher.run(), name="publisher")
        while not publisher.is_connected:  # noqa: ASYNC110 - it offers a flag and no event
            await asyncio.sleep(0.01)
        yield outbox
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            await outbox.wait_empty()
        running.cancel()
    if outbox.refused_count:
        raise BenchmarkError(f"the broker refused events: {dict(outbox.refused_count)}")


async def _offer(outbox: Outbox, maker: EventMaker, plan: PublishPlan) -> list[float]:
    if plan.rate:
        return await _offer_paced(outbox, maker, plan)
    end_s = time.monotonic() + plan.duration_s
    while time.monotonic() < end_s:
        for _ in range(TURN_EVENTS):
            await outbox.put(maker.next())
        await asyncio.sleep(0)
    return []


async def _offer_paced(outbox: Outbox, maker: EventMaker, plan: PublishPlan) -> list[float]:
    begun_s = time.monotonic()
    lateness: list[float] = []
    while maker.count < plan.rate * plan.duration_s:
        due_s = begun_s + maker.count / plan.rate
        wait_s = due_s - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        lateness.append(time.monotonic() - due_s)
        await outbox.put(maker.next())
    return lateness


async def _call_one_by_one(channel: grpc.aio.Channel, maker: EventMaker, duration_s: float) -> None:
    await negotiate_version(channel)
    stub: eventbus_service_pb2_grpc.EventBusServiceAsyncStub
    stub = eventbus_service_pb2_grpc.EventBusServiceStub(channel)
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        message = eventbus_pb2.EventBusMessage.FromString(maker.next())
        request = eventbus_service_pb2.PublishRequest(messages=[message])
        await stub.Publish(request, timeout=CALL_TIMEOUT_S)


if __name__ == "__main__":
    stop_with_parent()
    print(json.dumps(asdict(asyncio.run(publish(PublishPlan(**json.loads(sys.argv[1])))))))
