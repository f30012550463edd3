"""A group splits into groups that are the same messages, and sums of counters lose nothing."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2
from daemoneye_eventbus.flow import Flow, FlowSum
from daemoneye_eventbus.group import Envelope
from daemoneye_eventbus.mailbox import DropReason
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.service_group import GroupContent, make_group, read_envelope
from daemoneye_mesh.correlation import Correlation


def frames_of(count: int) -> list[bytes]:
    frames = []
    for number in range(count):
        event = eventbus_pb2.EventBusMessage()
        event.metadata.timestamp = number
        frames.append(event.SerializeToString())
    return frames


def numbers_in(content: object, max_bytes: int = 1 << 20) -> list[int]:
    assert isinstance(content, GroupContent)
    messages = [one for part in content.messages(max_bytes) for one in part]
    return [eventbus_pb2.EventBusMessage.FromString(one).metadata.timestamp for one in messages]


@given(st.integers(2, 50), st.data(), st.sampled_from([0, 1, 900]))
async def test_group_split_anywhere_is_the_same_messages(
    count: int, data: Any, first_sequence: int
) -> None:
    at = data.draw(st.integers(1, count - 1))
    correlation = Correlation.begin("scan", {"k": "v"})
    envelope = Envelope(
        topic="events.a",
        source_id="p",
        count=count,
        event_type=3,
        first_sequence=first_sequence,
        correlation=correlation,
    )
    receipt = Receipt()
    group = make_group(envelope, frames_of(count)).with_receipt(receipt)
    head, tail = group.split(at)
    assert (head.count, tail.count, head.receipt, tail.receipt) == (
        at,
        count - at,
        receipt,
        receipt,
    )
    assert numbers_in(head.content) == list(range(at))
    assert numbers_in(tail.content) == list(range(at, count))
    for part in (head, tail):
        assert isinstance(part.content, GroupContent)
        frame = frame_pb2.GroupFrame.FromString(part.content.encoded)
        assert read_envelope(frame.envelope) == part.envelope
        assert part.size_bytes == len(part.content.encoded)
    assert tail.envelope.first_sequence == (first_sequence and first_sequence + at)


@given(st.integers(1, 40), st.integers(1, 2_000))
def test_messages_of_a_group_come_in_order_whatever_the_bound(count: int, max_bytes: int) -> None:
    group = make_group(Envelope(topic="events.a", source_id="p", count=count), frames_of(count))
    assert numbers_in(group.content, max_bytes) == list(range(count))


def test_messages_that_grow_when_taken_apart_come_in_parts() -> None:
    correlation = Correlation.begin(tags={"k": "v" * 1_000})
    envelope = Envelope(topic="events.a", source_id="p", count=64, correlation=correlation)
    content = make_group(envelope, frames_of(64)).content
    assert isinstance(content, GroupContent)
    parts = list(content.messages(10_000))
    assert len(parts) > 6
    assert all(sum(map(len, part)) <= 10_000 for part in parts)


def test_counters_add_up_by_name_and_by_reason() -> None:
    flows = FlowSum()
    lost = {DropReason.CLOSED: 1, DropReason.EXPIRED: 2}
    flows.add(Flow(offered=10, delivered=4, filtered=2, dropped=lost, pending=1, redelivered=9))
    flows.add(Flow(offered=5, dropped={DropReason.CLOSED: 3}, pending=2, pending_bytes=20))
    flows.recount(1, DropReason.CLOSED, DropReason.MOVED)
    assert flows.total() == Flow(
        offered=15,
        delivered=4,
        filtered=2,
        dropped={DropReason.CLOSED: 3, DropReason.EXPIRED: 2, DropReason.MOVED: 1},
        pending=3,
        pending_bytes=20,
        redelivered=9,
    )


def test_reason_without_messages_is_not_listed() -> None:
    flows = FlowSum()
    flows.recount(2, DropReason.MOVED, DropReason.CLOSED)
    flows.add(Flow(offered=2, dropped={DropReason.MOVED: 2}))
    assert flows.total().dropped == {DropReason.CLOSED: 2}
