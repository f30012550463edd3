"""``ipc.v1.CollectorService``: capabilities, schema and tasks of one collector."""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from collector_core.chunk import ChunkWriter, write_chunks
from collector_core.source import EventSource, TaskReport, TaskSource
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import collector_service_pb2 as pb
from daemoneye.ipc.v1 import collector_service_pb2_grpc, ipc_pb2
from daemoneye_mesh.completeness import Degradation, merge_degradations
from daemoneye_mesh.completeness_message import to_completeness
from daemoneye_mesh.errors import (
    ErrorReason,
    InvalidRequestError,
    OverloadedError,
    PreconditionError,
    UnsupportedError,
)
from daemoneye_mesh.limits import MAX_CHUNK_BYTES, PROTOCOL_VERSION

__all__ = ["MAX_TASKS", "CollectorServicer"]

MAX_TASKS = 8
"""Tasks that run at once; each may hold a chunk in memory."""

MAX_TASK_ID_BYTES = 128
MAX_NOTE_BYTES = 1024
"""The caller's note on a task, for the log."""

log = logging.getLogger("daemoneye.tasks")

_FILTERS = {
    common_pb2.TASK_TYPE_ENUMERATE_PROCESSES: "process_filter",
    common_pb2.TASK_TYPE_CHECK_PROCESS_HASH: "process_filter",
    common_pb2.TASK_TYPE_MONITOR_PROCESS_TREE: "process_filter",
    common_pb2.TASK_TYPE_VERIFY_EXECUTABLE: "hash_check",
    common_pb2.TASK_TYPE_MONITOR_NETWORK_CONNECTIONS: "network_filter",
    common_pb2.TASK_TYPE_TRACK_FILE_OPERATIONS: "filesystem_filter",
    common_pb2.TASK_TYPE_COLLECT_PERFORMANCE_METRICS: "performance_filter",
}


