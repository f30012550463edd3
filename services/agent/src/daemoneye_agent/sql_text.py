"""The lexical layer of a query: SQLite's tokens, cut without sqlglot and before it.

Invariant: text that passes here is read in the same pieces by sqlglot and by SQLite. Whatever the
two could cut differently (nested comments, non-ASCII names, foreign quoting, unnamed parameters)
is refused, so the tree that is checked is the tree that runs.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from daemoneye_mesh.errors import ErrorReason, InvalidRequestError

__all__ = ["InvalidSqlError", "SqlText", "Token", "location"]

MAX_TEXT_BYTES = 32 * 1024
# The parser needs about 20 Python frames for one level; 32 levels leave room below the
# interpreter's default of 1,000 for the callers' own frames.
MAX_DEPTH = 32
_NEAR_CHARS = 32

_TOKEN = re.compile(
    r"""
      (?P<space>[ \t\r\n\f]+)
    | (?P<comment>--[^\n]*|/\*.*?\*/)
    | (?P<blob>[xX]'[0-9A-Fa-f]*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    | (?P<number>0[xX][0-9A-Fa-f]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<parameter>:[A-Za-z_][A-Za-z0-9_]*)
    | (?P<operator>->>|->|\|\||<<|>>|<=|>=|<>|!=|==|[-+*/%&|~<>=(),.;])
    """,
    re.VERBOSE | re.DOTALL,
)

# A word of this list in front of a parenthesis is grammar, not the name of a function.
_GRAMMAR = """ALL AND AS BETWEEN BY CASE CAST DISTINCT ELSE ESCAPE EXCEPT EXISTS FILTER FROM GLOB
    HAVING IN INTERSECT IS JOIN LIKE LIMIT MATERIALIZED NOT OFFSET ON OR OVER REGEXP SELECT THEN
    UNION USING WHEN WHERE"""
_GRAMMAR_WORDS = frozenset(_GRAMMAR.split())


class InvalidSqlError(InvalidRequestError):
    """The query cannot run as it is; reason and metadata say where and what to change."""

    default_reason = ErrorReason.SQL_INVALID


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of a query."""

    kind: str
    text: str
    offset: int

    @property
    def name(self) -> str:
        """The identifier without its quotes, in lower case."""
        return (self.text[1:-1] if self.kind == "quoted" else self.text).lower()


@dataclass(frozen=True, slots=True)
class SqlText:
    """A query that is lexically sound, with what can be told from its tokens alone."""

    text: str
    tokens: tuple[Token, ...]
    """Without white space and comments, and without one closing semicolon."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the parameters, without the colon, in order of first appearance."""
        names = (token.text[1:] for token in self.tokens if token.kind == "parameter")
        return tuple(dict.fromkeys(names))

    def calls(self) -> Iterator[Token]:
        """The identifiers that stand before a parenthesis: function names and CTE column lists."""
        for token, following in zip(self.tokens, self.tokens[1:], strict=False):
            if following.text != "(" or token.kind not in ("word", "quoted"):
                continue
            if token.kind == "quoted" or token.text.upper() not in _GRAMMAR_WORDS:
                yield token


def refusal(
    message: str, where: Mapping[str, str], reason: ErrorReason = ErrorReason.SQL_INVALID
) -> InvalidSqlError:
    """An error about a place of the query."""
    return InvalidSqlError(message, reason=reason, **where)


def location(text: str, offset: int) -> dict[str, str]:
    """Where ``offset`` stands in ``text``, as the metadata of an error."""
    before = text[:offset]
    return {
        "line": str(before.count("\n") + 1),
        "column": str(offset - (before.rfind("\n") + 1) + 1),
        "near": " ".join(text[offset : offset + _NEAR_CHARS].split()),
    }


def scan(text: str) -> SqlText:
    """Cut a query into tokens.

    Raises:
        InvalidSqlError: too long, too deep, not one statement, not a SELECT, or characters that
            SQLite and the validator might read differently.
    """
    _check_size(text)
    tokens = tuple(_one_statement(text, list(_significant(text))))
    _check_start(text, tokens)
    _check_depth(text, tokens)
    return SqlText(text, tokens)


def _check_size(text: str) -> None:
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_TEXT_BYTES:
        raise InvalidSqlError(
            f"the query has {size_bytes} bytes, more than {MAX_TEXT_BYTES}; shorten it",
            reason=ErrorReason.SQL_FORBIDDEN,
            size_bytes=size_bytes,
            limit_bytes=MAX_TEXT_BYTES,
        )


def _significant(text: str) -> Iterator[Token]:
    offset = 0
    while offset < len(text):
        match = _TOKEN.match(text, offset)
        if match is None:
            raise _unreadable(text, offset)
        kind = match.lastgroup or ""
        token = Token(kind, match.group(), offset)
        if kind == "comment":
            _check_comment(text, token)
        elif kind != "space":
            yield token
        offset = match.end()


def _check_comment(text: str, token: Token) -> None:
    body = token.text[2:]
    if token.text.startswith("/*") and ("/*" in body or body.startswith("+")):
        raise InvalidSqlError(
            "nested comments and hints are not allowed; remove the comment",
            reason=ErrorReason.SQL_FORBIDDEN,
            **location(text, token.offset),
        )


_UNREADABLE = {
    "?": "parameters must have a name; write :name",
    "@": "parameters must have a name; write :name",
    "$": "parameters must have a name; write :name",
    ":": "parameters must have a name; write :name",
    "'": "the text literal is not closed; add a quote",
    '"': "the quoted name is not closed; add a quote",
    "`": "the quoted name is not closed; add a quote",
    "[": "the quoted name is not closed; add a bracket",
    "/": "the comment is not closed; add */",
}


def _unreadable(text: str, offset: int) -> InvalidSqlError:
    where = location(text, offset)
    advice = _UNREADABLE.get(text[offset])
    if advice is None:
        near = where["near"]
        advice = f"unexpected character near {near!r}; put other than ASCII in a text literal"
    return refusal(advice, where)


def _one_statement(text: str, tokens: list[Token]) -> list[Token]:
    if tokens and tokens[-1].text == ";":
        tokens.pop()
    for token in tokens:
        if token.text == ";":
            raise InvalidSqlError(
                "only one statement is allowed; send the statements one by one",
                reason=ErrorReason.SQL_FORBIDDEN,
                **location(text, token.offset),
            )
    return tokens


def _check_start(text: str, tokens: tuple[Token, ...]) -> None:
    if not tokens:
        raise refusal("the query is empty; write a SELECT", location(text, 0))
    first = tokens[0]
    # A compound whose first arm is in parentheses is not SQLite; it must not pass as one of ours.
    if first.kind != "word" or first.text.upper() not in ("SELECT", "WITH"):
        raise InvalidSqlError(
            "only SELECT is allowed; begin the query with SELECT or WITH",
            reason=ErrorReason.SQL_FORBIDDEN,
            **location(text, first.offset),
        )


def _check_depth(text: str, tokens: tuple[Token, ...]) -> None:
    depth = 0
    for token in tokens:
        word = token.text.upper() if token.kind in ("word", "operator") else ""
        if word in ("(", "CASE"):
            depth += 1
        elif word in (")", "END"):
            depth -= 1
        if depth > MAX_DEPTH:
            raise too_deep(**location(text, token.offset))


def too_deep(**where: str) -> InvalidSqlError:
    """The one error for every kind of nesting beyond the limit."""
    return InvalidSqlError(
        f"the query nests deeper than {MAX_DEPTH} levels; use WITH to flatten it",
        reason=ErrorReason.SQL_FORBIDDEN,
        limit=MAX_DEPTH,
        **where,
    )
