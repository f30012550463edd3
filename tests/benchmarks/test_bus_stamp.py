"""The stamp of an event, and the accounts that subscribers keep by it."""

import time
from pathlib import Path

import pytest
from benchmarks.bus_event import FRAME_BYTES, SOURCE_ID, TOPIC, make_template
from benchmarks.bus_stamp import SAMPLE_EVENTS, Progress, Source, Tally
from hypothesis import given
from hypothesis import strategies as st

from daemoneye.eventbus.v1 import eventbus_pb2

TEMPLATE = make_template()


@pytest.fixture
def progress(tmp_path: Path) -> Progress:
    path = tmp_path / "progress"
    Progress.create(path, 2)
    return Progress(path, 2)


def frames(*sequences: int) -> list[bytes]:
    """Events with these numbers, in this order."""
    made = Source(TEMPLATE).take(max(sequences))
    return [made[sequence - 1] for sequence in sequences]


def test_event_is_a_valid_message_of_the_promised_size() -> None:
    for frame in Source(TEMPLATE).take(3):
        message = eventbus_pb2.EventBusMessage.FromString(frame)
        assert len(frame) == FRAME_BYTES
        assert message.metadata.topic == TOPIC
        assert message.metadata.source_id == SOURCE_ID
        assert message.collection_event.process_event.process.pid
        assert message.SerializeToString() == frame


def test_source_numbers_from_one_over_any_number_of_batches(progress: Progress) -> None:
    source, tally = Source(TEMPLATE), Tally(TEMPLATE, progress, 0)
    for count in (1, 5, 0, 3):
        tally.take_all(source.take(count))
    assert (source.count, tally.delivered, tally.last, tally.duplicates) == (9, 9, 9, 0)


def test_tally_tells_losses_from_repeats(progress: Progress) -> None:
    tally = Tally(TEMPLATE, progress, 0)
    for frame in frames(1, 2, 5, 5, 4, 7):
        tally.take(frame)
    assert (tally.received, tally.delivered, tally.duplicates, tally.last) == (6, 4, 2, 7)


@given(st.lists(st.integers(1, 40), min_size=1))
def test_tally_counts_alike_one_by_one_and_together(
    tmp_path_factory: pytest.TempPathFactory, sequences: list[int]
) -> None:
    path = tmp_path_factory.mktemp("tally") / "progress"
    Progress.create(path, 2)
    one_by_one, together = (Tally(TEMPLATE, Progress(path, 2), slot) for slot in (0, 1))
    for frame in frames(*sequences):
        one_by_one.take(frame)
    together.take_all(frames(*sequences))
    accounts = [(one.received, one.delivered, one.last) for one in (one_by_one, together)]
    assert accounts[0] == accounts[1]


def test_latency_runs_from_the_making_to_the_receipt(progress: Progress) -> None:
    tally = Tally(TEMPLATE, progress, 0, is_timed=True)
    begun_ns = time.monotonic_ns()
    tally.take_all(Source(TEMPLATE).take(10))
    assert len(tally.latencies_ns) == 10
    assert all(0 <= one <= time.monotonic_ns() - begun_ns for one in tally.latencies_ns)


def test_progress_tells_the_slowest_subscription(progress: Progress, tmp_path: Path) -> None:
    made = Source(TEMPLATE).take(2 * SAMPLE_EVENTS)
    ahead, behind = (Tally(TEMPLATE, progress, slot) for slot in (0, 1))
    for frame in made:
        ahead.take(frame)
    behind.take_all(made[:5])
    behind.take_all(made[5 : SAMPLE_EVENTS + 1])
    elsewhere = Progress(tmp_path / "progress", 2)
    assert elsewhere.least == SAMPLE_EVENTS + 1
    assert [count for _ns, count in ahead.samples] == [SAMPLE_EVENTS, 2 * SAMPLE_EVENTS]
    assert [count for _ns, count in behind.samples] == [SAMPLE_EVENTS + 1]


def test_tally_recognises_the_event_by_all_but_its_stamp(progress: Progress) -> None:
    tally = Tally(TEMPLATE, progress, 0)
    frame = frames(3)[0]
    assert tally.recognises(frame)
    assert not tally.recognises(frame[:-1])
    assert not tally.recognises(b"\x00" + frame[1:])


def test_damaged_event_is_counted_where_it_is_looked_at(progress: Progress) -> None:
    made = Source(TEMPLATE).take(SAMPLE_EVENTS)
    tally = Tally(TEMPLATE, progress, 0)
    tally.take_all([*made[:-1], b"\x00" + made[-1][1:]])
    assert tally.damaged == 1
