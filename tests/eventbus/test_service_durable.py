"""Durable subscriptions, history and consumer groups, as those on the other end of a socket see them."""

from collections.abc import Callable
from typing import Any

import pytest

from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_control_pb2
from daemoneye.eventbus.v1 import subscription_pb2 as sub
from daemoneye_mesh.errors import Code, ErrorReason

A = "events.process.lifecycle"
AT_LEAST_ONCE = 1
INVALID = (Code.INVALID_ARGUMENT, ErrorReason.REQUEST_INVALID)

Build = Callable[..., bytes]


def keep(duration_ms: int = 60_000, **bounds: int) -> sub.RetentionPolicy:
    return sub.RetentionPolicy(retention_duration_ms=duration_ms, **bounds)


DURABLE = {"subscriber_id": "recorder", "retention_policy": keep()}
ACKNOWLEDGING = {**DURABLE, "delivery_guarantee": AT_LEAST_ONCE}


async def until_away(bus: Any) -> pb.SubscriptionInfo:
    """Asks until the broker has noticed that nobody reads the only subscription."""
    while (listed := await bus.listed())[0].is_attached:
        pass
    assert len(listed) == 1
    info: pb.SubscriptionInfo = listed[0]
    return info


async def test_unacknowledged_messages_come_again_after_a_lost_connection(
    bus: Any, group: Build
) -> None:
    first = await bus.subscribe("events.#", **ACKNOWLEDGING)
    await bus.publish(groups=[group(count=3, first_sequence=1)])
    assert (await first.batch()).position == 3
    await first.ask(ack=pb.AckDeliveries(position=1))
    first.call.cancel()
    await until_away(bus)
    await bus.publish(groups=[group(count=1, first_sequence=4)])
    second = await bus.subscribe("events.#", **ACKNOWLEDGING)
    assert (second.opened.resumed, second.opened.position) == (True, 1)
    assert second.opened.subscription_id == first.opened.subscription_id
    again, new = await second.batch(), await second.batch()
    assert [one.metadata.source_sequence for one in again.messages] == [2, 3]
    assert (again.position, again.redelivered) == (3, True)
    assert [one.metadata.source_sequence for one in new.messages] == [4]
    assert (new.position, new.redelivered) == (4, False)


async def test_subscriber_that_does_not_acknowledge_gets_what_came_meanwhile(
    bus: Any, group: Build
) -> None:
    first = await bus.subscribe("events.#", **DURABLE)
    await bus.publish(groups=[group(count=2, first_sequence=1)])
    assert await first.sequences(2) == [1, 2]
    first.call.cancel()
    await until_away(bus)
    await bus.publish(groups=[group(count=2, first_sequence=3)])
    second = await bus.subscribe("events.#", **DURABLE)
    batch = await second.batch()
    assert [one.metadata.source_sequence for one in batch.messages] == [3, 4]
    assert (batch.position, batch.redelivered) == (4, False)


async def test_what_went_past_the_retention_is_told_on_return(bus: Any, group: Build) -> None:
    terms = {**DURABLE, "retention_policy": keep(max_retained_messages=2)}
    first = await bus.subscribe("events.#", **terms)
    first.call.cancel()
    await until_away(bus)
    await bus.publish(groups=[group(count=5, first_sequence=1)])
    second = await bus.subscribe("events.#", **terms)
    gap = await second.gap()
    assert (gap.dropped_count, gap.position, gap.reason) == (3, 3, pb.GAP_REASON_RETENTION)
    assert await second.sequences(2) == [4, 5]


async def test_newer_stream_ends_the_older_one(bus: Any, message: Build) -> None:
    first = await bus.subscribe("events.#", **ACKNOWLEDGING)
    second = await bus.subscribe("events.#", **ACKNOWLEDGING)
    assert second.opened.resumed
    first.send(ack=pb.AckDeliveries(position=7))
    first.send(unsubscribe=subscription_control_pb2.Unsubscribe())
    refusal = await first.refusal()
    assert (refusal.code, refusal.reason) == (Code.ABORTED, ErrorReason.SUPERSEDED)
    assert refusal.metadata == {"subscriber_id": "recorder"}
    await bus.publish(message(source_sequence=1))
    assert await second.sequences(1) == [1]
    (listed,) = await bus.listed()
    assert listed.is_attached


async def test_subscription_nobody_comes_back_to_ends(bus: Any) -> None:
    terms = {**DURABLE, "retention_policy": keep(1)}
    first = await bus.subscribe("events.#", **terms)
    first.call.cancel()
    while await bus.listed():
        pass
    second = await bus.subscribe("events.#", **terms)
    assert (second.opened.resumed, second.opened.position) == (False, 0)


