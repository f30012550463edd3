"""One setting of a process: its declaration, and how a value of it is read and checked.

A setting is a field of a frozen dataclass, declared with ``setting()``. Its type is ``str``,
``int``, ``float``, ``bool``, ``Path``, ``tuple[str, ...]``, a ``Literal`` of texts, a ``StrEnum``,
or one of these ``| None``. Invariant: a value that gets past ``Setting`` has the declared type and
lies within the declared bounds; a declaration we could not obey is a ``TypeError`` at the start.
"""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

__all__ = ["Setting", "describe_settings", "render", "setting"]

T = TypeVar("T")
_METADATA_KEY = "daemoneye.setting"
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")
_SCALARS: tuple[type, ...] = (str, int, float, bool, Path)
_BEYOND = 2**63
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")


def setting(  # noqa: PLR0913 -- reads like argparse at every declaration
    default: T,
    *,
    help: str,  # noqa: A002 -- likewise
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    env: str | None = None,
    live: bool = False,
) -> T:
    """Declares a field of a settings dataclass.

    Args:
        default: the value when no layer gives one; None needs a type with ``| None``.
        help: one line for ``--help`` and ``--show-config``, with the unit.
        minimum: smallest number allowed.
        maximum: largest number allowed.
        choices: texts allowed; types that enumerate their values need none.
        env: the whole name of the environment variable, for settings that processes share; else
            it is ``DAEMONEYE_<PROCESS>_<FIELD>``.
        live: whether it may change while the process runs.
    """
    declared = _Declaration(help, minimum, maximum, tuple(choices), env, live)
    return dataclasses.field(default=default, metadata={_METADATA_KEY: declared})


@dataclass(frozen=True, slots=True)
class _Declaration:
    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    env: str | None
    is_live: bool


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting before it has a value."""

    name: str
    type: type
    """``str``, ``int``, ``float``, ``bool``, ``Path``, ``tuple`` or a ``StrEnum``."""
    is_optional: bool
    default: object
    help: str
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...]
    env: str | None
    is_live: bool = False
    """Whether it may change while the process runs."""

    @property
    def flag(self) -> str:
        """The command-line flag, such as ``--scan-interval-s``."""
        return "--" + self.name.replace("_", "-")

    def from_text(self, text: str) -> object:
        """Reads a value from the command line or the environment; lists are comma-separated.

        Raises:
            ValueError: not a value of this setting; the message continues "... must".
        """
        if self.is_optional and not text:
            return None
        return self.from_toml(self._parse(text))

    def from_toml(self, raw: object) -> object:
        """Checks a value of a configuration file and converts it to the declared type.

        Raises:
            ValueError: not a value of this setting; the message continues "... must".
        """
        if not self._has_type(raw):
            raise ValueError(f"be {self.kind}")
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            self._check_range(raw)
        for text in raw if isinstance(raw, list) else [raw]:
            if self.choices and text not in self.choices:
                raise ValueError(f"be one of {', '.join(self.choices)}")
            if isinstance(text, str) and "\0" in text:
                raise ValueError("not contain a NUL character")
        return self._convert(raw)

    @property
    def kind(self) -> str:
        """The declared type in words."""
        names = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            tuple: "a list of texts",
            Path: "a path",
        }
        return names.get(self.type, "a text")

    def _parse(self, text: str) -> object:
        if self.type is bool:
            return _parse_bool(text)
        if self.type is int:
            return int(text) if _WHOLE_NUMBER.fullmatch(text) else text
        if self.type is float:
            return _parse_float(text)
        if self.type is tuple:
            return [part.strip() for part in text.split(",") if part.strip()]
        return text

    def _has_type(self, raw: object) -> bool:
        if self.type in (bool, int):
            return type(raw) is self.type
        if self.type is float:
            return type(raw) in (int, float)
        if self.type is tuple:
            return isinstance(raw, list) and all(isinstance(one, str) for one in raw)
        return isinstance(raw, str) and (self.type is not Path or bool(raw))

    def _check_range(self, value: float) -> None:
        if not abs(value) < _BEYOND:  # also true of a NaN
            raise ValueError("be a finite number of ordinary size")
        if self.minimum is not None and value < self.minimum:
            raise ValueError(f"be at least {self.minimum}")
        if self.maximum is not None and value > self.maximum:
            raise ValueError(f"be at most {self.maximum}")

    def _convert(self, raw: Any) -> object:
        if self.type is Path and raw.startswith("~"):
            return _expand_home(raw)
        return self.type(raw)


def describe_settings(cls: type) -> tuple[Setting, ...]:
    """Returns the settings of a dataclass in the order of their declaration.

    Raises:
        TypeError: a declaration cannot be obeyed. That is a defect of the program.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls.__name__} is no dataclass")
    hints = typing.get_type_hints(cls)
    return tuple(_describe(field, hints[field.name]) for field in dataclasses.fields(cls))


