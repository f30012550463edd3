"""The grammar of topics and subscription patterns, the same for the broker and its clients.

A topic is 1 to 5 segments of ``a-z 0-9 _ -`` joined by ``.``, at most 255 bytes in all, and its
first segment is ``events``, ``control`` or ``alerts``. A pattern is the same, plus two wildcards
that each fill a whole segment: ``+`` is exactly one segment, ``#`` is zero or more and comes last.
So ``events.#`` matches ``events`` too, a pattern may begin with ``+``, and ``#`` alone matches
every topic.

Invariant: whatever is not in this grammar is refused with the place and the remedy; no text is ever
taken for a literal that merely looks like a wildcard (``*``). Pure functions without I/O.
"""

from typing import ClassVar

from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

__all__ = [
    "DOMAINS",
    "MAX_SEGMENTS",
    "MAX_TOPIC_BYTES",
    "MULTI_WILDCARD",
    "SINGLE_WILDCARD",
    "InvalidPatternError",
    "InvalidTopicError",
    "TopicGrammarError",
    "covers",
    "matches",
    "validate_pattern",
    "validate_topic",
]

DOMAINS = ("events", "control", "alerts")
"""What the first segment of a topic may be."""

MAX_SEGMENTS = 5
"""Most segments of a topic or pattern; a wildcard counts as one."""

MAX_TOPIC_BYTES = 255
"""Longest topic or pattern, dots included."""

SINGLE_WILDCARD = "+"
MULTI_WILDCARD = "#"

_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
_WILDCARDS = (SINGLE_WILDCARD, MULTI_WILDCARD)
_SHOWN_CHARACTERS = 80


class TopicGrammarError(InvalidRequestError):
    """A topic or pattern breaks the grammar; the caller must change it.

    Args:
        text: what was refused; the message and the metadata carry at most its first 80 characters.
        problem: what is wrong.
        remedy: what to do instead.
        position: the segment at fault, counted from 1; None when the text as a whole is at fault.
        character: the offending character, where there is one.
    """

    noun: ClassVar[str] = "topic"

    def __init__(
        self,
        text: str,
        problem: str,
        remedy: str,
        *,
        position: int | None = None,
        character: str | None = None,
    ) -> None:
        shown = _excerpt(text)
        super().__init__(
            f"{self.noun} {shown}: {problem}; {remedy}", problem=problem, allowed=remedy
        )
        self.metadata[self.noun] = shown
        if position is not None:
            self.metadata["position"] = str(position)
        if character is not None:
            self.metadata["character"] = ascii(character)
        self.text = text
        self.position = position
        self.character = character


class InvalidTopicError(TopicGrammarError):
    """The topic breaks the grammar (reason ``TOPIC_INVALID``)."""

    default_reason = ErrorReason.TOPIC_INVALID


class InvalidPatternError(TopicGrammarError):
    """The subscription pattern breaks the grammar (reason ``PATTERN_INVALID``)."""

    default_reason = ErrorReason.PATTERN_INVALID
    noun = "pattern"


def validate_topic(topic: str) -> tuple[str, ...]:
    """Returns the segments of a topic.

    Raises:
        InvalidTopicError: the topic breaks the grammar.
    """
    segments = _split(topic, InvalidTopicError)
    _require_domain(topic, segments[0], InvalidTopicError)
    for position, segment in enumerate(segments, start=1):
        _require_literal(topic, segment, position, InvalidTopicError)
    return segments


def validate_pattern(pattern: str) -> tuple[str, ...]:
    """Returns the segments of a subscription pattern.

    Raises:
        InvalidPatternError: the pattern breaks the grammar.
    """
    segments = _split(pattern, InvalidPatternError)
    if segments[0] not in _WILDCARDS:
        _require_domain(pattern, segments[0], InvalidPatternError)
    for position, segment in enumerate(segments, start=1):
        if segment == MULTI_WILDCARD and position < len(segments):
            raise InvalidPatternError(
                pattern,
                f"'#' in segment {position} is not the last segment",
                "put '#' last or use '+' for one segment",
                position=position,
                character=MULTI_WILDCARD,
            )
        if segment not in _WILDCARDS:
            _require_literal(pattern, segment, position, InvalidPatternError)
    return segments


