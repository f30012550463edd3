"""Alerts for operators: filtered, bounded, and as they are kept."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import timestamp_pb2

from daemoneye.agent.v1 import alert_service_pb2
from daemoneye.common.v1 import completeness_pb2
from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_agent.alert import AlertDraft, Severity, render_row
from daemoneye_agent.alert_message import (
    describe_degradations,
    from_severity,
    parse_degradations,
    to_severity,
)
from daemoneye_agent.service_alert import AlertServicer
from daemoneye_agent.store_thread import StoreThread
from daemoneye_mesh.completeness import Degradation, DegradedReason
from daemoneye_mesh.errors import ErrorReason, InvalidRequestError, NotFoundError
from daemoneye_mesh.limits import MAX_RECEIVE_BYTES

pb = alert_service_pb2
Record = Callable[..., Any]


@pytest.fixture
def servicer(store: StoreThread) -> AlertServicer:
    return AlertServicer(store)


@pytest.fixture
def record(store: StoreThread) -> Record:
    async def keep(*drafts: AlertDraft) -> tuple[Any, ...]:
        return await store.run(lambda it: it.record_alerts(drafts))

    return keep


def make_draft(number: int, severity: Severity = Severity.HIGH, **row: Any) -> AlertDraft:
    return AlertDraft(
        rule_id=f"rule-{number % 2}",
        severity=severity,
        title="A shell",
        description="Somebody runs a shell.",
        dedup_key=str(number),
        seen_ns=1_000 + number,
        row=render_row({"pid": number, **row}),
    )


async def listed(servicer: AlertServicer, **request: Any) -> list[int]:
    answer = await servicer.ListAlerts(pb.ListAlertsRequest(**request), None)
    return [alert.last_seen_ns - 1_000 for alert in answer.alerts]


async def test_alerts_come_latest_first_and_say_when_there_are_more(
    servicer: AlertServicer, record: Record
) -> None:
    await record(*(make_draft(number) for number in range(5)))
    answer = await servicer.ListAlerts(pb.ListAlertsRequest(max_alerts=2), None)
    assert [alert.last_seen_ns for alert in answer.alerts] == [1_004, 1_003]
    assert answer.has_more
    answer = await servicer.ListAlerts(pb.ListAlertsRequest(max_alerts=5), None)
    assert (len(answer.alerts), answer.has_more) == (5, False)


async def test_alerts_are_filtered_by_time_severity_and_rule(
    servicer: AlertServicer, record: Record
) -> None:
    await record(
        make_draft(0, Severity.INFO), make_draft(1, Severity.LOW), make_draft(2, Severity.CRITICAL)
    )
    since = timestamp_pb2.Timestamp(nanos=1_001)
    assert await listed(servicer, since=since) == [2, 1]
    low = eventbus_pb2.ALERT_SEVERITY_LOW
    assert await listed(servicer, min_severity=low) == [2, 1]
    assert await listed(servicer, rule_id="rule-0") == [2, 0]
    assert await listed(servicer, rule_id="gone") == []
    assert await listed(servicer) == [2, 1, 0]


@pytest.mark.parametrize(
    ("seconds", "found"), [(-62_135_596_800, [0]), (-1, [0]), (0, [0]), (253_402_300_799, [])]
)
async def test_since_may_be_any_time_of_the_calendar(
    servicer: AlertServicer, record: Record, seconds: int, found: list[int]
) -> None:
    await record(make_draft(0))
    since = timestamp_pb2.Timestamp(seconds=seconds)
    assert await listed(servicer, since=since) == found


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(2**62, 0), (-(2**62), 0), (0, -1), (0, 1_000_000_000)]
)
async def test_since_that_is_no_time_is_refused(
    servicer: AlertServicer, seconds: int, nanos: int
) -> None:
    since = timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos)
    with pytest.raises(InvalidRequestError, match="years 1 to 9999"):
        await listed(servicer, since=since)


@pytest.mark.parametrize("number", [5, -1, 2**31 - 1])
async def test_unknown_severity_is_refused(servicer: AlertServicer, number: int) -> None:
    with pytest.raises(InvalidRequestError, match=str(number)) as refused:
        await listed(servicer, min_severity=number)
    assert refused.value.reason is ErrorReason.ENUM_UNKNOWN


async def test_more_alerts_than_ever_given_are_refused(servicer: AlertServicer) -> None:
    with pytest.raises(InvalidRequestError, match="1000"):
        await listed(servicer, max_alerts=1_001)
    assert await listed(servicer, max_alerts=1_000) == []


async def test_alerts_that_do_not_fit_into_one_message_are_left_for_later(
    servicer: AlertServicer, record: Record
) -> None:
    wide = {f"c{number}": "x" * 1_000 for number in range(60)}
    await record(*(make_draft(number, **wide) for number in range(100)))
    answer = await servicer.ListAlerts(pb.ListAlertsRequest(max_alerts=1_000), None)
    assert answer.has_more
    assert 10 < len(answer.alerts) < 100
    assert answer.ByteSize() < MAX_RECEIVE_BYTES


async def test_one_alert_is_read_with_the_row_that_raised_it(
    servicer: AlertServicer, record: Record
) -> None:
    draft = make_draft(7, boot_id="b", start_ticks=9, exe="/tmp/x", source_id="procmond", cwd=None)
    ((alert, _),) = await record(draft)
    answer = await servicer.GetAlert(pb.GetAlertRequest(alert_id=alert.alert_id), None)
    assert answer.row_json == draft.row
    payload = answer.alert
    assert (payload.source, payload.count) == ("procmond", 1)
    assert list(payload.affected_resources) == ["process:b/7/9", "file:/tmp/x"]
    assert dict(payload.metadata)["exe"] == "/tmp/x"
    assert "cwd" not in payload.metadata
    assert payload.completeness.state == completeness_pb2.COMPLETENESS_STATE_COMPLETE


@pytest.mark.parametrize("alert_id", ["", "gone", "x" * 10_000])
async def test_alert_that_is_not_kept_is_not_found(servicer: AlertServicer, alert_id: str) -> None:
    with pytest.raises(NotFoundError):
        await servicer.GetAlert(pb.GetAlertRequest(alert_id=alert_id), None)


def test_severities_map_to_the_contract_and_back() -> None:
    numbers = [to_severity(severity) for severity in Severity]
    assert numbers == sorted(eventbus_pb2.AlertSeverity.values())
    assert [from_severity(number) for number in numbers] == list(Severity)


def test_completeness_of_an_alert_survives_the_store() -> None:
    causes = [
        Degradation(DegradedReason.POLLING, "procmond", "processes are polled"),
        Degradation(DegradedReason.EVENTS_LOST, "event store", "3 events"),
        Degradation(DegradedReason.READ_ERRORS, "a, b", "odd"),
    ]
    kept = parse_degradations(describe_degradations(causes))
    assert [(one.reason, one.subject) for one in kept] == [
        ("POLLING", "procmond"),
        ("EVENTS_LOST", "event store"),
        ("READ_ERRORS", "a b"),
    ]
    assert parse_degradations(describe_degradations(())) == ()
