"""Subscribers that share the work: a message that passes several of them goes to one.

Invariant: the choice depends on the members and on what waits for them, never on who published.
With an ordered group each source keeps its member while the membership stands.
"""

from collections.abc import Sequence
from hashlib import blake2b

from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_eventbus.group import Group
from daemoneye_eventbus.subscription import Subscription

__all__ = ["ConsumerGroup", "ConsumerGroups"]


class ConsumerGroup:
    """The members of one group."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._members: list[Subscription] = []
        self._turn = 0

    def __len__(self) -> int:
        return len(self._members)

    def join(self, member: Subscription) -> None:
        """Adds a member.

        Raises:
            InvalidSubscriptionError: it asks for another guarantee or order than the others.
        """
        for other in self._members[:1]:
            theirs, its = other.terms, member.terms
            if theirs.acknowledges != its.acknowledges or theirs.is_ordered != its.is_ordered:
                raise InvalidSubscriptionError(
                    f"consumer group {its.consumer_group} has members with another delivery_guarantee or"
                    " ordered_delivery; ask for the same, or choose another group",
                    consumer_group=its.consumer_group,
                )
        self._members.append(member)

    def leave(self, member: Subscription) -> None:
        """Removes a member."""
        self._members.remove(member)

    def offer(self, group: Group, candidates: Sequence[tuple[Subscription, int]]) -> None:
        """Offers a group to one of the members whose patterns match it, with their floors."""
        passing = [
            (member, floor)
            for member, floor in candidates
            if member.lets_through(group.envelope, floor)
        ]
        # Where nobody lets it through, one of them has to count it.
        member, floor = self._choose(group, passing) if passing else candidates[0]
        member.offer(group, floor)

    def hand_on(self, groups: Sequence[Group]) -> list[Group]:
        """Offers what a member left behind to the others; returns what none of them lets through."""
        orphaned = []
        for group in groups:
            heirs = [(one, floor) for one in self._members for floor in _open_floors(one, group)]
            if heirs:
                self.offer(group, heirs)
            else:
                orphaned.append(group)
        return orphaned

    def _choose(
        self, group: Group, passing: Sequence[tuple[Subscription, int]]
    ) -> tuple[Subscription, int]:
        if passing[0][0].terms.is_ordered:
            return max(passing, key=lambda one: _weight(group.envelope.source_id, one[0].id))
        self._turn += 1
        first = self._turn % len(passing)
        in_turn = [*passing[first:], *passing[:first]]
        return min(in_turn, key=lambda one: one[0].mailbox.pending_count)


class ConsumerGroups:
    """All groups by name; one without members does not exist."""

    def __init__(self) -> None:
        self._groups: dict[str, ConsumerGroup] = {}

    def join(self, subscription: Subscription) -> None:
        """Adds a subscription to the group it asked for, if any.

        Raises:
            InvalidSubscriptionError: it asks for another guarantee or order than the others.
        """
        name = subscription.group_name
        if name:
            group = self._groups.get(name) or ConsumerGroup(name)
            group.join(subscription)
            self._groups[name] = group

    def leave(self, subscription: Subscription) -> ConsumerGroup | None:
        """Removes a subscription; returns its group when somebody is left in it."""
        group = self._groups.get(subscription.group_name)
        if group is None:
            return None
        group.leave(subscription)
        if len(group):
            return group
        del self._groups[group.name]
        return None

    def offer(
        self, name: str, group: Group, candidates: Sequence[tuple[Subscription, int]]
    ) -> None:
        """Offers messages to one member; see ``ConsumerGroup.offer``."""
        self._groups[name].offer(group, candidates)


def _open_floors(member: Subscription, group: Group) -> list[int]:
    """The floor under which a member that is still open lets a group through, if it does."""
    floor = member.floor_of(group.topic)
    is_open = member.mailbox.close_reason is None
    if floor is None or not is_open or not member.lets_through(group.envelope, floor):
        return []
    return [floor]


def _weight(source_id: str, member_id: str) -> bytes:
    """Rendezvous hashing: whoever else comes or goes, a source keeps its member."""
    return blake2b(f"{source_id}\0{member_id}".encode(), digest_size=8).digest()
