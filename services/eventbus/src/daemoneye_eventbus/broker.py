"""The broker itself: takes groups of encoded messages and fans them out to subscriptions.

Invariants:

* A batch is atomic: its publisher has every check behind it before the first group is delivered.
* A stalled subscriber delays nobody; what does not fit its mailbox is dropped there by its policy,
  counted, and told to it as a gap. The one exception is declared: publishers wait for a subscription
  with the policy ``block``, up to its deadline, once for each time that it stalls.
* Each subscription receives the messages of one publisher in the order they were published.
* The counts add up at every moment: an accepted message is offered once to each subscription that
  matches its topic, or unrouted; and over all subscriptions, ended ones included,
  ``offered == delivered + filtered + sum(dropped.values()) + pending``.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from daemoneye_eventbus.backpressure import Backpressure
from daemoneye_eventbus.consumer_group import ConsumerGroup, ConsumerGroups
from daemoneye_eventbus.errors import (
    BrokerDrainingError,
    InvalidSubscriptionError,
    SubscriptionLimitError,
    UnacknowledgedTopicError,
    require_within,
)
from daemoneye_eventbus.flow import Flow, FlowSum
from daemoneye_eventbus.group import Group
from daemoneye_eventbus.history import offer_history
from daemoneye_eventbus.mailbox import CloseReason, DropReason, OverflowPolicy
from daemoneye_eventbus.quota import Quota
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.retention import RetentionLimits, RetentionRing
from daemoneye_eventbus.router import Router
from daemoneye_eventbus.subscription import Subscription, SubscriptionTerms
from daemoneye_eventbus.tally import Tally, TallyTable
from daemoneye_mesh.limits import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES

__all__ = ["Broker", "BrokerLimits", "BrokerTotals", "Opening"]

Route = tuple[tuple[Subscription, int], ...]
Routes = dict[str, Route]


@dataclass(frozen=True, slots=True)
class BrokerLimits:
    """Every bound the broker holds."""

    max_subscriptions: int = 1_024
    max_patterns: int = 64
    """Patterns of one subscription."""
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_batch_messages: int = MAX_BATCH_MESSAGES
    max_batch_bytes: int = MAX_BATCH_BYTES
    default_mailbox_messages: int = 65_536
    """Messages queued for a subscriber that does not say."""
    max_mailbox_messages: int = 1_000_000
    """Most messages a subscriber may ask to be queued for it."""
    max_mailbox_bytes: int = 16 << 20
    """Bytes queued for a subscriber that does not say, and the most it may ask for."""
    max_remembered_messages: int = 65_536
    """Messages that a subscription remembers to tell repeats."""
    max_cached_topics: int = 16_384
    max_counted_topics: int = 10_000
    max_counted_publishers: int = 1_024


@dataclass(frozen=True, slots=True)
class Opening:
    """What a subscriber is told first."""

    subscription: Subscription
    is_resumed: bool
    is_history_complete: bool


@dataclass(frozen=True, slots=True)
class BrokerTotals:
    """Counts since the start, over all publishers, topics and subscriptions."""

    accepted: int
    accepted_bytes: int
    unrouted: int
    flow: Flow
    subscriptions: int
    retained: int
    retained_bytes: int


class Broker:
    """Routes published groups to subscriptions; to be used from one event loop.

    Args:
        limits: every bound.
        retention: how much of the past is kept for late joiners.
        quota: what each identity may hold; None sets no bounds.
        monotonic: seconds on a clock that is never set.
        wall_ns: nanoseconds since the Unix epoch, for people.
    """

    def __init__(
        self,
        limits: BrokerLimits | None = None,
        retention: RetentionLimits | None = None,
        quota: Quota | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.limits = limits or BrokerLimits()
        self.quota = quota or Quota()
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        self._router: Router[Subscription] = Router(self.limits.max_cached_topics)
        self._ring = RetentionRing(retention or RetentionLimits())
        self._subscriptions: dict[str, Subscription] = {}
        self._durable: dict[tuple[str, str], Subscription] = {}
        self._consumer_groups = ConsumerGroups()
        self._backpressure = Backpressure(monotonic)
        self._serial = count(1)
        self._topics = TallyTable(self.limits.max_counted_topics)
        self._publishers = TallyTable(self.limits.max_counted_publishers)
        self._accepted = Tally()
        self._ended = FlowSum()
        self._is_draining = False

    # -- subscribing ------------------------------------------------------------------------------

    def subscribe(self, identity: str, terms: SubscriptionTerms) -> Opening:
        """Opens a subscription, or goes on with a durable one of the same identity and label.

        Raises:
            BrokerDrainingError: the broker is shutting down.
            SubscriptionLimitError: too many subscriptions are open.
            QuotaError: the identity holds as much as it may.
            InvalidSubscriptionError: a bound or the number of patterns is out of range, or the terms
                do not go with those of the subscription or group that is there.
            InvalidPatternError: a pattern breaks the grammar.
        """
        self.require_open()
        self._require_grantable(terms)
        known = self._durable.get((identity, terms.label)) if terms.durability else None
        if known is not None:
            return self._resume(known, terms)
        return self._open(identity, terms)

    def update(self, subscription: Subscription, terms: SubscriptionTerms) -> None:
        """Gives a subscription other patterns and another selection; all of it, or nothing.

        Raises:
            InvalidSubscriptionError: too many patterns, or none; or the subscription has ended.
            InvalidPatternError: a pattern breaks the grammar.
        """
        if subscription.id not in self._subscriptions:
            raise InvalidSubscriptionError("the subscription has ended; open another one")
        self._require_patterns(terms)
        self._router.subscribe(subscription, terms.patterns)
        subscription.update(terms)

    def leave(self, subscription: Subscription) -> None:
        """Its stream ended: a durable subscription waits for its return, another one ends."""
        if subscription.id not in self._subscriptions:
            return
        is_over = self._is_draining or subscription.mailbox.close_reason is not None
        if subscription.terms.durability is None or is_over:
            self.end(subscription)
            return
        subscription.away_since_s = self._monotonic()
        subscription.mailbox.detach()

    def end(
        self, subscription: Subscription, reason: CloseReason = CloseReason.UNSUBSCRIBED
    ) -> None:
        """Ends a subscription for good; idempotent.

        What waits is dropped and counted, but for a member of a consumer group: what it leaves goes to
        the other members.
        """
        if self._subscriptions.pop(subscription.id, None) is None:
            return
        terms, mailbox = subscription.terms, subscription.mailbox
        self._router.unsubscribe(subscription)
        self._backpressure.discard(subscription)
        self._durable.pop((subscription.identity, terms.label), None)
        self.quota.release(subscription.identity, terms.limits.max_bytes)
        heirs = self._consumer_groups.leave(subscription)
        if heirs and not self._is_draining:
            self._hand_on(heirs, subscription)
        mailbox.close(reason)
        self._ended.add(mailbox.counters())

    # -- publishing -------------------------------------------------------------------------------

    async def publish(
        self, publisher: str, groups: Sequence[Group], receipt: Receipt | None = None
    ) -> int:
        """Offers a batch to everybody who subscribed to its topics; all of it, or nothing.

        Waits only where a subscription with the policy ``block`` has no room.

        Args:
            publisher: the verified identity it comes from.
            groups: verified, in order.
            receipt: settled when whoever acknowledges has acknowledged.

        Returns:
            The number of deliveries offered: messages times their subscriptions.

        Raises:
            BrokerDrainingError: the broker is shutting down.
            InvalidTopicError: a topic breaks the grammar.
            UnacknowledgedTopicError: there is a receipt, and a topic without a subscription that
                acknowledges.
        """
        self.require_open()
        routes = {group.topic: self._router.route(group.topic) for group in groups}
        if receipt is None:
            return await self._offer(publisher, groups, routes)
        _require_acknowledging(routes)
        with receipt.offering():
            expected = [group.with_receipt(receipt) for group in groups]
            return await self._offer(publisher, expected, routes)

    async def _offer(self, publisher: str, groups: Sequence[Group], routes: Routes) -> int:
        if self._backpressure.concerns(routes.values()):
            return await self._publish_patiently(publisher, groups)
        tally, now_s = self._publishers.of(publisher), self._monotonic()
        return sum(self._deliver(group, routes[group.topic], tally, now_s) for group in groups)

    def require_open(self) -> None:
        """Raises BrokerDrainingError once the broker is shutting down."""
        if self._is_draining:
            raise BrokerDrainingError

    def sweep(self) -> None:
        """Does what is due by time: redeliveries, expiry, the end of durable subscriptions."""
        now_s = self._monotonic()
        self._ring.trim(now_s)
        for subscription in list(self._subscriptions.values()):
            subscription.mailbox.expire(now_s)
            durability, away_s = subscription.terms.durability, subscription.away_since_s
            if durability and away_s is not None and now_s - away_s >= durability.duration_s:
                self.end(subscription, CloseReason.EXPIRED)

    def drain(self) -> None:
        """Takes nothing new and lets every subscriber have what is queued for it, then the end."""
        self._is_draining = True
        for subscription in list(self._subscriptions.values()):
            self._router.unsubscribe(subscription)
            subscription.mailbox.close(CloseReason.DRAINING, drain=True)
            if not subscription.is_attached:
                self.end(subscription, CloseReason.DRAINING)

    # -- counts -----------------------------------------------------------------------------------

    def totals(self) -> BrokerTotals:
        """Returns the counts since the start; costs one step per subscription."""
        flow = FlowSum()
        flow.add(self._ended.total())
        for subscription in self._subscriptions.values():
            flow.add(subscription.mailbox.counters())
        return BrokerTotals(
            accepted=self._accepted.messages,
            accepted_bytes=self._accepted.size_bytes,
            unrouted=self._accepted.unrouted,
            flow=flow.total(),
            subscriptions=len(self._subscriptions),
            retained=self._ring.message_count,
            retained_bytes=self._ring.size_bytes,
        )

    def topic_tallies(self) -> dict[str, Tally]:
        """Returns what was accepted by topic; topics beyond the bound count as ``_other``."""
        return self._topics.snapshot()

    def publisher_tallies(self) -> dict[str, Tally]:
        """Returns what was accepted by publisher; those beyond the bound count as ``_other``."""
        return self._publishers.snapshot()

    def subscriptions(self) -> list[Subscription]:
        """Returns the subscriptions, oldest first."""
        return list(self._subscriptions.values())

    # -- inside -----------------------------------------------------------------------------------

    def _open(self, identity: str, terms: SubscriptionTerms) -> Opening:
        if len(self._subscriptions) >= self.limits.max_subscriptions:
            raise SubscriptionLimitError(self.limits.max_subscriptions)
        name = f"subscription-{next(self._serial)}"
        subscription = Subscription(
            name,
            identity,
            terms,
            self._wall_ns(),
            self.limits.max_remembered_messages,
            self._monotonic,
        )
        self.quota.grant(identity, terms.limits.max_bytes)
        try:
            self._router.subscribe(subscription, terms.patterns)
            self._consumer_groups.join(subscription)
        except BaseException:
            self._router.unsubscribe(subscription)
            self.quota.release(identity, terms.limits.max_bytes)
            raise
        self._subscriptions[name] = subscription
        if terms.durability:
            self._durable[identity, terms.label] = subscription
        if terms.limits.policy is OverflowPolicy.BLOCK:
            self._backpressure.add(subscription)
        is_complete = offer_history(subscription, self._ring, self._monotonic())
        return Opening(subscription, False, is_complete)

    def _resume(self, subscription: Subscription, terms: SubscriptionTerms) -> Opening:
        for name in ("limits", "duplicates", "durability", "is_ordered"):
            if getattr(terms, name) != getattr(subscription.terms, name):
                raise InvalidSubscriptionError(
                    f"the durable subscription {terms.label} goes on with the bounds and the guarantee"
                    f" it was opened with, and its {name} would change; ask for the same, or"
                    " unsubscribe it first",
                    subscriber_id=terms.label,
                    changed=name,
                )
        self.update(subscription, terms)
        subscription.mailbox = subscription.mailbox.succeed()
        subscription.away_since_s = None
        return Opening(subscription, True, True)

    def _deliver(
        self,
        group: Group,
        route: Iterable[tuple[Subscription, int]],
        by_publisher: Tally,
        now_s: float,
    ) -> int:
        subscribers = 0
        shared: dict[str, list[tuple[Subscription, int]]] = {}
        for subscription, floor in route:
            if subscription.group_name:
                shared.setdefault(subscription.group_name, []).append((subscription, floor))
                continue
            subscription.offer(group, floor)
            subscribers += 1
            self._retire_if_closed(subscription)
        for name, candidates in shared.items():
            self._consumer_groups.offer(name, group, candidates)
            subscribers += 1
            for subscription, _ in candidates:
                self._retire_if_closed(subscription)
        self._ring.append(group, now_s)
        for tally in (self._topics.of(group.topic), by_publisher, self._accepted):
            tally.add(group.count, group.size_bytes, subscribers)
        return group.count * subscribers

    def _retire_if_closed(self, subscription: Subscription) -> None:
        if subscription.mailbox.close_reason is not None:
            # Its policy disconnected it: no longer routed to, but counted until the stream
            # that reads the rest of it ends and calls leave.
            self._router.unsubscribe(subscription)

    async def _publish_patiently(self, publisher: str, groups: Sequence[Group]) -> int:
        """Delivers group by group, so that a batch may be larger than the room there ever is."""
        offered = 0
        for group in groups:
            await self._backpressure.make_room(group, self._router.route)
            self.require_open()  # else it would count as accepted, and go to nobody
            route = self._router.route(group.topic)
            if group.receipt is not None and not _is_acknowledged(route):
                group.receipt.fail()  # whoever would have acknowledged has left meanwhile
            tally = self._publishers.of(publisher)
            offered += self._deliver(group, route, tally, self._monotonic())
        return offered

    def _hand_on(self, heirs: ConsumerGroup, subscription: Subscription) -> None:
        left = subscription.mailbox.withdraw()
        for group in heirs.hand_on(left):
            self._ended.recount(group.count, DropReason.MOVED, DropReason.CLOSED)
            if group.receipt is not None and subscription.terms.acknowledges:
                group.receipt.fail()
        for group in left:
            if group.receipt is not None and subscription.terms.acknowledges:
                group.receipt.settle(group.count)  # whoever has it now expects it again

    def _require_grantable(self, terms: SubscriptionTerms) -> None:
        limits, wanted = self.limits, terms.limits
        self._require_patterns(terms)
        require_within("max_messages", wanted.max_messages, 1, limits.max_mailbox_messages)
        # A mailbox smaller than one message could never deliver that message.
        require_within(
            "max_bytes", wanted.max_bytes, limits.max_message_bytes, limits.max_mailbox_bytes
        )

    def _require_patterns(self, terms: SubscriptionTerms) -> None:
        limits = self.limits
        if len(terms.patterns) > limits.max_patterns:
            raise InvalidSubscriptionError(
                f"the subscription has {len(terms.patterns)} patterns; use at most"
                f" {limits.max_patterns}",
                patterns=len(terms.patterns),
                maximum=limits.max_patterns,
            )


def _require_acknowledging(routes: Routes) -> None:
    for topic, route in routes.items():
        if not _is_acknowledged(route):
            raise UnacknowledgedTopicError(topic)


def _is_acknowledged(route: Route) -> bool:
    return any(subscription.terms.acknowledges for subscription, _ in route)
