"""The broker delivers whole batches to everybody entitled, within its bounds, and its sums hold."""

import contextlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.broker import Broker, BrokerLimits, Subscription
from daemoneye_eventbus.errors import (
    BatchTooLargeError,
    BrokerDrainingError,
    EmptyBatchError,
    InvalidSubscriptionError,
    MessageTooLargeError,
    SubscriptionLimitError,
)
from daemoneye_eventbus.mailbox import (
    Batch,
    Closed,
    CloseReason,
    Delivery,
    DropReason,
    Gap,
    MailboxLimits,
    OverflowPolicy,
)
from daemoneye_eventbus.tally import OTHER, TallyTable
from daemoneye_mesh.errors import (
    Code,
    ErrorReason,
    InvalidRequestError,
    PermissionDeniedError,
)
from daemoneye_mesh.topic import InvalidPatternError, InvalidTopicError

SMALL = BrokerLimits(
    max_subscriptions=2,
    max_patterns=2,
    max_message_bytes=10,
    max_batch_messages=3,
    max_batch_bytes=25,
    max_mailbox_messages=100,
    max_mailbox_bytes=1_000,
    max_counted_topics=2,
)
ROOMY = MailboxLimits(100, 1_000)
ROOMY_DEFAULT = MailboxLimits(50, 2 << 20)
A, B, C = "events.a", "events.b", "control.c"


class FakeInspector:
    """Knows the topics beforehand; refuses the ones it is told to."""

    def __init__(self, topics: Sequence[str], forbidden: str = "") -> None:
        self.topics = list(topics)
        self.forbidden = forbidden
        self.asked: list[str] = []

    def topics_of(self, payloads: Sequence[bytes]) -> list[str]:
        assert len(payloads) == len(self.topics)
        return self.topics

    def authorize(self, topic: str) -> None:
        self.asked.append(topic)
        if topic == self.forbidden:
            raise PermissionDeniedError("not yours; publish in your own domain")


def publish(broker: Broker, *messages: tuple[str, bytes], publisher: str = "p") -> int:
    inspector = FakeInspector([topic for topic, _ in messages])
    return broker.publish(publisher, [payload for _, payload in messages], inspector)


async def take(subscription: Subscription) -> Delivery:
    return await subscription.mailbox.take(1_000, 1_000_000)


async def test_batch_reaches_each_subscriber_with_its_topics_in_order() -> None:
    broker = Broker()
    everything = broker.subscribe("x", ["#"])
    events = broker.subscribe("y", ["events.#"])
    only_b = broker.subscribe("z", [B])
    offered = publish(broker, (A, b"1"), (C, b"2"), (B, b"3"), (A, b"4"))
    assert offered == 4 + 3 + 1
    assert await take(everything) == Batch([b"1", b"2", b"3", b"4"], 0, 4)
    assert await take(events) == Batch([b"1", b"3", b"4"], 0, 3)
    assert await take(only_b) == Batch([b"3"], 0, 1)


async def test_batch_of_several_topics_with_the_same_subscribers_keeps_its_order() -> None:
    broker = Broker()
    subscription = broker.subscribe("x", ["events.#"])
    publish(broker, (A, b"1"), (B, b"2"), (A, b"3"))
    assert await take(subscription) == Batch([b"1", b"2", b"3"], 0, 3)


async def test_message_matched_by_several_patterns_comes_once() -> None:
    broker = Broker()
    subscription = broker.subscribe("x", ["#", "events.#", A])
    assert publish(broker, (A, b"1")) == 1
    assert await take(subscription) == Batch([b"1"], 0, 1)


async def test_stalled_subscriber_does_not_keep_anything_from_another() -> None:
    broker = Broker(SMALL)
    stalled = broker.subscribe("x", ["#"], MailboxLimits(1, 10))
    live = broker.subscribe("y", ["#"], ROOMY)
    for number in range(5):
        publish(broker, (A, b"%d" % number))
        assert await take(live) == Batch([b"%d" % number], number, 1)
    assert await take(stalled) == Gap(0, 3, 4, DropReason.DROPPED_OLDEST)
    assert await take(stalled) == Batch([b"4"], 4, 1)


async def test_disconnected_subscriber_is_offered_nothing_more() -> None:
    broker = Broker(SMALL)
    slow = broker.subscribe("x", ["#"], MailboxLimits(1, 10, OverflowPolicy.DISCONNECT))
    publish(broker, (A, b"1"), (A, b"2"))
    assert publish(broker, (A, b"3")) == 0
    assert [await take(slow) for _ in range(3)] == [
        Batch([b"1"], 0, 1),
        Gap(1, 1, 1, DropReason.DROPPED_NEWEST),
        Closed(CloseReason.SLOW_CONSUMER),
    ]
    assert broker.totals().subscriptions == 1
    broker.unsubscribe(slow)
    assert broker.totals().subscriptions == 0


