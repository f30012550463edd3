"""Every message is stored, known already or refused; what was stored is looked at exactly once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from daemoneye.common.v1 import completeness_pb2
from daemoneye.eventbus.v1 import collection_gap_pb2, eventbus_pb2
from daemoneye_agent.coverage import Coverage
from daemoneye_agent.loss import LossReason
from daemoneye_agent.pipeline import Pipeline
from daemoneye_agent.registry import CollectorRegistry
from daemoneye_agent.rule import Rule
from daemoneye_agent.rulebook import BUILT_IN, LoadedRule, Rulebook
from daemoneye_agent.store import EventStore, open_reader
from daemoneye_agent.store_thread import StoreThread

Message = eventbus_pb2.EventBusMessage
MakeMessage = Callable[..., Message]


@dataclass
class Line:
    """A pipeline with everything around it."""

    store: StoreThread
    rulebook: Rulebook
    coverage: Coverage
    published: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pipeline = Pipeline(
            self.store, self.rulebook, self.coverage, self.published.append, 0.001
        )

    def refused_in_all(self) -> int:
        return self.pipeline.refused.total()

    def is_balanced(self) -> bool:
        counters = self.pipeline.counters
        known = counters.stored + counters.duplicate + self.refused_in_all()
        return counters.received == known

    async def told(self) -> Any:
        """The store itself, for tests that read or instruct it."""
        return await self.store.run(lambda store: store)

    async def read(self, sql: str) -> list[tuple[Any, ...]]:
        path = (await self.told()).path

        def work() -> list[tuple[Any, ...]]:
            reader = open_reader(path)
            try:
                return [tuple(row) for row in reader.execute(sql)]
            finally:
                reader.close()

        return await asyncio.to_thread(work)


@pytest.fixture
async def make_line(
    store: StoreThread, make_rule: Callable[..., Rule]
) -> AsyncIterator[Callable[..., Line]]:
    books: list[Rulebook] = []

    def make(*rules: Rule) -> Line:
        chosen = rules or (make_rule(),)
        book = Rulebook([LoadedRule(rule, BUILT_IN) for rule in chosen], {})
        books.append(book)
        registry = CollectorRegistry()
        return Line(store, book, Coverage(registry, lambda: True, lambda: book.failing))

    yield make
    for book in books:
        await store.run(lambda _, book=book: book.close())


@pytest.fixture
def line(make_line: Callable[..., Line]) -> Line:
    return make_line()


async def test_events_are_stored_in_order_and_their_alert_is_published(
    line: Line, make_message: MakeMessage
) -> None:
    await line.pipeline.process([make_message(1), make_message(2, name="cat")])
    assert await line.read("SELECT source_sequence, name FROM process_events") == [
        (1, "sh"),
        (2, "cat"),
    ]
    (published,) = line.published
    assert published.metadata.topic == "alerts.high.shells"
    assert published.alert.rule_id == "shells"
    stored = await line.store.run(EventStore.get_alert, published.alert.alert_id)
    assert stored.count == published.alert.count == 1
    assert line.is_balanced()


async def test_alert_is_stored_before_it_is_published(
    line: Line, make_message: MakeMessage
) -> None:
    store = await line.told()
    store.refused_alerts = 2
    await line.pipeline.process([make_message(1)])
    assert len(line.published) == 1
    assert (await line.store.run(EventStore.stats)).alert_count == 1


async def test_repeated_match_is_published_again_with_a_higher_count(
    line: Line, make_message: MakeMessage
) -> None:
    await line.pipeline.process([make_message(1)])
    await line.pipeline.process([make_message(2)])
    first, second = (message.alert for message in line.published)
    assert (first.alert_id, first.count) == (second.alert_id, second.count - 1)
    ids = {message.metadata.message_id for message in line.published}
    assert len(ids) == 2


async def test_event_that_comes_twice_is_stored_and_looked_at_once(
    line: Line, make_message: MakeMessage
) -> None:
    await line.pipeline.process([make_message(1), make_message(1)])
    await line.pipeline.process([make_message(1)])
    counters = line.pipeline.counters
    assert (counters.received, counters.stored, counters.duplicate) == (3, 1, 2)
    assert len(line.published) == 1


async def test_messages_without_a_usable_event_are_counted_by_reason_and_their_place_is_lost(
    line: Line, make_message: MakeMessage
) -> None:
    unknown = make_message(2)
    unknown.collection_event.process_event.subtype = 77  # type: ignore[assignment]
    nobody = make_message(3, pid=0)
    huge = make_message(4, memory_usage=2**64 - 1)
    unnumbered = make_message(0)
    nameless = make_message(5)
    nameless.metadata.source_id = ""
    batch = [make_message(1), unknown, nobody, huge, unnumbered, nameless, make_message(5)]
    await line.pipeline.process(batch, undecodable_count=2)
    assert line.pipeline.counters.stored == 2
    assert dict(line.pipeline.refused) == {
        "undecodable": 2,
        "enum_unknown": 1,
        "request_invalid": 1,
        "store_refused": 3,
    }
    assert line.is_balanced()
    losses = await line.read("SELECT first_sequence, last_sequence, reason FROM event_losses")
    assert losses == [(2, 4, LossReason.REFUSED.value)]
    assert [one.reason.value for one in line.coverage.of_events()][-1] == "EVENTS_LOST"


async def test_unusable_message_that_is_sent_again_is_counted_once_more_and_balances(
    line: Line, make_message: MakeMessage
) -> None:
    unknown = make_message(2)
    unknown.collection_event.process_event.subtype = 77  # type: ignore[assignment]
    await line.pipeline.process([make_message(1), make_message(2), make_message(3)])
    await line.pipeline.process([unknown])
    assert dict(line.pipeline.refused) == {"enum_unknown": 1}
    assert line.is_balanced()


async def test_gap_is_a_loss_until_it_is_filled(line: Line, make_message: MakeMessage) -> None:
    await line.pipeline.process([make_message(1), make_message(5)])
    assert "3 events" in line.coverage.of_events()[-1].message
    await line.pipeline.process([make_message(number) for number in (2, 3, 4)])
    assert "EVENTS_LOST" not in [one.reason for one in line.coverage.of_events()]


def make_gap_message(make_message: MakeMessage, sequence: int) -> Message:
    message = make_message(sequence)
    gap = message.collection_event.collection_gap
    gap.reason = collection_gap_pb2.COLLECTION_GAP_REASON_KILLED
    gap.message = "the collector was killed"
    return message


async def test_other_events_take_part_in_the_numbers_of_their_source(
    line: Line, make_message: MakeMessage
) -> None:
    network, nothing = make_message(2), make_message(4)
    network.collection_event.network_event.SetInParent()
    nothing.ClearField("collection_event")
    batch = [make_message(1), network, make_message(3), nothing]
    await line.pipeline.process(batch)
    await line.pipeline.process(batch[:2])
    assert await line.read("SELECT event_id, event_type FROM collector_events") == [(2, "network")]
    assert await line.read("SELECT source_sequence FROM process_events") == [(1,), (3,)]
    assert await line.read("SELECT first_sequence, reason FROM event_losses") == [
        (4, LossReason.REFUSED.value)
    ]
    counters = line.pipeline.counters
    assert (counters.stored, counters.duplicate) == (3, 2)
    assert line.is_balanced()


async def test_gap_in_collection_is_stored_told_and_alerted(
    line: Line, make_message: MakeMessage
) -> None:
    await line.pipeline.process([make_gap_message(make_message, 1)])
    assert await line.read("SELECT reason, message FROM collection_gaps") == [
        ("killed", "the collector was killed")
    ]
    (published,) = line.published
    assert published.metadata.topic == "alerts.high.collection_gap"
    assert published.alert.source == "procmond"
    (said,) = [one for one in line.coverage.of_events() if one.reason == "COLLECTION_GAP"]
    assert "procmond at 2026-" in said.message
    assert line.pipeline.counters.alerts == 1


async def test_alert_of_a_gap_is_not_kept_without_the_gap(
    line: Line, make_message: MakeMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(line.rulebook, "evaluate", lambda rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await line.pipeline.process([make_gap_message(make_message, 1)])
    assert (await line.store.run(EventStore.stats)).alert_count == 0
    await line.pipeline.process([make_gap_message(make_message, 1)])
    assert (await line.store.run(EventStore.stats)).alert_count == 1


async def test_progress_of_every_source_in_a_batch_is_told_after_the_commit(
    line: Line, make_message: MakeMessage
) -> None:
    told: list[tuple[str, int, int]] = []
    pipeline = Pipeline(
        line.store,
        line.rulebook,
        line.coverage,
        line.published.append,
        note_progress=lambda progress: told.extend(
            (one.source_id, one.contiguous, one.highest) for one in progress
        ),
    )
    await line.store.run(EventStore.expect_replay, "procmond", True)
    other = make_message(1)
    other.metadata.source_id = "netmond"
    await pipeline.process([make_message(1), make_message(4), other])
    assert sorted(told) == [("netmond", 1, 1), ("procmond", 1, 4)]


async def test_store_that_refuses_is_tried_again_and_told_meanwhile(
    line: Line, make_message: MakeMessage, eventually: Callable[..., Awaitable[None]]
) -> None:
    store = await line.told()
    store.refused_ingests = 10**9
    processing = asyncio.create_task(line.pipeline.process([make_message(1)]))
    await eventually(lambda: line.pipeline.trouble)
    assert "disk is full" in line.pipeline.trouble
    assert "event store" in [one.subject for one in line.coverage.of_events()]
    assert not processing.done()
    store.refused_ingests = 0
    await processing
    assert (line.pipeline.trouble, line.pipeline.counters.stored) == ("", 1)
    assert "event store" not in [one.subject for one in line.coverage.of_events()]
    assert len(line.published) == 1
    assert line.is_balanced()


async def test_alerts_are_not_forgotten_when_the_store_refuses_after_the_events(
    line: Line, make_message: MakeMessage
) -> None:
    store = await line.told()
    store.refused_alerts = 3
    await line.pipeline.process([make_message(1)])
    counters = line.pipeline.counters
    assert (counters.stored, counters.duplicate, counters.alerts) == (1, 0, 1)
    assert line.rulebook.state("shells").counters.evaluations == 4, "each try looks anew"


async def test_events_are_not_kept_without_the_look_at_them(
    line: Line, make_message: MakeMessage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash in between: sent again they must not pass for seen."""
    with monkeypatch.context() as broken:
        broken.setattr(line.rulebook, "evaluate", lambda rows: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await line.pipeline.process([make_message(1)])
    assert (await line.store.run(EventStore.stats)).event_count == 0
    await line.pipeline.process([make_message(1)])
    counters = line.pipeline.counters
    assert (counters.stored, counters.duplicate, counters.alerts) == (1, 0, 1)


async def test_cancelled_batch_ends_the_step_under_way_and_counts_it(
    line: Line, make_message: MakeMessage
) -> None:
    import threading

    begun, go_on = threading.Event(), threading.Event()

    def hold(_: EventStore) -> None:
        begun.set()
        assert go_on.wait(10)

    holding = asyncio.create_task(line.store.run(hold))
    await asyncio.to_thread(begun.wait, 10)
    processing = asyncio.create_task(line.pipeline.process([make_message(1)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    processing.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await processing
    await holding
    assert (line.pipeline.counters.stored, len(line.published)) == (1, 1)


async def test_waiting_for_a_store_that_refuses_can_be_cancelled(
    line: Line, make_message: MakeMessage, eventually: Callable[..., Awaitable[None]]
) -> None:
    store = await line.told()
    store.refused_ingests = 10**9
    processing = asyncio.create_task(line.pipeline.process([make_message(1)]))
    await eventually(lambda: line.pipeline.trouble)
    processing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await processing
    assert line.pipeline.counters.stored == 0


async def test_alert_says_what_could_not_be_seen(line: Line, make_message: MakeMessage) -> None:
    await line.pipeline.process([make_message(1)])
    said = line.published[0].alert.completeness
    assert said.state == completeness_pb2.COMPLETENESS_STATE_DEGRADED
    assert [cause.subject for cause in said.causes] == ["process"]
    ((kept,),) = await line.read("SELECT completeness FROM alerts")
    assert kept == "degraded: collector_unavailable process"


async def test_alert_of_a_rule_that_could_not_see_all_matches_says_so(
    make_line: Callable[..., Line], make_rule: Callable[..., Rule], make_message: MakeMessage
) -> None:
    line = make_line(make_rule("every", "SELECT pid, name FROM process_events"))
    await line.pipeline.process([make_message(number) for number in range(1, 1_200)])
    causes = [cause.reason for cause in line.published[0].alert.completeness.causes]
    assert completeness_pb2.DEGRADED_REASON_RULE_FAILED in causes
    assert list(line.rulebook.failing) == ["every"]


async def test_rule_whose_alerts_cannot_be_kept_stops_neither_others_nor_the_agent(
    make_line: Callable[..., Line], make_rule: Callable[..., Rule], make_message: MakeMessage
) -> None:
    long = "SELECT pid, name AS Name FROM process_events"
    broken = make_rule("a-broken", long)
    line = make_line(broken, make_rule("good"))
    await line.pipeline.process([make_message(1)])
    assert "good" in [message.alert.rule_id for message in line.published]
    if len(line.published) == 1:  # the engine tells apart what SQL does not
        assert list(line.rulebook.failing) == ["a-broken"]
