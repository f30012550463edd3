"""Live tables: SQLite virtual tables whose rows a collector is asked for while the query runs.

Invariant: what is pushed down only narrows. SQLite evaluates every condition again, so a fetch
that ignores a constraint is slow, never wrong. Within one query a table is asked at most a fixed
number of times: a join that would ask once per row gets one full snapshot instead.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import apsw

from daemoneye_agent.event import SqlValue
from daemoneye_agent.schema import TABLES, ColumnType, Table
from daemoneye_mesh.errors import ErrorReason, OverloadedError

__all__ = ["Fetch", "LiveTable"]

Constraints = Mapping[str, SqlValue]
Row = tuple[SqlValue, ...]
Fetch = Callable[[Constraints, frozenset[str]], Iterable[Row]]
"""Answers with rows in the declared order of the table's columns, all of them.

Args:
    constraints: column to value; rows that differ there need not come.
    columns: what the query reads; other columns may be None.

An error it raises reaches the caller of the query unchanged.
"""

DEFAULT_PUSHABLE = ("pid", "name")
MAX_LOOKUPS = 8
MAX_ROWS = 200_000

_COST_FULL = 1e6
_COST_LOOKUP = 1e3
_ROWS_FULL = 10_000
_ROWS_LOOKUP = 10


class LiveTable:
    """One live table: asks ``fetch`` and remembers the answers until ``forget``.

    ``identity`` names the INTEGER column that tells the rows of one moment apart. It is always
    asked for, because SQLite merges the parts of an OR by it.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        table: Table = TABLES["processes"],
        pushable: Sequence[str] = DEFAULT_PUSHABLE,
        identity: str = "pid",
        max_lookups: int = MAX_LOOKUPS,
        max_rows: int = MAX_ROWS,
    ) -> None:
        self.table = table
        self.pushable = tuple(pushable)
        self.identity = identity
        self._fetch = fetch
        self._max_lookups = max_lookups
        self._max_rows = max_rows
        self._answers: dict[tuple[tuple[str, SqlValue], ...], _Answer] = {}
        self._lookups = 0

    def register(self, connection: apsw.Connection) -> None:
        """Make the table known to a connection under its name; nothing is created in a database."""
        connection.create_module(
            self.table.name,
            _Module(self),  # type: ignore[arg-type]  # the protocol wants parts no reader needs
            use_bestindex_object=True,
            eponymous=True,
            eponymous_only=True,
            read_only=True,
        )

    def forget(self) -> None:
        """Begin a new query: what was fetched before is no longer true."""
        self._answers.clear()
        self._lookups = 0

    def rows(self, constraints: Constraints, columns: frozenset[str]) -> Sequence[Row]:
        """The rows for a lookup, fetched or remembered."""
        snapshot = self._remembered((), columns)
        if snapshot is not None:
            return snapshot.select(self.table, constraints)
        key = tuple(sorted(constraints.items()))
        answer = self._remembered(key, columns)
        if answer is not None:
            return answer.rows
        if constraints and self._lookups >= self._max_lookups:
            return self._ask((), {}, columns).select(self.table, constraints)
        self._lookups += 1
        return self._ask(key, constraints, columns).rows

    def _remembered(
        self, key: tuple[tuple[str, SqlValue], ...], columns: frozenset[str]
    ) -> "_Answer | None":
        answer = self._answers.get(key)
        return answer if answer is not None and columns <= answer.columns else None

    def _ask(
        self,
        key: tuple[tuple[str, SqlValue], ...],
        constraints: Constraints,
        columns: frozenset[str],
    ) -> "_Answer":
        answer = _Answer(columns, list(self._bounded(self._fetch(constraints, columns))))
        self._answers[key] = answer
        return answer

    def _bounded(self, rows: Iterable[Row]) -> Iterator[Row]:
        for number, row in enumerate(rows):
            if number >= self._max_rows:
                name = self.table.name
                raise OverloadedError(
                    f"{name} has more than {self._max_rows} rows; narrow it with pid = or name =",
                    reason=ErrorReason.RESULT_TOO_LARGE,
                    table=name,
                    limit=self._max_rows,
                )
            yield row


