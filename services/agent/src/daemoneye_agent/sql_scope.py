"""Names of a query: every table and column is resolved the way SQLite would, or refused.

Invariant: a name that resolves here means a table of the schema, a CTE, an alias or a result column
of the query itself; internal tables, ``rowid`` and other schemas can not be named.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from sqlglot import exp

from daemoneye_agent.schema import Table
from daemoneye_agent.sql_grammar import TABLE_FUNCTIONS
from daemoneye_agent.sql_text import InvalidSqlError, location
from daemoneye_mesh.errors import ErrorReason

__all__ = ["NameResolver", "offset_of"]


def offset_of(node: exp.Expr) -> int:
    """Where the node begins in the text; 0 when the parser did not note it."""
    starts = (part.meta.get("start") for part in node.walk())
    return min((start for start in starts if isinstance(start, int)), default=0)


@dataclass(slots=True)
class _Scope:
    """The names one SELECT may use."""

    parent: "_Scope | None"
    ctes: Mapping[str, tuple[str, ...]]
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    results: tuple[str, ...] = ()

    def chain(self) -> Iterator["_Scope"]:
        scope: _Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def has(self, column: str, *, with_results: bool) -> bool:
        offered = any(column in columns for columns in self.sources.values())
        return offered or (with_results and column in self.results)


class NameResolver:
    """Resolves the names of one parsed query against a set of tables."""

    def __init__(self, text: str, tables: Mapping[str, Table]) -> None:
        self._text = text
        self._tables = tables
        self.used_tables: set[str] = set()
        self.cte_names: set[str] = set()
        self.source_count = 0

    def resolve(self, query: exp.Expr) -> tuple[str, ...]:
        """Check every name.

        Returns:
            The names of the result columns.

        Raises:
            InvalidSqlError: a table or column that does not exist, with the nearest names.
        """
        return self._query(query, _Scope(None, {}))

    def _query(self, query: exp.Expr, outer: _Scope) -> tuple[str, ...]:
        scope = _Scope(outer, self._with(query, outer))
        if isinstance(query, exp.Subquery):
            columns = self._query(query.this, scope)
            scope.results = columns
            self._clauses(query, scope)
            return columns
        if isinstance(query, exp.SetOperation):
            return self._compound(query, scope)
        if isinstance(query, exp.Select):
            return self._select(query, scope)
        raise self._forbidden(query)

    def _with(self, query: exp.Expr, outer: _Scope) -> dict[str, tuple[str, ...]]:
        ctes = dict(outer.ctes)
        clause = query.args.get("with_")
        if clause is None:
            return ctes
        if clause.args.get("recursive"):
            raise self._error(
                "a recursive WITH is not allowed; remove RECURSIVE",
                clause,
                ErrorReason.SQL_FORBIDDEN,
            )
        for cte in clause.expressions:
            name = cte.alias.lower()
            if name in self._tables:
                raise self._error(
                    f"the name {name!r} belongs to a table; give the WITH another name",
                    cte.args["alias"],
                    ErrorReason.SQL_FORBIDDEN,
                    name=name,
                )
            columns = self._query(cte.this, _Scope(outer, ctes))
            named = tuple(part.name.lower() for part in cte.args["alias"].columns)
            ctes[name] = named or columns
            self.cte_names.add(name)
        return ctes

    def _compound(self, query: exp.SetOperation, scope: _Scope) -> tuple[str, ...]:
        left = self._query(query.left, scope)
        right = self._query(query.right, scope)
        scope.results = left + right
        self._clauses(query, scope)
        return left

    def _select(self, select: exp.Select, scope: _Scope) -> tuple[str, ...]:
        if not select.expressions:
            raise self._error(
                "a SELECT has no columns; name them or write *", select, ErrorReason.SQL_INVALID
            )
        joins = select.args.get("joins") or []
        source = select.args.get("from_")
        for item in [source] if source is not None else []:
            self._source(item.this, scope)
        for join in joins:
            self._source(join.this, scope)
        for join in joins:
            self._join(join, scope)
        self._expressions(select.expressions, scope, with_results=False)
        results = tuple(self._result_names(select.expressions, scope))
        scope.results = results
        self._clauses(select, scope)
        return results

    def _source(self, node: exp.Expr, scope: _Scope) -> None:
        self.source_count += 1
        if isinstance(node, exp.Subquery):
            self._derived(node, scope)
        elif isinstance(node, exp.Table) and isinstance(node.this, exp.Anonymous):
            self._table_function(node, scope)
        elif isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
            self._table(node, scope)
        else:
            raise self._forbidden(node)
        joins = node.args.get("joins") or []
        for join in joins:
            self._source(join.this, scope)
        for join in joins:
            self._join(join, scope)

    def _derived(self, node: exp.Subquery, scope: _Scope) -> None:
        if isinstance(node.this, exp.Table):
            self._source(node.this, scope)
            return
        columns = self._query(node, _Scope(scope.parent, scope.ctes))
        self._add(node.alias, columns, scope)

    def _table_function(self, node: exp.Table, scope: _Scope) -> None:
        name = node.this.name.lower()
        if name not in TABLE_FUNCTIONS:
            raise self._error(
                f"{name!r} is not a table function; use {' or '.join(TABLE_FUNCTIONS)}",
                node,
                ErrorReason.SQL_FORBIDDEN,
                function=name,
            )
        self._expressions(node.this.expressions, scope, with_results=False)
        self._add(node.alias or name, TABLE_FUNCTIONS[name], scope)

    def _table(self, node: exp.Table, scope: _Scope) -> None:
        name = node.name.lower()
        if node.args.get("db") is not None:
            raise self._error(
                "a table must be named without its schema; remove the part before the point",
                node,
                ErrorReason.SQL_FORBIDDEN,
            )
        columns = scope.ctes.get(name)
        if columns is None:
            columns = self._table_columns(name, node)
        self._add(node.alias or name, columns, scope)

    def _table_columns(self, name: str, node: exp.Table) -> tuple[str, ...]:
        table = self._tables.get(name)
        if table is None:
            near = get_close_matches(name, self._tables, n=3, cutoff=0.4) or sorted(self._tables)
            raise self._error(
                f"there is no table {name!r}; use {_either(near)}",
                node,
                ErrorReason.TABLE_UNKNOWN,
                table=name,
                suggestions=",".join(near),
            )
        self.used_tables.add(name)
        return table.column_names

    def _add(self, alias: str, columns: tuple[str, ...], scope: _Scope) -> None:
        # Sources without an alias, or two of one name, keep all their columns; SQLite itself
        # refuses a reference that is ambiguous.
        name = alias.lower()
        scope.sources[name] = scope.sources.get(name, ()) + columns

    def _join(self, join: exp.Join, scope: _Scope) -> None:
        for column in join.args.get("using") or []:
            self._check_column(column, column.name.lower(), scope, with_results=False)
        condition = join.args.get("on")
        if condition is not None:
            self._expressions([condition], scope, with_results=False)

    def _clauses(self, query: exp.Expr, scope: _Scope) -> None:
        for name in ("where", "group", "having", "order", "limit", "offset", "windows"):
            clause = query.args.get(name)
            if clause is not None:
                parts = clause if isinstance(clause, list) else [clause]
                self._expressions(parts, scope, with_results=True)

    def _expressions(self, nodes: Iterable[exp.Expr], scope: _Scope, *, with_results: bool) -> None:
        # A loop, not recursion: a chain of a thousand ORs is as many levels deep.
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if isinstance(node, exp.Query):
                self._query(node, scope)
            elif isinstance(node, exp.Column):
                self._column(node, scope, with_results=with_results)
            else:
                pending.extend(node.iter_expressions())

    def _column(self, node: exp.Column, scope: _Scope, *, with_results: bool) -> None:
        if node.args.get("db") is not None:
            raise self._error(
                "a column must be named without its schema; write table.column",
                node,
                ErrorReason.SQL_FORBIDDEN,
            )
        qualifier = node.table.lower()
        if qualifier:
            self._qualified(node, qualifier, scope)
        elif not isinstance(node.this, exp.Star):
            self._check_column(node, node.name.lower(), scope, with_results=with_results)

    def _qualified(self, node: exp.Column, qualifier: str, scope: _Scope) -> None:
        for level in scope.chain():
            columns = level.sources.get(qualifier)
            if columns is None:
                continue
            if not isinstance(node.this, exp.Star) and node.name.lower() not in columns:
                raise self._unknown_column(node, node.name.lower(), columns)
            return
        known = [name for level in scope.chain() for name in level.sources if name]
        near = get_close_matches(qualifier, known, n=3, cutoff=0.4) or known
        raise self._error(
            f"there is no table or alias {qualifier!r} here; use {_either(near)}",
            node,
            ErrorReason.COLUMN_UNKNOWN,
            table=qualifier,
            suggestions=",".join(near),
        )

    def _check_column(
        self, node: exp.Expr, name: str, scope: _Scope, *, with_results: bool
    ) -> None:
        if scope.has(name, with_results=with_results):
            return
        outer = scope.parent
        for level in outer.chain() if outer is not None else ():
            if level.has(name, with_results=True):
                return
        known = [
            column
            for level in scope.chain()
            for columns in (*level.sources.values(), level.results)
            for column in columns
        ]
        raise self._unknown_column(node, name, known)

    def _unknown_column(self, node: exp.Expr, name: str, known: Iterable[str]) -> InvalidSqlError:
        near = get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.5)
        advice = f"use {_either(near)}" if near else "see the columns of the table in its schema"
        return self._error(
            f"there is no column {name!r} here; {advice}",
            node,
            ErrorReason.COLUMN_UNKNOWN,
            name=name,
            suggestions=",".join(near),
        )

    def _result_names(self, nodes: Iterable[exp.Expr], scope: _Scope) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, exp.Star):
                for columns in scope.sources.values():
                    yield from columns
            elif isinstance(node, exp.Column) and isinstance(node.this, exp.Star):
                yield from scope.sources.get(node.table.lower(), ())
            elif isinstance(node, (exp.Alias, exp.Column)):
                yield node.alias_or_name.lower()
            else:
                yield node.sql(dialect="sqlite").lower()

    def _forbidden(self, node: exp.Expr) -> InvalidSqlError:
        return self._error(
            f"a {node.key} is not allowed here; use a table or a SELECT",
            node,
            ErrorReason.SQL_FORBIDDEN,
            construct=node.key,
        )

    def _error(
        self, message: str, node: exp.Expr, reason: ErrorReason, **metadata: str
    ) -> InvalidSqlError:
        where = location(self._text, offset_of(node))
        return InvalidSqlError(message, reason=reason, **where, **metadata)


def _either(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names) or "one that FROM names"
