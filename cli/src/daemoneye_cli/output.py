"""Where answers and remarks go: answers to standard output, everything else to standard error.

Invariant: with the formats json and csv nothing but the answer reaches standard output. Texts from
outside are escaped before a terminal sees them, and are never read as markup.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from daemoneye_cli.text import printable

__all__ = ["Column", "Format", "Listing", "Output", "Styled", "encode_json"]

PIPE_WIDTH = 100_000
"""Lines that nobody looks at directly are not wrapped."""

Justify = Literal["left", "right"]


class Format(StrEnum):
    """How answers look."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    key: str
    """Key of the row's document."""
    title: str
    justify: Justify = "left"


@dataclass(frozen=True, slots=True)
class Listing:
    """An answer made of rows."""

    name: str
    """Key of the rows in the JSON document."""
    columns: tuple[Column, ...]
    """For table and CSV; JSON shows the rows whole."""
    rows: Sequence[Mapping[str, Any]]
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What else the JSON document holds."""


@dataclass(frozen=True, slots=True)
class Styled:
    """A value with a colour, for tables; its text is what the other formats show."""

    text: str
    style: str


class Output:
    """Both streams of one run.

    Args:
        answer_format: how answers look.
        is_colour_wanted: false for ``--no-color``; ``NO_COLOR``, ``TERM=dumb`` and a stream that is
            no terminal mean no colour anyway.
        stdout: for answers.
        stderr: for remarks and errors.
        environ: the environment.
    """

    def __init__(
        self,
        answer_format: Format,
        *,
        is_colour_wanted: bool,
        stdout: TextIO,
        stderr: TextIO,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.format = answer_format
        self._stdout = stdout
        is_colour = is_colour_wanted and not environ.get("NO_COLOR")
        is_colour = is_colour and environ.get("TERM") != "dumb"
        self.out = _console(stdout, is_colour)
        self.err = _console(stderr, is_colour)

    @property
    def is_json(self) -> bool:
        """Whether answers are JSON."""
        return self.format is Format.JSON

    @property
    def is_table(self) -> bool:
        """Whether answers are for a person."""
        return self.format is Format.TABLE

    def write(self, text: str) -> None:
        """Writes a part of an answer as it is."""
        self._stdout.write(text)

    def flush(self) -> None:
        """Hands over what was written; a follower of a stream waits for it."""
        self._stdout.flush()

    def write_document(self, document: object) -> None:
        """Writes a whole answer as one JSON document."""
        self.write(encode_json(document, indent=2) + "\n")
        self.flush()

    def write_line(self, document: object) -> None:
        """Writes one JSON document of a stream as one line."""
        self.write(encode_json(document) + "\n")
        self.flush()

    def write_csv(self, row: Iterable[object]) -> None:
        """Writes one CSV record (RFC 4180)."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerow([_csv_cell(one) for one in row])
        text = buffer.getvalue()
        self.write(printable(text, keep="\n") if self._stdout.isatty() else text)

    def print_line(self, line: Text) -> None:
        """Prints one line of a live view; a terminal shows as much of it as fits."""
        self.out.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        self.flush()

    def print_table(
        self, columns: Sequence[Column], rows: Iterable[Sequence[object]], title: str | None = None
    ) -> None:
        """Prints a table."""
        table = Table(
            title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False
        )
        for column in columns:
            table.add_column(Text(printable(column.title)), justify=column.justify, overflow="fold")
        for row in rows:
            table.add_row(*(_cell(one) for one in row))
        self.out.print(table)

    def remark(self, text: str, style: str = "") -> None:
        """Tells the person something that is not part of the answer."""
        self.err.print(Text(printable(text, keep="\n"), style=style), soft_wrap=True)

    def show_listing(self, listing: Listing) -> None:
        """Shows rows in the format asked for."""
        keys = [column.key for column in listing.columns]
        if self.is_json:
            rows = [_plain_row(row) for row in listing.rows]
            self.write_document({listing.name: rows, **listing.extras})
        elif self.is_table:
            self.print_table(
                listing.columns, ([row.get(key) for key in keys] for row in listing.rows)
            )
        else:
            self.write_csv(keys)
            for row in listing.rows:
                self.write_csv(row.get(key) for key in keys)
            self.flush()

    def show_record(self, record: Mapping[str, Any]) -> None:
        """Shows one thing with its fields in the format asked for."""
        if self.is_json:
            self.write_document(_plain_row(record))
        elif self.is_table:
            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="bold")
            grid.add_column(overflow="fold")
            for key, value in record.items():
                grid.add_row(printable(key), _cell(value))
            self.out.print(grid)
        else:
            self.write_csv(record)
            self.write_csv(record.values())
            self.flush()


def encode_json(document: object, indent: int | None = None) -> str:
    """Returns valid JSON for any document, in ASCII, so that no terminal obeys it."""
    separators = None if indent else (",", ":")
    return json.dumps(_finite(document), indent=indent, allow_nan=False, separators=separators)


def _finite(value: Any) -> Any:
    """Returns the value with texts for the numbers that JSON lacks, and without styles."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Styled):
        return value.text
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("_")}


class _Console(Console):
    """A console that leaves a closed pipe to the one place which knows the exit status."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console(stream: TextIO, is_colour: bool) -> Console:
    is_terminal = stream.isatty()
    return _Console(
        file=stream,
        color_system="auto" if is_colour else None,
        width=None if is_terminal else PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def _cell(value: object) -> Text:
    if isinstance(value, Styled):
        return Text(printable(value.text), style=value.style)
    if value is None:
        return Text("-", style="dim")
    return Text(printable(_cell_text(value), keep="\n"))


def _cell_text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_cell_text(one) for one in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_cell_text(one)}" for key, one in value.items())
    return str(value)


def _csv_cell(value: object) -> object:
    if isinstance(value, Styled):
        return value.text
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | Mapping):
        return encode_json(value)
    return value
