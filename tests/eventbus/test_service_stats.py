"""Counters as others read them: they add up, name who did what, and refusals reach the audit topic."""

from collections.abc import Callable
from typing import Any

import pytest

from daemoneye.eventbus.v1 import eventbus_pb2, subscription_control_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_pb2 as sub
from daemoneye_eventbus.broker import Broker
from daemoneye_eventbus.refusals import RefusalLog
from daemoneye_eventbus.service_stats import encode_stats, to_timestamp
from daemoneye_eventbus.service_upkeep import REFUSAL_TOPIC, Upkeep
from daemoneye_eventbus.tracker import Tracker
from daemoneye_mesh.errors import ErrorReason
from daemoneye_mesh.identity import Identity, IdentityKind

A, B = "events.process.lifecycle", "events.process.metadata"
TIMEOUT_S = 10

Build = Callable[..., bytes]


def balance_of(flow: pb.FlowCounters) -> int:
    known = flow.delivered_count + flow.filtered_count + sum(flow.dropped_count.values())
    return int(flow.offered_count - known - flow.pending_count)


async def test_flow_adds_up_over_all_subscriptions(bus: Any, group: Build) -> None:
    plain = await bus.subscribe("events.#")
    small = await bus.subscribe("events.#", max_queue_depth=2, initial_credit=0)
    filtering = await bus.subscribe("events.#", message_type_filters=[5])
    acknowledging = await bus.subscribe("events.#", delivery_guarantee=1)
    ending = await bus.subscribe("events.#", initial_credit=0)
    await bus.publish(groups=[group(count=5, first_sequence=1)])
    await plain.take(5)
    await acknowledging.take(5)
    await acknowledging.ask(ack=pb.AckDeliveries(position=2))
    await ending.ask(unsubscribe=subscription_control_pb2.Unsubscribe())
    assert await ending.is_over()
    listed = await bus.listed()
    assert [balance_of(one.flow) for one in listed] == [0, 0, 0, 0]
    assert [one.flow.filtered_count for one in listed] == [0, 0, 5, 0]
    flow = (await bus.stats()).flow
    assert balance_of(flow) == 0
    assert (flow.offered_count, flow.delivered_count, flow.filtered_count) == (25, 7, 5)
    assert dict(flow.dropped_count) == {"dropped_oldest": 3, "closed": 5}
    assert (flow.pending_count, flow.unacknowledged_count) == (5, 3)
    assert flow.pending_bytes > 0
    assert small is not filtering


async def test_stats_tell_the_busiest_topic_first(bus: Any, message: Build) -> None:
    await bus.subscribe(A)
    await bus.publish(message(A), message(B), message(B))
    stats = await bus.stats()
    topics = [(one.topic, one.published_count, one.offered_count) for one in stats.topics]
    assert topics == [(B, 2, 0), (A, 1, 1)]
    assert [one.unrouted_count for one in stats.topics] == [2, 0]
    assert (stats.published_count, stats.unrouted_count) == (3, 2)
    assert stats.published_bytes == sum(one.published_bytes for one in stats.topics)
    assert stats.started_at.ToNanoseconds() > 0


async def test_stats_tell_what_each_identity_did_and_holds(
    bus: Any, message: Build, group: Build, refusal_of: Any
) -> None:
    await bus.subscribe("events.#", max_queue_bytes=2 << 20)
    await bus.publish(message(), groups=[group(count=2)])
    await refusal_of(bus.publish(message(topic="alerts.high.x"), groups=[group(count=2)]))
    await refusal_of(bus.publish(message("events.*", source_id="netmond"), source="netmond"))
    identities = {one.identity: one for one in (await bus.stats()).identities}
    collector = identities["collector/procmond"]
    assert (collector.published_count, collector.offered_count) == (3, 3)
    assert dict(collector.refused_count) == {"ACCESS_DENIED": 3}
    assert (collector.stream_count, collector.subscription_count) == (0, 0)
    agent = identities["agent/agent"]
    assert (agent.stream_count, agent.subscription_count) == (1, 1)
    assert agent.granted_queue_bytes == 2 << 20
    assert dict(identities["collector/netmond"].refused_count) == {"TOPIC_INVALID": 1}


