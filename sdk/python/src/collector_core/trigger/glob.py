"""Patterns for names and paths.

Invariant: matching takes time linear in the text, whatever the pattern and whoever wrote the text.
Names and paths of processes are the choice of whoever starts them, so a pattern that backtracks
could be made to stall the collector.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["MAX_PATTERN_CHARS", "Glob", "InvalidGlobError"]

MAX_PATTERN_CHARS = 1024
MAX_KNOWN_STEPS = 1024
"""Characters whose step is remembered; the memory starts anew beyond that."""

_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


class InvalidGlobError(InvalidConfigError):
    """A pattern is too long or not closed."""


@dataclass(frozen=True, slots=True)
class _Class:
    """``[abc]``, ``[a-z]`` or ``[!a-z]``."""

    is_negated: bool
    ranges: tuple[tuple[str, str], ...]

    def accepts(self, character: str) -> bool:
        return self.is_negated != any(low <= character <= high for low, high in self.ranges)


class _Any:
    """One character, whichever."""

    def accepts(self, character: str) -> bool:
        return True


_STAR = object()
_ANY = _Any()
_Token = object
"""A character, a ``_Class``, ``_ANY`` or ``_STAR``."""


class Glob:
    """A compiled pattern that has to match a whole text.

    ``*`` is any text, the slash included; ``?`` is one character; ``[a-z]`` one of these and
    ``[!a-z]`` one of all others; ``[*]`` is a star. Upper and lower case differ.

    Args:
        pattern: at most ``MAX_PATTERN_CHARS`` characters.

    Raises:
        InvalidGlobError: it is too long, or a bracket is not closed.
    """

    __slots__ = ("_is_folded", "_matches", "pattern")

    def __init__(self, pattern: str) -> None:
        self._compile(pattern, list(_glob_tokens(_checked(pattern))), is_folded=False)

    @classmethod
    def like(cls, pattern: str) -> "Glob":
        """Returns a pattern of SQL: ``%`` is any text, ``_`` one character; ASCII case is ignored.

        Raises:
            InvalidGlobError: it is too long.
        """
        made = cls.__new__(cls)
        made._compile(pattern, list(_like_tokens(_fold(_checked(pattern)))), is_folded=True)
        return made

    def matches(self, text: str) -> bool:
        """Whether the whole text is as the pattern says."""
        return self._matches.accepts(_fold(text) if self._is_folded else text)

    def __repr__(self) -> str:
        return f"Glob({self.pattern!r})"

    def _compile(self, pattern: str, tokens: Sequence[_Token], *, is_folded: bool) -> None:
        self.pattern = pattern
        """As it was written."""
        self._is_folded = is_folded
        is_plain = all(isinstance(token, str) or token is _STAR for token in tokens)
        self._matches: _Pieces | _Automaton = _Pieces(tokens) if is_plain else _Automaton(tokens)


class _Pieces:
    """Literal pieces between stars, looked for from left to right; the common case, in C."""

    __slots__ = ("_first", "_last", "_middle")

    def __init__(self, tokens: Sequence[_Token]) -> None:
        text = "".join("\0" if token is _STAR else str(token) for token in tokens)
        self._first, *rest = text.split("\0")
        self._middle = tuple(piece for piece in rest[:-1] if piece)
        self._last = rest[-1] if rest else None

    def accepts(self, text: str) -> bool:
        if self._last is None:
            return text == self._first
        position, end = len(self._first), len(text) - len(self._last)
        if position > end or not (text.startswith(self._first) and text.endswith(self._last)):
            return False
        for piece in self._middle:
            position = text.find(piece, position, end)
            if position < 0:
                return False
            position += len(piece)
        return True


class _Automaton:
    """All states at once, one bit each: bit n is set when the first n tokens match so far."""

    __slots__ = ("_accepting", "_loops", "_steps", "_tokens")

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = [token for token in tokens if token is not _STAR]
        self._accepting = 1 << len(self._tokens)
        self._loops = _find_loops(tokens)
        self._steps: dict[str, int] = {}

    def accepts(self, text: str) -> bool:
        states, steps, loops = 1, self._steps, self._loops
        for character in text:
            step = steps.get(character)
            if step is None:
                step = self._learn(character)
            states = ((states & step) << 1) | (states & loops)
            if not states:
                return False
        return bool(states & self._accepting)

    def _learn(self, character: str) -> int:
        step = sum(1 << n for n, token in enumerate(self._tokens) if _accepts(token, character))
        if len(self._steps) >= MAX_KNOWN_STEPS:
            self._steps.clear()
        self._steps[character] = step
        return step


def _accepts(token: _Token, character: str) -> bool:
    return token.accepts(character) if isinstance(token, _Class | _Any) else token == character


def _find_loops(tokens: Sequence[_Token]) -> int:
    loops, state = 0, 0
    for token in tokens:
        if token is _STAR:
            loops |= 1 << state
        else:
            state += 1
    return loops


def _checked(pattern: str) -> str:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise InvalidGlobError(
            f"the pattern has {len(pattern)} characters, more than {MAX_PATTERN_CHARS}; shorten it",
            size_chars=len(pattern),
            limit_chars=MAX_PATTERN_CHARS,
        )
    if "\0" in pattern:
        raise InvalidGlobError("the pattern holds a NUL, which no name or path has; remove it")
    return pattern


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else text.translate(_LOWER)


def _like_tokens(pattern: str) -> Iterator[_Token]:
    for character in pattern:
        yield _STAR if character == "%" else _ANY if character == "_" else character


def _glob_tokens(pattern: str) -> Iterator[_Token]:
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "[":
            token, position = _read_class(pattern, position)
            yield token
        else:
            yield _STAR if character == "*" else _ANY if character == "?" else character


def _read_class(pattern: str, start: int) -> tuple[_Class, int]:
    is_negated = pattern[start : start + 1] in ("!", "^")
    begin = start + is_negated
    end = pattern.find("]", begin + 1)  # a bracket that stands first is one of the characters
    if end < 0:
        raise InvalidGlobError(
            f"the bracket at character {start} of {pattern!r} is not closed; add ']', or write [[]"
            " for the bracket itself",
            position=start,
            pattern=pattern,
        )
    return _Class(is_negated, tuple(_ranges(pattern[begin:end]))), end + 1


def _ranges(members: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(members):
        is_range = members[position + 1 : position + 2] == "-" and position + 2 < len(members)
        yield members[position], members[position + 2 if is_range else position]
        position += 3 if is_range else 1
