"""One subscription stream by itself, where the order of what happens at one moment can be chosen."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import frame_pb2, subscription_control_pb2
from daemoneye_eventbus.broker import BrokerLimits, Opening
from daemoneye_eventbus.errors import SupersededSubscriptionError
from daemoneye_eventbus.group import Envelope
from daemoneye_eventbus.mailbox import Acknowledgement, Retention
from daemoneye_eventbus.service_group import make_group
from daemoneye_eventbus.service_subscription import SubscriptionStream
from daemoneye_eventbus.service_terms import TermsReader
from daemoneye_eventbus.subscription import Durability
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.identity import Identity, IdentityKind, Principal

DURABLE = {
    "label": "recorder",
    "durability": Durability(60.0, Retention(100, 100_000)),
    "acknowledgement": Acknowledgement(30.0, 100),
    "max_bytes": 100_000,
}


class Stream:
    """A stream with requests that are there the moment they are sent."""

    def __init__(self, desk: Any, opening: Opening) -> None:
        caller = Principal(Identity("mesh", IdentityKind.AGENT, "agent"))
        terms = TermsReader(caller, AccessTable.load(), BrokerLimits())
        stream = SubscriptionStream(desk.broker, opening, True, terms)
        self._queue: asyncio.Queue[pb.SubscribeRequest | Exception] = asyncio.Queue()
        self.responses = stream.responses(self._requests(), "epoch")

    async def _requests(self) -> AsyncIterator[pb.SubscribeRequest]:
        while True:
            request = await self._queue.get()
            if isinstance(request, Exception):
                raise request
            yield request

    def send(self, **action: Any) -> None:
        self._queue.put_nowait(pb.SubscribeRequest(**action))

    def fail(self, error: Exception) -> None:
        self._queue.put_nowait(error)

    async def next(self) -> Any:
        async with asyncio.timeout(5):
            return await anext(self.responses)


async def begin(desk: Any, **terms: Any) -> Stream:
    stream = Stream(desk, desk.open("events.#", **terms))
    assert (await stream.next()).opened.broker_epoch == "epoch"
    for _ in range(3):
        await asyncio.sleep(0)  # its requests are waited for
    return stream


@pytest.mark.parametrize(
    "action",
    [
        {"unsubscribe": subscription_control_pb2.Unsubscribe()},
        {"flush": subscription_control_pb2.FlushQueue()},
        {"pause": pb.PauseDelivery()},
        {"ack": pb.AckDeliveries(position=99)},
        {},
    ],
)
async def test_request_that_comes_as_a_newer_stream_takes_over_does_nothing_to_it(
    desk: Any, action: dict[str, Any]
) -> None:
    older = await begin(desk, **DURABLE)
    await desk.publish("events.a", 1)
    older.send(**action)
    opening = desk.open("events.#", **DURABLE)
    await asyncio.sleep(0)
    with pytest.raises(SupersededSubscriptionError):
        await older.next()
    assert desk.broker.subscriptions() == [opening.subscription]
    assert opening.subscription.is_attached
    assert await desk.numbers(opening.subscription) == [1]


async def test_defect_while_reading_requests_ends_the_stream_instead_of_hanging(desk: Any) -> None:
    stream = await begin(desk)
    stream.fail(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await stream.next()
    assert desk.broker.subscriptions() == []


async def test_stream_that_is_closed_leaves_neither_task_nor_subscription(
    desk: Any, no_leftover_tasks: None
) -> None:
    stream = await begin(desk)
    await stream.responses.aclose()
    assert desk.broker.subscriptions() == []


async def test_answers_come_between_deliveries_and_before_the_end(desk: Any) -> None:
    stream = await begin(desk, max_bytes=100_000)
    content = make_group(Envelope(topic="events.a", source_id="p"), [b""])
    await desk.broker.publish("p", [content])
    assert isinstance(await stream.next(), frame_pb2.SubscribeFrames)
    stream.send(request_id=1, pause=pb.PauseDelivery())
    stream.send(request_id=2, unsubscribe=subscription_control_pb2.Unsubscribe())
    answers = [await stream.next(), await stream.next()]
    assert [one.changed.request_id for one in answers] == [1, 2]
    assert await anext(stream.responses, None) is None