def test_no_more_topics_and_identities_are_told_than_fit_an_answer() -> None:
    broker, refusals = Broker(), RefusalLog()
    for number in range(300):
        refusals.count(f"collector/{number}", ErrorReason.RATE_LIMITED, number)
    stats = encode_stats(broker, refusals, "epoch", to_timestamp(1))
    assert len(stats.identities) == 256
    assert dict(stats.refused_count) == {"RATE_LIMITED": sum(range(300))}


async def test_open_subscriptions_are_listed_with_what_was_granted(
    bus: Any, opening_of: Any, message: Build
) -> None:
    pattern = sub.TopicPattern(pattern="events.#", wildcard_enabled=True, priority=3)
    asked = opening_of(
        topic_patterns=[pattern],
        subscriber_id="screen",
        message_type_filters=[0, 5],
        event_type_filters=[1],
        correlation_filter=sub.CorrelationFilter(
            correlation_ids=["a", "b"], correlation_tags={"k": "v"}, min_sequence_number=0
        ),
        delivery_guarantee=1,
        duplicate_handling=2,
        ordered_delivery=True,
        max_queue_depth=10,
        max_queue_bytes=1 << 20,
        overflow_policy=pb.OVERFLOW_POLICY_DROP_NEWEST,
        retention_policy=sub.RetentionPolicy(
            retention_duration_ms=5_000, max_retained_messages=7, max_retained_size_bytes=8
        ),
    )
    first = await bus.open(asked)
    second = await bus.subscribe("control.#", "alerts.#", consumer_group="screens")
    await bus.publish(message())
    one, two = await bus.listed()
    assert (one.subscription_id, one.subscriber_id) == (first.opened.subscription_id, "screen")
    assert (one.identity, list(one.patterns)) == ("agent/agent", ["events.#"])
    assert one.config == asked.open.config
    assert one.overflow_policy == pb.OVERFLOW_POLICY_DROP_NEWEST
    assert (one.max_queue_messages, one.max_queue_bytes) == (10, 1 << 20)
    assert (one.is_attached, one.is_paused) == (True, False)
    assert (one.flow.offered_count, one.flow.filtered_count) == (1, 1)
    assert (two.subscriber_id, two.flow.offered_count) == (second.opened.subscription_id, 0)
    assert (list(two.patterns), two.config.consumer_group) == (["control.#", "alerts.#"], "screens")
    assert one.opened_at.ToNanoseconds() <= two.opened_at.ToNanoseconds()


async def test_refusals_of_every_kind_reach_the_audit_topic(
    bus: Any, message: Build, opening_of: Any, refusal_of: Any
) -> None:
    auditing = await bus.subscribe(REFUSAL_TOPIC)
    collector = bus.collector()
    for _ in range(3):
        await refusal_of(bus.publish(message(topic="alerts.high.x")))
    await refusal_of(bus.publish(message(priority=256)))
    await refusal_of(bus.open(opening_of("events.#"), collector))
    await refusal_of(collector.GetBusStats(pb.GetBusStatsRequest(), timeout=TIMEOUT_S))
    told: dict[tuple[str, str, str], int] = {}
    while sum(told.values()) < 6:
        for report in await auditing.take(1):
            assert report.metadata.source_id == bus.layout.broker.id
            facts = report.control_message.parameters
            key = (facts["identity"], facts["action"], facts["reason"])
            told[key] = told.get(key, 0) + int(facts["count"])
    who = "collector/procmond"
    assert told == {
        (who, "publish", "ACCESS_DENIED"): 3,
        (who, "publish", "REQUEST_INVALID"): 1,
        (who, "subscribe", "ACCESS_DENIED"): 1,
        (who, "call", "ACCESS_DENIED"): 1,
    }


