"""The broker itself: takes batches of encoded messages and fans them out to mailboxes.

Invariants:

* A batch is atomic: every message is checked before the first one is delivered.
* Publishing never waits, so a stalled subscriber delays nobody; what does not fit its mailbox is
  dropped there by its policy, counted, and told to it as a gap.
* Each subscriber receives the messages of one publisher in the order they were published.
* The counts add up at every moment: a message published is accepted or refused; an accepted one is
  offered once to each of its subscribers, or unrouted; and over all subscriptions, ended ones
  included, ``offered == delivered + sum(dropped.values()) + pending``.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from daemoneye_eventbus.errors import (
    BatchTooLargeError,
    BrokerDrainingError,
    EmptyBatchError,
    InvalidSubscriptionError,
    MessageTooLargeError,
    SubscriptionLimitError,
)
from daemoneye_eventbus.mailbox import (
    CloseReason,
    DropReason,
    Mailbox,
    MailboxLimits,
)
from daemoneye_eventbus.router import Router
from daemoneye_eventbus.tally import Tally, TallyTable
from daemoneye_mesh.errors import DaemoneyeError, ErrorReason
from daemoneye_mesh.limits import MAX_BATCH_BYTES, MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES

__all__ = [
    "Broker",
    "BrokerLimits",
    "BrokerTotals",
    "Inspector",
    "Subscription",
]


class Inspector(Protocol):
    """Reads the envelopes of one publisher's messages and knows what it may do."""

    def topics_of(self, payloads: Sequence[bytes]) -> list[str]:
        """Returns the topic of each message; raises a DaemoneyeError to refuse the batch."""

    def authorize(self, topic: str) -> None:
        """Raises a DaemoneyeError when the publisher may not use the topic."""


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
    max_cached_topics: int = 16_384
    max_counted_topics: int = 10_000
    max_counted_publishers: int = 1_024


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """One open subscription.

    Args:
        id: unique in the life of the broker.
        identity: the verified identity behind it.
        label: what the subscriber calls itself; for people.
        patterns: what it receives.
        mailbox: what waits for it.
        opened_at_ns: since the Unix epoch.
    """

    id: str
    identity: str
    label: str
    patterns: tuple[str, ...]
    mailbox: Mailbox
    opened_at_ns: int


@dataclass(frozen=True, slots=True)
class BrokerTotals:
    """Counts since the start, over all publishers, topics and subscriptions."""

    accepted: int
    accepted_bytes: int
    refused: Mapping[ErrorReason, int]
    unrouted: int
    offered: int
    delivered: int
    dropped: Mapping[DropReason, int]
    pending: int
    pending_bytes: int
    subscriptions: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """A batch that has passed every check, taken apart for delivery."""

    topics: list[str]
    payloads: Sequence[bytes]
    sizes: list[int]
    routes: dict[str, tuple[Subscription, ...]]


