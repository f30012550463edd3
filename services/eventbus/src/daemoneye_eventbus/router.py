"""Which subscribers receive a topic: a trie of patterns with a bounded cache before it.

Invariants: a subscriber is returned once however many of its patterns match; every topic in the
cache has passed the grammar, so a hit costs one dictionary look-up; the cost of a miss depends on
the patterns that match, not on unrelated subscribers. Any change of subscriptions empties the
cache.
"""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_mesh.topic import (
    MULTI_WILDCARD,
    SINGLE_WILDCARD,
    validate_pattern,
    validate_topic,
)

__all__ = ["Router"]

SubscriberT = TypeVar("SubscriberT", bound=Hashable)


class _Node(Generic[SubscriberT]):
    """One segment of the trie; dictionaries serve as sets that remember insertion order."""

    __slots__ = ("children", "ending_here", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node[SubscriberT]] = {}
        self.ending_here: dict[SubscriberT, None] = {}
        self.rest: dict[SubscriberT, None] = {}

    def is_empty(self) -> bool:
        return not (self.children or self.ending_here or self.rest)


class Router(Generic[SubscriberT]):
    """Maps topics to subscribers.

    Args:
        max_cached_topics: bound of the route cache; the oldest entry makes way for a new one.
    """

    def __init__(self, max_cached_topics: int = 16_384) -> None:
        self._max_cached_topics = max_cached_topics
        self._root: _Node[SubscriberT] = _Node()
        self._patterns: dict[SubscriberT, tuple[tuple[str, ...], ...]] = {}
        self._cache: dict[str, tuple[SubscriberT, ...]] = {}

    def __len__(self) -> int:
        return len(self._patterns)

    def __contains__(self, subscriber: object) -> bool:
        return subscriber in self._patterns

    def subscribe(self, subscriber: SubscriberT, patterns: Sequence[str]) -> None:
        """Gives a subscriber these patterns in place of any it had; all of them, or none.

        Raises:
            InvalidPatternError: a pattern breaks the grammar; nothing has changed.
            InvalidSubscriptionError: there is no pattern; nothing has changed.
        """
        if not patterns:
            raise InvalidSubscriptionError("the subscription has no pattern; name at least one")
        parsed = tuple(dict.fromkeys(validate_pattern(pattern) for pattern in patterns))
        self.unsubscribe(subscriber)
        for segments in parsed:
            self._insert(segments, subscriber)
        self._patterns[subscriber] = parsed
        self._cache.clear()

    def unsubscribe(self, subscriber: SubscriberT) -> bool:
        """Forgets a subscriber; says whether there was one."""
        parsed = self._patterns.pop(subscriber, None)
        if parsed is None:
            return False
        for segments in parsed:
            self._remove(segments, subscriber)
        self._cache.clear()
        return True

    def route(self, topic: str) -> tuple[SubscriberT, ...]:
        """Returns every subscriber of a topic, each once.

        Raises:
            InvalidTopicError: the topic breaks the grammar.
        """
        found = self._cache.get(topic)
        return self._route_uncached(topic) if found is None else found

    def _route_uncached(self, topic: str) -> tuple[SubscriberT, ...]:
        matching: dict[SubscriberT, None] = {}
        _collect(self._root, validate_topic(topic), 0, matching)
        found = tuple(matching)
        if len(self._cache) >= self._max_cached_topics:
            del self._cache[next(iter(self._cache))]
        self._cache[topic] = found
        return found

    def _insert(self, segments: tuple[str, ...], subscriber: SubscriberT) -> None:
        node = self._root
        for segment in segments:
            if segment == MULTI_WILDCARD:
                node.rest[subscriber] = None
                return
            node = node.children.setdefault(segment, _Node())
        node.ending_here[subscriber] = None

    def _remove(self, segments: tuple[str, ...], subscriber: SubscriberT) -> None:
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
            if parent.children[segment].is_empty():
                del parent.children[segment]


def _collect(
    node: _Node[SubscriberT],
    segments: tuple[str, ...],
    depth: int,
    matching: dict[SubscriberT, None],
) -> None:
    matching.update(node.rest)
    if depth == len(segments):
        matching.update(node.ending_here)
        return
    for segment in (segments[depth], SINGLE_WILDCARD):
        child = node.children.get(segment)
        if child is not None:
            _collect(child, segments, depth + 1, matching)
