"""``ipc.v1.CollectorService``: capabilities, schema, tasks, analyses and log of one collector."""

import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from collector_core.analysis_service import AnalysisRunner
from collector_core.capability import Analyzes, AnswersTasks, SourceCaps, caps_of
from collector_core.chunk import ChunkWriter, write_chunks
from collector_core.delivery import ReplayAnswer
from collector_core.log_message import to_loss
from collector_core.source import TaskReport
from collector_core.source_runner import SourceRunner
from daemoneye.common.v1 import common_pb2
from daemoneye.ipc.v1 import analysis_pb2, collector_service_pb2_grpc, ipc_pb2
from daemoneye.ipc.v1 import collector_service_pb2 as pb
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


class Log(Protocol):
    """What the service needs of the delivery."""

    async def acknowledge(self, epoch: int, sequence: int) -> int:
        """Lets go of what is stored elsewhere; returns the watermark."""

    async def replay(self, epoch: int, first: int, last: int) -> ReplayAnswer:
        """Has a range sent again."""


class CollectorServicer(collector_service_pb2_grpc.CollectorServiceServicer):
    """Answers for the sources of one collector.

    Args:
        collector_id: id of the collector.
        version: its version.
        runners: its sources; what they can do is what is offered.
        event_log: its log of events.
        analyses: carries out analyses.
        degradations: what the collector cannot see right now.
    """

    def __init__(
        self,
        collector_id: str,
        version: str,
        runners: Sequence[SourceRunner],
        event_log: Log,
        analyses: AnalysisRunner,
        degradations: Callable[[], Sequence[Degradation]],
    ) -> None:
        self._collector_id = collector_id
        self._version = version
        self._sources = [runner.source for runner in runners]
        self._log = event_log
        self._analyses = analyses
        self._degradations = degradations
        self._running_count = 0
        self._announced = caps_of(self._sources)
        self._analysts = {
            analysis: runner
            for runner in reversed(runners)  # of several, the first one does it
            if isinstance(runner.source, Analyzes)
            for analysis in runner.source.analyses
        }
        self._task_sources = {
            task_type: (runner, runner.source)
            for runner in reversed(runners)
            if isinstance(runner.source, AnswersTasks)
            for task_type in runner.source.task_types
        }
        self.task_count: Counter[str] = Counter()
        """Tasks by outcome: ok, failed."""

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
            supports_replay=True,
            supported_analyses=sorted(self._announced.analyses),
            max_concurrent_analyses=self._analyses.concurrency if self._announced.analyses else 0,
        )

    async def DescribeSchema(
        self, request: pb.DescribeSchemaRequest, context: Any
    ) -> pb.DescribeSchemaResponse:
        """Lists the tables of all sources."""
        sources = [source for source in self._sources if isinstance(source, AnswersTasks)]
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
        """Lets go of the log up to a sequence."""
        watermark = await self._log.acknowledge(request.source_epoch, request.source_sequence)
        return pb.AcknowledgeResponse(source_sequence=watermark)

    async def Replay(self, request: pb.ReplayRequest, context: Any) -> pb.ReplayResponse:
        """Has a range of the log published again."""
        answer = await self._log.replay(
            request.source_epoch, request.from_sequence, request.to_sequence
        )
        return pb.ReplayResponse(
            from_sequence=answer.first_sequence,
            to_sequence=answer.last_sequence,
            losses=map(to_loss, answer.losses),
        )

    async def Analyze(
        self, request: analysis_pb2.AnalyzeRequest, context: Any
    ) -> analysis_pb2.AnalyzeResponse:
        """Carries out one analysis."""
        if runner := self._analysts.get(request.analysis_type):
            self._require_prepared(runner)
        return await self._analyses.analyze(request, context.time_remaining())

    async def _run(
        self, source: AnswersTasks, task: ipc_pb2.DetectionTask
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

    def _find_source(self, task: ipc_pb2.DetectionTask) -> AnswersTasks:
        if not 0 < len(task.task_id.encode()) <= MAX_TASK_ID_BYTES:
            raise InvalidRequestError(
                f"task_id must have 1 to {MAX_TASK_ID_BYTES} bytes; make up a unique one",
                field="task_id",
            )
        _check_note(task)
        _check_enum("task_type", task.task_type, common_pb2.TaskType.values())
        name = common_pb2.TaskType.Name(task.task_type)
        if task.task_type not in self._task_sources:
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
        runner, source = self._task_sources[task.task_type]
        self._require_prepared(runner)
        return source

    def _require_prepared(self, runner: SourceRunner) -> None:
        if not runner.is_prepared:
            raise PreconditionError(
                f"source {runner.name} of {self._collector_id} is not ready; CheckHealth says why,"
                " BeginMonitoring starts what was stopped",
                source=runner.name,
            )

    def _capabilities(self, requested: Sequence[int]) -> ipc_pb2.CollectionCapabilities:
        each = [caps_of((source,)) for source in self._sources]
        wanted = [one for one in each if not requested or set(one.domains) & {*requested}]
        caps = SourceCaps(0)
        for one in wanted:
            caps |= one.caps
        return ipc_pb2.CollectionCapabilities(
            supported_domains=sorted({domain for one in wanted for domain in one.domains}),
            advanced=ipc_pb2.AdvancedCapabilities(
                kernel_level=SourceCaps.KERNEL_LEVEL in caps,
                realtime=SourceCaps.REALTIME in caps,
                system_wide=SourceCaps.SYSTEM_WIDE in caps,
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