def matches(pattern: str, topic: str) -> bool:
    """Says whether a subscription to ``pattern`` receives a message on ``topic``.

    Raises:
        InvalidPatternError: the pattern breaks the grammar.
        InvalidTopicError: the topic breaks the grammar.
    """
    return _includes(validate_pattern(pattern), validate_topic(topic))


def covers(pattern: str, other: str) -> bool:
    """Says whether ``pattern`` matches every topic that the pattern ``other`` can match.

    This is what an access table asks: may somebody who is granted ``pattern`` subscribe to
    ``other``? It compares segment by segment and never says yes wrongly; it says no to the one
    spelling that only depth rules make equal (``+.#`` does not cover ``#``).

    Raises:
        InvalidPatternError: one of the patterns breaks the grammar.
    """
    return _includes(validate_pattern(pattern), validate_pattern(other))


def _includes(wanted: tuple[str, ...], actual: tuple[str, ...]) -> bool:
    if wanted[-1] == MULTI_WILDCARD:
        wanted = wanted[:-1]
        actual = actual[: len(wanted)]
    return len(wanted) == len(actual) and all(
        want == got or (want == SINGLE_WILDCARD and got != MULTI_WILDCARD)
        for want, got in zip(wanted, actual, strict=True)
    )


def _split(text: str, error: type[TopicGrammarError]) -> tuple[str, ...]:
    if not text:
        raise error(text, "it is empty", f"write 1 to {MAX_SEGMENTS} segments joined by '.'")
    # A lone surrogate cannot be encoded; it counts one byte here and is refused as a character.
    size_bytes = len(text.encode("utf-8", errors="replace"))
    if size_bytes > MAX_TOPIC_BYTES:
        raise error(text, f"it is {size_bytes} bytes long", f"use at most {MAX_TOPIC_BYTES} bytes")
    segments = tuple(text.split("."))
    if len(segments) > MAX_SEGMENTS:
        raise error(
            text,
            f"it has {len(segments)} segments",
            f"use at most {MAX_SEGMENTS} segments",
            position=MAX_SEGMENTS + 1,
        )
    if "" in segments:
        position = segments.index("") + 1
        raise error(
            text,
            f"segment {position} is empty",
            "remove the extra '.' or name the segment",
            position=position,
        )
    return segments


def _require_domain(text: str, segment: str, error: type[TopicGrammarError]) -> None:
    if segment in DOMAINS:
        return
    # The character is the better hint where there is one: "Events" is a spelling of a domain.
    _require_literal(text, segment, 1, error)
    raise error(
        text,
        f"segment 1 {_excerpt(segment)} is not a known domain",
        f"begin with {', '.join(DOMAINS[:-1])} or {DOMAINS[-1]}",
        position=1,
    )


def _require_literal(
    text: str, segment: str, position: int, error: type[TopicGrammarError]
) -> None:
    if _ALLOWED.issuperset(segment):
        return
    character = next(one for one in segment if one not in _ALLOWED)
    raise error(
        text,
        f"segment {position} has the character {character!a}",
        _remedy_for(character, error),
        position=position,
        character=character,
    )


def _remedy_for(character: str, error: type[TopicGrammarError]) -> str:
    is_wildcard = character in _WILDCARDS or character == "*"
    if is_wildcard and error is InvalidTopicError:
        return "publish to one topic; wildcards are for subscriptions"
    if character in _WILDCARDS:
        return "let the wildcard fill its whole segment"
    if character == "*":
        return "use '+' for one segment or '#' for the rest"
    return "use only a-z, 0-9, '_' and '-'"


def _excerpt(text: str) -> str:
    """Quotes foreign text as ASCII, so that it can neither break a log line nor fill one."""
    if len(text) <= _SHOWN_CHARACTERS:
        return ascii(text)
    return ascii(text[:_SHOWN_CHARACTERS]) + "..."
