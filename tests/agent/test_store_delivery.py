"""Losses that may still come, gaps and other events in the store: bounded, alerted, whole."""

from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from daemoneye_agent.alert import Severity
from daemoneye_agent.collector_event import CollectorEventRow, GapRow
from daemoneye_agent.event import EVENT_INSERT_COLUMNS, EventRow, SqlValue
from daemoneye_agent.loss import LossReason, Shortfall
from daemoneye_agent.migration import APPLICATION_ID, MIGRATIONS
from daemoneye_agent.store import EventStore, StoreLimits, open_reader
from daemoneye_mesh.errors import InvalidRequestError

DAY_NS = 86_400 * 10**9
NOW_NS = 20_700 * DAY_NS + 5 * 3_600 * 10**9


def make_row(sequence: int, epoch: int = 1) -> EventRow:
    values: dict[str, SqlValue] = dict.fromkeys(EVENT_INSERT_COLUMNS)
    values.update(
        source_id="procmond", source_epoch=epoch, source_sequence=sequence, time_ns=NOW_NS
    )
    return tuple(values[name] for name in EVENT_INSERT_COLUMNS)


def make_other(sequence: int, data: str = "{}", time_ns: int = NOW_NS) -> CollectorEventRow:
    return CollectorEventRow(
        "procmond", 1, sequence, time_ns, "t", "events.network.flow", "network", data
    )


def make_gap(sequence: int, reason: str = "killed", time_ns: int = NOW_NS) -> GapRow:
    return GapRow("procmond", 1, sequence, time_ns, reason, "scan", 1, 2, None, "it was killed")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s" / "events.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Callable[..., EventStore]]:
    stores: list[EventStore] = []

    def open_it(**limits: int) -> EventStore:
        for store in stores:
            store.close()
        stores.append(EventStore.open(path, StoreLimits(**limits), lambda: NOW_NS))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., EventStore]) -> EventStore:
    """A store that expects procmond to send again what is missing."""
    store = open_store()
    store.expect_replay("procmond", True)
    return store


def read(store: EventStore, sql: str) -> list[tuple[SqlValue, ...]]:
    reader = open_reader(store.path)
    try:
        return [tuple(row) for row in reader.execute(sql)]
    finally:
        reader.close()


def losses(store: EventStore) -> list[tuple[SqlValue, ...]]:
    return read(
        store,
        "SELECT first_sequence, last_sequence, state, reason FROM event_losses "
        "ORDER BY source_epoch, first_sequence",
    )


def alert_counts(store: EventStore) -> dict[str, int]:
    return {alert.rule_id: alert.count for alert in store.list_alerts()}


def test_gap_of_a_source_with_a_log_is_open_and_raises_nothing(store: EventStore) -> None:
    result = store.ingest([make_row(5), make_row(9)])
    assert losses(store) == [
        (1, 4, "open", LossReason.BEFORE_SUBSCRIBED),
        (6, 8, "open", LossReason.NOT_RECEIVED),
    ]
    assert (result.alerts, store.contiguous("procmond", 1)) == ((), 0)
    (progress,) = result.progress
    assert (progress.contiguous, progress.highest) == (0, 9)
    assert progress.open_ranges == ((1, 4), (6, 8))
    assert store.shortfall() == Shortfall(7, 7)


