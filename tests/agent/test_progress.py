"""What is missing of a source: open while it may come, lost when nobody has it, never both."""

from hypothesis import given
from hypothesis import strategies as st

from daemoneye_agent.loss import LossReason, LossState
from daemoneye_agent.progress import MAX_TOLD_RANGES, SourceProgress

NOW_NS = 42


def nothing_stored(_: int) -> bool:
    return False


def make_progress(*arrived: int, gap_state: LossState = LossState.OPEN) -> SourceProgress:
    progress = SourceProgress(gap_state=gap_state)
    for sequence in arrived:
        progress.admit(sequence, NOW_NS, nothing_stored)
    return progress


def ranges(progress: SourceProgress) -> list[tuple[int, int, str]]:
    return [(gap.first, gap.last, gap.state.value) for gap in progress.missing]


def saved(progress: SourceProgress) -> SourceProgress:
    """As after a commit: everything has a row, and nothing is news."""
    for number, gap in enumerate(progress.take_changes().added, start=1):
        gap.loss_id, gap.is_news = number, False
    return progress


def test_contiguous_stops_below_the_first_range_that_may_still_come() -> None:
    progress = make_progress(1, 5, 9)
    assert progress.contiguous == 1
    progress.give_up(2, 4, "gone", NOW_NS)
    assert (progress.contiguous, progress.highest) == (5, 9)
    progress.give_up_open("gone")
    assert progress.contiguous == 9


def test_range_that_was_lost_does_not_hold_up_what_follows() -> None:
    assert make_progress(1, 5, gap_state=LossState.LOST).contiguous == 5


def test_part_of_an_open_range_is_given_up() -> None:
    progress = saved(make_progress(1, 20))
    progress.give_up(5, 9, "gone", NOW_NS)
    assert ranges(progress) == [(2, 4, "open"), (5, 9, "lost"), (10, 19, "open")]
    changes = progress.take_changes()
    assert [(gap.first, gap.last, gap.reason) for gap in changes.settled] == [(5, 9, "gone")]
    assert not any(gap.is_news for gap in changes.added), "the pieces were known as one range"


def test_piece_after_piece_that_is_given_up_for_one_reason_is_one_range() -> None:
    progress = saved(make_progress(1, 20))
    for first in range(2, 20, 3):
        progress.give_up(first, first + 2, "gone", NOW_NS)
    assert ranges(progress) == [(2, 19, "lost")]
    assert sum(gap.last - gap.first + 1 for gap in progress.take_changes().settled) == 18


def test_what_was_never_seen_is_given_up_and_what_lies_before_stays_open() -> None:
    progress = make_progress(1, 2)
    progress.give_up(5, 9, "gone", NOW_NS)
    assert ranges(progress) == [(3, 4, "open"), (5, 9, "lost")]
    assert (progress.highest, progress.contiguous) == (9, 2)


def test_what_arrived_is_not_given_up() -> None:
    progress = make_progress(1, 2, 3)
    progress.give_up(1, 3, "gone", NOW_NS)
    assert (ranges(progress), progress.contiguous) == ([], 3)


def test_lost_event_that_arrives_late_repairs_its_range() -> None:
    progress = make_progress(1, 5)
    progress.give_up_open("gone")
    assert progress.admit(3, NOW_NS, nothing_stored)
    assert not progress.admit(3, NOW_NS, nothing_stored)
    assert ranges(progress) == [(2, 2, "lost"), (4, 4, "lost")]


def test_only_what_was_given_up_for_want_of_a_collector_is_opened_again() -> None:
    progress = make_progress(1, 3, 5, 7)
    for sequence, reason in ((2, LossReason.AWAY), (4, "the log was full"), (6, "not received")):
        progress.give_up(sequence, sequence, reason, NOW_NS)
    progress.reopen()
    assert ranges(progress) == [(2, 2, "open"), (4, 4, "lost"), (6, 6, "open")]


def test_neighbours_that_are_lost_merge_before_an_open_range_is_given_up() -> None:
    progress = make_progress(1, 3, 5, 7, 9)
    progress.give_up(4, 8, "gone", NOW_NS)
    progress = saved(progress)
    assert progress.merge_oldest(2) == 2
    assert ranges(progress) == [(2, 2, "open"), (4, 8, "lost")]
    assert progress.merge_oldest(5) == 1
    assert ranges(progress) == [(2, 8, "lost")]
    (settled,) = progress.take_changes().settled
    assert (settled.first, settled.last, settled.reason) == (2, 2, LossReason.TOO_MANY)


def test_only_the_first_open_ranges_are_told() -> None:
    progress = make_progress(*range(1, 1_000, 2))
    told = progress.describe("procmond", 1, 7)
    assert (told.contiguous, told.highest, told.version) == (1, 999, 7)
    assert told.open_ranges == tuple((n, n) for n in range(2, 2 * MAX_TOLD_RANGES + 1, 2))


steps = st.lists(
    st.tuples(st.sampled_from(["admit", "give_up", "reopen", "save"]), st.integers(1, 40)),
    max_size=60,
)


@given(steps, st.integers(0, 6))
def test_every_sequence_is_received_open_or_lost_whatever_happens(
    script: list[tuple[str, int]], length: int
) -> None:
    progress = make_progress()
    received: set[int] = set()
    for what, at in script:
        match what:
            case "admit":
                assert progress.admit(at, NOW_NS, received.__contains__) is (at not in received)
                received.add(at)
            case "give_up":
                progress.give_up(at, at + length, LossReason.AWAY, NOW_NS)
            case "reopen":
                progress.reopen()
            case _:
                saved(progress)
    gaps = progress.missing
    missing = [number for gap in gaps for number in range(gap.first, gap.last + 1)]
    assert missing == sorted(set(missing))
    assert set(missing) == set(range(1, progress.highest + 1)) - received
    opened = [gap.first for gap in gaps if gap.is_open]
    assert progress.contiguous == (opened[0] - 1 if opened else progress.highest)
