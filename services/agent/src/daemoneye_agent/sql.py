"""The validator: text of an operator or a rule becomes a query that may run, or a precise refusal.

Invariant: the whole syntax tree was walked and every node, table, column and function of it stands
in an allow-list. SQLite runs the original text, so ``sql_guard`` checks again from its side.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from daemoneye_agent.schema import TABLES, Table
from daemoneye_agent.sql_expansion import (
    MAX_EXPANDED_NODES,
    Shape,
    expanded_nodes,
    shape_of,
)
from daemoneye_agent.sql_grammar import FUNCTIONS, NODES
from daemoneye_agent.sql_scope import NameResolver, offset_of
from daemoneye_agent.sql_text import InvalidSqlError, SqlText, location, refusal, scan, too_deep
from daemoneye_mesh.errors import ErrorReason

__all__ = ["InvalidSqlError", "ValidatedQuery", "validate"]

MAX_SOURCES = 16
MAX_COMPOUND_ARMS = 16

# The parser warns about what it can not model; whatever matters is an error of ours.
logging.getLogger("sqlglot").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class ValidatedQuery:
    """A query that passed ``validate``; only ``validate`` makes one."""

    sql: str
    """The text as it was given; this is what SQLite runs."""
    tables: frozenset[str]
    """The tables of the schema it reads."""
    parameters: tuple[str, ...]
    """The names that need a value, without the colon."""
    columns: tuple[str, ...]
    """The result columns, in lower case."""
    cte_names: frozenset[str] = frozenset()
    """The names its WITH clauses define."""
    shape: Shape = field(default_factory=lambda: Shape(0), compare=False, repr=False)
    """What its size inside SQLite follows from."""

    def check_expansion(self, partitions: int) -> None:
        """Refuse a query that grows too large over this many partitions.

        Raises:
            InvalidSqlError: with reason ``SQL_FORBIDDEN``.
        """
        nodes = expanded_nodes(self.shape, partitions)
        if nodes > MAX_EXPANDED_NODES:
            raise InvalidSqlError(
                f"the query nests process_events too deep for its {partitions} partitions; "
                "put a JOIN in the place of a subquery or name each WITH once",
                reason=ErrorReason.SQL_FORBIDDEN,
                partitions=partitions,
                nodes=nodes,
                limit=MAX_EXPANDED_NODES,
            )


def validate(sql: str, tables: Mapping[str, Table] = TABLES) -> ValidatedQuery:
    """Check that a query is one SELECT over ``tables`` made of allowed parts only.

    Raises:
        InvalidSqlError: reason ``SQL_INVALID``, ``SQL_FORBIDDEN``, ``TABLE_UNKNOWN`` or
            ``COLUMN_UNKNOWN``; the metadata has ``line``, ``column`` and ``near``.
    """
    text = scan(sql)
    try:
        return _validate(text, tables)
    except RecursionError:
        raise too_deep(**location(sql, 0)) from None


def _validate(text: SqlText, tables: Mapping[str, Table]) -> ValidatedQuery:
    query = _parse(text)
    _check_nodes(text, query)
    resolver = NameResolver(text.text, tables)
    columns = resolver.resolve(query)
    _check_calls(text, query)
    if resolver.source_count > MAX_SOURCES:
        raise _too_many("tables and subqueries in FROM", resolver.source_count, MAX_SOURCES)
    validated = ValidatedQuery(
        sql=text.text,
        tables=frozenset(resolver.used_tables),
        parameters=text.parameters,
        columns=columns,
        cte_names=frozenset(resolver.cte_names),
        shape=shape_of(query),
    )
    validated.check_expansion(partitions=1)
    return validated


def _parse(text: SqlText) -> exp.Expr:
    try:
        statements = sqlglot.parse(text.text, read="sqlite")
    except SqlglotError as error:
        raise _syntax_error(text, error) from None
    found = [statement for statement in statements if statement is not None]
    if len(found) != 1 or not isinstance(found[0], (exp.Select, exp.SetOperation)):
        raise InvalidSqlError(
            "only one SELECT is allowed; begin the query with SELECT or WITH",
            reason=ErrorReason.SQL_FORBIDDEN,
            **location(text.text, 0),
        )
    return found[0]


def _syntax_error(text: SqlText, error: SqlglotError) -> InvalidSqlError:
    notes = getattr(error, "errors", None) or [{}]
    line, column = notes[0].get("line") or 1, notes[0].get("col") or 1
    where = {
        "line": str(line),
        "column": str(column),
        "near": str(notes[0].get("highlight") or "").strip()[:32],
    }
    near = f" near {where['near']!r}" if where["near"] else ""
    return refusal(
        f"the query is not valid SQL{near} in line {line}; check the syntax there", where
    )


def _check_nodes(text: SqlText, query: exp.Expr) -> None:
    arms = 1
    for node in query.walk():
        if type(node) not in NODES:
            raise InvalidSqlError(
                f"{_readable(node)} is not allowed; use plain SELECT syntax",
                reason=ErrorReason.SQL_FORBIDDEN,
                construct=node.key,
                **location(text.text, offset_of(node)),
            )
        arms += isinstance(node, exp.SetOperation)
    if arms > MAX_COMPOUND_ARMS:
        raise _too_many("SELECTs in one compound", arms, MAX_COMPOUND_ARMS)


def _readable(node: exp.Expr) -> str:
    if isinstance(node, exp.Func):
        return f"the function {node.sql_name().lower()!r}"
    return f"the construct {node.key!r}"


def _check_calls(text: SqlText, query: exp.Expr) -> None:
    column_lists = {
        cte.alias.lower() for cte in query.find_all(exp.CTE) if cte.args["alias"].columns
    }
    allowed = FUNCTIONS | column_lists | {"json_each", "json_tree"}
    for token in text.calls():
        if token.name not in allowed:
            raise _forbidden_function(text, token.name, token.offset)
    for node in query.find_all(exp.Anonymous):
        in_from = isinstance(node.parent, exp.Table)
        if not in_from and node.name.lower() not in FUNCTIONS:
            raise _forbidden_function(text, node.name.lower(), offset_of(node))


def _forbidden_function(text: SqlText, name: str, offset: int) -> InvalidSqlError:
    return InvalidSqlError(
        f"the function {name!r} is not allowed; use a built-in such as lower, substr or REGEXP",
        reason=ErrorReason.SQL_FORBIDDEN,
        function=name,
        **location(text.text, offset),
    )


def _too_many(what: str, count: int, limit: int) -> InvalidSqlError:
    return InvalidSqlError(
        f"the query has {count} {what}, more than {limit}; split it",
        reason=ErrorReason.SQL_FORBIDDEN,
        count=count,
        limit=limit,
    )