async def test_refusals_of_a_period_are_one_message_each_kind(desk: Any) -> None:
    refusals = RefusalLog()
    upkeep = Upkeep(
        desk.broker, Tracker(), refusals, Identity("m", IdentityKind.BROKER, "bus"), lambda: 5
    )
    subscription = desk.subscribe("control.#", max_bytes=100_000)
    for number in range(1_000):
        refusals.note("collector/x", "publish", ErrorReason.RATE_LIMITED, f"events.{number}")
    refusals.note("collector/x", "call", ErrorReason.ACCESS_DENIED, "a\nb")
    await upkeep.report()
    await upkeep.report()
    delivery = await desk.next(subscription)
    assert [group.count for group in delivery.groups] == [1, 1]
    messages = [
        eventbus_pb2.EventBusMessage.FromString(one)
        for group in delivery.groups
        for part in group.content.messages(1 << 20)
        for one in part
    ]
    first, second = (dict(one.control_message.parameters) for one in messages)
    assert (first["count"], first["target"]) == ("1000", "events.999")
    assert (second["identity"], second["target"]) == ("collector/x", "a\\nb")
    metadata = messages[0].metadata
    assert (metadata.topic, metadata.source_id, metadata.timestamp) == (REFUSAL_TOPIC, "bus", 5)
    assert metadata.message_type == eventbus_pb2.MESSAGE_TYPE_CONTROL_MESSAGE


def version(major: int, minor: int = 0, name: str = "") -> eventbus_pb2.MessageVersion:
    return eventbus_pb2.MessageVersion(major=major, minor=minor, protocol_version=name)


async def negotiate(bus: Any, offered: Any, preferred: Any) -> pb.NegotiateVersionResponse:
    request = eventbus_pb2.VersionNegotiationRequest(
        supported_versions=offered, preferred_version=preferred
    )
    answer: pb.NegotiateVersionResponse = await bus.collector().NegotiateVersion(
        pb.NegotiateVersionRequest(request=request), timeout=TIMEOUT_S
    )
    return answer


@pytest.mark.parametrize(
    ("offered", "preferred", "expected"),
    [
        ([version(1)], None, version(1)),
        ([version(1, 2), version(1, 3), version(2)], None, version(1, 3)),
        ([version(1, 2), version(1, 3)], version(1, 2), version(1, 2)),
        ([version(1), version(2)], version(2), version(1)),
        ([version(1, name="daemoneye")], None, version(1, name="daemoneye")),
    ],
)
async def test_version_is_the_preferred_or_the_highest_in_common(
    bus: Any, offered: Any, preferred: Any, expected: eventbus_pb2.MessageVersion
) -> None:
    answer = await negotiate(bus, offered, preferred)
    assert answer.response.negotiated_version == expected
    assert answer.response.negotiation_success
    limits = (answer.max_message_bytes, answer.max_batch_bytes, answer.max_batch_messages)
    assert limits == (1 << 20, 4 << 20, 10_000)


@pytest.mark.parametrize(
    ("offered", "preferred", "reason"),
    [
        ([], None, ErrorReason.REQUEST_INVALID),
        ([version(1)] * 17, None, ErrorReason.REQUEST_INVALID),
        ([version(1)], version(1, 1), ErrorReason.REQUEST_INVALID),
        ([version(2)], None, ErrorReason.VERSION_UNSUPPORTED),
        ([version(1, name="other")], None, ErrorReason.VERSION_UNSUPPORTED),
    ],
)
async def test_versions_without_anything_in_common_are_refused(
    bus: Any, refusal_of: Any, offered: Any, preferred: Any, reason: ErrorReason
) -> None:
    assert (await refusal_of(negotiate(bus, offered, preferred))).reason is reason