@pytest.mark.parametrize(
    ("batch", "error", "reason"),
    [
        ([], EmptyBatchError, ErrorReason.BATCH_EMPTY),
        ([(A, b"1"), (A, b"x" * 11)], MessageTooLargeError, ErrorReason.MESSAGE_TOO_LARGE),
        ([(A, b"1")] * 4, BatchTooLargeError, ErrorReason.MESSAGE_TOO_LARGE),
        (
            [(A, b"x" * 8), (A, b"x" * 8), (A, b"x" * 10)],
            BatchTooLargeError,
            ErrorReason.MESSAGE_TOO_LARGE,
        ),
        ([(A, b"1"), ("events.*", b"2")], InvalidTopicError, ErrorReason.TOPIC_INVALID),
        ([(A, b"1"), ("", b"2")], InvalidTopicError, ErrorReason.TOPIC_INVALID),
    ],
)
async def test_refused_batch_delivers_nothing_and_is_counted(
    batch: list[tuple[str, bytes]], error: type[Exception], reason: ErrorReason
) -> None:
    broker = Broker(SMALL)
    subscription = broker.subscribe("x", ["#"], ROOMY)
    with pytest.raises(error) as caught:
        publish(broker, *batch)
    assert getattr(caught.value, "reason", None) is reason
    assert getattr(caught.value, "code", None) is Code.INVALID_ARGUMENT
    assert subscription.mailbox.counters().offered == 0
    assert broker.totals().accepted == 0
    assert broker.totals().refused == {reason: len(batch)}


async def test_batch_at_every_limit_is_accepted() -> None:
    broker = Broker(SMALL)
    assert publish(broker, (A, b"x" * 10), (A, b"x" * 10), (A, b"x" * 5)) == 0
    assert broker.totals().accepted == 3


async def test_oversized_message_is_named_with_its_index_and_the_limit() -> None:
    broker = Broker(SMALL)
    with pytest.raises(MessageTooLargeError) as caught:
        publish(broker, (A, b"1"), (A, b"x" * 11))
    assert caught.value.metadata == {"index": "1", "size_bytes": "11", "limit_bytes": "10"}


async def test_inspector_is_asked_about_each_topic_once() -> None:
    broker = Broker()
    inspector = FakeInspector([A, B, A])
    broker.publish("p", [b"1", b"2", b"3"], inspector)
    assert inspector.asked == [A, B]


async def test_forbidden_topic_refuses_the_whole_batch() -> None:
    broker = Broker()
    subscription = broker.subscribe("x", ["#"])
    with pytest.raises(PermissionDeniedError):
        broker.publish("p", [b"1", b"2"], FakeInspector([A, C], forbidden=C))
    assert subscription.mailbox.counters().offered == 0
    assert broker.totals().refused == {ErrorReason.ACCESS_DENIED: 2}


async def test_envelopes_of_a_batch_with_too_many_messages_are_not_even_read() -> None:
    broker = Broker(SMALL)
    with pytest.raises(BatchTooLargeError):
        broker.publish("p", [b"1"] * 4, FakeInspector([]))


async def test_subscription_beyond_the_limit_is_refused_until_one_ends() -> None:
    broker = Broker(SMALL)
    first = broker.subscribe("x", ["#"], ROOMY)
    broker.subscribe("x", ["#"], ROOMY)
    with pytest.raises(SubscriptionLimitError) as caught:
        broker.subscribe("x", ["#"], ROOMY)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert caught.value.reason is ErrorReason.LIMIT_REACHED
    broker.unsubscribe(first)
    assert broker.subscribe("x", ["#"], ROOMY).id != first.id


@pytest.mark.parametrize(
    ("patterns", "limits", "error"),
    [
        ([], ROOMY, InvalidSubscriptionError),
        (["#", "events.#", "alerts.#"], ROOMY, InvalidSubscriptionError),
        (["events.*"], ROOMY, InvalidPatternError),
        (["#"], MailboxLimits(101, 1_000), InvalidSubscriptionError),
        (["#"], MailboxLimits(100, 1_001), InvalidSubscriptionError),
        (["#"], MailboxLimits(100, 9), InvalidSubscriptionError),
    ],
)
async def test_subscription_the_broker_cannot_honour_is_refused(
    patterns: list[str], limits: MailboxLimits, error: type[Exception]
) -> None:
    broker = Broker(SMALL)
    with pytest.raises(error):
        broker.subscribe("x", patterns, limits)
    assert broker.totals().subscriptions == 0


