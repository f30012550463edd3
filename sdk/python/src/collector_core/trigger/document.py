"""Reads triggers from a TOML file of ``[[trigger]]`` tables.

Invariant: a file is taken as a whole or refused; the error names file, trigger and key.
"""

import os
import stat
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from collector_core.analysis import TriggerPriority
from collector_core.trigger.condition import (
    Condition,
    ExecutablePathPattern,
    HashMismatch,
    MissingExecutable,
    Predicate,
    ProcessNamePattern,
    ResourceAnomaly,
    SuspiciousParentChild,
)
from collector_core.trigger.spec import AnalysisKind, TriggerSpec
from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["MAX_FILE_BYTES", "MAX_TRIGGERS", "InvalidTriggersError", "load_triggers"]

MAX_FILE_BYTES = 1 << 20
MAX_TRIGGERS = 256

_Kinds = tuple[type, ...]
_TEXT: _Kinds = (str,)
_NUMBER: _Kinds = (int, float)
_REQUIRED = ("id", "description", "condition", "analysis_type", "target_collector")
_KEYS: Mapping[str, _Kinds] = {
    "id": _TEXT,
    "description": _TEXT,
    "condition": (dict,),
    "analysis_type": _TEXT,
    "custom_type": _TEXT,
    "priority": _TEXT,
    "target_collector": _TEXT,
    "arguments": (dict,),
}
_CONDITIONS: Mapping[
    str, tuple[Callable[..., Condition], Mapping[str, _Kinds], tuple[str, ...]]
] = {
    "process_name_pattern": (ProcessNamePattern, {"pattern": _TEXT}, ("pattern",)),
    "executable_path_pattern": (ExecutablePathPattern, {"pattern": _TEXT}, ("pattern",)),
    "missing_executable": (MissingExecutable, {}, ()),
    "resource_anomaly": (ResourceAnomaly, {"cpu_percent": _NUMBER, "memory_bytes": (int,)}, ()),
    "hash_mismatch": (HashMismatch, {"path": _TEXT, "sha256": _TEXT}, ()),
    "suspicious_parent_child": (
        SuspiciousParentChild,
        {"parent": _TEXT, "child": _TEXT},
        ("parent", "child"),
    ),
    "predicate": (Predicate, {"expression": _TEXT}, ("expression",)),
}
_TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number", dict: "a table"}


class InvalidTriggersError(InvalidConfigError):
    """A file of triggers is refused.

    Args:
        path: the file.
        where: which trigger, in words; empty when it is about the file.
        problem: what is wrong, and what to do.
        key: the key it is about; empty when it is about the whole.
    """

    def __init__(self, path: Path, where: str, problem: str, key: str = "") -> None:
        super().__init__(
            ": ".join(one for one in (str(path), where, problem) if one),
            path=path,
            where=where,
            problem=problem,
            key=key,
        )


def load_triggers(path: Path) -> tuple[TriggerSpec, ...]:
    """Reads the triggers of a file; blocks for the time of reading it.

    Raises:
        InvalidTriggersError: it cannot be read, anybody may write it, or something in it makes no
            sense.
    """
    try:
        document = tomllib.loads(_read(path).decode())
    except UnicodeDecodeError:
        raise InvalidTriggersError(path, "", "is not UTF-8; save it as such") from None
    except (tomllib.TOMLDecodeError, RecursionError) as err:
        raise InvalidTriggersError(path, "", f"is not TOML: {str(err)[:200]}; correct it") from None
    try:
        return tuple(_read_specs(document))
    except _MisfitError as err:
        raise InvalidTriggersError(path, err.where, err.problem, key=err.key) from None


class _MisfitError(Exception):
    """Something in a document does not fit."""

    def __init__(self, key: str, problem: str, where: str = "") -> None:
        super().__init__(problem)
        self.key = key
        self.problem = problem
        self.where = where


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise InvalidTriggersError(
                    path, "", "may be written by anybody; run chmod o-w on it"
                )
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as err:
        cause = os.strerror(err.errno or 0).lower()
        raise InvalidTriggersError(path, "", f"cannot be read: {cause}; correct it") from None
    if len(content) > MAX_FILE_BYTES:
        raise InvalidTriggersError(path, "", f"is larger than {MAX_FILE_BYTES} bytes; shorten it")
    return content


