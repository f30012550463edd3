"""The publishing process of the bus-scale benchmark: ``python -m benchmarks.scale_publisher PLAN``.

Every message has a topic of its own for ten thousand messages, so nothing joins in groups and no
cache of a few topics helps. Batches are encoded beforehand: the broker's work is what is measured.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.bus_event import SOURCE_ID, make_template
from benchmarks.parent import end_with_parent
from benchmarks.report import BenchmarkError
from benchmarks.scale_plan import ScalePublishPlan, ScalePublishReport
from daemoneye.eventbus.v1 import eventbus_pb2, eventbus_service_pb2, frame_pb2, group_pb2
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.token import FileTokenSource

__all__ = ["BATCH_MESSAGES", "DOMAINS", "GROUPS", "KINDS", "topic_of"]

DOMAINS, GROUPS, KINDS = 10, 100, 10
"""Their product is the number of topics."""
BATCH_MESSAGES = 1_000
IN_FLIGHT = 8
METHOD = "/daemoneye.eventbus.v1.EventBusService/PublishStream"


def topic_of(number: int) -> str:
    """One of the topics; neighbours differ in every segment that varies."""
    domain, rest = number % DOMAINS, number // DOMAINS
    return f"events.process.d{domain}.g{rest % GROUPS}.k{rest // GROUPS}"


def encode_batches() -> list[bytes]:
    """Batches that together have each topic once, without their ids."""
    frame = make_template().frame
    topics = [topic_of(number) for number in range(DOMAINS * GROUPS * KINDS)]
    return [
        frame_pb2.PublishStreamFrames(
            groups=[_encode_group(topic, frame) for topic in topics[first : first + BATCH_MESSAGES]]
        ).SerializeToString()
        for first in range(0, len(topics), BATCH_MESSAGES)
    ]


async def publish(plan: ScalePublishPlan) -> ScalePublishReport:
    """Carries the plan out.

    Raises:
        BenchmarkError: the broker refused a batch.
    """
    batches = encode_batches()
    channel = open_channel(Path(plan.socket), FileTokenSource(Path(plan.token_file)).token)
    try:
        call: Any = channel.stream_stream(
            METHOD,
            request_serializer=bytes,
            response_deserializer=eventbus_service_pb2.PublishStreamResponse.FromString,
        )()
        return await _publish_for(call, batches, plan.duration_s)
    finally:
        await channel.close()


async def _publish_for(call: Any, batches: list[bytes], duration_s: float) -> ScalePublishReport:
    begun_s = time.monotonic()
    sent = answered = accepted = routed = 0
    while time.monotonic() - begun_s < duration_s or answered < sent:
        if sent - answered < IN_FLIGHT and time.monotonic() - begun_s < duration_s:
            batch_id = frame_pb2.PublishStreamFrames(batch_id=sent + 1).SerializeToString()
            await call.write(batch_id + batches[sent % len(batches)])
            sent += 1
            continue
        answer = await call.read()
        if answer is grpc.aio.EOF or answer.HasField("error"):
            raise BenchmarkError(f"the broker refused a batch: {answer}")
        answered = answer.batch_id
        accepted += answer.accepted_count
        routed += answer.routed_count
    span_s = time.monotonic() - begun_s
    await call.done_writing()
    return ScalePublishReport(sent, accepted, span_s, routed)


def _encode_group(topic: str, frame: bytes) -> bytes:
    envelope = group_pb2.GroupEnvelope(
        topic=topic,
        message_type=eventbus_pb2.MESSAGE_TYPE_COLLECTION_EVENT,
        source_id=SOURCE_ID,
        count=1,
    )
    block = frame_pb2.MessageBlockFrames(messages=[frame]).SerializeToString()
    return frame_pb2.GroupFrame(envelope=envelope, block=block).SerializeToString()


if __name__ == "__main__":
    end_with_parent()
    print(asyncio.run(publish(ScalePublishPlan.parse(sys.argv[1]))).dump())