async def test_draining_delivers_what_is_queued_and_takes_nothing_new() -> None:
    broker = Broker()
    subscription = broker.subscribe("x", ["#"])
    publish(broker, (A, b"1"))
    broker.drain()
    with pytest.raises(BrokerDrainingError) as caught:
        publish(broker, (A, b"2"))
    assert caught.value.reason is ErrorReason.DRAINING
    with pytest.raises(BrokerDrainingError):
        broker.subscribe("y", ["#"])
    assert await take(subscription) == Batch([b"1"], 0, 1)
    assert await take(subscription) == Closed(CloseReason.DRAINING)


async def test_topics_beyond_the_bound_are_counted_together() -> None:
    broker = Broker(SMALL)
    broker.subscribe("x", [A], ROOMY)
    publish(broker, (A, b"1"), (B, b"22"), (C, b"333"))
    publish(broker, (A, b"1"), ("alerts.d", b"4444"), publisher="q")
    tallies = broker.topic_tallies()
    assert {name: one.messages for name, one in tallies.items()} == {A: 2, B: 1, OTHER: 2}
    assert (tallies[A].offered, tallies[A].unrouted) == (2, 0)
    assert (tallies[OTHER].size_bytes, tallies[OTHER].unrouted) == (7, 2)
    by_publisher = {name: one.messages for name, one in broker.publisher_tallies().items()}
    assert by_publisher == {"p": 3, "q": 2}


def test_tally_snapshot_does_not_change_afterwards() -> None:
    table = TallyTable(1)
    table.of("a").add(1, 10, 0)
    snapshot = table.snapshot()
    table.of("a").add(1, 10, 0)
    assert snapshot["a"].messages == 1


async def test_subscriptions_are_listed_with_what_they_were_opened_with() -> None:
    broker = Broker(clock_ns=lambda: 7)
    broker.subscribe("collector/x", ["events.#"], label="screen")
    broker.subscribe("collector/x", ["#"], ROOMY_DEFAULT)
    first, second = broker.subscriptions()
    assert (first.identity, first.label, first.patterns) == ("collector/x", "screen", ("events.#",))
    assert first.mailbox.limits == MailboxLimits(65_536, 16 << 20)
    assert (second.label, second.mailbox.limits) == (second.id, ROOMY_DEFAULT)
    assert (first.opened_at_ns, first.id == second.id) == (7, False)


topics = st.sampled_from([A, B, C, "alerts.d", "events.*"])
batches = st.lists(st.tuples(topics, st.binary(max_size=11)), max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), batches),
        st.tuples(st.just("publish"), batches),
        st.tuples(st.just("take"), st.integers(0, 1)),
        st.tuples(st.just("subscribe"), st.sampled_from(OverflowPolicy)),
        st.tuples(st.just("unsubscribe"), st.integers(0, 1)),
    ),
    max_size=30,
)


@given(steps)
async def test_totals_add_up_after_any_operations(steps: list[tuple[str, object]]) -> None:
    broker = Broker(SMALL)
    published = 0
    live: list[Subscription] = []
    for step in steps:
        match step:
            case ("publish", list() as batch):
                published += publish_or_be_refused(broker, batch)
            case ("subscribe", OverflowPolicy() as policy) if len(live) < 2:
                live.append(broker.subscribe("x", ["events.#"], MailboxLimits(3, 20, policy)))
            case ("take", int() as index) if index < len(live):
                if live[index].mailbox.counters().pending:
                    await take(live[index])
            case ("unsubscribe", int() as index) if index < len(live):
                broker.unsubscribe(live.pop(index))
        check_sums(broker, published)


def publish_or_be_refused(broker: Broker, batch: list[tuple[str, bytes]]) -> int:
    with contextlib.suppress(InvalidRequestError):
        publish(broker, *batch)
    return len(batch)


def check_sums(broker: Broker, published: int) -> None:
    totals = broker.totals()
    by_topic = broker.topic_tallies().values()
    assert published == totals.accepted + sum(totals.refused.values())
    assert totals.offered == totals.delivered + sum(totals.dropped.values()) + totals.pending
    assert totals.accepted == sum(one.messages for one in by_topic)
    assert totals.offered == sum(one.offered for one in by_topic)
    assert totals.unrouted == sum(one.unrouted for one in by_topic)
