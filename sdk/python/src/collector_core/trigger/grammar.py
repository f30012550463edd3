"""Reads predicates, such as ``name = 'nc' and not (user in ('root', 'backup') or pid < 100)``.

::

    or         = and {"or" and}
    and        = term {"and" term}
    term       = "not" term | "(" or ")" | field-of-true-or-false | comparison
    comparison = operand ("=" | "!=" | "<" | "<=" | ">" | ">=") operand
               | field ["not"] "in" "(" constant {"," constant} ")"
               | field ["not"] ("glob" | "like") text
    operand    = field | constant

Invariant: a predicate that was read is bounded in size and depth, names only fields that exist, and
compares only values of one type.
"""

from collections.abc import Sequence
from difflib import get_close_matches

from collector_core.trigger.expression import (
    COMPARISONS,
    And,
    Comparison,
    Constant,
    Expression,
    Field,
    Matching,
    Membership,
    Not,
    Operand,
    Or,
    Truth,
)
from collector_core.trigger.glob import Glob, InvalidGlobError
from collector_core.trigger.lexer import InvalidPredicateError, Token, TokenType, read_tokens
from collector_core.trigger.subject import FIELDS, KINDS, FieldType, Value

__all__ = ["MAX_DEPTH", "ParsedPredicate", "parse_predicate"]

MAX_DEPTH = 16
"""Most parentheses and ``not`` within each other."""

_ORDERINGS = frozenset({"<", "<=", ">", ">="})


class ParsedPredicate:
    """A predicate that was read.

    Args:
        expression: what it means.
        fields: names of the fields it looks at.
    """

    __slots__ = ("expression", "fields")

    def __init__(self, expression: Expression, fields: frozenset[str]) -> None:
        self.expression = expression
        self.fields = fields


def parse_predicate(text: str) -> ParsedPredicate:
    """Reads a predicate.

    Raises:
        InvalidPredicateError: it is too long, too deep, or does not make sense.
    """
    return _Parser(list(read_tokens(text))).parse()


