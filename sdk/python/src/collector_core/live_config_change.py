"""What an update of the configuration says, and which configuration it makes.

Pure: reads texts, checks them against the declarations and builds values. Invariant: a configuration
that ``Overlay`` returns satisfies the bounds of every field and every rule across fields, and a
refusal names every field that is in the way (MUST-CFG-05).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

from collector_core.live_config_error import ConfigProblem, UpdateRefusedError
from daemoneye_mesh.configuration import Loaded
from daemoneye_mesh.errors import InvalidConfigError

__all__ = [
    "MAX_VALUE_BYTES",
    "ConfigChange",
    "ConfigOrigin",
    "OriginKind",
    "Overlay",
    "Override",
    "to_text",
]

MAX_VALUE_BYTES = 4096
SHOWN_CHARS = 80

T = TypeVar("T")


class OriginKind(StrEnum):
    """Where a value comes from; later ones come before earlier ones."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"
    LIVE = "live"


@dataclass(frozen=True, slots=True)
class ConfigOrigin:
    """Where the value of one field comes from."""

    kind: OriginKind
    detail: str = ""
    """The file, variable or flag; for LIVE the identity that asked for it."""

    @classmethod
    def parse(cls, text: str) -> "ConfigOrigin":
        """Reads an origin as ``Loaded`` tells it, such as ``flag --x``."""
        kind, _, detail = text.partition(" ")
        return cls(OriginKind(kind), detail)


@dataclass(frozen=True, slots=True)
class Override:
    """A value that an update set, until it is reset."""

    text: str
    by: str
    """Identity that asked for it."""


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A field whose value an update changes."""

    name: str
    before: str
    after: str


class Overlay(Generic[T]):
    """The configuration of the start with the values of updates laid over it.

    Args:
        loaded: the configuration that the process started with.
    """

    def __init__(self, loaded: Loaded[T]) -> None:
        self._base: Any = loaded.value
        self._settings = {one.name: one for one in loaded.settings}

    def build(self, overrides: Mapping[str, Override]) -> T:
        """Returns the configuration with these values.

        Raises:
            UpdateRefusedError: they break a rule across fields.
            ValueError: a text is no value of its field.
        """
        values = {name: self._settings[name].from_text(one.text) for name, one in overrides.items()}
        try:
            built: T = dataclasses.replace(self._base, **values)
        except InvalidConfigError as error:
            raise UpdateRefusedError([self.problem_of(error)]) from None
        return built

    def merge(
        self,
        overrides: Mapping[str, Override],
        changes: Mapping[str, str],
        reset: Iterable[str],
        by: str,
    ) -> dict[str, Override]:
        """Returns the values of all updates after one more, without rules across fields.

        Raises:
            UpdateRefusedError: a field is unknown, not live, named twice or out of its bounds.
        """
        merged, problems = dict(overrides), list[ConfigProblem]()
        for name in dict.fromkeys(reset):
            problem = self._find_problem(name)
            if problem is None and name in changes:
                problem = _name_problem(name, "is set and reset at once; choose one")
            if problem is not None:
                problems.append(problem)
            merged.pop(name, None)
        for name, text in changes.items():
            found = self._find_problem(name) or self._read(name, text)
            if isinstance(found, ConfigProblem):
                problems.append(found)
            elif name not in merged or merged[name].text != found:
                merged[name] = Override(found, by)
        if problems:
            raise UpdateRefusedError(problems)
        return merged

    def salvage(
        self, overrides: Mapping[str, Override]
    ) -> tuple[dict[str, Override], tuple[ConfigProblem, ...]]:
        """Returns what is still valid of values that were kept, and why the rest is not."""
        valid, problems = dict[str, Override](), list[ConfigProblem]()
        for name, one in overrides.items():
            found = self._find_problem(name) or self._read(name, one.text)
            if isinstance(found, ConfigProblem):
                problems.append(found)
            else:
                valid[name] = Override(found, one.by)
        kept = self._largest_valid(valid)
        problems += [
            _name_problem(name, f"= {one.text!a} contradicts other settings; set it anew")
            for name, one in valid.items()
            if name not in kept
        ]
        return kept, tuple(problems)

    def compare(self, before: T, after: T) -> tuple[ConfigChange, ...]:
        """Returns the fields whose values differ, by name."""
        pairs = (
            (name, getattr(before, name), getattr(after, name)) for name in sorted(self._settings)
        )
        return tuple(
            ConfigChange(name, to_text(old), to_text(new)) for name, old, new in pairs if old != new
        )

    def problem_of(self, error: InvalidConfigError, otherwise: str = "") -> ConfigProblem:
        """Returns what a refused rule says; its fields are those that its metadata names."""
        named = tuple(name for name in error.metadata if name in self._settings)
        return ConfigProblem(named or ((otherwise,) if otherwise else ()), error.message)

    def _largest_valid(self, overrides: Mapping[str, Override]) -> dict[str, Override]:
        if self._is_valid(overrides):
            return dict(overrides)
        kept, was_extended = dict[str, Override](), True
        while was_extended:  # one value may make room for another one
            was_extended = False
            for name in [name for name in overrides if name not in kept]:
                candidate = {**kept, name: overrides[name]}
                if self._is_valid(candidate):
                    kept, was_extended = candidate, True
        return kept

    def _is_valid(self, overrides: Mapping[str, Override]) -> bool:
        try:
            self.build(overrides)
        except UpdateRefusedError:
            return False
        return True

    def _find_problem(self, name: str) -> ConfigProblem | None:
        one = self._settings.get(name)
        if one is None:
            return self._refuse_unknown(name)
        if not one.is_live:
            fix = "cannot change while the collector runs; set it in its file and start it again"
            return _name_problem(name, fix)
        return None

    def _refuse_unknown(self, name: str) -> ConfigProblem:
        shown = name[:SHOWN_CHARS] if name.isprintable() else ascii(name[:SHOWN_CHARS])
        closest = get_close_matches(shown, self._settings, n=1, cutoff=0.5)
        live = ", ".join(one.name for one in self._settings.values() if one.is_live)
        hint = f"did you mean {closest[0]}?" if closest else f"those that can change are {live}"
        return _name_problem(shown, f"is unknown; {hint}")

    def _read(self, name: str, text: str) -> ConfigProblem | str:
        """Returns a value in its normal form, or what is wrong with it."""
        try:
            if len(text.encode("utf-8", "replace")) > MAX_VALUE_BYTES:
                raise ValueError(f"be at most {MAX_VALUE_BYTES} bytes long")
            return to_text(self._settings[name].from_text(text))
        except ValueError as error:
            return _name_problem(name, f"= {text[:SHOWN_CHARS]!a} must {error}")


def to_text(value: object) -> str:
    """Writes a value as ``Setting.from_text`` reads it; None is the empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(map(to_text, value))
    return str(value) if isinstance(value, str | Path) else repr(value)


def _name_problem(name: str, rest: str) -> ConfigProblem:
    return ConfigProblem((name,), f"{name} {rest}")
