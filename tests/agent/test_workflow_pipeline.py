"""The pipeline tells the dispatcher of requests, once they are stored and of nothing else."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.pipeline import Pipeline
from daemoneye_agent.registry import CollectorRegistry
from daemoneye_agent.rulebook import Rulebook
from daemoneye_agent.store import EventStore
from daemoneye_agent.store_thread import StoreThread
from daemoneye_agent.workflow_record import StoredTrigger

NOW_NS = 1_790_000_000 * 10**9
TRIGGER = event_data_pb2.TriggerEventData(trigger_id="t1", target_collector="scanner")


def build_message(sequence: int, **event: Any) -> eventbus_pb2.EventBusMessage:
    return eventbus_pb2.EventBusMessage(
        metadata=eventbus_pb2.MessageMetadata(
            topic="events.process.trigger",
            timestamp=NOW_NS,
            source_id="procmond",
            source_epoch=1,
            source_sequence=sequence,
        ),
        collection_event=eventbus_pb2.CollectionEventPayload(**event),
    )


@pytest.fixture
async def pipeline(store: StoreThread) -> AsyncIterator[Pipeline]:
    book = await store.run(lambda _: Rulebook([], {}))
    coverage = Coverage(CollectorRegistry(), lambda: True, dict)
    yield Pipeline(store, book, coverage, lambda _: None, first_retry_s=0.001)
    await store.run(lambda _: book.close())


@pytest.fixture
def told(pipeline: Pipeline) -> list[int]:
    """Gains an entry whenever the pipeline tells of requests."""
    told: list[int] = []
    pipeline.on_triggers(lambda: told.append(1))
    return told


async def find(store: StoreThread) -> tuple[StoredTrigger, ...]:
    return await store.run(EventStore.find_triggers, 0, 10)


async def test_a_request_is_told_of_after_it_was_stored(
    pipeline: Pipeline, store: StoreThread, told: list[int]
) -> None:
    fake: Any = await store.run(lambda opened: opened)
    fake.refused_ingests = 2
    await pipeline.process([build_message(1, trigger_event=TRIGGER)])
    assert told == [1]
    (stored,) = await find(store)
    assert (stored.source_id, stored.time_ns) == ("procmond", NOW_NS)


async def test_a_request_that_comes_twice_is_told_of_once(
    pipeline: Pipeline, told: list[int]
) -> None:
    for _ in range(2):
        await pipeline.process([build_message(1, trigger_event=TRIGGER)])
    assert told == [1]


async def test_other_events_are_not_told_of(
    pipeline: Pipeline, store: StoreThread, told: list[int]
) -> None:
    flow = event_data_pb2.NetworkEventData()
    await pipeline.process([build_message(1, network_event=flow)])
    assert told == []
    assert await find(store) == ()
