"""The words of a predicate.

Invariant: each character is looked at a bounded number of times, and every error names its place.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["MAX_PREDICATE_CHARS", "InvalidPredicateError", "Token", "TokenType", "read_tokens"]

MAX_PREDICATE_CHARS = 1024
KEYWORDS = frozenset({"and", "or", "not", "in", "like", "glob", "true", "false"})

_WORDS = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    | (?P<number>-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?![0-9A-Za-z_.]))
    | (?P<text>'(?:[^']|'')*' | "(?:[^"]|"")*")
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator><=|>=|!=|<>|==|[=<>])
    | (?P<mark>[(),])""",
    re.VERBOSE,
)


class InvalidPredicateError(InvalidConfigError):
    """A predicate does not make sense.

    Args:
        position: the character where that shows, from 1 on.
        problem: what is wrong, and what to write instead.
    """

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(
            f"character {position} of the predicate: {problem}", position=position, problem=problem
        )
        self.position = position


class TokenType(StrEnum):
    """What a token is."""

    NUMBER = "number"
    TEXT = "text"
    NAME = "name"
    KEYWORD = "keyword"
    OPERATOR = "operator"
    MARK = "mark"
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    """One word of a predicate."""

    type: TokenType
    text: str
    """What it means: without quotes, keywords in lower case."""
    position: int
    """Its first character, from 1 on."""

    def __str__(self) -> str:
        return "the end" if self.type is TokenType.END else repr(self.text[:40])


def read_tokens(predicate: str) -> Iterator[Token]:
    """Yields the tokens of a predicate, an END token last.

    Raises:
        InvalidPredicateError: it is too long, or a character belongs to no token.
    """
    if len(predicate) > MAX_PREDICATE_CHARS:
        raise InvalidPredicateError(
            MAX_PREDICATE_CHARS + 1,
            f"it has {len(predicate)} characters, more than {MAX_PREDICATE_CHARS}; split it up",
        )
    position = 0
    while position < len(predicate):
        match = _WORDS.match(predicate, position)
        if match is None:
            raise InvalidPredicateError(position + 1, _describe(predicate[position]))
        if match.lastgroup != "space":
            yield _to_token(match.lastgroup or "", match[0], position + 1)
        position = match.end()
    yield Token(TokenType.END, "", position + 1)


def _to_token(group: str, text: str, position: int) -> Token:
    if group == "text":
        return Token(TokenType.TEXT, text[1:-1].replace(text[0] * 2, text[0]), position)
    if group == "word":
        is_keyword = text.lower() in KEYWORDS
        return Token(
            TokenType.KEYWORD if is_keyword else TokenType.NAME,
            text.lower() if is_keyword else text,
            position,
        )
    return Token(TokenType(group), text, position)


def _describe(character: str) -> str:
    if character in "'\"":
        return f"the text is not closed; end it with {character}"
    if character in "-0123456789":
        return "this is no number; write it like 80 or -0.5"
    return f"{character!a} has no meaning here; put texts into quotes"
