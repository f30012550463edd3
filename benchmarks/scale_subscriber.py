"""The subscribing process of the bus-scale benchmark: ``python -m benchmarks.scale_subscriber PLAN``.

It holds many connections and subscriptions open and counts what comes by the envelopes alone, so
that the reading of messages takes nothing from what is measured.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.parent import end_with_parent
from benchmarks.report import BenchmarkError
from benchmarks.scale_plan import ScaleOffer, ScaleSubscribePlan, ScaleSubscribeReport
from daemoneye.eventbus.v1 import eventbus_service_pb2, frame_pb2, subscription_pb2
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.token import FileTokenSource

METHOD = "/daemoneye.eventbus.v1.EventBusService/Subscribe"
QUEUE_BYTES = 1 << 20
POLL_S = 0.05
SILENCE_S = 3.0
OPEN_TIMEOUT_S = 60.0


class Counter:
    """What has come over all subscriptions."""

    def __init__(self) -> None:
        self.opened = 0
        self.delivered = 0
        self.announced = 0

    def take(self, response: frame_pb2.SubscribeFrames) -> None:
        """Counts one response."""
        match response.WhichOneof("item"):
            case "opened":
                self.opened += 1
            case "gap":
                self.announced += response.gap.dropped_count
            case "batch":
                self.delivered += len(response.batch.messages)
                self.delivered += sum(map(_count_of, response.batch.groups))
            case _:
                pass


async def receive(plan: ScaleSubscribePlan) -> ScaleSubscribeReport:
    """Carries the plan out.

    Raises:
        BenchmarkError: a subscription was refused or ended.
    """
    counter, channels = Counter(), []
    wanted = sum(len(one.patterns) for one in plan.connections)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for connection in plan.connections:
                token = FileTokenSource(Path(connection.token_file)).token
                channels.append(open_channel(Path(plan.socket), token))
                # One after the other: how a storm of them is survived is another question.
                async with asyncio.timeout(OPEN_TIMEOUT_S):
                    await channels[-1].channel_ready()
                tasks += [
                    group.create_task(_subscribe(channels[-1], pattern, counter))
                    for pattern in connection.patterns
                ]
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                while counter.opened < wanted:  # noqa: ASYNC110 - it is one poll at the start
                    await asyncio.sleep(POLL_S)
            print("open", flush=True)
            offer = ScaleOffer.parse(await asyncio.to_thread(sys.stdin.readline))
            await _wait_done(counter, offer.expected)
            for task in tasks:
                task.cancel()
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    return ScaleSubscribeReport(counter.delivered, counter.announced)


async def _subscribe(channel: grpc.aio.Channel, pattern: str, counter: Counter) -> None:
    call: Any = channel.stream_stream(
        METHOD,
        request_serializer=eventbus_service_pb2.SubscribeRequest.SerializeToString,
        response_deserializer=frame_pb2.SubscribeFrames.FromString,
    )()
    await call.write(_open_request(pattern))
    while (response := await call.read()) is not grpc.aio.EOF:
        counter.take(response)
    raise BenchmarkError(f"the subscription to {pattern} ended: {await call.code()}")


def _open_request(pattern: str) -> eventbus_service_pb2.SubscribeRequest:
    topic = subscription_pb2.TopicPattern(pattern=pattern, wildcard_enabled=True)
    return eventbus_service_pb2.SubscribeRequest(
        open=eventbus_service_pb2.OpenSubscription(
            config=subscription_pb2.SubscriptionConfig(topic_patterns=[topic]),
            max_queue_bytes=QUEUE_BYTES,
            grouped=True,
        )
    )


def _count_of(group: bytes) -> int:
    return frame_pb2.GroupFrame.FromString(group).envelope.count


async def _wait_done(counter: Counter, expected: int) -> None:
    seen, since_s = -1, time.monotonic()
    while (now := counter.delivered + counter.announced) < expected:
        if now != seen:
            seen, since_s = now, time.monotonic()
        elif time.monotonic() - since_s > SILENCE_S:
            return
        await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    end_with_parent()
    print(asyncio.run(receive(ScaleSubscribePlan.parse(sys.argv[1]))).dump())
