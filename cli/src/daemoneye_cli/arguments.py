"""The command line: parsers that teach, and options that every command takes.

Options of all commands may stand before or after the command. Invariant: nothing on the command line
is ignored, and what is wrong with it becomes a ``UsageError``, never an exit from inside argparse
(``--help`` and ``--version`` aside).
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from daemoneye_cli.errors import UsageError
from daemoneye_cli.exit_code import describe_exit_codes
from daemoneye_cli.invocation import Command
from daemoneye_cli.output import Format

__all__ = ["Parser", "Subparsers", "add_command", "bounded_int", "positive_seconds"]

Subparsers = Any
"""argparse's own type for it is private."""


class Parser(argparse.ArgumentParser):
    """A parser that reports wrong usage as an error of ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs["allow_abbrev"] = False  # a new option must not change what an old script means
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Refuses the command line.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message}; see '{self.prog} --help'", usage=self.format_usage().strip())


def add_global_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that every command takes.

    None of them has a default, so that one that stands before the command is not overwritten by its
    absence behind it.
    """
    group = parser.add_argument_group("options of every command")
    add = group.add_argument
    add("--runtime-dir", **_option(_path, "DIR", "directory of the sockets; found by itself"))
    add("--format", choices=tuple(Format), default=argparse.SUPPRESS, help=_FORMAT_HELP)
    add("--timeout", **_option(positive_seconds, "SECONDS", "deadline of each call to the mesh"))
    add("--token-file", **_option(_path, "FILE", "operator token; default <runtime dir>/tokens/…"))
    no_colour = "no colour; NO_COLOR and TERM=dumb do the same"
    add("--no-color", action="store_true", default=argparse.SUPPRESS, help=no_colour)


_FORMAT_HELP = "table for people (default), json or csv for programs"


def _option(kind: Callable[[str], object], metavar: str, text: str) -> dict[str, Any]:
    return {"type": kind, "metavar": metavar, "default": argparse.SUPPRESS, "help": text}


def add_command(
    subparsers: Subparsers,
    name: str,
    *,
    summary: str,
    description: str,
    run: Command | None = None,
    examples: Sequence[str] = (),
) -> Parser:
    """Adds a command with its help, its examples and the exit statuses.

    Args:
        subparsers: where to add it.
        name: its name.
        summary: one line for the list of commands.
        description: what it does and how to read its answer.
        run: runs it; None for a command that only has others below it.
        examples: command lines.
    """
    parser: Parser = subparsers.add_parser(
        name, help=summary, description=description, epilog=make_epilog(examples)
    )
    add_global_options(parser)
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def make_epilog(examples: Sequence[str]) -> str:
    """Returns what stands at the end of a help text."""
    listed = "".join(f"  {one}\n" for one in examples)
    shown = f"examples:\n{listed}\n" if listed else ""
    return (shown + describe_exit_codes()).replace("%", "%%")


def positive_seconds(text: str) -> float:
    """Reads a duration in seconds for argparse."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 1e9:
        raise argparse.ArgumentTypeError(f"{text[:40]!a} is no number of seconds above 0")
    return seconds


def bounded_int(minimum: int, maximum: int) -> Callable[[str], int]:
    """Returns a reader of whole numbers for argparse."""

    def read(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) <= 19:
            number = int(text)
            if minimum <= number <= maximum:
                return number
        raise argparse.ArgumentTypeError(
            f"{text[:40]!a} is no whole number from {minimum} to {maximum}"
        )

    return read


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text).expanduser().absolute()
