"""The window tells repeats from new messages, by stretches as a plain set of keys would."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.duplicates import DuplicateWindow, Run
from daemoneye_eventbus.group import Envelope


def in_sequence(first: int, count: int = 1, source: str = "s", epoch: int = 1) -> Envelope:
    return Envelope(
        topic="events.a", source_id=source, source_epoch=epoch, first_sequence=first, count=count
    )


def with_id(message_id: str, source: str = "s") -> Envelope:
    return Envelope(topic="events.a", source_id=source, message_id=message_id)


def keys_of(envelope: Envelope) -> Iterator[Hashable]:
    for offset in range(envelope.count):
        if envelope.first_sequence:
            sequence = envelope.first_sequence + offset
            yield envelope.source_id, envelope.source_epoch, sequence
        else:
            yield (envelope.source_id, envelope.message_id) if envelope.message_id else None


groups = st.one_of(
    st.builds(
        in_sequence,
        st.integers(1, 30),
        st.integers(1, 8),
        st.sampled_from(["s", "t"]),
        st.integers(1, 2),
    ),
    st.builds(with_id, st.sampled_from(["", "1", "2", "3"]), st.sampled_from(["s", "t"])),
)


def test_group_is_new_once_and_a_repeat_from_then_on() -> None:
    window = DuplicateWindow()
    assert list(window.sift(in_sequence(1, 100))) == [Run(0, 100, False)]
    assert list(window.sift(in_sequence(101, 100))) == [Run(0, 100, False)]
    for first in (1, 101, 51):
        assert list(window.sift(in_sequence(first, 100))) == [Run(0, 100, True)]


def test_group_that_overlaps_is_split_where_the_new_messages_begin_and_end() -> None:
    window = DuplicateWindow()
    window.sift(in_sequence(10, 10))
    assert list(window.sift(in_sequence(15, 10))) == [Run(0, 5, True), Run(5, 5, False)]
    assert list(window.sift(in_sequence(1, 30))) == [
        Run(0, 9, False),
        Run(9, 15, True),
        Run(24, 6, False),
    ]
    assert list(window.sift(in_sequence(1, 30))) == [Run(0, 30, True)]


def test_hole_that_is_filled_joins_what_is_around_it() -> None:
    window = DuplicateWindow(10)
    for first, count in ((1, 3), (7, 3), (4, 3)):
        assert list(window.sift(in_sequence(first, count))) == [Run(0, count, False)]
    assert_bounded(window, 1)
    assert list(window.sift(in_sequence(1, 9))) == [Run(0, 9, True)]
    window.sift(in_sequence(1, 10, "t"))
    assert_bounded(window, 1)
    assert list(window.sift(in_sequence(1, 9))) == [Run(0, 9, False)]


def test_message_without_sequence_and_id_is_never_a_repeat() -> None:
    window = DuplicateWindow(2)
    for _ in range(5):
        assert list(window.sift(with_id(""))) == [Run(0, 1, False)]
    assert window.position_of(with_id(""), 0) is None


def test_message_without_sequence_is_told_by_source_and_id() -> None:
    window = DuplicateWindow()
    firsts = [with_id("1"), with_id("2"), with_id("1", "t")]
    assert [run.is_repeat for one in firsts for run in window.sift(one)] == [False] * 3
    assert [run.is_repeat for one in firsts for run in window.sift(one)] == [True] * 3


def test_sequence_is_told_apart_by_source_and_epoch() -> None:
    window = DuplicateWindow()
    for source, epoch in (("s", 1), ("s", 2), ("t", 1)):
        assert list(window.sift(in_sequence(1, 3, source, epoch))) == [Run(0, 3, False)]


def test_id_of_digits_is_not_taken_for_an_epoch() -> None:
    window = DuplicateWindow()
    window.sift(in_sequence(1, 5, epoch=1))
    assert list(window.sift(with_id("1"))) == [Run(0, 1, False)]


def test_sequence_wins_over_the_id_where_there_are_both() -> None:
    window = DuplicateWindow()
    for sequence in (1, 2):
        both = Envelope(
            topic="events.a",
            source_id="s",
            source_epoch=1,
            first_sequence=sequence,
            message_id="same",
        )
        assert list(window.sift(both)) == [Run(0, 1, False)]


def test_last_messages_are_remembered_and_one_before_them_may_be_offered_anew() -> None:
    window = DuplicateWindow(3)
    for message_id in "abc":
        window.sift(with_id(message_id))
    assert list(window.sift(with_id("a"))) == [Run(0, 1, True)]
    window.sift(with_id("d"))
    assert [window.sift(with_id(one))[0].is_repeat for one in "cadb"] == [True, True, True, False]


def test_source_that_goes_on_is_remembered_from_its_beginning() -> None:
    window = DuplicateWindow(10)
    for first in range(1, 1_000, 5):
        window.sift(in_sequence(first, 5))
    assert list(window.sift(in_sequence(1, 1_000))) == [Run(0, 1_000, True)]


def test_source_that_fell_silent_is_forgotten() -> None:
    window = DuplicateWindow(10)
    window.sift(in_sequence(1, 5, "silent"))
    window.sift(in_sequence(1, 9))
    assert list(window.sift(in_sequence(1, 5, "silent"))) == [Run(0, 5, True)]
    window.sift(in_sequence(10, 10))
    assert list(window.sift(in_sequence(1, 5, "silent"))) == [Run(0, 5, False)]


def test_position_of_a_message_is_where_its_first_copy_was_put() -> None:
    window = DuplicateWindow()
    for envelope, position in ((in_sequence(1, 10), 100), (with_id("a"), 110)):
        window.sift(envelope)
        window.remember(envelope, position)
    window.sift(in_sequence(11, 10))
    window.remember(in_sequence(11, 10), 200)
    assert window.position_of(in_sequence(5, 10), 0) == 104
    assert window.position_of(in_sequence(5, 10), 9) == 203
    assert window.position_of(with_id("a"), 0) == 110
    assert window.position_of(in_sequence(20, 2), 1) is None
    assert window.position_of(in_sequence(1, epoch=2), 0) is None


def test_first_position_stays_when_another_one_is_told() -> None:
    window = DuplicateWindow()
    window.sift(in_sequence(1, 4))
    window.remember(in_sequence(1, 4), 10)
    window.remember(in_sequence(1, 4), 50)
    assert [window.position_of(in_sequence(1, 4), offset) for offset in range(4)] == [
        10,
        11,
        12,
        13,
    ]


@given(st.lists(groups, max_size=40))
def test_window_that_never_fills_agrees_with_a_set_of_keys(offered: list[Envelope]) -> None:
    window = DuplicateWindow(1_000_000)
    seen: set[Hashable] = set()
    for envelope in offered:
        told = tell(window, envelope)
        keys = list(keys_of(envelope))
        assert told == [key is not None and key in seen for key in keys]
        seen.update(keys)


@given(st.lists(groups, max_size=80), st.integers(1, 30))
def test_full_window_remembers_the_last_messages_and_invents_none(
    offered: list[Envelope], max_messages: int
) -> None:
    window = DuplicateWindow(max_messages)
    ever: set[Hashable] = set()
    lately: OrderedDict[Hashable, int] = OrderedDict()
    now = 0
    for envelope in offered:
        keys = [key for key in keys_of(envelope) if key is not None]
        told = tell(window, envelope)
        for key, is_repeat in zip(keys, told, strict=False):
            if now - lately.get(key, -max_messages) < max_messages:
                assert is_repeat
            assert key in ever or not is_repeat
        for key in keys:
            now += 1
            lately[key] = now
        ever.update(keys)
        assert_bounded(window, max_messages + 8)


@given(st.lists(groups, max_size=80), st.integers(1, 40))
def test_known_position_is_that_of_the_latest_copy_that_was_new(
    offered: list[Envelope], max_messages: int
) -> None:
    window = DuplicateWindow(max_messages)
    placed: dict[Hashable, int] = {}
    next_position = 0
    for envelope in offered:
        keys = list(keys_of(envelope))
        positions = [window.position_of(envelope, offset) for offset in range(envelope.count)]
        assert all(
            position is None or position == placed[key]
            for key, position in zip(keys, positions, strict=True)
        )
        for run in window.sift(envelope):
            if run.is_repeat:
                continue
            part = envelope.split(run.offset)[1] if run.offset else envelope
            part = part.split(run.count)[0]
            window.remember(part, next_position)
            for key in keys_of(part):
                placed[key] = next_position
                next_position += 1
            for offset in range(part.count):
                expected = next_position - part.count + offset
                has_name = bool(part.first_sequence or part.message_id)
                assert window.position_of(part, offset) == (expected if has_name else None)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stretches_stay_bounded_whatever_the_order(step: int) -> None:
    window = DuplicateWindow(100)
    for position, sequence in enumerate([*range(1, 2_000, step), *range(2_000, 0, -step)]):
        window.sift(in_sequence(sequence))
        window.remember(in_sequence(sequence), position)
        assert_bounded(window, 101)


def tell(window: DuplicateWindow, envelope: Envelope) -> list[bool]:
    """Returns for each message of a group whether it is a repeat, and checks the runs."""
    told: list[bool] = []
    for run in window.sift(envelope):
        assert run.offset == len(told)
        assert run.count > 0
        told += [run.is_repeat] * run.count
    assert len(told) == envelope.count
    return told


def assert_bounded(window: DuplicateWindow, limit: int) -> None:
    for table in (window._offered, window._placed):
        stretches = [one for some in table._by_key.values() for one in some]
        assert len(stretches) == len(table._touched) <= limit
        assert all(table._by_key.values())
        assert set(stretches) == set(table._touched)
