"""What a subscription lets through, besides topic and priority.

Invariant: the decision looks at the envelope of a group only, so it is made once for all messages
of the group; and whatever criteria a subscriber chose, its cost is bounded by their bounds.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from daemoneye_eventbus.errors import InvalidSubscriptionError
from daemoneye_eventbus.group import Envelope
from daemoneye_mesh.correlation import (
    MAX_ID_BYTES,
    MAX_TAG_KEY_BYTES,
    MAX_TAG_VALUE_BYTES,
    MAX_TAGS,
    Correlation,
)

__all__ = ["MAX_IDS", "MAX_PATTERNS", "MAX_PATTERN_BYTES", "CorrelationCriteria", "Selection"]

MAX_IDS = 64
"""Most ids or stages of one criterion."""

MAX_PATTERNS = 16
MAX_PATTERN_BYTES = 256


class _Glob:
    """A pattern in which ``*`` stands for any characters and everything else for itself.

    Each piece between two ``*`` is looked for once, behind the one before it: its leftmost place
    leaves the most room for the rest, so no choice need ever be taken back.
    """

    __slots__ = ("_is_literal", "_pieces", "_prefix", "_suffix")

    def __init__(self, pattern: str) -> None:
        self._prefix, *rest = pattern.split("*")
        self._is_literal = not rest
        self._suffix = rest.pop() if rest else ""
        self._pieces = [piece for piece in rest if piece]

    def matches(self, text: str) -> bool:
        if self._is_literal:
            return text == self._prefix
        end = len(text) - len(self._suffix)
        at = len(self._prefix)
        if at > end or not (text.startswith(self._prefix) and text.endswith(self._suffix)):
            return False
        for piece in self._pieces:
            at = text.find(piece, at, end)
            if at < 0:
                return False
            at += len(piece)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelationCriteria:
    """Selects by correlation: all criteria that are set must hold; see ``CorrelationFilter``.

    Args:
        ids: correlation ids, any of which may match.
        patterns: over the correlation, parent and root id, any of which may match one of the three;
            ``*`` stands for any characters.
        parent_ids: parent ids, any of which may match.
        root_ids: root ids, any of which may match.
        stages: stages of a workflow, any of which may match.
        required_tags: all must be there with these values; a read-only copy is kept.
        any_tags: one must be there with its value; a read-only copy is kept.
        min_sequence: least sequence number, itself included.
        max_sequence: greatest sequence number, itself included.

    Raises:
        InvalidSubscriptionError: a criterion is out of its bounds.
    """

    ids: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()
    parent_ids: frozenset[str] = frozenset()
    root_ids: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()
    required_tags: Mapping[str, str] = field(default_factory=dict)
    any_tags: Mapping[str, str] = field(default_factory=dict)
    min_sequence: int | None = None
    max_sequence: int | None = None
    _globs: tuple[_Glob, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_texts("correlation_ids", self.ids, MAX_IDS, MAX_ID_BYTES)
        _require_texts("correlation_patterns", self.patterns, MAX_PATTERNS, MAX_PATTERN_BYTES)
        _require_texts("parent_correlation_ids", self.parent_ids, MAX_IDS, MAX_ID_BYTES)
        _require_texts("root_correlation_ids", self.root_ids, MAX_IDS, MAX_ID_BYTES)
        _require_texts("workflow_stages", self.stages, MAX_IDS, MAX_ID_BYTES)
        _require_tags("correlation_tags", self.required_tags)
        _require_tags("any_correlation_tags", self.any_tags)
        _require_order(self.min_sequence, self.max_sequence)
        object.__setattr__(self, "required_tags", MappingProxyType(dict(self.required_tags)))
        object.__setattr__(self, "any_tags", MappingProxyType(dict(self.any_tags)))
        object.__setattr__(self, "_globs", tuple(_Glob(one) for one in self.patterns))

    @property
    def is_empty(self) -> bool:
        """Whether no criterion is set, so that everything passes."""
        return self.min_sequence is None and self.max_sequence is None and not self._has_names

    @property
    def _has_names(self) -> bool:
        names = (self.ids, self.patterns, self.parent_ids, self.root_ids, self.stages)
        return any((*names, self.required_tags, self.any_tags))

    def matches(self, correlation: Correlation | None) -> bool:
        """Says whether messages of this correlation pass; None stands for none."""
        if correlation is None:
            return self.is_empty
        return (
            self._matches_sequence(correlation.sequence_number)
            and self._matches_names(correlation)
            and self._matches_tags(correlation.tags)
            and self._matches_patterns(correlation)
        )

    def _matches_sequence(self, number: int) -> bool:
        return (self.min_sequence is None or number >= self.min_sequence) and (
            self.max_sequence is None or number <= self.max_sequence
        )

    def _matches_names(self, correlation: Correlation) -> bool:
        return (
            (not self.ids or correlation.correlation_id in self.ids)
            and (not self.parent_ids or correlation.parent_correlation_id in self.parent_ids)
            and (not self.root_ids or correlation.root_correlation_id in self.root_ids)
            and (not self.stages or correlation.workflow_stage in self.stages)
        )

    def _matches_tags(self, tags: Mapping[str, str]) -> bool:
        return all(tags.get(key) == value for key, value in self.required_tags.items()) and (
            not self.any_tags or any(tags.get(key) == value for key, value in self.any_tags.items())
        )

    def _matches_patterns(self, correlation: Correlation) -> bool:
        if not self._globs:
            return True
        ids = {
            correlation.correlation_id,
            correlation.parent_correlation_id,
            correlation.root_correlation_id,
        }
        return any(one is not None and glob.matches(one) for glob in self._globs for one in ids)


@dataclass(frozen=True, slots=True)
class Selection:
    """The filters of a subscription; a message passes when every one of them lets it through.

    Args:
        message_types: numbers of the ``MessageType``s to let through; empty for all.
        event_types: numbers of the ``EventType``s to let through; empty for all. Messages other than
            collection events are not touched.
        correlation: None for all.
    """

    message_types: frozenset[int] = frozenset()
    event_types: frozenset[int] = frozenset()
    correlation: CorrelationCriteria | None = None

    @property
    def is_open(self) -> bool:
        """Whether it lets everything through."""
        has_types = bool(self.message_types or self.event_types)
        return not has_types and (self.correlation is None or self.correlation.is_empty)

    def accepts(self, envelope: Envelope) -> bool:
        """Says whether the messages of a group pass; all of them, or none."""
        if self.message_types and envelope.message_type not in self.message_types:
            return False
        event_type = envelope.event_type
        if self.event_types and event_type is not None and event_type not in self.event_types:
            return False
        return self.correlation is None or self.correlation.matches(envelope.correlation)


def _require_texts(
    criterion: str, texts: Collection[str], max_count: int, max_bytes: int, noun: str = "entry"
) -> None:
    _require_count(criterion, len(texts), max_count)
    for text in texts:
        _require_size(criterion, noun, text, max_bytes)


def _require_tags(criterion: str, tags: Mapping[str, str]) -> None:
    _require_texts(criterion, tags.keys(), MAX_TAGS, MAX_TAG_KEY_BYTES, "key")
    _require_texts(criterion, list(tags.values()), MAX_TAGS, MAX_TAG_VALUE_BYTES, "value")


def _require_count(criterion: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidSubscriptionError(
            f"the filter {criterion} has {count} entries; use at most {limit}",
            filter=criterion,
            count=count,
            limit=limit,
        )


def _require_size(criterion: str, noun: str, text: str, limit_bytes: int) -> None:
    size_bytes = len(text.encode("utf-8", errors="replace"))
    if size_bytes > limit_bytes:
        raise InvalidSubscriptionError(
            f"the filter {criterion} has a{'n' if noun == 'entry' else ''} {noun} of "
            f"{size_bytes} bytes; use at most {limit_bytes} bytes",
            filter=criterion,
            size_bytes=size_bytes,
            limit_bytes=limit_bytes,
        )


def _require_order(least: int | None, greatest: int | None) -> None:
    if least is not None and greatest is not None and least > greatest:
        raise InvalidSubscriptionError(
            f"the filter min_sequence_number is {least}, above max_sequence_number {greatest}; "
            "let the least not exceed the greatest",
            min_sequence_number=least,
            max_sequence_number=greatest,
        )
