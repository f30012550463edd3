"""Publishers that wait for subscriptions with the policy ``block``.

Invariant: a publisher waits for one subscription at most as long as that declared, and for one that
has let it wait in vain not again before half of its queue is free; so a subscriber that does not
read costs its publishers one deadline, not one for each batch.
"""

from collections.abc import Callable, Iterable

from daemoneye_eventbus.group import Group
from daemoneye_eventbus.mailbox import Mailbox
from daemoneye_eventbus.subscription import Subscription

__all__ = ["Backpressure"]

Route = Iterable[tuple[Subscription, int]]


class Backpressure:
    """The subscriptions that publishers wait for.

    Args:
        monotonic: seconds on a clock that is never set.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._blocking: set[Subscription] = set()

    def add(self, subscription: Subscription) -> None:
        """Makes publishers wait for a subscription."""
        self._blocking.add(subscription)

    def discard(self, subscription: Subscription) -> None:
        """Makes them wait no longer."""
        self._blocking.discard(subscription)

    def concerns(self, routes: Iterable[Route]) -> bool:
        """Whether any of the routes leads to a subscription that publishers wait for."""
        blocking = self._blocking
        return bool(blocking) and any(one in blocking for route in routes for one, _ in route)

    async def make_room(self, group: Group, route: Callable[[str], Route]) -> None:
        """Returns when a group has room everywhere, or has waited for it as long as declared.

        Args:
            group: about to be delivered.
            route: gives the subscriptions of a topic; asked again after each wait.
        """
        begun_s = self._monotonic()
        while (crowded := self._find_crowded(group, route(group.topic))) is not None:
            left_s = begun_s + crowded.limits.block_timeout_s - self._monotonic()
            await crowded.wait_for_room(group.count, group.size_bytes, max(left_s, 0.0))

    def _find_crowded(self, group: Group, route: Route) -> Mailbox | None:
        for subscription, floor in route:
            mailbox = subscription.mailbox
            if (
                subscription in self._blocking
                and mailbox.is_blocking
                and not _has_room(mailbox, group)
                and subscription.lets_through(group.envelope, floor)
            ):
                return mailbox
        return None


def _has_room(mailbox: Mailbox, group: Group) -> bool:
    """Whether there is as much room for a group as there can ever be for it."""
    limits = mailbox.limits
    return mailbox.has_room(
        min(group.count, limits.max_messages), min(group.size_bytes, limits.max_bytes)
    )
