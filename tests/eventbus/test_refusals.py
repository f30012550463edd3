from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.refusals import MAX_TARGET_CHARACTERS, Refusal, RefusalLog
from daemoneye_eventbus.tally import OTHER
from daemoneye_mesh.access import AccessTable
from daemoneye_mesh.errors import ErrorReason, PermissionDeniedError
from daemoneye_mesh.identity import Identity, IdentityKind

DENIED, LIMITED = ErrorReason.ACCESS_DENIED, ErrorReason.RATE_LIMITED
ALICE, PROCMOND = "operator/alice", "collector/procmond"


@pytest.fixture
def refusals():
    return RefusalLog()


def test_collection_counts_by_identity_action_and_reason_with_the_last_target(refusals):
    refusals.note(ALICE, "publish", DENIED, "control.a")
    refusals.note(PROCMOND, "publish", LIMITED, "events.process")
    refusals.note(ALICE, "publish", DENIED, "control.b")
    refusals.note(ALICE, "subscribe", DENIED, "control.b")

    assert refusals.collect() == [
        Refusal(ALICE, "publish", DENIED, "control.b", 2),
        Refusal(PROCMOND, "publish", LIMITED, "events.process", 1),
        Refusal(ALICE, "subscribe", DENIED, "control.b", 1),
    ]


def test_collection_returns_only_what_came_since_the_last_one(refusals):
    refusals.note(ALICE, "publish", DENIED, "control.a")
    refusals.collect()
    assert refusals.collect() == []

    refusals.note(ALICE, "publish", DENIED, "control.c")
    assert refusals.collect() == [Refusal(ALICE, "publish", DENIED, "control.c", 1)]


def test_refused_messages_are_counted_over_collections(refusals):
    refusals.count(ALICE, DENIED, 3)
    refusals.collect()
    refusals.count(ALICE, DENIED, 1)
    refusals.count(ALICE, LIMITED, 1)
    refusals.count(PROCMOND, LIMITED, 500)

    assert refusals.by_identity() == {ALICE: {DENIED: 4, LIMITED: 1}, PROCMOND: {LIMITED: 500}}
    assert refusals.by_reason() == {DENIED: 4, LIMITED: 501}


def test_refusal_of_no_message_is_for_the_audit_alone(refusals):
    refusals.note(ALICE, "call", DENIED, "/a.B/C")

    assert refusals.by_identity() == {}
    assert refusals.by_reason() == {}


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/daemoneye.eventbus.v1.EventBusService/Publish",) * 2,
        ("", ""),
        ("a\x1b[31m\n\0", "a\\x1b[31m\\n\\x00"),
        ("é\udcff\u202e", "\\xe9\\udcff\\u202e"),
        ("x" * MAX_TARGET_CHARACTERS, "x" * MAX_TARGET_CHARACTERS),
        ("x" * (MAX_TARGET_CHARACTERS + 1), "x" * (MAX_TARGET_CHARACTERS - 3) + "..."),
    ],
)
def test_target_is_shortened_and_made_printable(refusals, target, shown):
    refusals.note(ALICE, "publish", DENIED, target)

    assert refusals.collect()[0].target == shown


@given(st.text())
def test_target_of_whatever_text_is_short_printable_ascii(target):
    refusals = RefusalLog()
    refusals.note(ALICE, "publish", DENIED, target * 40)

    shown = refusals.collect()[0].target
    assert len(shown) <= MAX_TARGET_CHARACTERS
    assert shown.isascii()
    assert shown.isprintable()


def test_log_is_full_at_its_bound_and_counts_the_rest_together():
    refusals = RefusalLog(max_keys=2)
    for identity in ("collector/a", "collector/b", "collector/c", "collector/d", "collector/a"):
        refusals.note(identity, "publish", DENIED, identity)
        refusals.count(identity, DENIED, 10)

    assert refusals.collect() == [
        Refusal("collector/a", "publish", DENIED, "collector/a", 2),
        Refusal("collector/b", "publish", DENIED, "collector/b", 1),
        Refusal(OTHER, "publish", DENIED, "collector/d", 2),
    ]
    assert refusals.by_identity() == {
        "collector/a": {DENIED: 20},
        "collector/b": {DENIED: 10},
        OTHER: {DENIED: 20},
    }


def test_collection_makes_room_for_names_that_were_added_up_before():
    refusals = RefusalLog(max_keys=1)
    refusals.note("collector/a", "publish", DENIED, "x")
    refusals.collect()
    refusals.note("collector/b", "publish", DENIED, "x")

    assert refusals.collect() == [Refusal("collector/b", "publish", DENIED, "x", 1)]


notes = st.tuples(
    st.sampled_from([f"collector/c{number}" for number in range(8)]),
    st.sampled_from(["call", "publish"]),
    st.sampled_from([DENIED, LIMITED]),
    st.integers(1, 100),
)


@given(st.lists(st.one_of(st.none(), notes), max_size=60), st.integers(1, 6))
def test_every_refusal_is_collected_once_and_every_message_counted_once(operations, max_keys):
    refusals = RefusalLog(max_keys)
    noted, collected, messages = Counter(), Counter(), Counter()
    for operation in [*operations, None]:
        if operation is None:
            for one in refusals.collect():
                collected[one.action, one.reason] += one.count
        else:
            identity, action, reason, count = operation
            refusals.note(identity, action, reason, "x")
            refusals.count(identity, reason, count)
            noted[action, reason] += 1
            messages[reason] += count

    assert collected == noted
    assert refusals.by_reason() == messages
    assert len(refusals.by_identity()) <= max_keys + 1


def test_log_hears_of_what_the_access_table_refuses(refusals):
    table = AccessTable.load()
    table.on_refusal = refusals.note
    alice = Identity("mesh", IdentityKind.OPERATOR, "alice")
    with pytest.raises(PermissionDeniedError):
        table.require_publish(alice, "control.shutdown")

    assert refusals.collect() == [Refusal(ALICE, "publish", DENIED, "control.shutdown", 1)]
