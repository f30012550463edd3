"""What conditions look at: one process at the moment of one event.

Invariant: None is "not known"; a condition about it is not true.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

__all__ = ["FIELDS", "KINDS", "FieldType", "Subject", "Value"]

Value = str | int | float | bool
"""What a field or a constant is."""

KINDS = ("start", "exec", "modified", "stop", "suspend", "resume", "inventory")
"""What an event says of a process; the words of the column ``kind`` in rules."""


class FieldType(StrEnum):
    """What a field holds."""

    TEXT = "text"
    NUMBER = "number"
    TRUTH = "true or false"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One process, as far as it is known."""

    kind: str | None = None
    """One of ``KINDS``."""
    name: str | None = None
    path: str | None = None
    """Path of the executable, without the mark of a deleted one."""
    cmdline: str | None = None
    """Arguments, quoted as a shell would and joined by a space; read only when asked for."""
    pid: int | None = None
    ppid: int | None = None
    user: str | None = None
    """Name of the account, or its number where it has no name."""
    cpu_percent: float | None = None
    """Percent of one core."""
    memory_bytes: int | None = None
    sha256: str | None = None
    """Digest of the image that runs, lower-case hexadecimal."""
    file_exists: bool | None = None
    """Whether a file is at ``path``; None without a path."""
    parent_name: str | None = None
    parent_path: str | None = None
    boot_id: str = ""
    start_ticks: int | None = None
    has_on_disk_mismatch: bool = False
    """Whether the image that runs and the file at ``path`` are known to differ."""


FIELDS: Mapping[str, FieldType] = MappingProxyType(
    {
        "name": FieldType.TEXT,
        "path": FieldType.TEXT,
        "cmdline": FieldType.TEXT,
        "pid": FieldType.NUMBER,
        "ppid": FieldType.NUMBER,
        "user": FieldType.TEXT,
        "cpu_percent": FieldType.NUMBER,
        "memory_bytes": FieldType.NUMBER,
        "sha256": FieldType.TEXT,
        "file_exists": FieldType.TRUTH,
        "parent_name": FieldType.TEXT,
        "parent_path": FieldType.TEXT,
        "kind": FieldType.TEXT,
    }
)
"""The fields of a subject that a predicate may name."""
