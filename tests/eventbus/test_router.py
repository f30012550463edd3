"""The router finds each subscriber once, agrees with the plain matcher and forgets in full."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_eventbus.router import Router
from daemoneye_mesh.topic import InvalidPatternError, InvalidTopicError, matches

PATTERNS = [
    "#",
    "+",
    "+.a",
    "+.#",
    "events",
    "events.#",
    "events.+",
    "events.a",
    "events.a.#",
    "events.a.b",
    "events.+.b",
    "events.+.#",
    "control.+.b.#",
    "alerts.a.+",
]
TOPICS = [
    "events",
    "events.a",
    "events.a.b",
    "events.b.b.a",
    "control.a.b",
    "control.a.b.c.d",
    "alerts.a.b",
    "alerts",
]

subscriptions = st.tuples(
    st.integers(0, 4), st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=4)
)
changes = st.lists(st.one_of(subscriptions, st.integers(0, 4)), max_size=12)


def test_subscriber_with_several_matching_patterns_is_found_once() -> None:
    router: Router[str] = Router()
    router.subscribe("s", ["#", "events.#", "events.a", "events.+", "events.a"])
    assert router.route("events.a") == ("s",)


def test_topic_nobody_subscribed_to_has_no_subscribers() -> None:
    router: Router[str] = Router()
    router.subscribe("s", ["control.#"])
    assert router.route("events.a") == ()


def test_route_notices_a_subscriber_that_comes_and_goes() -> None:
    router: Router[str] = Router()
    assert router.route("events.a") == ()
    router.subscribe("s", ["events.a"])
    assert router.route("events.a") == ("s",)
    assert router.unsubscribe("s")
    assert router.route("events.a") == ()


def test_subscribing_again_replaces_the_patterns() -> None:
    router: Router[str] = Router()
    router.subscribe("s", ["events.a"])
    router.subscribe("s", ["events.b"])
    assert (router.route("events.a"), router.route("events.b")) == ((), ("s",))
    assert len(router) == 1


def test_unsubscribing_an_unknown_subscriber_says_so() -> None:
    router: Router[str] = Router()
    assert not router.unsubscribe("nobody")


def test_invalid_pattern_leaves_the_old_subscription_whole() -> None:
    router: Router[str] = Router()
    router.subscribe("s", ["events.a"])
    with pytest.raises(InvalidPatternError):
        router.subscribe("s", ["events.b", "events.*"])
    assert (router.route("events.a"), router.route("events.b")) == (("s",), ())


def test_subscription_without_a_pattern_is_refused() -> None:
    router: Router[str] = Router()
    with pytest.raises(InvalidSubscriptionError):
        router.subscribe("s", [])
    assert "s" not in router


@pytest.mark.parametrize("topic", ["events.+", "system.a", ""])
def test_invalid_topic_is_refused_every_time(topic: str) -> None:
    router: Router[str] = Router()
    router.subscribe("s", ["#"])
    for _ in range(2):
        with pytest.raises(InvalidTopicError):
            router.route(topic)


@given(changes, st.integers(1, 3))
def test_route_agrees_with_the_matcher_after_any_changes(
    steps: list[tuple[int, list[str]] | int], max_cached_topics: int
) -> None:
    router: Router[int] = Router(max_cached_topics)
    expected: dict[int, list[str]] = {}
    for step in steps:
        if isinstance(step, int):
            assert router.unsubscribe(step) is (expected.pop(step, None) is not None)
        else:
            router.subscribe(*step)
            expected[step[0]] = step[1]
        for topic in TOPICS:
            found = router.route(topic)
            assert len(found) == len(set(found))
            assert set(found) == {
                one
                for one, patterns in expected.items()
                if any(matches(pattern, topic) for pattern in patterns)
            }
    assert len(router) == len(expected)
