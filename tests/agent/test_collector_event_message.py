"""Every event that a collector numbers becomes a row, also one that this build does not know."""

import base64
import json
from collections.abc import Callable

import pytest

from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import collection_gap_pb2, event_data_pb2, eventbus_pb2
from daemoneye_agent.collector_event import CollectorEventRow, GapRow
from daemoneye_agent.collector_event_message import to_collector_row
from daemoneye_agent.process_row import NotAboutProcessError, to_event_row
from daemoneye_agent.schema import TABLES
from daemoneye_mesh.errors import InvalidRequestError

Message = eventbus_pb2.EventBusMessage


def make_message(event: eventbus_pb2.CollectionEventPayload | None) -> Message:
    return Message(
        metadata=eventbus_pb2.MessageMetadata(
            topic="events.network.flow",
            timestamp=1_790_000_000_000_000_007,
            source_id="netmond",
            source_epoch=3,
            source_sequence=9,
        ),
        collection_event=event,
    )


def make_gap(**changes: object) -> Message:
    gap = collection_gap_pb2.CollectionGapData(**changes)  # type: ignore[arg-type]
    return make_message(eventbus_pb2.CollectionEventPayload(collection_gap=gap))


def test_rows_have_the_columns_of_their_tables() -> None:
    assert CollectorEventRow._fields == TABLES["collector_events"].column_names[1:]
    assert GapRow._fields == TABLES["collection_gaps"].column_names[1:]


def test_event_is_kept_as_json_with_the_names_of_the_contract() -> None:
    event = event_data_pb2.NetworkEventData(
        network=common_pb2.NetworkRecord(connection_id="é-1"),
        subtype=event_data_pb2.NETWORK_EVENT_SUBTYPE_DNS_QUERY,
    )
    row = to_collector_row(make_message(eventbus_pb2.CollectionEventPayload(network_event=event)))
    assert isinstance(row, CollectorEventRow)
    assert row[:3] == ("netmond", 3, 9)
    assert (row.time, row.event_type) == ("2026-09-21T14:13:20.000000007Z", "network")
    assert json.loads(row.data) == {
        "network": {"connection_id": "é-1"},
        "subtype": "NETWORK_EVENT_SUBTYPE_DNS_QUERY",
    }


@pytest.mark.parametrize("kind", ["filesystem", "performance", "trigger"])
def test_every_other_domain_has_its_type(kind: str) -> None:
    event = eventbus_pb2.CollectionEventPayload()
    getattr(event, f"{kind}_event").SetInParent()
    row = to_collector_row(make_message(event))
    assert isinstance(row, CollectorEventRow)
    assert (row.event_type, row.data) == (kind, "{}")


def test_event_of_a_later_build_is_kept_encoded() -> None:
    unknown = b"\x08\xb9\x60" + b"\xfa\x7d\x03abc"  # event_type 12345, field 2015
    event = eventbus_pb2.CollectionEventPayload.FromString(unknown)
    row = to_collector_row(make_message(event))
    assert isinstance(row, CollectorEventRow)
    assert row.event_type == "unknown_12345"
    assert base64.b64decode(json.loads(row.data)["encoded_event"]) == unknown


def test_gap_says_when_why_and_how_much() -> None:
    message = make_gap(
        reason=collection_gap_pb2.COLLECTION_GAP_REASON_SOURCE_FAILED,
        source_name="scan",
        event_count=7,
        message="procfs is gone",
    )
    message.collection_event.collection_gap.started_at.FromNanoseconds(5)
    row = to_collector_row(message)
    assert isinstance(row, GapRow)
    assert row[3:] == (
        1_790_000_000_000_000_007,
        "source_failed",
        "scan",
        5,
        None,
        7,
        "procfs is gone",
    )


def test_gap_with_absurd_values_is_bounded() -> None:
    message = make_gap(reason=77, event_count=2**64 - 1, source_name="s" * 999, message="m" * 9_999)
    message.collection_event.collection_gap.ended_at.seconds = 2**62
    row = to_collector_row(message)
    assert isinstance(row, GapRow)
    assert (row.reason, row.event_count, row.ended_ns) == ("unspecified", 2**63 - 1, 2**63 - 1)
    assert (len(row.source_name), len(row.message)) == (128, 1_024)


def test_message_without_an_event_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="carries no event"):
        to_collector_row(make_message(None))


def test_process_event_is_told_from_all_others(make_message: Callable[..., Message]) -> None:
    assert to_event_row(make_message(1))[2] == 1
    with pytest.raises(NotAboutProcessError):
        to_event_row(make_gap())
