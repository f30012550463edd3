"""Exactly once: whatever order, gaps and repeats events come in with."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemoneye_agent.event import EVENT_INSERT_COLUMNS, EventRow, SqlValue
from daemoneye_agent.ingest import SourceInvalidError, admit_rows, screen_rows
from daemoneye_agent.loss import LossReason, LossState
from daemoneye_agent.progress import SourceProgress
from daemoneye_agent.store import EventStore, StoreLimits, open_reader

NOW_NS = 1_790_000_000 * 10**9

Keys = tuple[str, int, int]


def make_row(
    sequence: int, epoch: int = 1, source: str = "procmond", **other: SqlValue
) -> EventRow:
    values: dict[str, SqlValue] = dict.fromkeys(EVENT_INSERT_COLUMNS)
    values.update(
        source_id=source,
        source_epoch=epoch,
        source_sequence=sequence,
        time_ns=NOW_NS + sequence % 1000,
        kind="start",
    )
    values.update(other)
    return tuple(values[name] for name in EVENT_INSERT_COLUMNS)


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., EventStore]]:
    stores: list[EventStore] = []

    def open_it(**limits: int) -> EventStore:
        for store in stores:
            store.close()
        store = EventStore.open(tmp_path / "s" / "events.db", StoreLimits(**limits), lambda: NOW_NS)
        stores.append(store)
        return store

    yield open_it
    for store in stores:
        store.close()


def read(store: EventStore, sql: str) -> list[tuple[SqlValue, ...]]:
    reader = open_reader(store.path)
    try:
        return [tuple(row) for row in reader.execute(sql)]
    finally:
        reader.close()


def stored_sequences(store: EventStore) -> list[SqlValue]:
    return [s for (s,) in read(store, "SELECT source_sequence FROM process_events ORDER BY 1")]


def lost_ranges(store: EventStore) -> list[tuple[SqlValue, ...]]:
    return read(
        store,
        "SELECT first_sequence, last_sequence, reason FROM event_losses "
        "ORDER BY source_id, source_epoch, first_sequence",
    )


class KeySet:
    """The smallest model of exactly-once: a set of keys."""

    def __init__(self) -> None:
        self.progress: dict[tuple[str, int], SourceProgress] = {}
        self.stored: set[Keys] = set()

    def progress_of(self, source: str, epoch: int) -> SourceProgress:
        return self.progress.setdefault((source, epoch), SourceProgress(gap_state=LossState.OPEN))

    def is_stored(self, source: str, epoch: int, sequence: int) -> bool:
        return (source, epoch, sequence) in self.stored


keys = st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 2), st.integers(1, 30))
deliveries = st.lists(st.lists(keys, max_size=12), max_size=12)


@given(deliveries)
def test_admission_accepts_every_key_once_and_accounts_for_every_row(
    batches: list[list[Keys]],
) -> None:
    model = KeySet()
    for batch in batches:
        rows = [make_row(sequence, epoch, source) for source, epoch, sequence in batch]
        result = admit_rows(rows, model.progress_of, model.is_stored, NOW_NS)
        accepted = [(str(row[0]), row[1], row[2]) for row in result.accepted]
        assert len(set(accepted)) == len(accepted)
        assert not model.stored & set(accepted)
        assert len(rows) == len(accepted) + result.duplicates + result.refused
        model.stored |= set(accepted)
        assert set(batch) <= model.stored
    for (source, epoch), progress in model.progress.items():
        seen = {s for name, e, s in model.stored if (name, e) == (source, epoch)}
        missing = {n for gap in progress.missing for n in range(gap.first, gap.last + 1)}
        assert missing == set(range(1, progress.highest + 1)) - seen
        assert progress.highest == max(seen, default=0)
        assert set(range(1, progress.contiguous + 1)) <= seen


@settings(max_examples=40, deadline=None)
@given(deliveries, st.integers(0, 12))
def test_store_holds_what_was_delivered_and_losses_are_the_rest(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Keys]], reopen_before: int
) -> None:
    path = tmp_path_factory.mktemp("ingest") / "events.db"
    store = EventStore.open(path, now_ns=lambda: NOW_NS)
    delivered: set[tuple[SqlValue, ...]] = set()
    ids: list[SqlValue] = []
    for number, batch in enumerate(batches):
        if number == reopen_before:
            store.close()
            store = EventStore.open(path, now_ns=lambda: NOW_NS)
        rows = [make_row(sequence, epoch, source) for source, epoch, sequence in batch]
        ids += [row[0] for row in store.ingest(rows).accepted]
        delivered |= set(batch)
    in_store = read(store, "SELECT source_id, source_epoch, source_sequence FROM process_events")
    losses = read(
        store,
        "SELECT source_id, source_epoch, first_sequence, last_sequence FROM event_losses",
    )
    store.close()
    lost = [
        (source, epoch, number)
        for source, epoch, first, last in losses
        for number in range(int(str(first)), int(str(last)) + 1)
    ]
    highest = {
        key[:2]: max(int(str(k[2])) for k in delivered if k[:2] == key[:2]) for key in delivered
    }
    everything = {(*key, number) for key, top in highest.items() for number in range(1, top + 1)}
    assert sorted(in_store) == sorted(delivered)
    assert len(lost) == len(set(lost))
    assert set(lost) == everything - delivered
    assert ids == list(range(1, len(delivered) + 1))


def test_gap_is_recorded_at_once_and_shrinks_as_events_arrive_late(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    store.expect_replay("procmond", True)
    store.ingest([make_row(1)])
    result = store.ingest([make_row(6)])
    assert [(loss.first_sequence, loss.last_sequence) for loss in result.losses] == [(2, 5)]
    assert store.contiguous("procmond", 1) == 1
    assert store.ingest([make_row(4)]).repaired == 1
    reason = LossReason.NOT_RECEIVED
    assert lost_ranges(store) == [(2, 3, reason), (5, 5, reason)]
    store.ingest([make_row(2), make_row(3), make_row(5)])
    assert lost_ranges(store) == []
    assert store.contiguous("procmond", 1) == 6


def test_gap_that_closes_within_its_batch_is_no_loss(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    result = store.ingest([make_row(3), make_row(1), make_row(2)])
    assert (len(result.accepted), result.losses) == (3, ())
    assert lost_ranges(store) == []


def test_late_agent_records_what_was_published_before(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    losses = store.ingest([make_row(5)]).losses
    assert [(loss.last_sequence, loss.reason) for loss in losses] == [
        (4, LossReason.BEFORE_SUBSCRIBED)
    ]


def test_new_epoch_of_a_known_source_that_begins_late_was_not_received(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    store.ingest([make_row(1)])
    losses = store.ingest([make_row(3, epoch=2)]).losses
    assert [(loss.source_epoch, loss.reason) for loss in losses] == [(2, LossReason.NOT_RECEIVED)]


def test_redelivery_after_reopening_is_a_duplicate(open_store: Callable[..., EventStore]) -> None:
    rows = [make_row(number) for number in range(1, 50)]
    open_store().ingest(rows)
    store = open_store()
    result = store.ingest(rows)
    assert (result.accepted, result.duplicates) == ([], 49)
    assert store.stats().counters["duplicates"] == 49
    assert store.ingest([make_row(50)]).accepted[0][0] == 50


def test_redelivery_of_a_forgotten_epoch_is_still_no_second_row(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store(max_source_epochs=2)
    for epoch in (1, 2, 3):
        store.ingest([make_row(1, epoch), make_row(3, epoch)])
    assert store.stats().counters["epochs_forgotten"] == 1
    result = store.ingest([make_row(1, 1), make_row(2, 1)])
    assert (len(result.accepted), result.duplicates) == (1, 1)
    assert read(store, "SELECT count(*) FROM process_events") == [(7,)]


def test_losses_are_bounded_and_the_oldest_are_merged(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store(max_loss_ranges=5, max_source_epochs=2)
    store.ingest([make_row(number) for number in range(1, 40, 2)])
    ranges = lost_ranges(store)
    assert len(ranges) == 5
    assert ranges[0] == (2, 30, LossReason.MERGED)
    assert store.stats().counters["ranges_merged"] == 14
    result = store.ingest([make_row(7), make_row(8), make_row(8), make_row(2)])
    assert (len(result.accepted), result.duplicates) == (2, 2)
    assert lost_ranges(store)[0] == (3, 30, LossReason.MERGED)


def test_merging_goes_on_in_the_next_epoch_when_the_first_is_one_range(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store(max_loss_ranges=3, max_source_epochs=3)
    for epoch in (1, 2):
        store.ingest([make_row(number, epoch) for number in range(1, 10, 2)])
    merged = (2, 8, LossReason.MERGED)
    assert lost_ranges(store) == [merged, (2, 6, LossReason.MERGED), (8, 8, "not received")]


@pytest.mark.parametrize(
    "bad",
    [
        make_row(2, name="\udc80"),
        make_row(2, pid=2**63),
        make_row(2, time_ns=None),
        make_row(2)[:-1],
        (*make_row(2), "one too many"),
        make_row(2, cwd=["a list"]),
    ],
)
def test_row_that_cannot_be_stored_is_a_loss_and_its_neighbours_are_kept(
    open_store: Callable[..., EventStore], bad: EventRow
) -> None:
    store = open_store()
    result = store.ingest([make_row(1), bad, make_row(3)])
    assert (len(result.accepted), result.refused, result.duplicates) == (2, 1, 0)
    assert lost_ranges(store) == [(2, 2, LossReason.REFUSED)]
    assert stored_sequences(store) == [1, 3]
    assert store.ingest([make_row(2)]).repaired == 1


@pytest.mark.parametrize(
    "bad",
    [
        make_row(0),
        make_row(-3),
        make_row(2**63),
        make_row(1, source=""),
        make_row(1, source="x" * 257),
        make_row(1, source="\udc80"),
        make_row(1, epoch=-1),
        make_row(1, epoch=2**63),
        make_row(1, source_id=None),
        make_row(1, source_sequence=None),
        (),
    ],
)
def test_row_without_a_usable_key_is_refused_and_its_neighbours_are_kept(
    open_store: Callable[..., EventStore], bad: EventRow
) -> None:
    store = open_store()
    result = store.ingest([make_row(1, source="good"), bad, make_row(2, source="good")])
    assert (len(result.accepted), result.refused) == (2, 1)
    assert store.stats().counters["refused"] == 1
    assert lost_ranges(store) == []


def make_row_fields(row: EventRow) -> dict[str, SqlValue]:
    return dict(zip(EVENT_INSERT_COLUMNS, row, strict=True))


def test_accepted_rows_are_what_the_store_holds(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    result = store.ingest([make_row(1, name="sleep", exe_deleted=1), make_row(2, name="sh")])
    assert read(store, "SELECT * FROM process_events ORDER BY event_id") == result.accepted
    assert make_row_fields(result.accepted[0][1:])["name"] == "sleep"


def test_empty_batch_changes_nothing(open_store: Callable[..., EventStore]) -> None:
    result = open_store().ingest([])
    assert (result.accepted, result.duplicates, result.refused, result.losses) == ([], 0, 0, ())


def test_screening_of_a_good_batch_finds_nothing() -> None:
    screening = screen_rows([make_row(1), make_row(2)])
    assert (len(screening.rows), screening.refused_indices, screening.keyless) == (
        2,
        frozenset(),
        0,
    )


def test_source_without_a_name_is_told_what_is_needed(
    open_store: Callable[..., EventStore],
) -> None:
    with pytest.raises(SourceInvalidError, match="name of 1 to 256"):
        open_store().settle_lost("", 1, 1, 5, "why")