def test_gap_of_any_other_source_is_lost_at_once_and_raises_an_alert(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    result = store.ingest([make_row(1), make_row(5)])
    assert losses(store) == [(2, 4, "lost", LossReason.NOT_RECEIVED)]
    ((alert, is_new),) = result.alerts
    assert (alert.rule_id, alert.severity, is_new) == ("events_lost", Severity.HIGH, True)
    assert "3 events of procmond are lost: 2 to 4" in alert.description
    assert (store.contiguous("procmond", 1), store.shortfall()) == (5, Shortfall(3, 0))


def test_source_that_can_replay_is_remembered(
    store: EventStore, open_store: Callable[..., EventStore]
) -> None:
    store = open_store()
    assert store.replay_sources == {"procmond"}
    store.ingest([make_row(2)])
    assert [row[2] for row in losses(store)] == ["open"]


def test_settled_range_is_lost_with_its_reason_and_raises_one_alert(store: EventStore) -> None:
    store.ingest([make_row(1), make_row(10)])
    settlement = store.settle_lost("procmond", 1, 1, 6, "the log was full")
    assert losses(store) == [
        (2, 6, "lost", "the log was full"),
        (7, 9, "open", LossReason.NOT_RECEIVED),
    ]
    assert [(loss.first_sequence, loss.last_sequence) for loss in settlement.lost] == [(2, 6)]
    assert settlement.progress[0].contiguous == store.contiguous("procmond", 1) == 6
    assert len(settlement.alerts) == 1
    again = store.settle_lost("procmond", 1, 1, 6, "the log was full")
    assert (again.lost, again.alerts) == ((), ())
    store.settle_lost("procmond", 1, 7, 9, "the log was full")
    assert losses(store) == [(2, 9, "lost", "the log was full")]
    assert alert_counts(store) == {"events_lost": 2}
    assert store.stats().counters["events_settled"] == 8


def test_tail_that_nobody_ever_saw_is_settled(store: EventStore) -> None:
    store.ingest([make_row(1)])
    store.settle_lost("procmond", 1, 4, 9, "the log was corrupt")
    assert losses(store) == [
        (2, 3, "open", LossReason.NOT_RECEIVED),
        (4, 9, "lost", "the log was corrupt"),
    ]
    assert store.ingest([make_row(10)]).losses == ()


def test_lost_event_that_comes_after_all_repairs_its_range(store: EventStore) -> None:
    store.ingest([make_row(1), make_row(3)])
    store.settle_lost("procmond", 1, 2, 2, "the log was full")
    assert store.ingest([make_row(2)]).repaired == 1
    assert (losses(store), store.shortfall()) == ([], Shortfall())


def test_replayed_event_that_cannot_be_stored_is_not_asked_for_for_ever(store: EventStore) -> None:
    store.ingest([make_row(1), make_row(3)])
    assert store.ingest([make_row(2)[:3]]).refused == 1
    assert losses(store) == [(2, 2, "lost", LossReason.REFUSED)]


def test_source_without_a_log_loses_what_was_open(store: EventStore) -> None:
    store.ingest([make_row(1), make_row(3), make_row(2, 2)])
    settlement = store.expect_replay("procmond", False)
    assert [(one.source_epoch, one.reason) for one in settlement.lost] == [
        (1, LossReason.NO_LOG),
        (2, LossReason.NO_LOG),
    ]
    assert (store.replay_sources, store.shortfall().open_events) == (frozenset(), 0)
    store.ingest([make_row(5)])
    assert [row[2] for row in losses(store)] == ["lost"] * 3


def test_what_was_given_up_for_want_of_a_collector_is_opened_again(store: EventStore) -> None:
    for epoch in (1, 2):
        store.ingest([make_row(1, epoch), make_row(3, epoch), make_row(5, epoch)])
    store.settle_lost("procmond", 2, 4, 4, "the log was full")
    store.settle_source("procmond", LossReason.AWAY)
    assert store.contiguous("procmond", 2) == 5
    first, second = store.reopen("procmond", [2, 7])
    assert (first.contiguous, second.contiguous) == (5, 1)
    assert [row[2] for row in losses(store)] == ["lost", "lost", "open", "lost"]
    assert second.version > 0


def test_picture_made_after_another_is_newer(store: EventStore) -> None:
    before = store.ingest([make_row(1)]).progress[0]
    (opened,) = store.reopen("procmond", [1])
    after = store.ingest([make_row(2)]).progress[0]
    assert before.version < opened.version < after.version


@pytest.mark.parametrize(("first", "last"), [(0, 4), (5, 4), (1, 2**63)])
def test_settling_refuses_what_is_no_range(store: EventStore, first: int, last: int) -> None:
    with pytest.raises(InvalidRequestError, match="are no range"):
        store.settle_lost("procmond", 1, first, last, "why")


def test_open_ranges_are_bounded_and_the_oldest_given_up(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store(max_loss_ranges=5, max_source_epochs=2)
    store.expect_replay("procmond", True)
    result = store.ingest([make_row(number) for number in range(1, 22, 2)])
    assert len(losses(store)) == 5
    assert losses(store)[0] == (2, 12, "lost", LossReason.MERGED)
    assert alert_counts(store) == {"events_lost": 1}
    assert result.progress[0].contiguous == 13


def test_events_of_all_kinds_are_admitted_in_their_order_with_ids_of_one_row(
    store: EventStore,
) -> None:
    batch: list[EventRow] = [make_row(1), make_other(2), make_gap(3), make_row(4), make_other(2)]
    result = store.ingest(batch)
    assert [row[0] for row in result.accepted] == [1, 4]
    assert (result.stored, result.other_count, result.duplicates) == (4, 1, 1)
    assert read(store, "SELECT * FROM collector_events") == [(2, *make_other(2))]
    assert read(store, "SELECT * FROM collection_gaps") == [(3, *make_gap(3))]
    assert store.ingest(batch).duplicates == 5
    assert (store.contiguous("procmond", 1), store.stats().event_count) == (4, 4)


def test_event_of_a_forgotten_epoch_is_not_stored_twice(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store(max_source_epochs=1)
    store.ingest([make_other(1)])
    store.ingest([make_row(1, 2)])
    assert (store.ingest([make_other(1)]).other_count, store.stats().event_count) == (0, 2)


@pytest.mark.parametrize(
    ("reason", "severity"),
    [("killed", "high"), ("suspended", "medium"), ("stopped", "info"), ("paused", "info")],
)
def test_gap_raises_an_alert(store: EventStore, reason: str, severity: str) -> None:
    ((alert, _),) = store.ingest([make_gap(1, reason)]).alerts
    assert (alert.rule_id, alert.severity, alert.event_id) == ("collection_gap", severity, 1)
    assert "source scan of procmond" in alert.description
    shortfall = store.shortfall()
    assert shortfall.gap_count == 1
    assert shortfall.last_gap == f"procmond at 2026-09-04T05:00:00.000000000Z: {reason}"


def test_row_at_fault_costs_that_row_alone_whatever_its_kind(store: EventStore) -> None:
    bad = make_other(2)._replace(data="\udc80")
    result = store.ingest([make_other(1), bad, make_gap(3)])
    assert (result.stored, result.refused) == (2, 1)
    assert losses(store) == [(2, 2, "lost", LossReason.REFUSED)]


def test_other_events_are_bounded_by_rows(open_store: Callable[..., EventStore]) -> None:
    store = open_store(max_collector_events=3, max_gaps=1)
    store.ingest([make_other(n) for n in range(1, 6)] + [make_gap(6), make_gap(7)])
    kept = read(store, "SELECT source_sequence FROM collector_events")
    assert kept == [(3,), (4,), (5,)]
    assert read(store, "SELECT source_sequence FROM collection_gaps") == [(7,)]
    counters = store.stats().counters
    assert (counters["collector_events_dropped"], counters["gaps_dropped"]) == (2, 1)


def test_other_events_are_bounded_by_bytes(open_store: Callable[..., EventStore]) -> None:
    store = open_store(max_store_bytes=1024**2)
    for start in range(1, 41, 10):
        store.ingest([make_other(n, "é" * 10_000) for n in range(start, start + 10)])
    ((rows, size_bytes),) = read(
        store, "SELECT count(*), sum(length(CAST(data AS BLOB))) FROM collector_events"
    )
    assert 200_000 < int(str(size_bytes)) <= 1024**2 // 4
    assert store.stats().counters["collector_events_dropped"] == 40 - int(str(rows))


def test_old_events_and_gaps_are_dropped_by_age(store: EventStore) -> None:
    old_ns = NOW_NS - 9 * DAY_NS
    store.ingest([make_other(1, "{}", old_ns), make_other(2), make_gap(3, "shed", old_ns)])
    assert (store.drop_aged(), store.drop_aged()) == (2, 0)
    assert read(store, "SELECT source_sequence FROM collector_events") == [(2,)]
    assert store.shortfall().gap_count == 0
    assert store.ingest([make_other(1, "{}", old_ns)]).duplicates == 1


def test_what_a_failed_transaction_counted_is_forgotten(store: EventStore) -> None:
    store.ingest([make_other(1)])
    with pytest.raises(ZeroDivisionError), store.transaction():  # noqa: PT012 - all is one step
        store.ingest([make_gap(2)])
        raise ZeroDivisionError
    assert (store.shortfall().gap_count, store.stats().event_count) == (0, 1)
    assert store.list_alerts() == ()


def test_file_of_the_first_layout_is_brought_along_and_its_losses_are_lost(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    connection = apsw.Connection(str(path))
    MIGRATIONS[0](connection)
    connection.pragma("user_version", 1)
    connection.pragma("application_id", APPLICATION_ID)
    connection.execute("ALTER TABLE event_losses DROP COLUMN state")
    connection.execute(
        "INSERT INTO event_losses (source_id, source_epoch, first_sequence, last_sequence, reason,"
        " recorded_ns) VALUES ('procmond', 1, 2, 3, 'not received', 9)"
    )
    connection.execute("INSERT INTO event_sources VALUES ('procmond', 1, 1, 4, 1, 1)")
    connection.close()
    store = EventStore.open(path, now_ns=lambda: NOW_NS)
    try:
        assert losses(store) == [(2, 3, "lost", "not received")]
        assert store.contiguous("procmond", 1) == 4
        assert store.ingest([make_other(5)]).stored == 1
    finally:
        store.close()
