"""A line leaves no position out, and has never many more losses than groups."""

from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.group import Envelope, Group
from daemoneye_eventbus.mailbox import DropReason
from daemoneye_eventbus.mailbox_line import MAX_RUN, Line, Loss


class Bytes:
    """Content of messages of one byte."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes

    def split(self, count: int) -> tuple["Bytes", "Bytes"]:
        return Bytes(count), Bytes(self.size_bytes - count)


def group_of(count: int) -> Group:
    return Group(Envelope(topic="a", source_id="a", count=count), Bytes(count))


reasons = st.sampled_from(DropReason)
counts = st.integers(1, 9)
steps = st.one_of(
    st.tuples(st.just("append"), counts),
    st.tuples(st.just("append_loss"), counts, reasons),
    st.tuples(st.just("append_loss"), counts, reasons),
    st.tuples(st.just("lose"), reasons),
    st.tuples(st.just("push"), counts, reasons),
    st.tuples(st.just("cut"), counts),
)


@given(st.lists(steps, max_size=60))
async def test_losses_stay_bounded_by_groups_and_every_position_has_an_entry(
    steps: list[tuple[object, ...]],
) -> None:
    line = Line(1_000)
    head = end = 1_000
    for step in steps:
        match step:
            case ("append", int() as count):
                line.append(group_of(count))
                end += count
            case ("append_loss", int() as count, DropReason() as reason):
                line.append_loss(Loss(count, count, reason))
                end += count
            case ("push", int() as count, DropReason() as reason):
                line.push(Loss(count, count, reason))
                head -= count
            case ("lose", DropReason() as reason) if line.message_count:
                line.lose_first_group(reason)
            case ("cut", int() as count) if (first := line.first_group) and first.count > 1:
                line.cut_first_group(count)
        groups = list(line.groups())
        assert line.loss_count <= MAX_RUN * (len(groups) + 1)
        assert (line.head, line.end) == (head, end)
        assert line.message_count == line.size_bytes == sum(group.count for group in groups)
    covered = head
    while line:
        assert line.head == covered
        covered += line.pop().count
    assert covered == end
    assert (line.message_count, line.size_bytes, line.loss_count) == (0, 0, 0)


def test_losses_of_one_reason_that_touch_are_one() -> None:
    line = Line()
    line.append_loss(Loss(2, 20, DropReason.FLUSHED))
    line.append_loss(Loss(3, 30, DropReason.FLUSHED))
    assert line.pop() == Loss(5, 50, DropReason.FLUSHED)


def test_one_loss_too_many_is_told_under_the_reason_that_lost_more() -> None:
    line = Line()
    for step in range(MAX_RUN):
        line.append_loss(Loss(1 + step % 2, 1, list(DropReason)[step % 2]))
    line.append_loss(Loss(9, 9, DropReason.EXPIRED))
    assert line.loss_count == MAX_RUN
    for _ in range(MAX_RUN - 1):
        line.pop()
    assert line.pop() == Loss(11, 10, DropReason.EXPIRED)


def test_find_says_which_group_has_a_position() -> None:
    line = Line()
    first, second = group_of(3), group_of(2)
    line.append(first)
    line.append_loss(Loss(2, 2, DropReason.EXPIRED))
    line.append(second)
    found = [line.find(position) for position in range(-1, 8)]
    assert found == [None, first, first, first, None, None, second, second, None]


def test_last_entry_comes_without_its_messages_that_are_done() -> None:
    line = Line()
    line.append(group_of(5))
    line.skip(2)
    line.skip(1)
    assert line.message_count == 3
    assert line.pop_last().count == 3
    assert (line.message_count, line.size_bytes, line.end) == (0, 0, 2)


def test_losing_the_first_group_leaves_the_losses_before_it_in_their_order() -> None:
    line = Line()
    line.append_loss(Loss(1, 10, DropReason.FLUSHED))
    line.append_loss(Loss(2, 20, DropReason.EXPIRED))
    line.append(group_of(3))
    line.lose_first_group(DropReason.DEADLINE)
    assert [line.pop() for _ in range(3)] == [
        Loss(1, 10, DropReason.FLUSHED),
        Loss(2, 20, DropReason.EXPIRED),
        Loss(3, 3, DropReason.DEADLINE),
    ]
