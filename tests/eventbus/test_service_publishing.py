"""One publish stream against a fake publisher: it is bounded, ends in order and hides no defect."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from daemoneye.eventbus.v1 import frame_pb2
from daemoneye_eventbus.errors import BrokerDrainingError
from daemoneye_eventbus.service_publishing import MAX_UNREAD_ANSWERS, PublishingStream


def encoded_batch(batch_id: int) -> bytes:
    return frame_pb2.PublishStreamFrames(batch_id=batch_id, messages=[b"x"]).SerializeToString()


async def endless_batches() -> AsyncIterator[bytes]:
    batch_id = 0
    while True:
        batch_id += 1
        yield encoded_batch(batch_id)


class FakeBroker:
    """Remembers the sizes of the batches it was given."""

    def __init__(self) -> None:
        self.published: list[int] = []

    def publish(self, payloads: list[bytes]) -> int:
        self.published.append(len(payloads))
        return 0


async def settle(published: list[int]) -> None:
    """Gives other tasks turns until nothing more is published."""
    before = -1
    while before != len(published):
        before = len(published)
        for _ in range(10):
            await asyncio.sleep(0)


async def test_publisher_that_reads_no_answers_has_to_wait() -> None:
    broker = FakeBroker()
    published, stream = broker.published, PublishingStream(endless_batches(), broker.publish)
    answers = stream.answers()
    await anext(answers)
    await settle(published)
    assert len(published) == MAX_UNREAD_ANSWERS
    await anext(answers)
    await settle(published)
    assert len(published) == MAX_UNREAD_ANSWERS + 1
    await answers.aclose()


async def test_drained_stream_answers_what_was_published_before_it_ends() -> None:
    broker = FakeBroker()
    published, stream = broker.published, PublishingStream(endless_batches(), broker.publish)
    answers = stream.answers()
    answered = [await anext(answers)]
    await settle(published)
    stream.drain()
    answered += [await anext(answers) for _ in published[1:]]
    with pytest.raises(BrokerDrainingError):
        await anext(answers)
    assert [one.batch_id for one in answered] == list(range(1, len(published) + 1))


async def test_defect_while_publishing_ends_the_stream_instead_of_hanging() -> None:
    def fail(payloads: list[bytes]) -> int:
        raise ZeroDivisionError

    stream = PublishingStream(endless_batches(), fail)
    async with asyncio.timeout(5):
        with pytest.raises(ZeroDivisionError):
            await anext(stream.answers())
