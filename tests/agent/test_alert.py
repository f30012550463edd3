"""Alerts: grouped, bounded, persisted before anybody hears of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_agent.alert import (
    Alert,
    AlertDraft,
    AlertInvalidError,
    Severity,
    build_dedup_key,
    render_row,
)
from daemoneye_agent.schema import TABLES
from daemoneye_agent.store import EventStore, StoreLimits, open_reader
from daemoneye_mesh.errors import InvalidRequestError, NotFoundError

SECOND_NS = 10**9
HOUR_NS = 3_600 * SECOND_NS
NOW_NS = 1_790_000_000 * SECOND_NS


def make_draft(
    key: str = "k",
    seen_ns: int = NOW_NS,
    severity: Severity = Severity.HIGH,
    rule_id: str = "exec-from-tmp",
    **other: object,
) -> AlertDraft:
    return AlertDraft(
        rule_id=rule_id,
        severity=severity,
        title="execution from /tmp",
        description="a program in /tmp was started",
        dedup_key=key,
        seen_ns=seen_ns,
        **other,
    )


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., EventStore]]:
    stores: list[EventStore] = []

    def open_it(**limits: int) -> EventStore:
        for store in stores:
            store.close()
        path = tmp_path / "s" / "events.db"
        stores.append(EventStore.open(path, StoreLimits(**limits), lambda: NOW_NS))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def test_severities_are_ordered_by_how_bad_they_are() -> None:
    words = ["info", "low", "medium", "high", "critical"]
    assert [str(severity) for severity in sorted(Severity, key=lambda s: s.rank)] == words
    assert sorted(map(Severity, reversed(words))) == [Severity(word) for word in words]
    assert Severity.INFO < Severity.CRITICAL
    assert Severity.HIGH >= Severity.HIGH > Severity.MEDIUM
    assert Severity.MEDIUM.and_above() == (Severity.MEDIUM, Severity.HIGH, Severity.CRITICAL)


def test_alert_has_the_declared_columns_in_order() -> None:
    assert Alert.__slots__ == TABLES["alerts"].column_names


def test_topic_names_severity_and_rule(open_store: Callable[..., EventStore]) -> None:
    alert, _ = open_store().record_alert(make_draft())
    assert alert.topic == "alerts.high.exec-from-tmp"


@pytest.mark.parametrize("rule_id", ["", "a.b", "UPPER", "a b", "x" * 65, "a#", "ü", "a\n"])
def test_rule_id_that_is_no_topic_segment_is_refused(rule_id: str) -> None:
    with pytest.raises(AlertInvalidError, match="cannot be part of a topic"):
        make_draft(rule_id=rule_id)


@pytest.mark.parametrize(
    ("field", "length"), [("key", 513), ("row", 256 * 1024 + 1), ("completeness", 8193)]
)
def test_text_beyond_its_bound_is_refused(field: str, length: int) -> None:
    with pytest.raises(AlertInvalidError, match="shorten it"):
        make_draft(**{field: "x" * length})


@given(st.lists(st.one_of(st.text(max_size=300), st.integers(), st.none())), st.data())
def test_dedup_keys_are_equal_exactly_when_their_parts_are(
    parts: list[str | int | None], data: st.DataObject
) -> None:
    other = data.draw(st.one_of(st.just(parts), st.permutations(parts)))
    key = build_dedup_key("rule", *parts)
    assert (key == build_dedup_key("rule", *other)) == (list(other) == parts)
    assert key != build_dedup_key("rule2", *parts)
    make_draft(key=key)


@given(
    st.dictionaries(
        st.text(max_size=20),
        st.one_of(st.text(), st.integers(), st.none(), st.binary()),
        max_size=60,
    )
)
def test_rendered_row_is_json_of_the_row(row: dict[str, str | int | bytes | None]) -> None:
    expected = {k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()}
    assert json.loads(render_row(row)) == expected


def test_long_cells_are_cut_and_say_so() -> None:
    row = {"cmdline": "x" * 5000, "name": "sh"}
    cells = json.loads(render_row(row))
    assert cells["name"] == "sh"
    assert cells["cmdline"].endswith("… [904 characters cut]")


@pytest.mark.parametrize("columns", [100, 1000, 20_000])
def test_rendered_row_fits_an_alert_whatever_it_holds(columns: int) -> None:
    row = {f"column {number}": "x" * 4097 for number in range(columns)}
    text = render_row(row)
    json.loads(text)
    make_draft(row=text)


def test_new_alert_is_on_disk_when_the_call_returns(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    alert, is_new = store.record_alert(make_draft(event_id=7, row='{"pid": 1}'))
    assert is_new
    reader = open_reader(store.path)
    [row] = reader.execute("SELECT * FROM alerts").fetchall()
    reader.close()
    assert row == tuple(getattr(alert, name) for name in TABLES["alerts"].column_names)
    assert len(alert.alert_id) == 32
    assert open_store().get_alert(alert.alert_id) == alert


def test_equal_key_within_the_window_raises_the_count_and_keeps_the_evidence(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    first, _ = store.record_alert(make_draft(event_id=1, row='{"pid": 1}'))
    again, is_new = store.record_alert(
        make_draft(seen_ns=NOW_NS + HOUR_NS, event_id=2, row='{"pid": 2}')
    )
    assert not is_new
    assert (again.alert_id, again.count) == (first.alert_id, 2)
    assert (again.first_seen_ns, again.last_seen_ns) == (NOW_NS, NOW_NS + HOUR_NS)
    assert (again.event_id, again.row) == (1, '{"pid": 1}')
    assert store.list_alerts() == (again,)


def test_equal_key_after_the_window_is_a_new_alert(open_store: Callable[..., EventStore]) -> None:
    store = open_store()
    first, _ = store.record_alert(make_draft())
    store.record_alert(make_draft(seen_ns=NOW_NS + HOUR_NS))  # the window counts from the last
    late, is_new = store.record_alert(make_draft(seen_ns=NOW_NS + 2 * HOUR_NS + 1))
    assert is_new
    assert late.alert_id != first.alert_id
    assert [alert.count for alert in store.list_alerts()] == [1, 2]


def test_late_sighting_joins_the_alert_it_falls_into(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    store.record_alert(make_draft(seen_ns=NOW_NS))
    alert, is_new = store.record_alert(make_draft(seen_ns=NOW_NS - SECOND_NS))
    assert (is_new, alert.count) == (False, 2)
    assert (alert.first_seen_ns, alert.last_seen_ns) == (NOW_NS - SECOND_NS, NOW_NS)
    assert store.record_alert(make_draft(seen_ns=NOW_NS - 3 * HOUR_NS))[1]


def test_grouping_survives_a_restart(open_store: Callable[..., EventStore]) -> None:
    open_store().record_alert(make_draft())
    alert, is_new = open_store().record_alert(make_draft(seen_ns=NOW_NS + 1))
    assert (is_new, alert.count) == (False, 2)


def test_alerts_of_one_batch_group_among_themselves(open_store: Callable[..., EventStore]) -> None:
    recorded = open_store().record_alerts([make_draft("a"), make_draft("b"), make_draft("a")])
    assert [(alert.count, is_new) for alert, is_new in recorded] == [
        (1, True),
        (1, True),
        (2, False),
    ]


def test_oldest_alerts_make_room_and_are_counted(open_store: Callable[..., EventStore]) -> None:
    store = open_store(max_alerts=3)
    for number in range(5):
        store.record_alert(make_draft(f"k{number}", seen_ns=NOW_NS + number))
    assert [alert.dedup_key for alert in store.list_alerts()] == ["k4", "k3", "k2"]
    stats = store.stats()
    assert (stats.alert_count, stats.counters["alerts_removed"]) == (3, 2)


def test_list_filters_by_time_severity_rule_and_limit(
    open_store: Callable[..., EventStore],
) -> None:
    store = open_store()
    for number, severity in enumerate(Severity):
        store.record_alert(make_draft(f"k{number}", NOW_NS + number, severity, f"rule-{number}"))

    def keys(**filters: object) -> list[str]:
        return [alert.dedup_key for alert in store.list_alerts(**filters)]

    assert keys() == ["k4", "k3", "k2", "k1", "k0"]
    assert keys(since_ns=NOW_NS + 3) == ["k4", "k3"]
    assert keys(floor=Severity.HIGH) == ["k4", "k3"]
    assert keys(rule_id="rule-1") == ["k1"]
    assert keys(floor=Severity.HIGH, rule_id="rule-1") == []
    assert keys(limit=2) == ["k4", "k3"]


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_list_refuses_a_limit_out_of_range(
    open_store: Callable[..., EventStore], limit: int
) -> None:
    with pytest.raises(InvalidRequestError, match="out of range"):
        open_store().list_alerts(limit=limit)


def test_unknown_alert_is_not_found(open_store: Callable[..., EventStore]) -> None:
    with pytest.raises(NotFoundError):
        open_store().get_alert("none")
