"""Whatever comes and goes, routes are those of the plain matcher over all patterns and floors."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemoneye_eventbus import router as router_module
from daemoneye_eventbus.router import Router
from daemoneye_mesh.topic import matches

Patterns: TypeAlias = Sequence[tuple[str, int]]

segments = st.sampled_from(["a", "b", "c"])
domains = st.sampled_from(["events", "control", "alerts"])
topics = st.builds(
    lambda one, rest: ".".join([one, *rest]), domains, st.lists(segments, max_size=4)
)
plain_patterns = st.builds(
    lambda one, rest: ".".join([one, *rest]),
    domains | st.just("+"),
    st.lists(segments | st.just("+"), max_size=4),
)
patterns = st.one_of(
    plain_patterns,
    st.just("#"),
    plain_patterns.filter(lambda one: one.count(".") < 4).map(lambda one: one + ".#"),
)
floors = st.integers(0, 255)
subscriptions = st.tuples(
    st.integers(0, 5), st.lists(st.tuples(patterns, floors), min_size=1, max_size=5)
)
steps = st.lists(
    st.one_of(subscriptions, st.integers(0, 5), st.lists(topics, min_size=1, max_size=8)),
    max_size=30,
)


def reference_route(subscribers: Mapping[int, Patterns], topic: str) -> dict[int, int]:
    found = {
        subscriber: [floor for pattern, floor in wanted if matches(pattern, topic)]
        for subscriber, wanted in subscribers.items()
    }
    return {subscriber: min(floors) for subscriber, floors in found.items() if floors}


@given(
    steps,
    st.lists(topics, min_size=1, max_size=10, unique=True),
    st.sampled_from([1, 3, 1_000]),
    st.sampled_from([0, 4, 4_096]),
    st.sampled_from([1, 6, 1_000_000]),
)
def test_route_agrees_with_the_matcher_after_any_changes(
    steps: list[tuple[int, list[tuple[str, int]]] | int | list[str]],
    checked: list[str],
    max_cached_topics: int,
    max_visited: int,
    max_entries: int,
) -> None:
    router: Router[int] = Router(max_cached_topics)
    expected: dict[int, Patterns] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(router_module, "MAX_VISITED_PLACES", max_visited)
        patch.setattr(router_module, "MAX_CACHED_ENTRIES", max_entries)
        for step in steps:
            if isinstance(step, int):
                assert router.unsubscribe(step) is (expected.pop(step, None) is not None)
            elif isinstance(step, tuple):
                router.subscribe(*step)
                expected[step[0]] = step[1]
            for topic in [*checked, *(step if isinstance(step, list) else [])]:
                found = router.route(topic)
                assert len(found) == len(dict(found))
                assert dict(found) == reference_route(expected, topic)
    assert len(router) == len(expected)


@given(st.lists(subscriptions, max_size=10), topics)
def test_router_that_everybody_left_holds_nothing(
    come: list[tuple[int, list[tuple[str, int]]]], topic: str
) -> None:
    router: Router[int] = Router()
    for subscriber, wanted in come:
        router.subscribe(subscriber, wanted)
        router.route(topic)
    for subscriber in {one for one, _ in come}:
        assert router.unsubscribe(subscriber)
    assert len(router) == 0
    assert router.route(topic) == ()
    assert router._root.is_empty()
