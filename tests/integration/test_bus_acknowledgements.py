"""Acknowledgements stay within the life that they belong to, and make room in steps worth delivering."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pytest

from collector_core.bus import BusSubscription, Delivery, Guarantee, Opened, SubscriptionOptions
from daemoneye.eventbus.v1 import (
    eventbus_pb2,
    eventbus_service_pb2,
    eventbus_service_pb2_grpc,
)
from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.mailbox import Acknowledgement, Batch, Mailbox, MailboxLimits
from daemoneye_eventbus.service_group import make_group
from daemoneye_mesh.channel import open_channel
from daemoneye_mesh.errors import UnavailableError
from daemoneye_mesh.server import MeshServer

WAIT_S = 10.0


class RestartedBroker(eventbus_service_pb2_grpc.EventBusServiceServicer):
    """Delivers, loses its stream, and takes a moment to open the next one, as another life."""

    def __init__(self) -> None:
        self.lose = asyncio.Event()
        self.asked_again = asyncio.Event()
        self.open = asyncio.Event()
        self.acknowledged: list[int] = []
        """In the second life."""

    async def NegotiateVersion(self, request: Any, context: Any) -> Any:
        offered = request.request.client_capabilities
        answer = eventbus_pb2.VersionNegotiationResponse(
            negotiation_success=True, server_capabilities=offered
        )
        return eventbus_service_pb2.NegotiateVersionResponse(response=answer)

    async def Subscribe(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        await anext(aiter(requests))
        if not self.lose.is_set():
            yield opened("first")
            for position in (1, 2):
                yield delivery(position)
            await self.lose.wait()
            raise UnavailableError("lost")
        self.asked_again.set()
        await self.open.wait()
        yield opened("second")
        yield delivery(1)
        async for request in requests:
            self.acknowledged.append(request.ack.position)


def opened(epoch: str) -> Any:
    item = eventbus_service_pb2.SubscriptionOpened(broker_epoch=epoch, history_complete=True)
    return eventbus_service_pb2.SubscribeResponse(opened=item)


def delivery(position: int) -> Any:
    batch = eventbus_service_pb2.MessageBatch(position=position)
    batch.messages.add().metadata.source_sequence = position
    return eventbus_service_pb2.SubscribeResponse(batch=batch)


@pytest.mark.usefixtures("no_leftover_tasks")
async def test_what_is_done_while_the_next_broker_opens_is_not_told_to_it(
    mesh_identity: Any, eventually: Any
) -> None:
    layout = mesh_identity.layout
    broker = RestartedBroker()
    server = MeshServer(layout.eventbus_socket, mesh_identity.auth(layout.broker))
    service = "daemoneye.eventbus.v1.EventBusService"
    server.add(eventbus_service_pb2_grpc.add_EventBusServiceServicer_to_server, broker, service)
    await server.start()
    channel = open_channel(
        layout.eventbus_socket, mesh_identity.source(layout.agent, layout.broker)
    )
    options = SubscriptionOptions(["events.#"], guarantee=Guarantee.AT_LEAST_ONCE)
    try:
        async with asyncio.timeout(WAIT_S), BusSubscription(channel, options) as subscription:
            assert isinstance(await anext(subscription), Opened)
            old = [await anext(subscription) for _ in range(2)]
            broker.lose.set()
            await broker.asked_again.wait()
            for one in old:
                assert isinstance(one, Delivery)
                await subscription.acknowledge(one)
            broker.open.set()
            assert isinstance(await anext(subscription), Opened)
            new = await anext(subscription)
            assert isinstance(new, Delivery)
            await subscription.acknowledge(new)
            await eventually(lambda: broker.acknowledged, "the new delivery is acknowledged")
    finally:
        await channel.close()
        await server.drain(0)
    assert broker.acknowledged == [1]


BOUND = 200


def group_of(count: int) -> Group:
    envelope = Envelope(topic="events.a", source_id="a", count=count)
    return make_group(envelope, [b""] * count)


async def test_subscriber_that_was_behind_is_not_fed_in_crumbs() -> None:
    acknowledgement = Acknowledgement(timeout_s=30.0, max_unacknowledged=BOUND)
    mailbox = Mailbox(MailboxLimits(10_000, 1 << 20, acknowledgement=acknowledgement))
    handed: deque[Batch] = deque()
    for _ in range(BOUND // 4):  # it holds as much as it may, in small batches
        mailbox.put(group_of(4))
        handed.append(await take_batch(mailbox))
    mailbox.put(group_of(1_000))

    counts = []
    taking = asyncio.ensure_future(take_batch(mailbox))
    while handed:  # it works them off one after the other
        mailbox.acknowledge(handed.popleft().last_position)
        for _ in range(3):  # whoever waits in the mailbox has its turn
            await asyncio.sleep(0)
        if taking.done():
            handed.append(taking.result())
            counts.append(handed[-1].count)
            taking = asyncio.ensure_future(take_batch(mailbox))
    taking.cancel()
    assert sum(counts) == 1_000
    # Groups are cut into halves, so that a batch may be somewhat smaller than a step.
    assert sum(counts) / len(counts) >= BOUND / 8, counts


async def take_batch(mailbox: Mailbox) -> Batch:
    batch = await mailbox.take(10_000, 1 << 20)
    assert isinstance(batch, Batch)
    return batch
