"""Whatever happens, every message offered is delivered, filtered, dropped for a reason or pending."""

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from daemoneye_eventbus.errors import (
    InvalidSubscriptionError,
    NoSubscriberError,
    SubscriptionLimitError,
    UnacknowledgedTopicError,
)
from daemoneye_eventbus.mailbox import Acknowledgement, OverflowPolicy, Retention
from daemoneye_eventbus.receipt import Receipt
from daemoneye_eventbus.retention import RetentionLimits
from daemoneye_eventbus.selection import Selection
from daemoneye_eventbus.subscription import (
    DuplicateHandling,
    Durability,
    HistoryTerms,
    Subscription,
    SubscriptionTerms,
)

TOPICS = ["events.a", "events.b", "control.c", "alerts.d"]
PATTERNS = ["events.#", "events.a", "control.+", "alerts.#"]
POLICIES = [OverflowPolicy.DROP_OLDEST, OverflowPolicy.DROP_NEWEST, OverflowPolicy.DISCONNECT]

publications = st.fixed_dictionaries(
    {
        "topic": st.sampled_from(TOPICS),
        "first": st.integers(1, 12),
        "count": st.integers(1, 6),
        "priority": st.sampled_from([0, 5]),
        "ttl_ms": st.sampled_from([0, 0, 1_500]),
        "message_type": st.sampled_from([0, 5]),
        "acknowledged": st.booleans(),
    }
)
openings = st.fixed_dictionaries(
    {
        "floors": st.lists(
            st.tuples(st.sampled_from(PATTERNS), st.sampled_from([0, 5])), min_size=1, max_size=2
        ).map(tuple),
        "max_messages": st.integers(1, 8),
        "max_bytes": st.sampled_from([10, 35, 1_000]),
        "policy": st.sampled_from(POLICIES),
        "acknowledgement": st.sampled_from(
            [None, Acknowledgement(2.0, 3), Acknowledgement(2.0, 9)]
        ),
        "initial_credit": st.sampled_from([None, None, 2]),
        "selection": st.sampled_from([Selection(), Selection(message_types=frozenset({5}))]),
        "duplicates": st.sampled_from(DuplicateHandling),
        "history": st.sampled_from([None, HistoryTerms(), HistoryTerms(1.0, 3)]),
        "label": st.sampled_from(["x", "y"]),
        "durability": st.sampled_from([None, Durability(3.0, Retention(3, 25))]),
        "consumer_group": st.sampled_from(["", "", "workers"]),
        "is_ordered": st.booleans(),
    }
)
index = st.integers(0, 5)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), publications),
        st.tuples(st.just("publish"), publications),
        st.tuples(st.just("publish"), publications),
        st.tuples(st.just("open"), openings),
        st.tuples(st.just("take"), st.tuples(index, st.integers(1, 4))),
        st.tuples(st.just("take"), st.tuples(index, st.integers(1, 4))),
        st.tuples(st.just("acknowledge"), st.tuples(index, st.integers(0, 20))),
        st.tuples(st.just("leave"), index),
        st.tuples(st.just("end"), index),
        st.tuples(st.just("resume"), index),
        st.tuples(st.just("update"), st.tuples(index, st.sampled_from(PATTERNS))),
        st.tuples(st.just("flush"), index),
        st.tuples(st.just("pause"), st.tuples(index, st.booleans())),
        st.tuples(st.just("credit"), index),
        st.tuples(st.just("sweep"), st.sampled_from([0.0, 0.7, 2.0, 3.0])),
        st.tuples(st.just("drain"), st.none()),
    ),
    max_size=40,
)


