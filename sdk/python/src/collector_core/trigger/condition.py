"""Conditions on which an analysis is asked for.

Invariant: a condition about something that is not known is not true.
"""

import re
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from collector_core.trigger.glob import Glob
from collector_core.trigger.grammar import ParsedPredicate, parse_predicate
from collector_core.trigger.subject import Subject
from daemoneye_mesh.errors import InvalidConfigError

__all__ = [
    "Condition",
    "ExecutablePathPattern",
    "HashMismatch",
    "MissingExecutable",
    "Predicate",
    "ProcessNamePattern",
    "ResourceAnomaly",
    "SuspiciousParentChild",
]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOTHING: frozenset[str] = frozenset()


class Condition(Protocol):
    """Decides about one process at one event."""

    @property
    def fields(self) -> frozenset[str]:
        """Names of what it looks at beyond the cheap: ``cmdline``, and ``kind`` to see stops."""

    def holds(self, subject: Subject) -> bool:
        """Whether it is known to be true."""


@dataclass(frozen=True, slots=True)
class ProcessNamePattern:
    """The name of the process matches a glob.

    Raises:
        InvalidGlobError: the pattern cannot be read.
    """

    fields: ClassVar[frozenset[str]] = _NOTHING
    pattern: str
    _glob: Glob = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compiles the pattern."""
        object.__setattr__(self, "_glob", Glob(self.pattern))

    def holds(self, subject: Subject) -> bool:
        """Whether the name matches."""
        return subject.name is not None and self._glob.matches(subject.name)


@dataclass(frozen=True, slots=True)
class ExecutablePathPattern:
    """The path of the executable matches a glob.

    Raises:
        InvalidGlobError: the pattern cannot be read.
    """

    fields: ClassVar[frozenset[str]] = _NOTHING
    pattern: str
    _glob: Glob = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compiles the pattern."""
        object.__setattr__(self, "_glob", Glob(self.pattern))

    def holds(self, subject: Subject) -> bool:
        """Whether the path is known and matches."""
        return subject.path is not None and self._glob.matches(subject.path)


@dataclass(frozen=True, slots=True)
class MissingExecutable:
    """No file is at the path of the executable any more, or it never was on disk."""

    fields: ClassVar[frozenset[str]] = _NOTHING

    def holds(self, subject: Subject) -> bool:
        """Whether the path is known and nothing is there."""
        return subject.file_exists is False


@dataclass(frozen=True, slots=True)
class ResourceAnomaly:
    """The process uses more than a threshold; of several, one is enough.

    Raises:
        InvalidConfigError: there is no threshold, or a negative one.
    """

    fields: ClassVar[frozenset[str]] = _NOTHING
    cpu_percent: float | None = None
    """Percent of one core."""
    memory_bytes: int | None = None
    """Resident memory."""

    def __post_init__(self) -> None:
        """Checks the thresholds."""
        known = [one for one in (self.cpu_percent, self.memory_bytes) if one is not None]
        if not known or not all(0 <= one < float("inf") for one in known):
            raise InvalidConfigError(
                "resource_anomaly needs cpu_percent or memory_bytes, not negative; give one"
            )

    def holds(self, subject: Subject) -> bool:
        """Whether what is known is above a threshold."""
        return _is_above(subject.cpu_percent, self.cpu_percent) or _is_above(
            subject.memory_bytes, self.memory_bytes
        )


@dataclass(frozen=True, slots=True)
class HashMismatch:
    """The image that runs is not what it should be.

    With a path and its digest: a process of that path runs something else. Without: the image and
    the file at its path differ, as the collector found out itself.

    Raises:
        InvalidConfigError: one of both is missing, or the digest is none.
    """

    fields: ClassVar[frozenset[str]] = _NOTHING
    path: str | None = None
    sha256: str | None = None
    """Digest that a process of ``path`` should have, hexadecimal."""

    def __post_init__(self) -> None:
        """Checks path and digest."""
        if (self.path is None) != (self.sha256 is None):
            raise InvalidConfigError(
                "hash_mismatch needs path and sha256, or neither; give both or leave both out"
            )
        if self.sha256 is not None:
            object.__setattr__(self, "sha256", self.sha256.lower())
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise InvalidConfigError(
                "sha256 must have 64 hexadecimal digits; take it from sha256sum"
            )

    def holds(self, subject: Subject) -> bool:
        """Whether the digest is known and differs."""
        if self.path is None:
            return subject.has_on_disk_mismatch
        return subject.path == self.path and subject.sha256 not in (None, self.sha256)


@dataclass(frozen=True, slots=True)
class SuspiciousParentChild:
    """A parent that should not have such a child.

    A glob with a slash is about the path of the executable, one without about the name.

    Raises:
        InvalidGlobError: a pattern cannot be read.
    """

    fields: ClassVar[frozenset[str]] = _NOTHING
    parent: str
    child: str
    _parent: Glob = field(init=False, repr=False, compare=False)
    _child: Glob = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compiles the patterns."""
        object.__setattr__(self, "_parent", Glob(self.parent))
        object.__setattr__(self, "_child", Glob(self.child))

    def holds(self, subject: Subject) -> bool:
        """Whether both are known and match."""
        child = subject.path if "/" in self.child else subject.name
        parent = subject.parent_path if "/" in self.parent else subject.parent_name
        if child is None or parent is None:
            return False
        return self._child.matches(child) and self._parent.matches(parent)


@dataclass(frozen=True, slots=True)
class Predicate:
    """What an expression says, see ``grammar``.

    Raises:
        InvalidPredicateError: it does not make sense.
    """

    expression: str
    _parsed: ParsedPredicate = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Reads the expression."""
        object.__setattr__(self, "_parsed", parse_predicate(self.expression))

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields that the expression mentions."""
        return self._parsed.fields

    def holds(self, subject: Subject) -> bool:
        """Whether the expression is true, rather than false or unknown."""
        return self._parsed.expression.evaluate(subject) is True


def _is_above(value: float | None, threshold: float | None) -> bool:
    return value is not None and threshold is not None and value > threshold