class _Parser:
    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._index = 0
        self._depth = 0
        self._fields: set[str] = set()

    def parse(self) -> ParsedPredicate:
        expression = self._parse_or()
        if self._next.type is not TokenType.END:
            raise self._error(f"{self._next} comes too late; put 'and' or 'or' before it")
        return ParsedPredicate(expression, frozenset(self._fields))

    @property
    def _next(self) -> Token:
        return self._tokens[self._index]

    def _advance(self) -> Token:
        token = self._next
        self._index += token.type is not TokenType.END
        return token

    def _accept(self, *texts: str) -> Token | None:
        is_wanted = self._next.type in (TokenType.KEYWORD, TokenType.MARK, TokenType.OPERATOR)
        return self._advance() if is_wanted and self._next.text in texts else None

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._error(f"{self._next} stands where '{text}' has to be; put it there")

    def _error(self, problem: str, token: Token | None = None) -> InvalidPredicateError:
        return InvalidPredicateError((token or self._next).position, problem)

    def _parse_or(self) -> Expression:
        terms = [self._parse_and()]
        while self._accept("or"):
            terms.append(self._parse_and())
        return Or(tuple(terms)) if len(terms) > 1 else terms[0]

    def _parse_and(self) -> Expression:
        terms = [self._parse_term()]
        while self._accept("and"):
            terms.append(self._parse_term())
        return And(tuple(terms)) if len(terms) > 1 else terms[0]

    def _parse_term(self) -> Expression:
        token = self._accept("not", "(")
        if token is None:
            return self._parse_comparison()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"it is more than {MAX_DEPTH} levels deep; split it up", token)
        if token.text == "not":
            expression: Expression = Not(self._parse_term())
        else:
            expression = self._parse_or()
            self._expect(")")
        self._depth -= 1
        return expression

    def _parse_comparison(self) -> Expression:
        first = self._next
        left = self._parse_operand()
        is_negated = self._accept("not") is not None
        if is_negated or self._next.text in ("in", "glob", "like"):
            if not isinstance(left, Field):
                raise self._error("a field has to stand before 'in', 'glob' and 'like'", first)
            expression = self._parse_field_test(left, first)
            return Not(expression) if is_negated else expression
        symbol = self._accept(*COMPARISONS)
        if symbol is None:
            return self._parse_truth(left, first)
        second = self._next
        right = self._parse_operand()
        self._check_pair(left, right, symbol, second)
        return Comparison(symbol.text, left, right)

    def _parse_field_test(self, field: Field, token: Token) -> Expression:
        keyword = self._accept("in", "glob", "like")
        if keyword is None:
            raise self._error(
                f"{self._next} after 'not' has no meaning; put 'in', 'glob' or 'like'"
            )
        if keyword.text == "in":
            return Membership(field, self._parse_members(field))
        if FIELDS[field.name] is not FieldType.TEXT:
            raise self._error(
                f"{field.name} is {_describe(field)}; only texts match patterns", token
            )
        return Matching(field, self._parse_glob(keyword.text))

    def _parse_members(self, field: Field) -> frozenset[Value]:
        self._expect("(")
        values: list[Value] = []
        while not values or self._accept(","):
            token = self._next
            constant = self._parse_operand()
            if not isinstance(constant, Constant):
                raise self._error("a list holds constants only; compare fields with '='", token)
            self._check_types(field, constant, token)
            values.append(constant.value)
        self._expect(")")
        return frozenset(values)

    def _parse_glob(self, keyword: str) -> Glob:
        token = self._advance()
        if token.type is not TokenType.TEXT:
            raise self._error(f"{token} is no text; put the pattern into quotes", token)
        try:
            return Glob(token.text) if keyword == "glob" else Glob.like(token.text)
        except InvalidGlobError as err:
            raise self._error(err.message, token) from None

    def _parse_truth(self, operand: Operand, token: Token) -> Expression:
        if isinstance(operand, Field) and FIELDS[operand.name] is FieldType.TRUTH:
            return Truth(operand)
        raise self._error(f"{token} says nothing by itself; compare it with something", token)

    def _parse_operand(self) -> Operand:
        token = self._advance()
        if token.type is TokenType.NAME:
            return self._parse_field(token)
        if token.type is TokenType.TEXT:
            return Constant(token.text)
        if token.type is TokenType.NUMBER:
            return Constant(float(token.text) if "." in token.text else int(token.text))
        if token.type is TokenType.KEYWORD and token.text in ("true", "false"):
            return Constant(token.text == "true")
        raise self._error(f"{token} stands where a field or a value has to be", token)

    def _parse_field(self, token: Token) -> Field:
        if token.text not in FIELDS:
            close = get_close_matches(token.text, FIELDS, 1) or [", ".join(FIELDS)]
            raise self._error(f"there is no field {token.text!r}; try {close[0]}", token)
        self._fields.add(token.text)
        return Field(token.text)

    def _check_pair(self, left: Operand, right: Operand, symbol: Token, second: Token) -> None:
        if isinstance(left, Constant) and isinstance(right, Constant):
            raise self._error("two constants are always the same; compare with a field", symbol)
        self._check_types(left, right, second)
        if symbol.text in _ORDERINGS and _type_of(left) is not FieldType.NUMBER:
            raise self._error(f"'{symbol.text}' is for numbers; use '=' or '!='", symbol)

    def _check_types(self, left: Operand, right: Operand, token: Token) -> None:
        if _type_of(left) is not _type_of(right):
            raise self._error(
                f"{_describe(left)} never equals {_describe(right)}; compare like with like", token
            )
        for field, other in ((left, right), (right, left)):
            if field == Field("kind") and isinstance(other, Constant) and other.value not in KINDS:
                raise self._error(
                    f"there is no kind {other.value!r}; there are {', '.join(KINDS)}", token
                )


def _type_of(operand: Operand) -> FieldType:
    if isinstance(operand, Field):
        return FIELDS[operand.name]
    value = operand.value if isinstance(operand, Constant) else None
    if isinstance(value, bool):
        return FieldType.TRUTH
    return FieldType.TEXT if isinstance(value, str) else FieldType.NUMBER


def _describe(operand: Operand) -> str:
    kind = _type_of(operand)
    return kind.value if kind is FieldType.TRUTH else f"a {kind.value}"
