"""The fake agent's half of delivery: each event once, and what is missing."""

from hypothesis import given
from hypothesis import strategies as st

from collector_core.testing.delivery import DeliveryRecord, SequenceRange
from collector_core.testing.seen_event import SeenEvent
from daemoneye.common.v1 import common_pb2
from daemoneye.eventbus.v1 import event_data_pb2, eventbus_pb2
from daemoneye.ipc.v1 import event_log_pb2

EPOCH = 7


def event(sequence: int, value: float = 1.0, epoch: int = EPOCH) -> SeenEvent:
    record = common_pb2.PerformanceRecord(metric_name="load1", value=value, unit="1")
    message = eventbus_pb2.EventBusMessage(
        metadata=eventbus_pb2.MessageMetadata(
            topic="events.performance.utilization",
            source_id="unit",
            source_epoch=epoch,
            source_sequence=sequence,
        ),
        collection_event=eventbus_pb2.CollectionEventPayload(
            performance_event=event_data_pb2.PerformanceEventData(performance=record)
        ),
    )
    seen = SeenEvent.of(message)
    assert seen is not None
    return seen


def sequences(record: DeliveryRecord) -> list[int]:
    return [one.sequence for one in record.events]


def test_an_event_that_comes_again_is_stored_once_and_counted() -> None:
    record = DeliveryRecord()
    assert [record.store(event(one)) for one in (1, 2, 2, 1)] == [True, True, False, False]
    assert sequences(record) == [1, 2]
    assert record.repeat_count == 2
    assert record.conflicts == []


def test_a_repeat_that_says_something_else_is_a_conflict() -> None:
    record = DeliveryRecord()
    first, second = event(1, value=1.0), event(1, value=2.0)
    record.store(first)
    assert not record.store(second)
    (conflict,) = record.conflicts
    assert (conflict.stored, conflict.repeated) == (first, second)


def test_the_same_sequence_of_another_epoch_is_another_event() -> None:
    record = DeliveryRecord()
    assert record.store(event(1))
    assert record.store(event(1, epoch=EPOCH + 1))
    assert record.epochs == [EPOCH, EPOCH + 1]


def test_events_without_a_place_in_a_sequence_are_all_stored() -> None:
    record = DeliveryRecord()
    assert record.store(event(0))
    assert record.store(event(0))
    assert len(record.events) == 2
    assert record.missing() == []


def test_what_a_heartbeat_says_was_given_out_is_missing_until_it_arrives() -> None:
    record = DeliveryRecord()
    record.store(event(2))
    record.learn([event_log_pb2.LogPosition(source_epoch=EPOCH, last_sequence=4)])
    assert record.missing() == [SequenceRange(EPOCH, 1, 1), SequenceRange(EPOCH, 3, 4)]
    for one in (1, 3, 4):
        record.store(event(one))
    assert record.missing() == []
    assert record.contiguous(EPOCH) == 4


def test_what_was_acknowledged_before_we_came_is_not_missing() -> None:
    record = DeliveryRecord()
    position = event_log_pb2.LogPosition(
        source_epoch=EPOCH, first_sequence=51, last_sequence=52, acknowledged_sequence=50
    )
    record.learn([position])
    assert record.missing() == [SequenceRange(EPOCH, 51, 52)]


def test_an_acknowledgement_that_nobody_gave_hides_nothing() -> None:
    record = DeliveryRecord()
    record.store(event(1))
    position = event_log_pb2.LogPosition(
        source_epoch=EPOCH, first_sequence=4, last_sequence=3, acknowledged_sequence=3
    )
    record.learn([position])
    assert record.missing() == [SequenceRange(EPOCH, 2, 3)]


def test_what_is_settled_is_no_longer_missing_and_no_event() -> None:
    record = DeliveryRecord()
    record.store(event(4))
    record.settle(SequenceRange(EPOCH, 1, 3))
    assert record.missing() == []
    assert record.contiguous(EPOCH) == 4
    assert sequences(record) == [4]
    assert sum(one.count for one in record.settled) == 3


ranges = st.tuples(st.integers(1, 60), st.integers(0, 8)).map(lambda pair: (pair[0], sum(pair)))


@given(st.lists(st.one_of(st.integers(1, 60), ranges), max_size=30))
def test_missing_is_what_a_set_of_numbers_would_say(steps: list[int | tuple[int, int]]) -> None:
    record, model = DeliveryRecord(), set[int]()
    for step in steps:
        if isinstance(step, int):
            record.store(event(step))
            model.add(step)
        else:
            record.settle(SequenceRange(EPOCH, *step))
            model |= set(range(step[0], step[1] + 1))
    found = {n for one in record.missing() for n in range(one.first, one.last + 1)}
    assert found == set(range(1, max(model, default=0) + 1)) - model
    assert sum(one.count for one in record.missing()) == len(found)
    highest = record.contiguous(EPOCH)
    assert set(range(1, highest + 1)) <= model
    assert highest + 1 not in model
