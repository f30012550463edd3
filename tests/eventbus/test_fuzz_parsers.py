"""Whatever the parsers of the broker are given, they read it or refuse it with a declared error.

Without a socket, so with many examples. What is read must then be within the bounds that the rest of
the broker relies on.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daemoneye.eventbus.v1 import eventbus_pb2, frame_pb2, group_pb2
from daemoneye.eventbus.v1 import eventbus_service_pb2 as pb
from daemoneye.eventbus.v1 import subscription_pb2 as sub
from daemoneye_eventbus.broker import Broker, BrokerLimits
from daemoneye_eventbus.errors import (
    BatchTooLargeError,
    EmptyBatchError,
    ForeignSourceError,
    InvalidMessageError,
    InvalidSubscriptionError,
    MessageTooLargeError,
    UnsupportedSettingError,
)
from daemoneye_eventbus.group import Group
from daemoneye_eventbus.rate_limit import InvalidRateLimitError, RateLimit, parse_rate_limit
from daemoneye_eventbus.service_envelope import EnvelopeReader
from daemoneye_eventbus.service_group import GroupContent
from daemoneye_eventbus.service_terms import TermsReader
from daemoneye_eventbus.subscription import SubscriptionTerms
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.correlation import Correlation, InvalidCorrelationError, TraceContext
from daemoneye_mesh.correlation_message import from_message, to_message
from daemoneye_mesh.errors import PermissionDeniedError
from daemoneye_mesh.identity import Principal
from daemoneye_mesh.layout import RuntimeLayout
from daemoneye_mesh.topic import InvalidPatternError

TEXTS = st.text("ab.+#*-_/ \x00\n\u00e9\u202e\U0001f600", max_size=8)
LONG_TEXTS = st.builds(lambda text, count: text * count, TEXTS, st.sampled_from([1, 1, 40, 400]))
ENUMS = st.integers(-1, 12) | st.sampled_from([2**31 - 1, -(2**31)])
UINT32 = st.integers(0, 300) | st.integers(0, 2**32 - 1)
UINT64 = UINT32 | st.integers(0, 2**64 - 1) | st.just(2**64 - 1)
HEX = st.text("0123456789abcdefABCX", min_size=15, max_size=33) | st.sampled_from(
    ["0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "0" * 32, ""]
)
OWN_ID = "procmond"


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields."""
    return st.fixed_dictionaries({}, optional=fields)


def tags() -> st.SearchStrategy[dict[str, str]]:
    few = st.dictionaries(LONG_TEXTS, LONG_TEXTS, max_size=3)
    return few | st.just({str(number): "" for number in range(65)})


CORRELATIONS = some(
    correlation_id=st.just("c1") | LONG_TEXTS,
    root_correlation_id=st.just("c1") | LONG_TEXTS,
    parent_correlation_id=LONG_TEXTS,
    trace_id=HEX,
    span_id=HEX,
    sequence_number=UINT64,
    workflow_stage=LONG_TEXTS,
    correlation_tags=tags(),
).map(lambda fields: {"correlation_id": "c1", "root_correlation_id": "c1", **fields})

METADATA = some(
    message_id=LONG_TEXTS,
    topic=TEXTS,
    message_type=ENUMS,
    priority=UINT32,
    ttl_ms=UINT64,
    target_id=LONG_TEXTS,
    headers=tags(),
    source_epoch=UINT64,
    source_sequence=UINT64,
    source_id=TEXTS,
).map(lambda fields: {"source_id": OWN_ID, "topic": "events.process", **fields})


def message_of(metadata: dict[str, Any], correlation: Any, event_type: int | None) -> bytes:
    message = eventbus_pb2.EventBusMessage(metadata=metadata, correlation=correlation)
    if event_type is not None:
        message.collection_event.event_type = eventbus_pb2.EventType.ValueType(event_type)
    return message.SerializeToString()


MESSAGES = st.builds(message_of, METADATA, st.none() | CORRELATIONS, st.none() | ENUMS)
SOUND = message_of({"source_id": OWN_ID, "topic": "events.process"}, None, None)


def group_of(
    fields: dict[str, Any], correlation: Any, frames: Sequence[bytes], lie: int | None
) -> bytes:
    envelope = group_pb2.GroupEnvelope(
        **{"source_id": OWN_ID, "topic": "events.process", "count": len(frames), **fields},
        correlation=correlation,
    )
    if lie is not None:
        envelope.count = lie
    block = frame_pb2.MessageBlockFrames(messages=frames).SerializeToString()
    return frame_pb2.GroupFrame(envelope=envelope, block=block).SerializeToString()