class Books:
    """A broker, and what its sums have to come to."""

    def __init__(self, desk: Any, balance_of: Callable[[Any], int]) -> None:
        self.desk = desk
        self.broker = desk.broker
        self.balance_of = balance_of
        self.accepted = 0
        self.offered = 0
        """To subscriptions by publishers, from the history, and by members that left."""
        self.receipts: list[Receipt] = []

    def subscriptions(self) -> list[Subscription]:
        found: list[Subscription] = self.broker.subscriptions()
        return found

    async def do(self, step: str, argument: Any) -> None:
        number = argument[0] if isinstance(argument, tuple) else argument
        if step in ("publish", "open", "sweep", "drain"):
            await getattr(self, step)(argument)
        elif number < len(self.subscriptions()):
            await getattr(self, step)(self.subscriptions()[number], argument)

    async def publish(self, asked: dict[str, Any]) -> None:
        if self.broker._is_draining:
            return
        asked = dict(asked)
        first, count = asked.pop("first"), asked.pop("count")
        receipt = Receipt() if asked.pop("acknowledged") else None
        try:
            numbers = range(first, first + count)
            self.offered += await self.desk.publish(
                asked.pop("topic"), *numbers, receipt=receipt, source_epoch=1, **asked
            )
        except UnacknowledgedTopicError:
            return
        self.accepted += count
        if receipt is not None:
            self.receipts.append(receipt)

    async def open(self, asked: dict[str, Any]) -> None:
        if self.broker._is_draining:
            return
        terms = dict(asked)
        if terms["consumer_group"]:
            terms["durability"] = None
        before = self.broker.totals().flow.offered
        try:
            self.desk.open(**terms)
        except (InvalidSubscriptionError, SubscriptionLimitError):
            assert self.broker.totals().flow.offered == before
        self.offered += self.broker.totals().flow.offered - before

    async def resume(self, subscription: Subscription, _: int) -> None:
        if subscription.terms.durability is not None and not self.broker._is_draining:
            before = subscription.mailbox.counters().offered
            opening = self.broker.subscribe(subscription.identity, subscription.terms)
            assert (opening.is_resumed, opening.subscription) == (True, subscription)
            assert subscription.mailbox.counters().offered == before

    async def take(self, subscription: Subscription, argument: tuple[int, int]) -> None:
        if subscription.is_attached:
            await self.desk.next(subscription, argument[1])

    async def acknowledge(self, subscription: Subscription, argument: tuple[int, int]) -> None:
        try:
            subscription.mailbox.acknowledge(argument[1])
        except InvalidSubscriptionError:
            return

    async def leave(self, subscription: Subscription, _: int) -> None:
        before = self.broker.totals().flow.offered
        self.broker.leave(subscription)
        self.offered += self.broker.totals().flow.offered - before

    async def end(self, subscription: Subscription, _: int) -> None:
        before = self.broker.totals().flow.offered
        self.broker.end(subscription)
        self.offered += self.broker.totals().flow.offered - before

    async def update(self, subscription: Subscription, argument: tuple[int, str]) -> None:
        limits = subscription.terms.limits
        terms = SubscriptionTerms(patterns=((argument[1], 0),), limits=limits)
        self.broker.update(subscription, terms)

    async def flush(self, subscription: Subscription, _: int) -> None:
        subscription.mailbox.flush()

    async def pause(self, subscription: Subscription, argument: tuple[int, bool]) -> None:
        if argument[1]:
            subscription.mailbox.pause()
        else:
            subscription.mailbox.resume()

    async def credit(self, subscription: Subscription, _: int) -> None:
        if subscription.mailbox.limits.initial_credit is not None:
            subscription.mailbox.grant(3)

    async def sweep(self, seconds: float) -> None:
        self.desk.clock.pass_by(seconds)
        self.broker.sweep()

    async def drain(self, _: None) -> None:
        self.broker.drain()

    def check(self) -> None:
        totals = self.broker.totals()
        assert self.balance_of(totals.flow) == 0
        assert totals.flow.offered == self.offered
        assert totals.accepted == self.accepted
        for subscription in self.subscriptions():
            counters = subscription.mailbox.counters()
            assert self.balance_of(counters) == 0
            assert 0 <= counters.unacknowledged <= counters.pending
            assert counters.pending <= subscription.terms.limits.max_messages
        for tallies in (self.broker.topic_tallies(), self.broker.publisher_tallies()):
            assert sum(one.messages for one in tallies.values()) == self.accepted
        usage = self.broker.quota.usage("agent/agent")
        assert usage.subscriptions == totals.subscriptions == len(self.subscriptions())

    async def close(self) -> None:
        """Ends everything: then nothing is pending, and no publisher waits for ever."""
        for subscription in self.subscriptions():
            await self.end(subscription, 0)
        self.check()
        flow = self.broker.totals().flow
        assert (flow.pending, flow.pending_bytes, flow.unacknowledged) == (0, 0, 0)
        async with asyncio.timeout(5):
            for receipt in self.receipts:
                try:
                    await receipt.wait()
                except NoSubscriberError:
                    continue


@settings(max_examples=300)
@given(steps)
async def test_sums_hold_after_any_operations(
    make_desk: Callable[..., Any], balance_of: Callable[[Any], int], steps: list[tuple[str, Any]]
) -> None:
    retention = RetentionLimits(max_messages=6, max_bytes=50, max_age_s=2.5)
    desk = make_desk(retention=retention, max_subscriptions=5, max_remembered_messages=4)
    books = Books(desk, balance_of)
    for step, argument in steps:
        await books.do(step, argument)
        books.check()
    await books.close()
