"""What a source can do: one small protocol a method, and what follows from them for the contract.

Invariant: what a collector announces is derived from the methods that its sources have and from
their domain; nothing is declared twice, so nothing can be announced that is not there.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from collector_core.analysis import AnalysisFinding, AnalysisRequest
from collector_core.event import Emit, Record
from daemoneye.common.v1 import analysis_pb2, common_pb2
from daemoneye.ipc.v1 import collector_service_pb2, ipc_pb2
from daemoneye_mesh.completeness import Degradation

if TYPE_CHECKING:
    from collector_core.settings import CollectorSettings
    from collector_core.source import SourceContext, TaskReport

__all__ = [
    "Analyzes",
    "AnswersTasks",
    "ChecksHealth",
    "ChecksSettings",
    "Closes",
    "Degrades",
    "Prepares",
    "Reconfigures",
    "SourceCaps",
    "Stops",
    "Watches",
    "caps_of",
]


class SourceCaps(IntFlag):
    """What a source sees, and how well; those of a collector are the union of its sources'."""

    PROCESS = 1
    NETWORK = 2
    FILESYSTEM = 4
    PERFORMANCE = 8
    REALTIME = 16
    """Events come as they happen."""
    KERNEL_LEVEL = 32
    """Events come from the kernel, not from looking."""
    SYSTEM_WIDE = 64
    """It sees the whole host, not only its own user."""


DOMAINS = SourceCaps.PROCESS | SourceCaps.NETWORK | SourceCaps.FILESYSTEM | SourceCaps.PERFORMANCE

_DOMAIN_NUMBERS: dict[SourceCaps, ipc_pb2.MonitoringDomain.ValueType] = {
    SourceCaps.PROCESS: ipc_pb2.MONITORING_DOMAIN_PROCESS,
    SourceCaps.NETWORK: ipc_pb2.MONITORING_DOMAIN_NETWORK,
    SourceCaps.FILESYSTEM: ipc_pb2.MONITORING_DOMAIN_FILESYSTEM,
    SourceCaps.PERFORMANCE: ipc_pb2.MONITORING_DOMAIN_PERFORMANCE,
}


@runtime_checkable
class Watches(Protocol):
    """Sees events by itself."""

    async def watch(self, emit: Emit) -> None:
        """Emits events until cancelled; returning ends the source for good."""


@runtime_checkable
class Prepares(Protocol):
    """Needs something opened before it watches or answers."""

    async def prepare(self, context: "SourceContext") -> None:
        """Opens it; the source is ready once this returns."""


@runtime_checkable
class Stops(Protocol):
    """Wants to know that it is about to be cancelled."""

    async def stop(self) -> None:
        """Makes ``watch`` return soon; it is cancelled when it does not."""


@runtime_checkable
class Closes(Protocol):
    """Has something to release."""

    async def close(self) -> None:
        """Releases what ``prepare`` opened."""


@runtime_checkable
class ChecksHealth(Protocol):
    """Can tell whether it works."""

    async def health_check(self) -> str:
        """Returns what is wrong and what to do, as one sentence; empty when nothing is."""


@runtime_checkable
class Degrades(Protocol):
    """Can tell what it does not see."""

    def degradations(self) -> Sequence[Degradation]:
        """Returns what it cannot see right now; asked for each heartbeat, so it must be quick."""


@runtime_checkable
class AnswersTasks(Protocol):
    """Answers tasks on demand."""

    task_types: frozenset[common_pb2.TaskType.ValueType]
    """Tasks that ``execute`` answers."""
    tables: Sequence[collector_service_pb2.TableDescription]
    """The tables that its tasks read, for ``DescribeSchema``."""

    def execute(self, task: ipc_pb2.DetectionTask, report: "TaskReport") -> AsyncIterator[Record]:
        """Yields the records of one task; is cancelled when the caller goes away.

        Raises:
            InvalidRequestError: the task has a filter that makes no sense.
        """


@runtime_checkable
class Analyzes(Protocol):
    """Looks closer at one process or file when asked."""

    analyses: frozenset[analysis_pb2.AnalysisType.ValueType]
    """What ``analyze`` finds out."""

    async def analyze(self, request: AnalysisRequest) -> AnalysisFinding:
        """Carries out one analysis; is cancelled when nobody waits for it any more.

        Raises:
            AnalysisError: it cannot be done; only the kind of the error leaves the process.
        """


@runtime_checkable
class ChecksSettings(Protocol):
    """Knows rules about settings that no bound can say."""

    def check_settings(self, settings: "CollectorSettings") -> None:
        """Refuses settings that it could not obey; changes nothing.

        Raises:
            InvalidConfigError: with what to change.
        """


@runtime_checkable
class Reconfigures(Protocol):
    """Obeys settings that change while it runs."""

    async def reconfigure(self, settings: "CollectorSettings") -> None:
        """Takes over settings: before each ``prepare``, and when they change.

        When it raises at a change, the change is refused and it is called again with those of before.
        """


@dataclass(frozen=True, slots=True)
class AnnouncedCaps:
    """What a collector says that it can do."""

    caps: SourceCaps
    task_types: frozenset[common_pb2.TaskType.ValueType]
    analyses: frozenset[analysis_pb2.AnalysisType.ValueType]

    @property
    def domains(self) -> tuple[ipc_pb2.MonitoringDomain.ValueType, ...]:
        """Numbers of its domains, ascending."""
        return tuple(_DOMAIN_NUMBERS[one] for one in SourceCaps if one in self.caps & DOMAINS)

    @property
    def domain_names(self) -> frozenset[str]:
        """Its domains as they stand in topics."""
        return frozenset(
            (one.name or "").lower() for one in SourceCaps if one in self.caps & DOMAINS
        )


class Described(Protocol):
    """What every source says of itself."""

    name: str
    caps: SourceCaps


def caps_of(sources: Iterable[Described]) -> AnnouncedCaps:
    """Returns what sources can do together."""
    caps = SourceCaps(0)
    task_types: frozenset[common_pb2.TaskType.ValueType] = frozenset()
    analyses: frozenset[analysis_pb2.AnalysisType.ValueType] = frozenset()
    for source in sources:
        caps |= source.caps
        if isinstance(source, AnswersTasks):
            task_types |= source.task_types
        if isinstance(source, Analyzes):
            analyses |= source.analyses
    return AnnouncedCaps(caps, task_types, analyses)