class _Answer:
    """The rows of one fetch, indexed by a column once a lookup needs it."""

    def __init__(self, columns: frozenset[str], rows: list[Row]) -> None:
        self.columns = columns
        self.rows = rows
        self._indexes: dict[str, dict[SqlValue, list[Row]]] = {}

    def select(self, table: Table, constraints: Constraints) -> Sequence[Row]:
        """The rows whose first constrained column is equal; SQLite checks the others."""
        if not constraints:
            return self.rows
        column, value = next(iter(constraints.items()))
        if column not in self._indexes:
            position = table.column_names.index(column)
            index: dict[SqlValue, list[Row]] = {}
            for row in self.rows:
                index.setdefault(row[position], []).append(row)
            self._indexes[column] = index
        return self._indexes[column].get(value, ())


# The method names below are those apsw asks for.
class _Module:
    """What apsw calls to make the table."""

    def __init__(self, source: LiveTable) -> None:
        self._source = source

    def Connect(
        self, _connection: apsw.Connection, _module: str, _database: str, _table: str, *_: object
    ) -> tuple[str, "_VirtualTable"]:
        """Declare the columns."""
        columns = ", ".join(
            f'"{column.name}" {column.type.value}' for column in self._source.table.columns
        )
        return f"CREATE TABLE ignored({columns})", _VirtualTable(self._source)

    Create = Connect


class _VirtualTable:
    """Plans: which constraints go to the collector, which columns the query needs."""

    def __init__(self, source: LiveTable) -> None:
        self._source = source

    def BestIndexObject(self, index: apsw.IndexInfo) -> bool:
        """Choose what to push down for one way to run the query."""
        names = self._source.table.column_names
        pushed: list[str] = []
        for which in range(index.nConstraint):
            if self._is_pushable(index, which, pushed):
                pushed.append(names[index.get_aConstraint_iColumn(which)])
                index.set_aConstraintUsage_argvIndex(which, len(pushed))
                index.set_aConstraintUsage_omit(which, False)
        needed = (names[number] for number in sorted(index.colUsed) if number < len(names))
        index.idxStr = f"{','.join(pushed)}|{','.join(needed)}"
        index.estimatedCost = _COST_LOOKUP if pushed else _COST_FULL
        index.estimatedRows = _ROWS_LOOKUP if pushed else _ROWS_FULL
        return True

    def _is_pushable(self, index: apsw.IndexInfo, which: int, pushed: list[str]) -> bool:
        number = index.get_aConstraint_iColumn(which)
        if number < 0 or not index.get_aConstraint_usable(which):
            return False
        name = self._source.table.column_names[number]
        return (
            name in self._source.pushable
            and name not in pushed
            and index.get_aConstraint_op(which) == apsw.SQLITE_INDEX_CONSTRAINT_EQ
            # IN would ask once per value; a comparison that ignores case finds more than the value.
            and not index.get_aConstraintUsage_in(which)
            and index.get_aConstraint_collation(which) == "BINARY"
        )

    def Open(self) -> "_Cursor":
        """Begin a walk."""
        return _Cursor(self._source)

    def Disconnect(self) -> None:
        """Nothing to give back."""

    Destroy = Disconnect


class _Cursor:
    """Walks the rows of one lookup."""

    def __init__(self, source: LiveTable) -> None:
        self._source = source
        self._identity = source.table.column_names.index(source.identity)
        self._rows: Sequence[Row] = ()
        self._position = 0

    def Filter(self, _number: int, plan: str, values: tuple[SqlValue, ...] | None) -> None:
        pushed, _, needed = plan.partition("|")
        constraints = dict(zip(filter(None, pushed.split(",")), values or (), strict=True))
        exact = {name: value for name, value in constraints.items() if self._fits(name, value)}
        columns = frozenset(filter(None, needed.split(","))) | {self._source.identity}
        self._rows = self._source.rows(exact, columns | exact.keys())
        self._position = 0

    def _fits(self, name: str, value: SqlValue) -> bool:
        # A text for an INTEGER column is converted by SQLite's comparison, not by a collector.
        table = self._source.table
        declared = table.columns[table.column_names.index(name)].type
        expected = {ColumnType.INTEGER: int, ColumnType.REAL: float, ColumnType.TEXT: str}
        return isinstance(value, expected[declared])

    def Eof(self) -> bool:
        return self._position >= len(self._rows)

    def Column(self, number: int) -> SqlValue:
        return None if number < 0 else self._rows[self._position][number]

    def Rowid(self) -> int:
        identity = self._rows[self._position][self._identity]
        return identity if isinstance(identity, int) else -1 - self._position

    def Next(self) -> None:
        self._position += 1

    def Close(self) -> None:
        self._rows = ()
