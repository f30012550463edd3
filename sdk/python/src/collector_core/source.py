"""What a collector's author implements: sources. What they can do follows from their methods."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from collector_core.capability import SourceCaps
from daemoneye_mesh.completeness import Degradation

if TYPE_CHECKING:
    from collector_core.hashing import FileHasher
    from collector_core.resources import ResourceGuard
    from collector_core.settings import CollectorSettings

__all__ = ["EventSource", "SourceContext", "TaskReport"]


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source may use of the collector it is part of."""

    read_settings: "Callable[[], CollectorSettings]"
    """Gives those in force."""
    hasher: "FileHasher"
    """Digests of files, within the budget of the collector."""
    resources: "ResourceGuard"
    """Says what to do without, so as to stay within the budget."""

    @property
    def settings(self) -> "CollectorSettings":
        """The settings in force; ``reconfigure`` tells of changes."""
        return self.read_settings()


class EventSource:
    """One source within a collector: a name, what it sees, and any of the methods in ``capability``.

    The SDK calls, in this order: ``reconfigure`` with the settings in force; ``prepare``; ``watch`` until it is stopped and cancelled (pause ends
    it, resume calls it again); ``close``, also after a ``prepare`` that failed. Meanwhile ``health_check``, ``degradations``, ``execute``,
    ``analyze``, ``check_settings`` and ``reconfigure`` as need be. All are optional.
    """

    name: str
    """Unique within the collector and the same in every life of it; kebab-case."""
    caps: SourceCaps
    """Its domain, and how well it sees it."""


@dataclass(slots=True)
class TaskReport:
    """What a task could not do; filled while its records are sent."""

    degradations: list[Degradation] = field(default_factory=list)