def render(value: object) -> str:
    """Writes a value the way a configuration file would; None is ``(unset)``."""
    if value is None:
        return "(unset)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(render(one) for one in value) + "]"
    return repr(value) if isinstance(value, int | float) else _quote(str(value))


def _describe(field: "dataclasses.Field[Any]", hint: object) -> Setting:
    declared = field.metadata.get(_METADATA_KEY)
    if not isinstance(declared, _Declaration):
        raise TypeError(f"field {field.name} is not declared with setting()")
    base, choices, is_optional = _resolve(field.name, hint)
    described = Setting(
        name=field.name,
        type=base,
        is_optional=is_optional,
        default=field.default,
        help=declared.help,
        minimum=declared.minimum,
        maximum=declared.maximum,
        choices=declared.choices or choices,
        env=declared.env,
        is_live=declared.is_live,
    )
    return dataclasses.replace(described, default=_checked_default(described))


def _resolve(name: str, hint: object) -> tuple[type, tuple[str, ...], bool]:
    is_optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if is_optional:
        members = [one for one in typing.get_args(hint) if one is not types.NoneType]
        if len(members) != 1 or len(typing.get_args(hint)) != 2:
            raise TypeError(f"setting {name}: only a union with None is supported")
        hint = members[0]
    if typing.get_origin(hint) is Literal and _are_texts(typing.get_args(hint)):
        return str, typing.get_args(hint), is_optional
    if typing.get_origin(hint) is tuple and typing.get_args(hint) == (str, ...):
        return tuple, (), is_optional
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint, tuple(member.value for member in hint), is_optional
    if isinstance(hint, type) and hint in _SCALARS:
        return hint, (), is_optional
    raise TypeError(f"setting {name}: type {hint} is not supported")


def _are_texts(choices: tuple[object, ...]) -> bool:
    return all(isinstance(one, str) for one in choices)


def _checked_default(declared: Setting) -> object:
    is_number = declared.type in (int, float)
    if not is_number and (declared.minimum, declared.maximum) != (None, None):
        raise TypeError(f"setting {declared.name}: only numbers have a minimum or maximum")
    if declared.choices and (is_number or declared.type is bool):
        raise TypeError(f"setting {declared.name}: only texts have choices")
    if declared.default is None and declared.is_optional:
        return None
    raw = list(declared.default) if isinstance(declared.default, tuple) else declared.default
    try:
        return declared.from_toml(str(raw) if isinstance(raw, Path) else raw)
    except ValueError as err:
        raise TypeError(f"setting {declared.name}: its default must {err}") from None


def _parse_bool(text: str) -> object:
    lowered = text.lower()
    return lowered in _TRUE if lowered in _TRUE + _FALSE else text


def _parse_float(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _expand_home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("not begin with ~ where the home directory is unknown") from None


def _quote(text: str) -> str:
    # A JSON string is a TOML string once no surrogate is left; escape what a terminal would obey.
    quoted = json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False)
    return "".join(one if one.isprintable() else _escape(one) for one in quoted)


def _escape(character: str) -> str:
    point = ord(character)
    return f"\\u{point:04X}" if point <= 0xFFFF else f"\\U{point:08X}"
