"""Who is addressed by what in the bus-scale benchmark."""

from benchmarks.bus_event import SOURCE_ID
from benchmarks.bus_scale import (
    MANY_CONNECTIONS,
    MANY_COUNT,
    bystanders,
    connect,
    readers,
    spread_readers,
)
from benchmarks.scale_plan import Connection, ScaleSubscribePlan
from benchmarks.scale_publisher import (
    BATCH_MESSAGES,
    DOMAINS,
    GROUPS,
    KINDS,
    encode_batches,
    topic_of,
)

from daemoneye.eventbus.v1 import eventbus_service_pb2
from daemoneye_mesh.topic import matches, validate_pattern

TOPICS = [topic_of(number) for number in range(DOMAINS * GROUPS * KINDS)]


def matching(patterns: list[str], topic: str) -> list[str]:
    return [pattern for pattern in patterns if matches(pattern, topic)]


def test_there_are_ten_thousand_topics() -> None:
    assert len(set(TOPICS)) == 10_000


def test_every_topic_has_one_reader_and_no_bystander() -> None:
    others = bystanders()
    assert len(set(readers()) | set(others)) == MANY_COUNT
    for pattern in others:
        validate_pattern(pattern)
    for topic in TOPICS[::97]:
        assert len(matching(readers(), topic)) == 1
        assert not matching(others, topic)


def test_spread_readers_share_the_topics_evenly() -> None:
    assert len(set(spread_readers())) == MANY_COUNT
    for topic in TOPICS[::331]:
        assert len(matching(spread_readers(), topic)) == 1


def test_subscriptions_are_dealt_out_to_all_connections() -> None:
    dealt = connect([*readers(), *bystanders()], MANY_CONNECTIONS)
    assert len(dealt) == MANY_CONNECTIONS
    assert {len(patterns) for patterns in dealt} == {MANY_COUNT // MANY_CONNECTIONS}
    assert sum(readers()[0] in patterns for patterns in dealt) == 1


def test_batches_have_every_topic_once() -> None:
    seen: list[str] = []
    for batch in encode_batches():
        groups = eventbus_service_pb2.PublishStreamRequest.FromString(batch).groups
        assert sum(group.envelope.count for group in groups) == BATCH_MESSAGES
        assert all(len(group.block.messages) == group.envelope.count for group in groups)
        assert {group.envelope.source_id for group in groups} == {SOURCE_ID}
        seen += [group.envelope.topic for group in groups]
    assert seen == TOPICS


def test_plan_travels_as_one_line() -> None:
    plan = ScaleSubscribePlan("socket", [Connection("token", ["events.#"])])
    assert ScaleSubscribePlan.parse(plan.dump()) == plan