class CollectorServicer(collector_service_pb2_grpc.CollectorServiceServicer):
    """Answers for the sources of one collector.

    Args:
        collector_id: id of the collector.
        version: its version.
        sources: its sources; their capabilities are what is offered.
        degradations: what the collector cannot see right now.
    """

    def __init__(
        self,
        collector_id: str,
        version: str,
        sources: Sequence[EventSource],
        degradations: Callable[[], Sequence[Degradation]],
    ) -> None:
        self._collector_id = collector_id
        self._version = version
        self._sources = sources
        self._degradations = degradations
        self._running_count = 0
        self._task_sources = {
            task_type: source
            for source in sources
            if isinstance(source, TaskSource)
            for task_type in source.caps.task_types
        }
        self.task_count: Counter[str] = Counter()
        """Tasks by outcome: ok, failed."""

    @property
    def task_types(self) -> frozenset[common_pb2.TaskType.ValueType]:
        """The tasks that are answered."""
        return frozenset(self._task_sources)

    async def NegotiateCapabilities(
        self, request: ipc_pb2.CapabilityRequest, context: Any
    ) -> ipc_pb2.CapabilityResponse:
        """Agrees on the protocol version; says what is offered and what cannot be seen."""
        for domain in request.requested_domains:
            _check_enum("requested_domains", domain, ipc_pb2.MonitoringDomain.values())
        lowest = request.min_protocol_version or 1
        highest = request.max_protocol_version or 1
        if not lowest <= PROTOCOL_VERSION <= highest:
            raise PreconditionError(
                f"protocol versions {lowest} to {highest} are asked for and"
                f" {PROTOCOL_VERSION} is spoken here; upgrade the older side",
                reason=ErrorReason.VERSION_UNSUPPORTED,
                min_version=lowest,
                max_version=highest,
                offered=PROTOCOL_VERSION,
            )
        return ipc_pb2.CapabilityResponse(
            negotiation_success=True,
            capabilities=self._capabilities(request.requested_domains),
            server_version=self._version,
            protocol_version=PROTOCOL_VERSION,
            collector_id=self._collector_id,
            supported_task_types=sorted(self._task_sources),
            max_message_bytes=MAX_CHUNK_BYTES,
            completeness=to_completeness(self._degradations()),
            supports_replay=False,
        )

    async def DescribeSchema(
        self, request: pb.DescribeSchemaRequest, context: Any
    ) -> pb.DescribeSchemaResponse:
        """Lists the tables of all sources."""
        sources = [source for source in self._sources if isinstance(source, TaskSource)]
        return pb.DescribeSchemaResponse(tables=[one for each in sources for one in each.tables])

    async def ExecuteTask(
        self, request: pb.ExecuteTaskRequest, context: Any
    ) -> AsyncIterator[pb.ExecuteTaskResponse]:
        """Runs one task and streams its records in chunks."""
        source = self._find_source(request.task)
        if self._running_count >= MAX_TASKS:
            raise OverloadedError(
                f"{MAX_TASKS} tasks are running; try again when one is done", limit=MAX_TASKS
            )
        self._running_count += 1
        outcome = "failed"
        log.debug("task %s begins", request.task.task_id, extra={"note": request.task.metadata})
        try:
            async with aclosing(self._run(source, request.task)) as chunks:
                async for chunk in chunks:
                    yield chunk
            outcome = "ok"
        finally:
            self._running_count -= 1
            self.task_count[outcome] += 1

    async def Acknowledge(
        self, request: pb.AcknowledgeRequest, context: Any
    ) -> pb.AcknowledgeResponse:
        """Refused: this collector keeps no log of its events."""
        raise _no_replay()

    async def Replay(self, request: pb.ReplayRequest, context: Any) -> pb.ReplayResponse:
        """Refused: this collector keeps no log of its events."""
        raise _no_replay()

    async def _run(
        self, source: TaskSource, task: ipc_pb2.DetectionTask
    ) -> AsyncGenerator[pb.ExecuteTaskResponse, None]:
        report = TaskReport()
        writer = ChunkWriter(task.task_id)
        records = source.execute(task, report)
        try:
            async with aclosing(write_chunks(records, writer)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            if isinstance(records, AsyncGenerator):  # what it opened is closed before we answer
                await records.aclose()
        last = writer.finish()
        last.completeness.CopyFrom(to_completeness(merge_degradations(report.degradations)))
        yield last

    def _find_source(self, task: ipc_pb2.DetectionTask) -> TaskSource:
        if not 0 < len(task.task_id.encode()) <= MAX_TASK_ID_BYTES:
            raise InvalidRequestError(
                f"task_id must have 1 to {MAX_TASK_ID_BYTES} bytes; make up a unique one",
                field="task_id",
            )
        _check_note(task)
        _check_enum("task_type", task.task_type, common_pb2.TaskType.values())
        name = common_pb2.TaskType.Name(task.task_type)
        source = self._task_sources.get(task.task_type)
        if source is None:
            offered = ", ".join(map(common_pb2.TaskType.Name, sorted(self._task_sources)))
            raise UnsupportedError(
                f"{self._collector_id} does not answer {name}; it offers: {offered or 'no task'}",
                task_type=name,
                offered=offered,
            )
        for filter_name in sorted(set(_FILTERS.values()) - {_FILTERS[task.task_type]}):
            if task.HasField(filter_name):  # type: ignore[arg-type]
                raise InvalidRequestError(
                    f"{filter_name} does not belong to {name}; leave it out",
                    field=filter_name,
                    task_type=name,
                )
        return source

    def _capabilities(self, requested: Sequence[int]) -> ipc_pb2.CollectionCapabilities:
        caps = [
            source.caps
            for source in self._sources
            if not requested or source.caps.domain in requested
        ]
        return ipc_pb2.CollectionCapabilities(
            supported_domains=sorted({one.domain for one in caps}),
            advanced=ipc_pb2.AdvancedCapabilities(
                kernel_level=any(one.kernel_level for one in caps),
                realtime=any(one.realtime for one in caps),
                system_wide=any(one.system_wide for one in caps),
            ),
        )


def _check_note(task: ipc_pb2.DetectionTask) -> None:
    size_bytes = len(task.metadata.encode())
    if size_bytes > MAX_NOTE_BYTES:
        raise InvalidRequestError(
            f"metadata has {size_bytes} bytes, more than {MAX_NOTE_BYTES}; shorten the note",
            field="metadata",
            size_bytes=size_bytes,
            limit_bytes=MAX_NOTE_BYTES,
        )


def _check_enum(field: str, number: int, known: Sequence[int]) -> None:
    if number not in known:
        raise InvalidRequestError(
            f"{field} {number} is not known here; known are {', '.join(map(str, known))}",
            reason=ErrorReason.ENUM_UNKNOWN,
            field=field,
            number=number,
        )


def _no_replay() -> UnsupportedError:
    return UnsupportedError(
        "this collector keeps no log of its events, as supports_replay says; do not ask for replay"
    )
