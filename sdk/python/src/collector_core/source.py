"""What a collector's author implements: sources of events, and tasks on demand.

The SDK derives from these what the collector can do; nothing is declared twice.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from collector_core.event import Event, Record
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import collector_service_pb2, ipc_pb2
from daemoneye_mesh.completeness import Degradation

__all__ = ["Emit", "EventSource", "SourceCaps", "TaskReport", "TaskSource"]

Emit = Callable[[Event], Awaitable[None]]
"""Hands an event to the SDK; waits while the outbox is full, so that a source slows down."""


@dataclass(frozen=True, slots=True)
class SourceCaps:
    """What a source can see and do; the capabilities of the collector are the union."""

    domain: ipc_pb2.MonitoringDomain.ValueType
    """The domain whose topics its events go to."""
    kernel_level: bool = False
    """Events come from the kernel, not from looking."""
    realtime: bool = False
    """Events come as they happen."""
    system_wide: bool = False
    """It sees the whole host, not only its own user."""
    task_types: frozenset[common_pb2.TaskType.ValueType] = field(default_factory=frozenset)
    """Tasks that its ``execute`` answers."""


class EventSource(ABC):
    """One source of events within a collector.

    Order: ``prepare`` once, then ``watch`` until it is cancelled (pause cancels it, resume calls it
    again), then ``close``.
    """

    name: str
    caps: SourceCaps

    async def prepare(self) -> None:  # noqa: B027 -- having nothing to prepare is fine
        """Opens what the source needs; the collector is SERVING once all sources return."""

    @abstractmethod
    async def watch(self, emit: Emit) -> None:
        """Emits events until cancelled; returning ends the source for good."""

    async def close(self) -> None:  # noqa: B027 -- having nothing to close is fine
        """Releases what ``prepare`` opened."""

    def degradations(self) -> Sequence[Degradation]:
        """Says what the source cannot see right now; empty when it sees everything."""
        return ()


@dataclass(slots=True)
class TaskReport:
    """What a task could not do; filled while its records are sent."""

    degradations: list[Degradation] = field(default_factory=list)


class TaskSource(EventSource):
    """A source that also answers tasks of the types in ``caps.task_types``."""

    tables: Sequence[collector_service_pb2.TableDescription] = ()
    """The tables that its tasks read, for ``DescribeSchema``."""

    @abstractmethod
    def execute(self, task: ipc_pb2.DetectionTask, report: TaskReport) -> AsyncIterator[Record]:
        """Yields the records of one task; is cancelled when the caller goes away.

        Raises:
            InvalidRequestError: the task has a filter that makes no sense.
        """