def _read_specs(document: Mapping[str, Any]) -> Iterable[TriggerSpec]:
    _check_known(document, ("trigger",))
    tables = document.get("trigger", [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise _MisfitError("trigger", "trigger must be written as [[trigger]]")
    if len(tables) > MAX_TRIGGERS:
        raise _MisfitError("trigger", f"has {len(tables)} triggers; have at most {MAX_TRIGGERS}")
    specs = [_read_spec(number, table) for number, table in enumerate(tables, 1)]
    for trigger_id, count in Counter(one.id for one in specs).items():
        if count > 1:
            raise _MisfitError("id", f"{count} triggers have the id {trigger_id!r}; rename them")
    return specs


def _read_spec(number: int, table: Mapping[str, Any]) -> TriggerSpec:
    try:
        return _to_spec(table)
    except (_MisfitError, InvalidConfigError) as err:
        name = table.get("id")
        where = f"trigger {name[:64]!r}" if isinstance(name, str) else f"trigger number {number}"
        problem = err.problem if isinstance(err, _MisfitError) else err.message
        key = err.key if isinstance(err, _MisfitError) else err.metadata.get("key", "")
        raise _MisfitError(key, problem, where) from None


def _to_spec(table: Mapping[str, Any]) -> TriggerSpec:
    _check_keys(table, _KEYS, _REQUIRED)
    arguments = table.get("arguments", {})
    for key, value in arguments.items():
        if not isinstance(value, str):
            raise _MisfitError(f"arguments.{key}", f"arguments.{key} must be a text")
    return TriggerSpec(
        id=table["id"],
        description=table["description"],
        condition=_to_condition(table["condition"]),
        analysis_type=AnalysisKind(_choose("analysis_type", table["analysis_type"], AnalysisKind)),
        custom_type=table.get("custom_type", ""),
        priority=TriggerPriority[_to_priority(table.get("priority", "normal"))],
        target_collector=table["target_collector"],
        arguments=arguments,
    )


def _to_priority(name: str) -> str:
    return _choose("priority", name, [one.name.lower() for one in TriggerPriority]).upper()


def _to_condition(table: Mapping[str, Any]) -> Condition:
    if not isinstance(table.get("kind"), str):
        raise _MisfitError(
            "condition.kind", f"condition.kind must be one of {', '.join(_CONDITIONS)}"
        )
    kind = _choose("condition.kind", table["kind"], _CONDITIONS)
    make, keys, required = _CONDITIONS[kind]
    values = {key: value for key, value in table.items() if key != "kind"}
    _check_keys(values, keys, required, "condition.")
    try:
        return make(**values)
    except InvalidConfigError as err:
        keys_at_fault = f"condition.{required[0]}" if len(required) == 1 else "condition"
        raise _MisfitError(keys_at_fault, f"{keys_at_fault}: {err.message}") from None


def _choose(key: str, value: str, choices: Iterable[str]) -> str:
    known = [str(one) for one in choices]
    if value not in known:
        raise _MisfitError(key, f"{key} must be one of {', '.join(known)}, not {value[:64]!r}")
    return value


def _check_keys(
    table: Mapping[str, Any],
    keys: Mapping[str, _Kinds],
    required: Iterable[str],
    prefix: str = "",
) -> None:
    _check_known(table, keys, prefix)
    for key in required:
        if key not in table:
            raise _MisfitError(prefix + key, f"{prefix}{key} is missing; add it")
    for key, value in table.items():
        if not isinstance(value, keys[key]) or isinstance(value, bool):
            raise _MisfitError(
                prefix + key, f"{prefix}{key} must be {_TYPE_NAMES[keys[key][-1]]}; correct it"
            )


def _check_known(table: Mapping[str, Any], known: Iterable[str], prefix: str = "") -> None:
    names = list(known)
    for key in table:
        if key not in names:
            close = get_close_matches(key, names, 1) or [", ".join(names) or "no key here"]
            raise _MisfitError(
                prefix + key, f"{prefix}{key[:64]} is not known; did you mean {close[0]}?"
            )