GROUPS = st.builds(
    group_of,
    some(
        message_id=LONG_TEXTS,
        topic=TEXTS,
        message_type=ENUMS,
        event_type=ENUMS,
        priority=UINT32,
        ttl_ms=UINT64,
        source_epoch=UINT64,
        first_sequence=UINT64,
    ),
    st.none() | CORRELATIONS,
    st.lists(st.just(SOUND) | MESSAGES | st.binary(max_size=9), min_size=1, max_size=4),
    st.none() | st.none() | UINT32,
)


def damaged(encoded: bytes, at: float, extra: bytes, length: int) -> bytes:
    place = int(at * len(encoded))
    return encoded[:place] + extra + encoded[place + length :]


def or_damaged(sound: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    broken = st.builds(damaged, sound, st.floats(0, 1), st.binary(max_size=4), st.integers(0, 4))
    return sound | broken


def verify_group(group: Group) -> None:
    envelope = group.envelope
    assert 1 <= envelope.count == group.count
    assert envelope.source_id == OWN_ID
    assert 0 <= envelope.priority <= 255
    assert envelope.first_sequence + envelope.count - 1 < 2**64
    assert isinstance(group.content, GroupContent)
    decoded = group_pb2.MessageGroup()
    with suppress(DecodeError):  # a message inside may be garbage: that is its receivers' affair
        decoded.ParseFromString(group.content.encoded)
        assert len(decoded.block.messages) == envelope.count == decoded.envelope.count
    halves = group.split(1) if group.count > 1 else (group,)
    messages = [one for half in halves for one in expand(half)]
    assert len(messages) == envelope.count
    for number, encoded in enumerate(messages):
        metadata = frame_pb2.MessageEnvelope.FromString(encoded).metadata
        assert (metadata.source_id, metadata.topic) == (OWN_ID, envelope.topic)
        first = envelope.first_sequence
        assert metadata.source_sequence == (first and first + number)


def expand(group: Group) -> list[bytes]:
    content = group.content
    assert isinstance(content, GroupContent)
    return [one for part in content.messages(max_bytes=500) for one in part]


@settings(max_examples=600)
@given(
    messages=st.lists(or_damaged(st.just(SOUND) | MESSAGES), max_size=4),
    groups=st.lists(or_damaged(GROUPS), max_size=3),
)
@example(messages=[], groups=[group_of({}, None, [SOUND], None) + b"\x12\x02\x0a\x00"])
def test_batches_are_read_within_bounds_or_refused(
    messages: list[bytes], groups: list[bytes]
) -> None:
    try:
        found = EnvelopeReader(OWN_ID).read(messages, groups)
    except (
        BatchTooLargeError,
        EmptyBatchError,
        ForeignSourceError,
        InvalidCorrelationError,
        InvalidMessageError,
        MessageTooLargeError,
    ):
        return
    assert sum(group.count for group in found) >= len(messages) + len(groups)
    for group in found:
        verify_group(group)


@settings(max_examples=300)
@given(CORRELATIONS)
def test_correlations_are_read_as_they_are_or_refused(fields: dict[str, Any]) -> None:
    message = eventbus_pb2.CorrelationMetadata(**fields)
    try:
        correlation = from_message(message)
    except InvalidCorrelationError:
        return
    assert isinstance(correlation, Correlation)
    assert to_message(correlation) == message
    assert correlation.child("next").root_correlation_id == message.root_correlation_id


@settings(max_examples=200)
@given(st.text(max_size=70) | st.from_regex(r"\A[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-0[01]-?"))
def test_trace_contexts_are_read_or_refused(text: str) -> None:
    with suppress(InvalidCorrelationError):
        context = TraceContext.parse(text)
        assert TraceContext.parse(context.format()) == context


RULES = st.builds(
    "{} {} {}/s burst {}".format,
    st.sampled_from(["collector/+", "+", "agent/agent", "x/", "collector/#"]),
    TEXTS | st.just("events.process"),
    st.integers(-1, 10**9) | st.floats() | st.just("9" * 400) | st.just("\u0663"),
    st.integers(-1, 10**9) | st.just("9" * 5_000) | st.just("\u0663"),
)


@settings(max_examples=300)
@given(RULES | st.text(max_size=40))
@example("+ " + "9" * 400 + "/s")
def test_rate_limits_are_read_or_refused(text: str) -> None:
    with suppress(InvalidRateLimitError):
        assert isinstance(parse_rate_limit(text), RateLimit)


PATTERNS = some(
    pattern=st.sampled_from(["events.#", "#", "events.+.x", "control"]) | TEXTS | LONG_TEXTS,
    wildcard_enabled=st.booleans(),
    priority=UINT32,
    metadata=tags(),
).map(lambda fields: {"pattern": "events.#", "wildcard_enabled": True, **fields})
IDS = st.lists(LONG_TEXTS, max_size=3) | st.just(["a"] * 65)
FILTERS = some(
    correlation_ids=IDS,
    correlation_patterns=IDS,
    correlation_tags=tags(),
    workflow_stages=IDS,
    parent_correlation_ids=IDS,
    root_correlation_ids=IDS,
    any_correlation_tags=tags(),
    min_sequence_number=UINT64,
    max_sequence_number=UINT64,
)
QOS = some(
    delivery_guarantee=st.integers(0, 2) | ENUMS,
    max_queue_depth=UINT32,
    ordered_delivery=st.booleans(),
    duplicate_handling=st.integers(0, 2) | ENUMS,
    retention_policy=some(
        retention_duration_ms=UINT64, max_retained_messages=UINT32, max_retained_size_bytes=UINT64
    ),
)
CONFIGS = some(
    subscriber_id=st.just("s1") | LONG_TEXTS,
    topic_patterns=st.lists(PATTERNS, max_size=3) | st.just([{"pattern": "events"}] * 65),
    message_type_filters=st.lists(ENUMS, max_size=3) | st.just([0] * 65),
    event_type_filters=st.lists(ENUMS, max_size=3),
    correlation_filter=FILTERS,
    qos_settings=QOS,
    consumer_group=st.just("g1") | LONG_TEXTS,
)
OPENINGS = some(
    config=CONFIGS,
    overflow_policy=st.integers(0, 4) | ENUMS,
    max_queue_bytes=UINT64,
    grouped=st.booleans(),
    block_timeout_ms=UINT32,
    ack_timeout_ms=UINT32,
    max_unacknowledged_messages=UINT32,
    initial_credit=UINT32,
    history=some(max_age_ms=UINT64, max_messages=UINT32),
)
REFUSALS = (
    InvalidPatternError,
    InvalidSubscriptionError,
    PermissionDeniedError,
    UnsupportedSettingError,
)
READER = TermsReader(
    Principal(RuntimeLayout(Path("/run")).agent), AccessTable.load(), BrokerLimits()
)


def verify_terms(terms: SubscriptionTerms) -> None:
    limits, most = terms.limits, READER.limits
    assert len(terms.patterns) <= most.max_patterns
    assert all(0 <= floor <= 255 for _, floor in terms.patterns)
    assert 0 < limits.block_timeout_s <= 5
    assert len(terms.label.encode()) <= 128
    assert len(terms.consumer_group) <= 64
    if limits.acknowledgement is not None:
        assert 0.1 <= limits.acknowledgement.timeout_s <= 3_600
        assert limits.acknowledgement.max_unacknowledged <= limits.max_messages
    if terms.durability is not None:
        assert terms.label
        assert 0 < terms.durability.duration_s <= 3_600


@settings(max_examples=600)
@given(OPENINGS)
def test_openings_are_read_within_bounds_or_refused(fields: dict[str, Any]) -> None:
    try:
        terms = READER.read(pb.OpenSubscription(**fields))
    except REFUSALS:
        return
    verify_terms(terms)
    with suppress(InvalidSubscriptionError):  # bounds that the broker itself holds
        assert Broker(READER.limits).subscribe("agent/agent", terms).subscription.terms is terms
        assert terms.patterns


@settings(max_examples=200)
@given(CONFIGS, CONFIGS)
def test_updates_are_read_within_bounds_or_refused(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    with suppress(*REFUSALS):
        present = READER.read(pb.OpenSubscription(config=sub.SubscriptionConfig(**first)))
        terms = READER.read_update(sub.SubscriptionConfig(**second), present)
        assert terms.limits == present.limits
        verify_terms(terms)
