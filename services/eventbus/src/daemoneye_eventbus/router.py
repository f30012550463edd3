"""Which subscribers receive a topic: a trie of patterns with a bounded cache of routes before it.

Invariants: a subscriber is in a route once, with the least floor of its patterns that match; every
topic in the cache has passed the grammar, so a hit costs one dictionary look-up; a miss costs what
the patterns that match cost, whoever else subscribes; a change of subscriptions costs the patterns
that change and forgets the routes that they match, not the others.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Generic, TypeAlias, TypeVar

from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_mesh.topic import (
    MULTI_WILDCARD,
    SINGLE_WILDCARD,
    validate_pattern,
    validate_topic,
)

__all__ = ["MAX_PRIORITY", "Router"]

MAX_PRIORITY = 255
"""Greatest priority of a message, and so the greatest floor."""

MAX_CACHED_ENTRIES = 1_048_576
"""Bound of the cache in subscribers over all its routes, 8 bytes each: a thousand subscribers to
everything would else make ten thousand topics cost a gigabyte. Past it routes are found anew, which
costs less than the delivery to so many that follows."""

MAX_VISITED_PLACES = 4_096
"""Most places of the index that one change of subscriptions looks at; past them the whole cache is
forgotten, so that no choice of patterns makes a change slow."""

SubscriberT = TypeVar("SubscriberT", bound=Hashable)
Segments: TypeAlias = tuple[str, ...]
Route: TypeAlias = tuple[tuple[SubscriberT, int], ...]


class _Node(Generic[SubscriberT]):
    """One segment of the trie of patterns; the entries of a pattern are what routes hold."""

    __slots__ = ("children", "ending_here", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node[SubscriberT]] = {}
        self.ending_here: dict[SubscriberT, tuple[SubscriberT, int]] = {}
        self.rest: dict[SubscriberT, tuple[SubscriberT, int]] = {}

    def is_empty(self) -> bool:
        return not (self.children or self.ending_here or self.rest)


class Router(Generic[SubscriberT]):
    """Maps topics to subscribers.

    Args:
        max_cached_topics: bound of the route cache; the oldest entry makes way for a new one.
    """

    def __init__(self, max_cached_topics: int = 16_384) -> None:
        self._root: _Node[SubscriberT] = _Node()
        self._patterns: dict[SubscriberT, dict[Segments, int]] = {}
        self._cache: _RouteCache[SubscriberT] = _RouteCache(max_cached_topics)

    def __len__(self) -> int:
        return len(self._patterns)

    def __contains__(self, subscriber: object) -> bool:
        return subscriber in self._patterns

    def subscribe(self, subscriber: SubscriberT, patterns: Sequence[tuple[str, int]]) -> None:
        """Gives a subscriber these patterns in place of any it had; all of them, or none.

        Args:
            subscriber: who subscribes.
            patterns: each with its priority floor, 0 to 255.

        Raises:
            InvalidPatternError: a pattern breaks the grammar; nothing has changed.
            InvalidSubscriptionError: there is no pattern, or a floor is out of range; nothing has
                changed.
        """
        if not patterns:
            raise InvalidSubscriptionError("the subscription has no pattern; name at least one")
        parsed = _parse(patterns)
        self._change(subscriber, parsed)
        self._patterns[subscriber] = parsed

    def unsubscribe(self, subscriber: SubscriberT) -> bool:
        """Forgets a subscriber; says whether there was one."""
        if subscriber not in self._patterns:
            return False
        self._change(subscriber, {})
        del self._patterns[subscriber]
        return True

    def route(self, topic: str) -> Route[SubscriberT]:
        """Returns every subscriber of a topic, each once, with its floor.

        The floor is the least one among the patterns of the subscriber that match.

        Raises:
            InvalidTopicError: the topic breaks the grammar.
        """
        found = self._cache.routes.get(topic)
        return self._route_uncached(topic) if found is None else found

    def _route_uncached(self, topic: str) -> Route[SubscriberT]:
        segments = validate_topic(topic)
        matching: dict[SubscriberT, tuple[SubscriberT, int]] = {}
        _collect(self._root, segments, 0, matching)
        found = tuple(matching.values())
        self._cache.add(topic, segments, found)
        return found

    def _change(self, subscriber: SubscriberT, wanted: Mapping[Segments, int]) -> None:
        present = self._patterns.get(subscriber, {})
        gone = [segments for segments in present if segments not in wanted]
        new = [segments for segments in wanted if present.get(segments) != wanted[segments]]
        for segments in gone:
            self._remove(segments, subscriber)
        for segments in new:
            self._insert(segments, subscriber, wanted[segments])
        self._cache.forget([*gone, *new])

    def _insert(self, segments: Segments, subscriber: SubscriberT, floor: int) -> None:
        node = self._root
        for segment in segments:
            if segment == MULTI_WILDCARD:
                node.rest[subscriber] = (subscriber, floor)
                return
            node = node.children.setdefault(segment, _Node())
        node.ending_here[subscriber] = (subscriber, floor)

    def _remove(self, segments: Segments, subscriber: SubscriberT) -> None:
        path: list[tuple[_Node[SubscriberT], str]] = []
        node = self._root
        for segment in segments:
            if segment == MULTI_WILDCARD:
                del node.rest[subscriber]
                break
            path.append((node, segment))
            node = node.children[segment]
        else:
            del node.ending_here[subscriber]
        for parent, segment in reversed(path):
            if not parent.children[segment].is_empty():
                break
            del parent.children[segment]


class _IndexNode:
    """One segment of the cached topics."""

    __slots__ = ("children", "topic")

    def __init__(self) -> None:
        self.children: dict[str, _IndexNode] = {}
        self.topic: str | None = None


class _RouteCache(Generic[SubscriberT]):
    """Routes by topic, and a trie of these topics to find those that a pattern matches.

    Invariant: the trie holds exactly the topics of ``routes``, and no branch without one.
    """

    def __init__(self, max_topics: int) -> None:
        # A plain dict would search for its oldest entry among all that were taken from its front.
        self.routes: OrderedDict[str, Route[SubscriberT]] = OrderedDict()
        self._max_topics = max_topics
        self._entry_count = 0
        self._root = _IndexNode()

    def add(self, topic: str, segments: Segments, route: Route[SubscriberT]) -> None:
        """Keeps the route of a topic that is not in the cache; the oldest ones make room."""
        while self.routes and (
            len(self.routes) >= self._max_topics
            or self._entry_count + len(route) > MAX_CACHED_ENTRIES
        ):
            self._drop(next(iter(self.routes)))
        self.routes[topic] = route
        self._entry_count += len(route)
        node = self._root
        for segment in segments:
            node = node.children.setdefault(segment, _IndexNode())
        node.topic = topic

    def forget(self, patterns: Iterable[Segments]) -> None:
        """Drops the routes of all topics that match one of the patterns."""
        places = chain.from_iterable(_places(self._root, segments) for segments in patterns)
        seen = list(islice(places, MAX_VISITED_PLACES + 1))
        if len(seen) > MAX_VISITED_PLACES:
            self._clear()
            return
        for topic in dict.fromkeys(seen):
            if topic is not None:
                self._drop(topic)

    def _clear(self) -> None:
        self.routes.clear()
        self._entry_count = 0
        self._root = _IndexNode()

    def _drop(self, topic: str) -> None:
        self._entry_count -= len(self.routes.pop(topic))
        path: list[tuple[_IndexNode, str]] = []
        node = self._root
        for segment in topic.split("."):
            path.append((node, segment))
            node = node.children[segment]
        node.topic = None
        for parent, segment in reversed(path):
            child = parent.children[segment]
            if child.children or child.topic is not None:
                break
            del parent.children[segment]


def _parse(patterns: Sequence[tuple[str, int]]) -> dict[Segments, int]:
    """Returns the segments of each pattern with the least floor it was given."""
    parsed: dict[Segments, int] = {}
    for pattern, floor in patterns:
        segments = validate_pattern(pattern)
        if not 0 <= floor <= MAX_PRIORITY:
            raise InvalidSubscriptionError(
                f"the priority floor {floor} of pattern {pattern} is out of range; "
                f"use 0 to {MAX_PRIORITY}",
                pattern=pattern,
                floor=floor,
                limit=MAX_PRIORITY,
            )
        parsed[segments] = min(floor, parsed.get(segments, floor))
    return parsed


def _collect(
    node: _Node[SubscriberT],
    segments: Segments,
    depth: int,
    matching: dict[SubscriberT, tuple[SubscriberT, int]],
) -> None:
    _merge(matching, node.rest)
    if depth == len(segments):
        _merge(matching, node.ending_here)
        return
    for segment in (segments[depth], SINGLE_WILDCARD):
        child = node.children.get(segment)
        if child is not None:
            _collect(child, segments, depth + 1, matching)


def _merge(
    matching: dict[SubscriberT, tuple[SubscriberT, int]],
    entries: Mapping[SubscriberT, tuple[SubscriberT, int]],
) -> None:
    if not matching:
        matching.update(entries)
        return
    for subscriber, entry in entries.items():
        known = matching.get(subscriber)
        if known is None or entry[1] < known[1]:
            matching[subscriber] = entry


def _places(root: _IndexNode, pattern: Segments) -> Iterator[str | None]:
    """Yields once for each place it looks at: the topic there when it matches, else None."""
    waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        if depth == len(pattern):
            yield node.topic
            continue
        segment = pattern[depth]
        if segment == MULTI_WILDCARD:
            yield node.topic
            waiting += [(child, depth) for child in node.children.values()]
            continue
        yield None
        if segment == SINGLE_WILDCARD:
            waiting += [(child, depth + 1) for child in node.children.values()]
        elif segment in node.children:
            waiting.append((node.children[segment], depth + 1))