class Broker:
    """Routes published messages to subscriptions; to be used from one event loop."""

    def __init__(
        self,
        limits: BrokerLimits | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.limits = limits or BrokerLimits()
        self._clock_ns = clock_ns
        self._router: Router[Subscription] = Router(self.limits.max_cached_topics)
        self._subscriptions: dict[str, Subscription] = {}
        self._serial = count(1)
        self._topics = TallyTable(self.limits.max_counted_topics)
        self._publishers = TallyTable(self.limits.max_counted_publishers)
        self._accepted = Tally()
        self._refused: Counter[ErrorReason] = Counter()
        self._ended_offered = 0
        self._ended_delivered = 0
        self._ended_dropped: Counter[DropReason] = Counter()
        self._is_draining = False

    def subscribe(
        self,
        identity: str,
        patterns: Sequence[str],
        limits: MailboxLimits | None = None,
        label: str = "",
    ) -> Subscription:
        """Opens a subscription; ``unsubscribe`` ends it.

        Args:
            identity: the verified identity it belongs to; it may hold several.
            patterns: what to receive; a message that several of them match comes once.
            limits: bounds of its mailbox; None takes the defaults.
            label: what the subscriber calls itself; the id of the subscription when empty.

        Raises:
            BrokerDrainingError: the broker is shutting down.
            SubscriptionLimitError: too many subscriptions are open.
            InvalidSubscriptionError: a bound or the number of patterns is out of range.
            InvalidPatternError: a pattern breaks the grammar.
        """
        self.require_open()
        if len(self._subscriptions) >= self.limits.max_subscriptions:
            raise SubscriptionLimitError(self.limits.max_subscriptions)
        granted = limits or MailboxLimits(
            self.limits.default_mailbox_messages, self.limits.max_mailbox_bytes
        )
        self._require_grantable(patterns, granted)
        name = f"subscription-{next(self._serial)}"
        subscription = Subscription(
            name, identity, label or name, tuple(patterns), Mailbox(granted), self._clock_ns()
        )
        self._router.subscribe(subscription, patterns)
        self._subscriptions[name] = subscription
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription; what is still queued is dropped and counted. Idempotent."""
        if self._subscriptions.pop(subscription.id, None) is None:
            return
        self._router.unsubscribe(subscription)
        subscription.mailbox.close(CloseReason.UNSUBSCRIBED)
        last = subscription.mailbox.counters()
        self._ended_offered += last.offered
        self._ended_delivered += last.delivered
        self._ended_dropped.update(last.dropped)

    def publish(self, publisher: str, payloads: Sequence[bytes], inspector: Inspector) -> int:
        """Offers a batch to everybody who subscribed to its topics; all of it, or nothing.

        Args:
            publisher: the verified identity it comes from.
            payloads: the encoded messages in order.
            inspector: asked for the topics once the sizes are known to be within bounds, and then
                once whether the publisher may use each topic of the batch.

        Returns:
            The number of deliveries offered: messages times their subscribers.

        Raises:
            BrokerDrainingError: the broker is shutting down.
            EmptyBatchError: there is no message.
            BatchTooLargeError: too many messages or bytes.
            MessageTooLargeError: a message is too large.
            InvalidTopicError: a topic breaks the grammar.
            DaemoneyeError: whatever the inspector refuses.
        """
        try:
            plan = self._plan(payloads, inspector)
        except DaemoneyeError as refusal:
            self._refused[refusal.reason] += len(payloads)
            raise
        offered = self._count(self._publishers.of(publisher), plan)
        routes = list(plan.routes.values())
        if all(targets == routes[0] for targets in routes):
            size_bytes = sum(plan.sizes)
            for subscription in routes[0]:
                self._deliver(subscription, plan.payloads, size_bytes)
        else:
            self._deliver_sorted(plan)
        return offered

    def require_open(self) -> None:
        """Raises BrokerDrainingError once the broker is shutting down."""
        if self._is_draining:
            raise BrokerDrainingError

    def drain(self) -> None:
        """Takes nothing new and lets every subscriber have what is queued for it, then the end."""
        self._is_draining = True
        for subscription in self._subscriptions.values():
            self._router.unsubscribe(subscription)
            subscription.mailbox.close(CloseReason.DRAINING, drain=True)

    def totals(self) -> BrokerTotals:
        """Returns the counts since the start; costs one step per open subscription."""
        live = [one.mailbox.counters() for one in self._subscriptions.values()]
        dropped = Counter(self._ended_dropped)
        for counters in live:
            dropped.update(counters.dropped)
        return BrokerTotals(
            accepted=self._accepted.messages,
            accepted_bytes=self._accepted.size_bytes,
            refused=dict(self._refused),
            unrouted=self._accepted.unrouted,
            offered=self._ended_offered + sum(one.offered for one in live),
            delivered=self._ended_delivered + sum(one.delivered for one in live),
            dropped=dict(dropped),
            pending=sum(one.pending for one in live),
            pending_bytes=sum(one.pending_bytes for one in live),
            subscriptions=len(live),
        )

    def topic_tallies(self) -> dict[str, Tally]:
        """Returns what was accepted by topic; topics beyond the bound count as ``_other``."""
        return self._topics.snapshot()

    def publisher_tallies(self) -> dict[str, Tally]:
        """Returns what was accepted by publisher; those beyond the bound count as ``_other``."""
        return self._publishers.snapshot()

    def subscriptions(self) -> list[Subscription]:
        """Returns the open subscriptions, oldest first."""
        return list(self._subscriptions.values())

    def _plan(self, payloads: Sequence[bytes], inspector: Inspector) -> _Plan:
        self.require_open()
        sizes = self._measure(payloads)
        topics = inspector.topics_of(payloads)
        routes = {topic: self._router.route(topic) for topic in dict.fromkeys(topics)}
        for topic in routes:
            inspector.authorize(topic)
        return _Plan(topics, payloads, sizes, routes)

    def _measure(self, payloads: Sequence[bytes]) -> list[int]:
        limits = self.limits
        if not payloads:
            raise EmptyBatchError
        if len(payloads) > limits.max_batch_messages:
            raise BatchTooLargeError(len(payloads), limits.max_batch_messages, "messages")
        sizes = list(map(len, payloads))
        largest = max(sizes)
        if largest > limits.max_message_bytes:
            raise MessageTooLargeError(sizes.index(largest), largest, limits.max_message_bytes)
        if sum(sizes) > limits.max_batch_bytes:
            raise BatchTooLargeError(sum(sizes), limits.max_batch_bytes, "bytes")
        return sizes

    def _count(self, by_publisher: Tally, plan: _Plan) -> int:
        size_bytes = dict.fromkeys(plan.routes, 0)
        for topic, size in zip(plan.topics, plan.sizes, strict=True):
            size_bytes[topic] += size
        offered = 0
        for topic, messages in Counter(plan.topics).items():
            subscribers = len(plan.routes[topic])
            offered += messages * subscribers
            for tally in (self._topics.of(topic), by_publisher, self._accepted):
                tally.add(messages, size_bytes[topic], subscribers)
        return offered

    def _deliver_sorted(self, plan: _Plan) -> None:
        """Gives each subscription its part of a batch at once, in the order of the batch."""
        parts: dict[Subscription, list[bytes]] = {}
        for topic, payload in zip(plan.topics, plan.payloads, strict=True):
            for subscription in plan.routes[topic]:
                parts.setdefault(subscription, []).append(payload)
        for subscription, payloads in parts.items():
            self._deliver(subscription, payloads, sum(map(len, payloads)))

    def _deliver(
        self, subscription: Subscription, payloads: Sequence[bytes], size_bytes: int
    ) -> None:
        subscription.mailbox.put_many_nowait(payloads, size_bytes)
        if subscription.mailbox.close_reason is not None:
            # Its policy disconnected it: no longer routed to, but counted until the stream
            # that reads the rest of it ends and calls unsubscribe.
            self._router.unsubscribe(subscription)

    def _require_grantable(self, patterns: Sequence[str], wanted: MailboxLimits) -> None:
        limits = self.limits
        if len(patterns) > limits.max_patterns:
            raise InvalidSubscriptionError(
                f"the subscription has {len(patterns)} patterns; use at most {limits.max_patterns}",
                patterns=len(patterns),
                maximum=limits.max_patterns,
            )
        _require_within("max_messages", wanted.max_messages, 1, limits.max_mailbox_messages)
        # A mailbox smaller than one message could never deliver that message.
        _require_within(
            "max_bytes", wanted.max_bytes, limits.max_message_bytes, limits.max_mailbox_bytes
        )


def _require_within(name: str, value: int, minimum: int, maximum: int) -> None:
    if not minimum <= value <= maximum:
        raise InvalidSubscriptionError(
            f"{name} is {value}; use a value from {minimum} to {maximum}",
            setting=name,
            value=value,
            minimum=minimum,
            maximum=maximum,
        )
