"""What became of requests is kept once, within bounds, and tells which requests are still open."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from daemoneye_agent.collector_event import CollectorEventRow
from daemoneye_agent.migration import APPLICATION_ID, MIGRATIONS
from daemoneye_agent.store import EventStore, StoreLimits, open_reader
from daemoneye_agent.workflow_record import AnalysisRecord, Asked, Outcome, Verdict

DAY_NS = 86_400 * 10**9
NOW_NS = 20_700 * DAY_NS + 5 * 3_600 * 10**9


def make_trigger(sequence: int, trigger_id: str, event_type: str = "trigger") -> CollectorEventRow:
    data = json.dumps({"trigger_id": trigger_id})
    topic = "events.process.trigger"
    return CollectorEventRow("procmond", 1, sequence, NOW_NS, "t", topic, event_type, data)


def make_record(
    trigger_id: str, source: str = "procmond", findings: str = "{}", finished_ns: int = NOW_NS
) -> AnalysisRecord:
    asked = Asked(
        event_id=1,
        source_id=source,
        trigger_id=trigger_id,
        target_collector="scanner",
        analysis_type="binary_hash",
        priority="high",
        requested_ns=NOW_NS - 5,
        boot_id="b",
        pid=7,
        start_ticks=9,
        path="/bin/x",
    )
    done = Verdict(Outcome.DONE, None, "a" * 64, "b" * 64, findings, 0.5)
    return AnalysisRecord(asked, done, finished_ns)


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
    return open_store()


def read(store: EventStore, sql: str) -> list[tuple[Any, ...]]:
    reader = open_reader(store.path)
    try:
        return [tuple(row) for row in reader.execute(sql)]
    finally:
        reader.close()


def ids(store: EventStore) -> list[str]:
    return [row[0] for row in read(store, "SELECT trigger_id FROM analysis_results")]


def open_ids(store: EventStore, after_id: int = 0, limit: int = 100) -> list[str]:
    found = store.find_triggers(after_id, limit)
    return [json.loads(one.data or "{}")["trigger_id"] for one in found]


def test_every_column_of_a_result_is_kept(store: EventStore) -> None:
    assert store.record_analyses([make_record("t1")], 4) == (True,)
    (row,) = read(store, "SELECT * FROM analysis_results")
    assert row == (
        *(1, "t1", "procmond", "scanner", "binary_hash", "", "high", NOW_NS - 5, NOW_NS, "done"),
        *(None, "a" * 64, "b" * 64, "{}", 0.5, "b", 7, 9, "/bin/x"),
    )
    assert store.settled_trigger == 4


def test_a_request_has_one_result_and_another_collector_may_use_the_same_id(
    store: EventStore,
) -> None:
    first = make_record("t1")
    assert store.record_analyses([first, first, make_record("t1", "netmond")], 0) == (
        True,
        False,
        True,
    )
    assert store.record_analyses([make_record("t1", findings='{"b": "1"}')], 0) == (False,)
    assert read(store, "SELECT source_id, findings FROM analysis_results") == [
        ("procmond", "{}"),
        ("netmond", "{}"),
    ]
    assert store.stats().counters["analyses_stored"] == 2


def test_requests_without_a_result_are_found_in_order_of_arrival(store: EventStore) -> None:
    rows = [make_trigger(number, f"t{number}") for number in (1, 2, 3, 4)]
    store.ingest([*rows, make_trigger(5, "n", "network")])
    store.record_analyses([make_record("t2")], 0)
    assert open_ids(store) == ["t1", "t3", "t4"]
    assert open_ids(store, limit=2) == ["t1", "t3"]
    third = store.find_triggers(0, 2)[-1]
    assert open_ids(store, after_id=third.event_id) == ["t4"]
    assert (third.source_id, third.time_ns) == ("procmond", NOW_NS)


def test_an_answer_to_another_collector_does_not_close_a_request(store: EventStore) -> None:
    store.ingest([make_trigger(1, "t1")])
    store.record_analyses([make_record("t1", "netmond")], 0)
    assert open_ids(store) == ["t1"]


def test_a_request_of_any_size_is_found_and_a_huge_one_without_its_text(store: EventStore) -> None:
    store.ingest([make_trigger(1, "x" * (1 << 20)), make_trigger(2, "")])
    huge, nameless = store.find_triggers(0, 9)
    assert huge.data is None
    assert nameless.data is not None


@pytest.mark.parametrize(
    "data", ["[", "null", '"x"', '{"trigger_id": 5}', '{"trigger_id": "a\\u0000b"}']
)
def test_text_that_is_no_request_does_not_keep_others_from_being_found(
    store: EventStore, data: str
) -> None:
    store.ingest([make_trigger(1, "")._replace(data=data), make_trigger(2, "t2")])
    assert [one.data for one in store.find_triggers(0, 9)] == [data, '{"trigger_id": "t2"}']


def test_rows_above_the_bound_make_room_and_are_counted(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store(max_analyses=3)
    store.record_analyses([make_record(f"t{number}") for number in range(5)], 0)
    assert ids(store) == ["t2", "t3", "t4"]
    assert store.stats().counters["analyses_dropped"] == 2


def test_bytes_above_the_bound_make_room(open_store: Callable[..., EventStore]) -> None:
    store = open_store(max_store_bytes=1 << 20)
    big = json.dumps({"a": "x" * 30_000})
    for number in range(8):
        store.record_analyses([make_record(f"t{number}", findings=big)], 0)
    assert 1 <= len(ids(store)) <= 4
    assert ids(store)[-1] == "t7"
    counters = store.stats().counters
    held_bytes = counters["analysis_bytes_stored"] - counters["analysis_bytes_dropped"]
    assert 0 < held_bytes <= (1 << 20) // 8


def test_old_results_go_with_the_retention(open_store: Callable[..., EventStore]) -> None:
    store = open_store(retention_days=1)
    old = make_record("old", finished_ns=NOW_NS - 2 * DAY_NS)
    store.record_analyses([old, make_record("new")], 0)
    assert store.drop_aged() == 1
    assert store.drop_aged() == 0
    assert ids(store) == ["new"]


def test_what_is_settled_is_remembered_and_never_falls(
    store: EventStore, open_store: Callable[..., EventStore]
) -> None:
    store.record_analyses([make_record("t1")], 7)
    store.record_analyses([make_record("t2")], 3)
    assert open_store().settled_trigger == 7


def test_a_store_of_the_layout_before_gains_the_table(
    path: Path, open_store: Callable[..., EventStore]
) -> None:
    path.parent.mkdir(mode=0o700)
    connection = apsw.Connection(str(path))
    for step in MIGRATIONS[:2]:
        step(connection)
    connection.pragma("user_version", 2)
    connection.pragma("application_id", APPLICATION_ID)
    connection.close()
    path.chmod(0o600)
    store = open_store()
    store.record_analyses([make_record("t1")], 0)
    assert ids(store) == ["t1"]


def test_open_requests_are_found_through_an_index(store: EventStore) -> None:
    store.ingest([make_trigger(1, "t1")])
    plan = read(
        store,
        "EXPLAIN QUERY PLAN SELECT event_id FROM collector_events "
        "WHERE event_type = 'trigger' AND event_id > 5 ORDER BY event_id",
    )
    assert "collector_events_triggers" in plan[0][-1]
