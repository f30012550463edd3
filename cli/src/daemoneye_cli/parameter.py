"""Values of ``:name`` parameters as they are written on the command line.

``NAME=VALUE`` guesses the type: a whole number, a number with a decimal point, else text. Only what
would be written back the same is taken for a number, so ``007`` stays text. ``NAME:TYPE=VALUE`` says it:
integer, real, text, blob (hexadecimal) or null.
"""

import math
import re
from collections.abc import Callable, Iterable

from daemoneye.agent.v1 import query_service_pb2
from daemoneye_cli.errors import UsageError

__all__ = ["parse_parameter", "parse_parameters"]

SqlValue = query_service_pb2.SqlValue

_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::([a-z]+))?=(.*)", re.DOTALL)
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")
_REAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+(?:[eE][+-]?[0-9]{1,3})?")
_MIN_INTEGER, _MAX_INTEGER = -(2**63), 2**63 - 1


def parse_parameters(assignments: Iterable[str]) -> dict[str, query_service_pb2.SqlValue]:
    """Reads all parameters of a query.

    Raises:
        UsageError: one is malformed or given twice.
    """
    values: dict[str, query_service_pb2.SqlValue] = {}
    for assignment in assignments:
        name, value = parse_parameter(assignment)
        if name in values:
            raise UsageError(f"parameter {name} is given twice; give it once", parameter=name)
        values[name] = value
    return values


def parse_parameter(assignment: str) -> tuple[str, query_service_pb2.SqlValue]:
    """Reads ``NAME=VALUE`` or ``NAME:TYPE=VALUE``.

    Raises:
        UsageError: it is neither, or the value is not of the type.
    """
    found = _ASSIGNMENT.fullmatch(assignment)
    if found is None:
        raise UsageError(
            f"parameter {assignment[:80]!a} is not understood; write NAME=VALUE or"
            " NAME:TYPE=VALUE, without the colon of :name in front",
            parameter=assignment[:80],
        )
    name, kind, text = found.groups()
    if kind is None:
        return name, _guess(text)
    return name, _convert(name, kind, text)


def _guess(text: str) -> query_service_pb2.SqlValue:
    if _WHOLE.fullmatch(text) and _MIN_INTEGER <= int(text) <= _MAX_INTEGER:
        return SqlValue(integer=int(text))
    if _REAL.fullmatch(text) and math.isfinite(float(text)):
        return SqlValue(real=float(text))
    return SqlValue(text=text)


def _convert(name: str, kind: str, text: str) -> query_service_pb2.SqlValue:
    convert = _CONVERSIONS.get(kind)
    if convert is None:
        kinds = ", ".join(_CONVERSIONS)
        raise UsageError(
            f"type {kind} of parameter {name} is unknown; use one of {kinds}",
            parameter=name,
            type=kind,
        )
    try:
        return convert(text)
    except ValueError:
        raise UsageError(
            f"{text[:80]!a} of parameter {name} is no {kind}; correct it or use another type",
            parameter=name,
            type=kind,
        ) from None


def _integer(text: str) -> query_service_pb2.SqlValue:
    number = int(text) if len(text) <= 40 else _MAX_INTEGER + 1
    if not _MIN_INTEGER <= number <= _MAX_INTEGER:
        raise ValueError(text)
    return SqlValue(integer=number)


def _null(text: str) -> query_service_pb2.SqlValue:
    if text:
        raise ValueError(text)
    return SqlValue()


_CONVERSIONS: dict[str, Callable[[str], query_service_pb2.SqlValue]] = {
    "integer": _integer,
    "real": lambda text: SqlValue(real=float(text)),
    "text": lambda text: SqlValue(text=text),
    "blob": lambda text: SqlValue(blob=bytes.fromhex(text)),
    "null": _null,
}
