"""Rows of a query in each format, written while they come."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from daemoneye_cli.completeness import to_completeness_document
from daemoneye_cli.output import Column, Format, Output, Styled, encode_json
from daemoneye_mesh.completeness import Degradation
from daemoneye_mesh.errors import DaemoneyeError

__all__ = ["RowWriter", "SqlCell", "make_row_writer"]

SqlCell = str | int | float | None
"""A value of SQLite; a BLOB is hexadecimal text."""

TABLE_CHUNK_ROWS = 1_000
"""Column widths need all rows of a table, so a long answer becomes several tables."""


class RowWriter(Protocol):
    """Takes the parts of one answer in order: begin, add…, then end or fail."""

    def begin(self, columns: Sequence[str]) -> None:
        """Takes the names of the columns."""

    def add(self, rows: Sequence[Sequence[SqlCell]]) -> None:
        """Takes rows."""

    def end(self, degradations: tuple[Degradation, ...]) -> None:
        """Finishes the answer."""

    def fail(self, error: DaemoneyeError) -> None:
        """Finishes an answer that will not be whole; writes nothing when nothing was written."""


def make_row_writer(output: Output) -> RowWriter:
    """Returns the writer for the format asked for."""
    match output.format:
        case Format.JSON:
            return JsonRowWriter(output)
        case Format.CSV:
            return CsvRowWriter(output)
        case Format.TABLE:
            return TableRowWriter(output)


class JsonRowWriter:
    """One document, written piece by piece."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._columns: list[str] = []
        self._row_count = 0
        self._is_begun = False

    def begin(self, columns: Sequence[str]) -> None:
        """Opens the document."""
        self._columns = make_unique(columns)
        self._is_begun = True
        self._output.write(f'{{"columns":{encode_json(self._columns)},"rows":[')

    def add(self, rows: Sequence[Sequence[SqlCell]]) -> None:
        """Writes one object a line."""
        for row in rows:
            separator = ",\n" if self._row_count else "\n"
            document = dict(zip(self._columns, row, strict=True))
            self._output.write(separator + encode_json(document))
            self._row_count += 1
        self._output.flush()

    def end(self, degradations: tuple[Degradation, ...]) -> None:
        """Closes the document."""
        if not self._is_begun:
            self.begin([])
        completeness = encode_json(to_completeness_document(degradations))
        self._close(f'"completeness":{completeness}')

    def fail(self, error: DaemoneyeError) -> None:
        """Closes a document that was begun, with the error inside."""
        if self._is_begun:
            described = {"code": error.code.name, "reason": error.reason.value}
            document = encode_json({**described, "message": error.message})
            self._close(f'"completeness":null,"error":{document}')

    def _close(self, rest: str) -> None:
        self._output.write(f'\n],"row_count":{self._row_count},{rest}}}\n')
        self._output.flush()


class CsvRowWriter:
    """A header and one record a row; NULL is an empty field."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def begin(self, columns: Sequence[str]) -> None:
        """Writes the header."""
        self._output.write_csv(columns)

    def add(self, rows: Sequence[Sequence[SqlCell]]) -> None:
        """Writes the rows."""
        for row in rows:
            self._output.write_csv(row)
        self._output.flush()

    def end(self, degradations: tuple[Degradation, ...]) -> None:
        """There is nothing left to write."""

    def fail(self, error: DaemoneyeError) -> None:
        """There is nothing left to write; the exit status tells."""


class TableRowWriter:
    """Tables of at most ``TABLE_CHUNK_ROWS`` rows, and the number of rows on standard error."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._columns: tuple[Column, ...] = ()
        self._waiting: list[Sequence[SqlCell]] = []
        self._row_count = 0

    def begin(self, columns: Sequence[str]) -> None:
        """Remembers the columns."""
        self._columns = tuple(Column(name, name) for name in columns)

    def add(self, rows: Sequence[Sequence[SqlCell]]) -> None:
        """Collects rows and prints a table when there are enough."""
        self._row_count += len(rows)
        self._waiting += rows
        while len(self._waiting) >= TABLE_CHUNK_ROWS:
            self._print(self._waiting[:TABLE_CHUNK_ROWS])
            del self._waiting[:TABLE_CHUNK_ROWS]

    def end(self, degradations: tuple[Degradation, ...]) -> None:
        """Prints what is left; an answer without rows still shows its columns."""
        if self._waiting or not self._row_count:
            self._print(self._waiting)
        self._output.remark(f"{self._row_count} row{'' if self._row_count == 1 else 's'}")

    def fail(self, error: DaemoneyeError) -> None:
        """Prints the rows that came before the failure."""
        if self._waiting:
            self._print(self._waiting)

    def _print(self, rows: Iterable[Sequence[SqlCell]]) -> None:
        shown = [[_NULL if one is None else _shown(one) for one in row] for row in rows]
        columns = [
            Column(column.key, column.title, "right" if _is_numeric(rows, place) else "left")
            for place, column in enumerate(self._columns)
        ]
        if columns:
            self._output.print_table(columns, shown)
            self._output.flush()


_NULL = Styled("NULL", "dim")


def _shown(value: SqlCell) -> object:
    # repr keeps every digit of a float, where a table would round it.
    return repr(value) if isinstance(value, float) else value


def _is_numeric(rows: Iterable[Sequence[SqlCell]], place: int) -> bool:
    values = [row[place] for row in rows if row[place] is not None]
    return bool(values) and all(isinstance(value, int | float) for value in values)


def make_unique(columns: Sequence[str]) -> list[str]:
    """Returns names that can be keys: a repeated one gets ``_2``, ``_3`` and so on."""
    unique: list[str] = []
    for name in columns:
        candidate, number = name, 1
        while candidate in unique:
            number += 1
            candidate = f"{name}_{number}"
        unique.append(candidate)
    return unique
