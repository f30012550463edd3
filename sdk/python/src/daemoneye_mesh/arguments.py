"""The command-line flags of a process, generated from its settings.

Flags give texts; ``Setting`` turns them into values, so that a flag, a variable and a file are
judged by the same rules. Invariant: nothing on the command line is ignored.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from daemoneye_mesh.setting import Setting, render

__all__ = ["Arguments", "parse_arguments"]

_PREFIX = "setting:"


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line said."""

    values: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By setting: the flag as it was written, and its text."""
    config_path: Path | None = None
    is_show_config: bool = False
    problems: tuple[str, ...] = ()


def parse_arguments(
    settings: Sequence[Setting],
    process: str,
    argv: Sequence[str],
    about: tuple[str, str] = ("", "unknown"),
) -> Arguments:
    """Reads the flags; what is wrong with them stands in ``problems``.

    Args:
        settings: the settings of the process.
        process: its name, for the help text.
        argv: the flags, without the program.
        about: description and version, for ``--help`` and ``--version``, which print and exit.
    """
    try:
        found, unknown = _parser(settings, process, about).parse_known_args(list(argv))
    except (_RefusedError, argparse.ArgumentError) as err:
        return Arguments(problems=(str(err),))
    given = {
        key.removeprefix(_PREFIX): value
        for key, value in vars(found).items()
        if key.startswith(_PREFIX)
    }
    return Arguments(
        values={one.name: _text(one, given[one.name]) for one in settings if one.name in given},
        config_path=found.config,
        is_show_config=found.show_config,
        problems=_problems(unknown, settings),
    )


class _RefusedError(Exception):
    """argparse would have exited; we report all problems together instead."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _RefusedError(message)


def _parser(
    settings: Sequence[Setting], process: str, about: tuple[str, str]
) -> argparse.ArgumentParser:
    description, version = about
    parser = _Parser(prog=process, description=description, allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help=_CONFIG_HELP)
    parser.add_argument("--show-config", action="store_true", help=_SHOW_HELP)
    parser.add_argument("--version", action="version", version=f"{process} {version}")
    group = parser.add_argument_group("settings")
    for one in settings:
        _add_flag(group, one)
    return parser


_CONFIG_HELP = "read this file in place of the system and the user file"
_SHOW_HELP = "print every setting with its value and origin, then exit"


def _add_flag(group: "argparse._ArgumentGroup", one: Setting) -> None:
    bounds = [f"{what} {bound}" for what, bound in _bounds(one) if bound is not None]
    default = "unset" if one.default is None else render(one.default)
    choices = [f"one of {', '.join(one.choices)}"] if one.choices else []
    remarks = "; ".join([*choices, *bounds, f"default {default}"])
    text = f"{one.help} ({remarks})".replace("%", "%%")
    dest = _PREFIX + one.name
    if one.type is bool:
        group.add_argument(
            one.flag,
            dest=dest,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=text,
        )
        return
    action = "append" if one.type is tuple else "store"
    metavar = one.name.rpartition("_")[2].upper()
    group.add_argument(
        one.flag, dest=dest, action=action, default=argparse.SUPPRESS, metavar=metavar, help=text
    )


def _bounds(one: Setting) -> tuple[tuple[str, float | None], ...]:
    return (("at least", one.minimum), ("at most", one.maximum))


def _text(one: Setting, given: object) -> tuple[str, str]:
    if isinstance(given, bool):
        return (one.flag if given else f"--no-{one.flag[2:]}"), str(given)
    if isinstance(given, list):
        return one.flag, ",".join(given)
    return one.flag, str(given)


def _problems(unknown: Sequence[str], settings: Sequence[Setting]) -> tuple[str, ...]:
    flags = [one.flag for one in settings] + ["--config", "--show-config", "--version"]
    unknown_flags = [one.partition("=")[0] for one in unknown if one.startswith("-")]
    if not unknown_flags:  # a text after an unknown flag may be its value
        return tuple(f"argument {one[:80]!a} is not expected" for one in unknown)
    return tuple(_unknown_flag(one[:80], flags) for one in unknown_flags)


def _unknown_flag(flag: str, known: Sequence[str]) -> str:
    closest = get_close_matches(flag, known, n=1, cutoff=0.5)
    hint = f"did you mean {closest[0]}?" if closest else "see --help"
    return f"flag {flag} is unknown; {hint}"
