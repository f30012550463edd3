"""The meaning of a predicate: a tree that is true, false or unknown for a process.

Invariant: what is compared with an unknown value is unknown, and unknown goes through ``not``,
``and`` and ``or`` as in SQL. Trees are built by ``grammar`` only, which has checked their types, so
that nothing here can fail.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from collector_core.trigger.glob import Glob
from collector_core.trigger.subject import Subject, Value

__all__ = [
    "COMPARISONS",
    "And",
    "Comparison",
    "Constant",
    "Expression",
    "Field",
    "Matching",
    "Membership",
    "Not",
    "Operand",
    "Or",
    "Truth",
]

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        "=": operator.eq,
        "==": operator.eq,
        "!=": operator.ne,
        "<>": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }
)
"""What two values of one type are asked."""


class Expression(Protocol):
    """A predicate or a part of it."""

    def evaluate(self, subject: Subject) -> bool | None:
        """Returns whether it holds; None when that is not known."""


class Operand(Protocol):
    """One side of a comparison."""

    def value_of(self, subject: Subject) -> Value | None:
        """Returns the value; None when it is not known."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the process."""

    name: str

    def value_of(self, subject: Subject) -> Value | None:
        """Returns what is known of it."""
        value: Value | None = getattr(subject, self.name)
        return value


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that stands in the predicate."""

    value: Value

    def value_of(self, subject: Subject) -> Value | None:
        """Returns it."""
        return self.value


@dataclass(frozen=True, slots=True)
class Comparison:
    """``left operator right``."""

    symbol: str
    left: Operand
    right: Operand

    def evaluate(self, subject: Subject) -> bool | None:
        """Compares two known values."""
        left, right = self.left.value_of(subject), self.right.value_of(subject)
        return None if left is None or right is None else COMPARISONS[self.symbol](left, right)


@dataclass(frozen=True, slots=True)
class Membership:
    """``field in (…)``."""

    field: Field
    values: frozenset[Value]

    def evaluate(self, subject: Subject) -> bool | None:
        """Looks a known value up."""
        value = self.field.value_of(subject)
        return None if value is None else value in self.values


@dataclass(frozen=True, slots=True)
class Matching:
    """``field glob '…'`` or ``field like '…'``."""

    field: Field
    glob: Glob

    def evaluate(self, subject: Subject) -> bool | None:
        """Matches a known text."""
        value = self.field.value_of(subject)
        return self.glob.matches(value) if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class Truth:
    """A field that is true or false by itself."""

    field: Field

    def evaluate(self, subject: Subject) -> bool | None:
        """Returns what is known of it."""
        value = self.field.value_of(subject)
        return None if value is None else bool(value)


@dataclass(frozen=True, slots=True)
class Not:
    """``not term``."""

    term: Expression

    def evaluate(self, subject: Subject) -> bool | None:
        """The opposite of what is known."""
        value = self.term.evaluate(subject)
        return None if value is None else not value


@dataclass(frozen=True, slots=True)
class And:
    """``term and term …``."""

    terms: tuple[Expression, ...]

    def evaluate(self, subject: Subject) -> bool | None:
        """False as soon as one is; else unknown when one is."""
        result: bool | None = True
        for term in self.terms:
            value = term.evaluate(subject)
            if value is False:
                return False
            if value is None:
                result = None
        return result


@dataclass(frozen=True, slots=True)
class Or:
    """``term or term …``."""

    terms: tuple[Expression, ...]

    def evaluate(self, subject: Subject) -> bool | None:
        """True as soon as one is; else unknown when one is."""
        result: bool | None = False
        for term in self.terms:
            value = term.evaluate(subject)
            if value is True:
                return True
            if value is None:
                result = None
        return result
