"""The router finds each subscriber once with its floor, keeps routes and forgets what changed."""

import pytest

from daemoneye_eventbus import router as router_module
from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_eventbus.router import Router
from daemoneye_mesh.topic import InvalidPatternError, InvalidTopicError


def test_subscriber_with_several_matching_patterns_is_found_once() -> None:
    router: Router[str] = Router()
    patterns = ["#", "events.#", "events.a", "events.+", "events.a"]
    router.subscribe("s", [(pattern, 0) for pattern in patterns])
    assert router.route("events.a") == (("s", 0),)


@pytest.mark.parametrize(
    ("topic", "floor"),
    [("events.a", 10), ("events.b", 50), ("events", 100), ("control.a", 200), ("alerts", 200)],
)
def test_floor_is_the_least_of_the_patterns_that_match(topic: str, floor: int) -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("#", 200), ("events.a", 10), ("events.+", 50), ("events.#", 100)])
    assert router.route(topic) == (("s", floor),)


def test_floor_of_a_pattern_named_twice_is_the_lesser_one() -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("events.a", 7), ("events.a", 3), ("events.a", 5)])
    assert router.route("events.a") == (("s", 3),)
    assert router.unsubscribe("s")
    assert router.route("events.a") == ()


def test_floors_of_two_subscribers_are_told_apart() -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("events.+", 9)])
    router.subscribe("t", [("events.a", 4), ("#", 5)])
    assert set(router.route("events.a")) == {("s", 9), ("t", 4)}
    assert set(router.route("events.b")) == {("s", 9), ("t", 5)}


def test_topic_nobody_subscribed_to_has_no_subscribers() -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("control.#", 0)])
    assert router.route("events.a") == ()


def test_route_notices_a_subscriber_that_comes_and_goes() -> None:
    router: Router[str] = Router()
    assert router.route("events.a") == ()
    router.subscribe("s", [("events.a", 0)])
    assert router.route("events.a") == (("s", 0),)
    assert router.unsubscribe("s")
    assert router.route("events.a") == ()


def test_subscribing_again_replaces_the_patterns() -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("events.a", 0)])
    router.subscribe("s", [("events.b", 0)])
    assert (router.route("events.a"), router.route("events.b")) == ((), (("s", 0),))
    assert len(router) == 1


def test_subscribing_again_replaces_the_floors() -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("events.a", 1), ("events.#", 2)])
    assert router.route("events.a") == (("s", 1),)
    router.subscribe("s", [("events.a", 8), ("events.#", 9)])
    assert (router.route("events.a"), router.route("events.b")) == ((("s", 8),), (("s", 9),))


def test_unsubscribing_an_unknown_subscriber_says_so() -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("#", 0)])
    assert router.unsubscribe("s")
    assert not router.unsubscribe("s")
    assert not router.unsubscribe("nobody")


def test_invalid_pattern_leaves_the_old_subscription_whole() -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("events.a", 0)])
    with pytest.raises(InvalidPatternError):
        router.subscribe("s", [("events.b", 0), ("events.*", 0)])
    assert (router.route("events.a"), router.route("events.b")) == ((("s", 0),), ())


@pytest.mark.parametrize("floor", [0, 255])
def test_floor_within_its_range_is_accepted(floor: int) -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("events.a", floor)])
    assert router.route("events.a") == (("s", floor),)


@pytest.mark.parametrize("floor", [-1, 256])
def test_floor_out_of_range_is_refused_and_changes_nothing(floor: int) -> None:
    router: Router[str] = Router()
    with pytest.raises(InvalidSubscriptionError, match="use 0 to 255") as caught:
        router.subscribe("s", [("events.b", 0), ("events.a", floor)])
    assert caught.value.metadata == {"pattern": "events.a", "floor": str(floor), "limit": "255"}
    assert "s" not in router
    assert router.route("events.b") == ()


def test_subscription_without_a_pattern_is_refused() -> None:
    router: Router[str] = Router()
    with pytest.raises(InvalidSubscriptionError):
        router.subscribe("s", [])
    assert "s" not in router


@pytest.mark.parametrize("topic", ["events.+", "system.a", ""])
def test_invalid_topic_is_refused_every_time(topic: str) -> None:
    router: Router[str] = Router()
    router.subscribe("s", [("#", 0)])
    for _ in range(2):
        with pytest.raises(InvalidTopicError):
            router.route(topic)


def kept(router: Router[str], topics: list[str], change: tuple[str, list[str]]) -> list[str]:
    """Returns the topics whose routes are still the same objects after a change."""
    before = {topic: router.route(topic) for topic in topics}
    subscriber, patterns = change
    if patterns:
        router.subscribe(subscriber, [(pattern, 0) for pattern in patterns])
    else:
        router.unsubscribe(subscriber)
    return [topic for topic in topics if router.route(topic) is before[topic]]


@pytest.mark.parametrize(
    ("patterns", "forgotten"),
    [
        (["events.a"], ["events.a"]),
        (["events.+"], ["events.a", "events.b"]),
        (["events.#"], ["events", "events.a", "events.b", "events.a.c"]),
        (["events.a.#"], ["events.a", "events.a.c"]),
        (["+.a", "alerts"], ["events.a", "control.a", "alerts"]),
        (["+.+.c"], ["events.a.c"]),
        (["control.nothing.here"], []),
    ],
)
def test_change_of_subscriptions_forgets_only_the_routes_that_its_patterns_match(
    patterns: list[str], forgotten: list[str]
) -> None:
    topics = ["events", "events.a", "events.b", "events.a.c", "control.a", "alerts"]
    router: Router[str] = Router()
    router.subscribe("observer", [("#", 0)])
    expected = [topic for topic in topics if topic not in forgotten]
    assert kept(router, topics, ("s", patterns)) == expected
    assert kept(router, topics, ("s", [])) == expected


def test_update_forgets_only_the_routes_of_the_patterns_that_differ() -> None:
    topics = ["events.a", "events.b", "events.c", "events.d"]
    router: Router[str] = Router()
    router.subscribe("observer", [("#", 0)])
    router.subscribe("s", [("events.a", 0), ("events.b", 0)])
    assert kept(router, topics, ("s", ["events.b", "events.c"])) == ["events.b", "events.d"]
    assert kept(router, topics, ("s", ["events.b", "events.c"])) == topics


def test_oldest_route_makes_way_when_the_cache_is_full() -> None:
    router: Router[str] = Router(max_cached_topics=2)
    router.subscribe("s", [("#", 0)])
    first, second = router.route("events.a"), router.route("events.b")
    router.route("events.c")
    assert router.route("events.b") is second
    assert router.route("events.a") is not first


def test_cache_is_bounded_in_the_subscribers_that_its_routes_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router_module, "MAX_CACHED_ENTRIES", 10)
    router: Router[int] = Router()
    for subscriber in range(4):
        router.subscribe(subscriber, [("#", 0)])
    routes = [router.route(f"events.{name}") for name in "abc"]
    assert router.route("events.b") is routes[1]
    assert router.route("events.c") is routes[2]
    assert router.route("events.a") is not routes[0]


def test_change_that_would_look_at_too_much_forgets_every_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router_module, "MAX_VISITED_PLACES", 5)
    router: Router[str] = Router()
    router.subscribe("s", [("#", 0)])
    topics = ["events.a", "events.b", "events.c", "events.d", "control.a"]
    assert kept(router, topics, ("t", ["events.a", "control.b"])) == topics[1:]
    assert kept(router, topics, ("u", ["events.+.a"])) == []
    assert [len(router.route(topic)) for topic in topics] == [2, 1, 1, 1, 1]
