import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.quota import Quota, QuotaError, QuotaLimits, Usage
from daemoneye_mesh.errors import Code, ErrorReason, InternalError

ALICE = "operator/alice"
BOB = "operator/bob"
LIMITS = QuotaLimits(max_streams=2, max_subscriptions=3, max_queue_bytes=100)


@pytest.fixture
def quota():
    return Quota(LIMITS)


def test_stream_counts_for_as_long_as_its_context_lasts(quota):
    with quota.stream(ALICE):
        with quota.stream(ALICE):
            assert quota.usage(ALICE) == Usage(streams=2)
        assert quota.usage(ALICE) == Usage(streams=1)
    assert quota.usage(ALICE) == Usage()


def test_stream_is_given_back_when_its_call_fails(quota):
    with pytest.raises(RuntimeError), quota.stream(ALICE):
        raise RuntimeError
    assert quota.usages() == {}


def test_stream_over_the_limit_is_refused_and_leaves_the_others_alone(quota):
    with quota.stream(ALICE), quota.stream(ALICE):
        with pytest.raises(QuotaError), quota.stream(ALICE):
            pytest.fail("a third stream was let in")
        assert quota.usage(ALICE) == Usage(streams=2)
        with quota.stream(BOB):
            assert quota.usage(BOB) == Usage(streams=1)


def test_subscription_over_the_limit_is_refused(quota):
    for _ in range(3):
        quota.grant(ALICE, 1)
    with pytest.raises(QuotaError, match="max_subscriptions"):
        quota.grant(ALICE, 1)
    quota.release(ALICE, 1)
    quota.grant(ALICE, 1)


def test_queue_is_granted_up_to_the_last_byte_and_no_further(quota):
    quota.grant(ALICE, 60)
    with pytest.raises(QuotaError):
        quota.grant(ALICE, 41)
    assert quota.usage(ALICE) == Usage(subscriptions=1, queue_bytes=60)
    quota.grant(ALICE, 40)
    assert quota.usage(ALICE) == Usage(subscriptions=2, queue_bytes=100)


def test_refusal_names_the_limit_and_what_was_asked(quota):
    quota.grant(ALICE, 60)
    with pytest.raises(QuotaError) as caught:
        quota.grant(ALICE, 50)

    assert (caught.value.code, caught.value.reason) == (
        Code.RESOURCE_EXHAUSTED,
        ErrorReason.LIMIT_REACHED,
    )
    assert caught.value.metadata == {
        "identity": ALICE,
        "limit_name": "max_queue_bytes",
        "limit": "100",
        "asked": "110",
    }
    assert "operator/alice would use 110 of max_queue_bytes, which is 100" in caught.value.message


def test_subscriptions_of_an_identity_do_not_keep_it_from_opening_streams(quota):
    for _ in range(3):
        quota.grant(ALICE, 0)
    with quota.stream(ALICE):
        assert quota.usage(ALICE) == Usage(1, 3, 0)


def test_usages_list_only_those_who_hold_something(quota):
    quota.grant(ALICE, 7)
    quota.grant(BOB, 8)
    quota.release(ALICE, 7)

    assert quota.usages() == {BOB: Usage(subscriptions=1, queue_bytes=8)}


def test_giving_back_what_was_not_held_is_a_defect_and_changes_nothing(quota):
    quota.grant(ALICE, 7)
    for identity, size_bytes in ((ALICE, 8), (BOB, 0)):
        with pytest.raises(InternalError):
            quota.release(identity, size_bytes)
    assert quota.usages() == {ALICE: Usage(subscriptions=1, queue_bytes=7)}


def test_quota_without_limits_counts_and_refuses_nothing():
    quota = Quota()
    quota.grant(ALICE, 1 << 40)
    with quota.stream(ALICE):
        assert quota.usage(ALICE) == Usage(1, 1, 1 << 40)


grants = st.tuples(st.sampled_from([ALICE, BOB]), st.integers(0, 60))


@given(st.lists(st.tuples(st.booleans(), grants), max_size=60))
def test_usage_is_the_sum_of_what_is_held_and_within_the_limits(operations):
    quota = Quota(LIMITS)
    held = {ALICE: [], BOB: []}
    for is_grant, (identity, size_bytes) in operations:
        if not is_grant and held[identity]:
            quota.release(identity, held[identity].pop())
        elif is_grant:
            fits = len(held[identity]) < 3 and sum(held[identity]) + size_bytes <= 100
            try:
                quota.grant(identity, size_bytes)
            except QuotaError:
                assert not fits
            else:
                assert fits
                held[identity].append(size_bytes)
        assert quota.usages() == {
            who: Usage(0, len(sizes), sum(sizes)) for who, sizes in held.items() if sizes
        }
