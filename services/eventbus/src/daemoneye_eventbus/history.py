"""What a new subscription gets of the past, before anything newer.

Invariant: it is offered in the order in which it was accepted, and all at once, so that nothing comes
twice or between what is retained and what is published next.
"""

from math import inf

from daemoneye_eventbus.group import Group
from daemoneye_eventbus.retention import RetentionRing
from daemoneye_eventbus.subscription import HistoryTerms, Subscription

__all__ = ["offer_history"]


def offer_history(subscription: Subscription, ring: RetentionRing, now_s: float) -> bool:
    """Offers what is retained and asked for; returns whether that reaches back as far as asked."""
    asked = subscription.terms.history
    if asked is None:
        return True
    ring.trim(now_s)
    since_s = now_s - asked.max_age_s if asked.max_age_s else -inf
    offers, left_count = _select(subscription, ring, asked, since_s, now_s)
    for group, floor in reversed(offers):
        subscription.offer(group, floor)
    is_satisfied = bool(asked.max_messages) and left_count == 0
    return is_satisfied or ring.reaches_back_to(since_s)


def _select(
    subscription: Subscription,
    ring: RetentionRing,
    asked: HistoryTerms,
    since_s: float,
    now_s: float,
) -> tuple[list[tuple[Group, int]], int]:
    """Returns what passes, the latest first, and how many messages more were asked for."""
    floors: dict[str, int | None] = {}  # matching a topic costs more than all else here
    offers: list[tuple[Group, int]] = []
    left_count = asked.max_messages or ring.message_count
    for group in ring.latest_first(since_s, now_s):
        if left_count == 0:
            break
        if group.topic not in floors:
            floors[group.topic] = subscription.floor_of(group.topic)
        floor = floors[group.topic]
        if floor is None or not subscription.lets_through(group.envelope, floor):
            continue
        part = group if group.count <= left_count else group.split(group.count - left_count)[1]
        left_count -= part.count
        offers.append((part, floor))
    return offers, left_count
