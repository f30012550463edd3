"""What was worked on is not worked on again: against plain sets."""

from hypothesis import given
from hypothesis import strategies as st

from collector_core.bus import ReceivedGroup
from collector_core.bus.processed import MAX_INTERVALS, MAX_MESSAGE_IDS, ProcessedMessages
from collector_core.bus.wire import encode_frames
from daemoneye.eventbus.v1.group_pb2 import GroupEnvelope


def group(first: int = 0, count: int = 1, source_id: str = "s", message_id: str = ""):
    envelope = GroupEnvelope(
        source_id=source_id,
        source_epoch=1,
        first_sequence=first,
        count=count,
        message_id=message_id,
    )
    frames = [f"{first + index}".encode() for index in range(count)]
    return ReceivedGroup(envelope, encode_frames(frames))


def numbers(groups: list[ReceivedGroup]) -> list[int]:
    found = []
    for one in groups:
        sequences = range(one.envelope.first_sequence, one.envelope.first_sequence + one.count)
        assert [int(frame) for frame in one.frames] == list(sequences)
        found += sequences
    return found


SPANS = st.tuples(st.integers(1, 60), st.integers(1, 12), st.sampled_from("st"))


@given(st.lists(SPANS, max_size=40), SPANS)
def test_messages_are_new_until_they_are_noted(
    noted: list[tuple[int, int, str]], asked: tuple[int, int, str]
) -> None:
    processed, known = ProcessedMessages(), set()
    for first, count, source in noted:
        processed.note(group(first, count, source).envelope)
        known |= {(source, first + index) for index in range(count)}
    first, count, source = asked
    new = [one for one in range(first, first + count) if (source, one) not in known]
    assert numbers(processed.without_known(group(first, count, source))) == new


def test_group_that_is_new_is_given_back_as_it_is() -> None:
    processed, one = ProcessedMessages(), group(5, 3)
    assert processed.without_known(one)[0] is one
    processed.note(group(1, 3).envelope)
    assert processed.without_known(one)[0] is one


def test_messages_without_a_sequence_are_told_by_their_id() -> None:
    processed = ProcessedMessages()
    processed.note(group(message_id="a").envelope)
    processed.note(group().envelope)
    assert processed.without_known(group(message_id="a")) == []
    assert len(processed.without_known(group(message_id="b"))) == 1
    assert len(processed.without_known(group(message_id="a", source_id="t"))) == 1
    assert len(processed.without_known(group())) == 1, "told by nothing, so never a repeat"


def test_memory_is_bounded_and_forgets_the_oldest_first() -> None:
    processed = ProcessedMessages()
    for index in range(MAX_INTERVALS + 1):
        processed.note(group(1 + 2 * index).envelope)
    assert numbers(processed.without_known(group(1))) == [1]
    assert processed.without_known(group(3)) == []
    for index in range(MAX_MESSAGE_IDS + 1):
        processed.note(group(message_id=f"m{index}").envelope)
    assert len(processed.without_known(group(message_id="m0"))) == 1
    assert processed.without_known(group(message_id="m1")) == []