async def test_refused_request_ends_the_stream_and_not_the_durable_subscription(
    bus: Any, group: Build
) -> None:
    first = await bus.subscribe("events.#", **ACKNOWLEDGING)
    await bus.publish(groups=[group(count=2, first_sequence=1)])
    await first.batch()
    first.send(ack=pb.AckDeliveries(position=99))
    refusal = await first.refusal()
    assert (refusal.code, refusal.reason) == INVALID
    second = await bus.subscribe("events.#", **ACKNOWLEDGING)
    assert second.opened.resumed
    assert await second.sequences(2) == [1, 2]


async def test_coming_back_with_other_terms_is_refused(
    bus: Any, opening_of: Any, refusal_of: Any
) -> None:
    await bus.subscribe("events.#", **DURABLE)
    refusal = await refusal_of(bus.open(opening_of("events.#", **ACKNOWLEDGING)))
    assert (refusal.code, refusal.reason) == INVALID
    assert refusal.metadata["subscriber_id"] == "recorder"


async def test_subscription_without_retention_does_not_wait_for_anybody(bus: Any) -> None:
    first = await bus.subscribe("events.#", subscriber_id="recorder")
    second = await bus.subscribe("events.#", subscriber_id="recorder")
    assert not second.opened.resumed
    assert first.opened.subscription_id != second.opened.subscription_id


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (subscription_control_pb2.History(), [1, 2, 3, 4, 5]),
        (subscription_control_pb2.History(max_messages=2), [4, 5]),
        (subscription_control_pb2.History(max_age_ms=60_000), [1, 2, 3, 4, 5]),
        (subscription_control_pb2.History(max_age_ms=60_000, max_messages=4), [2, 3, 4, 5]),
    ],
)
async def test_history_comes_first_and_what_is_newer_follows_without_a_seam(
    bus: Any, group: Build, history: subscription_control_pb2.History, expected: list[int]
) -> None:
    for first in (1, 4):
        await bus.publish(groups=[group(count=3 if first == 1 else 2, first_sequence=first)])
    stream = await bus.subscribe("events.#", history=history)
    await bus.publish(groups=[group(count=2, first_sequence=6)])
    assert await stream.sequences(len(expected) + 2) == [*expected, 6, 7]
    assert stream.opened.history_complete


async def test_history_that_does_not_reach_back_says_so(start_bus: Any, group: Build) -> None:
    bus = await start_bus(retained_messages=2)
    await bus.publish(groups=[group(count=2, first_sequence=1)])
    await bus.publish(groups=[group(count=2, first_sequence=3)])
    stream = await bus.subscribe("events.#", history=subscription_control_pb2.History())
    assert not stream.opened.history_complete
    assert await stream.sequences(2) == [3, 4]
    stats = await bus.stats()
    assert stats.retained_count == 2
    assert stats.retained_bytes > 0


async def test_broker_that_retains_nothing_says_so(start_bus: Any, message: Build) -> None:
    bus = await start_bus(retained_age_s=0.0)
    await bus.publish(message())
    stream = await bus.subscribe("events.#", history=subscription_control_pb2.History())
    assert not stream.opened.history_complete
    assert (await bus.stats()).retained_count == 0


async def test_consumer_group_shares_work_and_an_observer_sees_all(
    bus: Any, message: Build
) -> None:
    terms = {"consumer_group": "workers"}
    workers = [await bus.subscribe("events.#", **terms) for _ in range(2)]
    observer = await bus.subscribe("events.#")
    for number in range(1, 101):
        answer = await bus.publish(message(source_sequence=number))
        assert answer.routed_count == 2
    assert await observer.sequences(100) == list(range(1, 101))
    counts = {one.subscription_id: one.flow.offered_count for one in await bus.listed()}
    shares = [counts[one.opened.subscription_id] for one in workers]
    assert sum(shares) == 100
    assert all(5 < share < 95 for share in shares)
    taken = [await one.sequences(share) for one, share in zip(workers, shares, strict=True)]
    assert sorted(taken[0] + taken[1]) == list(range(1, 101))


async def test_work_of_a_member_that_dies_goes_to_another_one(bus: Any, group: Build) -> None:
    terms = {"consumer_group": "workers", "delivery_guarantee": AT_LEAST_ONCE}
    dying = await bus.subscribe("events.#", **terms)
    await bus.publish(groups=[group(count=3, first_sequence=1)])
    assert await dying.sequences(3) == [1, 2, 3]
    await dying.ask(ack=pb.AckDeliveries(position=1))
    other = await bus.subscribe("events.#", **terms)
    dying.call.cancel()
    assert await other.sequences(2) == [2, 3]
    stats = await bus.stats()
    assert dict(stats.flow.dropped_count) == {"moved": 2}


async def test_members_must_ask_for_the_same_guarantee(
    bus: Any, opening_of: Any, refusal_of: Any
) -> None:
    await bus.subscribe("events.#", consumer_group="workers")
    asked = opening_of("events.#", consumer_group="workers", delivery_guarantee=AT_LEAST_ONCE)
    refusal = await refusal_of(bus.open(asked))
    assert (refusal.code, refusal.reason) == INVALID
    assert refusal.metadata == {"consumer_group": "workers"}
