"""Groups and losses in a row, without a position left out.

Invariants:

* From ``head`` to ``end`` each position belongs to one entry, which is a group or a loss.
* Losses that touch are one when their reason is one. At most ``MAX_RUN`` losses follow each other
  without a group between them: one more is merged into its neighbour under the reason that lost
  more. So there are at most ``MAX_RUN * (groups + 1)`` losses, and groups are bounded by whoever
  puts them here.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import cast

from daemoneye_eventbus.group import Group
from daemoneye_eventbus.mailbox_delivery import DropReason

__all__ = ["Line", "Loss", "TimedGroup", "fit_group"]

MAX_RUN = len(DropReason)


@dataclass(frozen=True, slots=True)
class Loss:
    """Messages that are missing from here."""

    count: int
    size_bytes: int
    reason: DropReason

    def merge(self, later: "Loss") -> "Loss":
        """Returns both as one, under the reason that lost more."""
        reason = self.reason if self.count >= later.count else later.reason
        return Loss(self.count + later.count, self.size_bytes + later.size_bytes, reason)

    def skip(self, count: int) -> "Loss":
        """Returns what is left behind the first messages; its size is in proportion."""
        left = self.count - count
        return Loss(left, self.size_bytes * left // self.count, self.reason)


class TimedGroup(Group):
    """A group that may wait until ``deadline_s`` on a monotonic clock."""

    __slots__ = ("deadline_s",)

    def __init__(self, group: Group, deadline_s: float) -> None:
        super().__init__(group.envelope, group.content, group.receipt)
        self.deadline_s = deadline_s

    def split(self, count: int) -> tuple[Group, Group]:
        """Returns the first ``count`` messages and the others, with the same deadline."""
        first, second = super().split(count)
        return TimedGroup(first, self.deadline_s), TimedGroup(second, self.deadline_s)

    def without_timer(self, now_s: float) -> Group:
        """Returns a group whose messages may wait for what is left of their time."""
        ttl_ms = max(1, ceil((self.deadline_s - now_s) * 1000))
        return Group(replace(self.envelope, ttl_ms=ttl_ms), self.content, self.receipt)


class Line:
    """A row of groups and losses; see the module docstring.

    Attributes:
        end: position after the last entry.
        message_count: messages in groups, less those done.
        size_bytes: size of the groups.
        loss_count: number of losses.
        timed_count: number of groups with a deadline.
        done_count: messages of the first entry, a group, that are done. They are kept until the
            whole group is, because cutting it for each would cost the group each time.
    """

    __slots__ = (
        "_entries",
        "_starts",
        "done_count",
        "end",
        "loss_count",
        "message_count",
        "size_bytes",
        "timed_count",
    )

    def __init__(self, end: int = 0) -> None:
        self._entries: deque[Group | Loss] = deque()
        self._starts: deque[int] = deque()  # position of each entry, for the search
        self.end = end
        self.message_count = 0
        self.size_bytes = 0
        self.loss_count = 0
        self.timed_count = 0
        self.done_count = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def head(self) -> int:
        """Position of the first entry."""
        return self._starts[0] if self._starts else self.end

    @property
    def front(self) -> Group | Loss:
        """The first entry; there must be one."""
        return self._entries[0]

    @property
    def first_group(self) -> Group | None:
        """The first group, which losses may precede."""
        index = self._first_group_index()
        if index == len(self._entries):
            return None
        return cast("Group", self._entries[index])

    def groups(self) -> Iterator[Group]:
        """Yields the groups in order."""
        return (entry for entry in self._entries if isinstance(entry, Group))

    def append(self, group: Group) -> None:
        """Adds a group at the end."""
        self._entries.append(group)
        self._starts.append(self.end)
        self.end += group.count
        self._count(group)

    def append_loss(self, loss: Loss) -> None:
        """Adds a loss at the end."""
        last = self._entries[-1] if self._entries else None
        if isinstance(last, Loss) and self._is_mergeable(last, loss, reversed(self._entries)):
            self._entries[-1] = last.merge(loss)
        else:
            self._entries.append(loss)
            self._starts.append(self.end)
            self.loss_count += 1
        self.end += loss.count

    def push(self, entry: Group | Loss) -> None:
        """Adds an entry before the head; it has the positions just before."""
        start = self.head - entry.count
        front = self._entries[0] if self._entries else None
        if isinstance(entry, Group):
            self._count(entry)
        elif isinstance(front, Loss) and self._is_mergeable(front, entry, iter(self._entries)):
            self._entries[0], self._starts[0] = entry.merge(front), start
            return
        else:
            self.loss_count += 1
        self._entries.appendleft(entry)
        self._starts.appendleft(start)

    def pop(self) -> Group | Loss:
        """Takes the first entry out, messages of it that are done included."""
        entry = self._entries.popleft()
        self._starts.popleft()
        self._uncount(entry)
        self.message_count += self.done_count
        self.done_count = 0
        return entry

    def pop_last(self) -> Group | Loss:
        """Takes the last entry out; messages of it that are done are cut off."""
        if self.done_count and len(self._entries) == 1:
            done_count, group = self.done_count, cast("Group", self.pop())
            self.end -= group.count - done_count
            return group.split(done_count)[1]
        entry = self._entries.pop()
        self._starts.pop()
        self._uncount(entry)
        self.end -= entry.count
        return entry

    def pop_all(self) -> list[Group]:
        """Takes everything out; there must be neither losses nor anything done."""
        groups = cast("list[Group]", list(self._entries))
        self.clear()
        return groups

    def clear(self) -> None:
        """Forgets everything; the positions go on."""
        self._entries.clear()
        self._starts.clear()
        self.message_count = self.size_bytes = self.loss_count = self.timed_count = 0
        self.done_count = 0

    def extend(self, groups: Iterable[Group]) -> None:
        """Adds groups at the end."""
        for group in groups:
            self.append(group)

    def lose_first_group(self, reason: DropReason) -> Group:
        """Puts a loss in the place of the first group and returns the group; there must be one."""
        before: list[Loss] = []
        while isinstance(entry := self.pop(), Loss):
            before.append(entry)
        self.push(Loss(entry.count, entry.size_bytes, reason))
        for loss in reversed(before):
            self.push(loss)
        return entry

    def cut_first_group(self, count: int) -> None:
        """Cuts the first group, so that pieces of about ``count`` messages can be taken off it.

        A group much larger is halved. Cutting a piece off a group costs as much as the group has
        messages, so taking one after the other off its front would cost their square.
        """
        index = self._first_group_index()
        group, start = cast("Group", self._entries[index]), self._starts[index]
        is_near = count < group.count <= 4 * count
        pieces = group.split(count if is_near else group.count // 2)
        self._put_in_place(index, start, pieces)

    def skip(self, end: int) -> None:
        """Notes that the messages of the first entry before ``end`` are done.

        ``end`` is inside the entry. A loss is shortened at once.
        """
        front, done_count = self._entries[0], end - self._starts[0]
        if isinstance(front, Loss):
            self._entries[0], self._starts[0] = front.skip(done_count), end
        elif done_count > self.done_count:
            self.message_count -= done_count - self.done_count
            self.done_count = done_count

    def find(self, position: int) -> Group | None:
        """Returns the group that has a position; None when it is lost or not here."""
        if not self.head <= position < self.end:
            return None
        entry = self._entries[bisect_right(self._starts, position) - 1]
        return entry if isinstance(entry, Group) else None

    def isolate(self, position: int) -> Group | None:
        """Cuts the group that has a position so that this message is a group; None if there is none."""
        group = self.find(position)
        if group is None or group.count == 1:
            return group
        index = bisect_right(self._starts, position) - 1
        start = self._starts[index]
        pieces: list[Group] = []
        if position > start:
            before, group = group.split(position - start)
            pieces.append(before)
        single, *after = group.split(1) if group.count > 1 else (group,)
        self._put_in_place(index, start, [*pieces, single, *after])
        return single

    def replace(self, position: int, group: Group) -> None:
        """Puts a group of one message in the place of another one."""
        index = bisect_right(self._starts, position) - 1
        self._put_in_place(index, position, (group,))

    def _put_in_place(self, index: int, start: int, pieces: Iterable[Group]) -> None:
        """Puts groups with as many messages in the place of one."""
        self._uncount(self._entries[index])
        del self._entries[index], self._starts[index]
        for step, piece in enumerate(pieces):
            self._entries.insert(index + step, piece)
            self._starts.insert(index + step, start)
            start += piece.count
            self._count(piece)

    def _first_group_index(self) -> int:
        # At most one run of losses precedes it, so this is short.
        for index, entry in enumerate(self._entries):
            if isinstance(entry, Group):
                return index
        return len(self._entries)

    def _count(self, group: Group) -> None:
        self.message_count += group.count
        self.size_bytes += group.size_bytes
        if type(group) is TimedGroup:
            self.timed_count += 1

    def _uncount(self, entry: Group | Loss) -> None:
        if isinstance(entry, Loss):
            self.loss_count -= 1
            return
        self.message_count -= entry.count
        self.size_bytes -= entry.size_bytes
        if type(entry) is TimedGroup:
            self.timed_count -= 1

    def _is_mergeable(self, one: Loss, other: Loss, run: Iterator[Group | Loss]) -> bool:
        if one.reason is other.reason:
            return True
        nearest = list(islice(run, MAX_RUN))
        return len(nearest) == MAX_RUN and all(isinstance(entry, Loss) for entry in nearest)


def fit_group(
    group: Group, max_messages: int, max_bytes: int, *, from_end: bool = False
) -> tuple[list[Group], list[Group]]:
    """Returns the longest beginning, or end, of a group that fits, and the rest of it.

    Both come in pieces and in order; the bounds hold for the pieces together.
    """
    kept: list[Group] = []
    rest = [group]  # a stack: the piece nearest to what is kept is the last
    while rest and max_messages > 0:
        piece = rest.pop()
        if piece.count <= max_messages and piece.size_bytes <= max_bytes:
            kept.append(piece)
            max_messages -= piece.count
            max_bytes -= piece.size_bytes
            continue
        if piece.count == 1:
            rest.append(piece)
            break
        near_count = max_messages if piece.count > max_messages else piece.count // 2
        near, far = piece.split(piece.count - near_count if from_end else near_count)
        rest += (near, far) if from_end else (far, near)
    return (kept[::-1], rest) if from_end else (kept, rest[::-1])
