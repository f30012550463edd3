"""The gRPC face of the tracker: proto to domain and back, no logic of its own.

Invariant: no answer is larger than a caller takes, and each is written a few entries at a time, so
that the loop routes messages in between.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from daemoneye.eventbus.v1 import correlation_service_pb2 as pb
from daemoneye.eventbus.v1 import correlation_service_pb2_grpc, eventbus_pb2
from daemoneye_eventbus.tracker import Stage, Step, Tracker, Workflow
from daemoneye_mesh.correlation import MAX_ID_BYTES, validate_tags, validate_trace_id
from daemoneye_mesh.correlation_message import to_message
from daemoneye_mesh.errors import InvalidRequestError
from daemoneye_mesh.limits import MAX_BATCH_BYTES

__all__ = ["SERVICE_NAME", "CorrelationService"]

SERVICE_NAME = "daemoneye.eventbus.v1.CorrelationService"

DEFAULT_WORKFLOWS = 100
MAX_WORKFLOWS = 1_000
DEFAULT_STEPS = 1_000
MAX_STEPS = 10_000

_TURN_ENTRIES = 16
_ENTRY_FRAME_BYTES = 8
"""Tag and length of one entry of a repeated field, at most."""
_FLAG_BYTES = 2


class CorrelationService(correlation_service_pb2_grpc.CorrelationServiceServicer):
    """Serves ``daemoneye.eventbus.v1.CorrelationService``.

    Args:
        tracker: knows the answers.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    async def ListWorkflows(
        self, request: pb.ListWorkflowsRequest, context: Any
    ) -> pb.ListWorkflowsResponse:
        """Lists workflows, latest activity first, as many as fit in one answer."""
        limit = _read_limit("limit", request.limit, DEFAULT_WORKFLOWS, MAX_WORKFLOWS)
        tags, trace_id = _read_tags(request.tags), _read_trace_id(request.trace_id)
        found = self._tracker.workflows(tags, trace_id, limit)
        counters = self._tracker.counters()
        response = pb.ListWorkflowsResponse(
            active_count=counters.active,
            expired_count=counters.expired,
            evicted_count=counters.evicted,
            forgotten_step_count=counters.forgotten_steps,
        )
        room_bytes = MAX_BATCH_BYTES - response.ByteSize()
        for index, workflow in enumerate(found):
            await _take_turns(index)
            message = _to_workflow(workflow)
            room_bytes -= message.ByteSize() + _ENTRY_FRAME_BYTES
            if room_bytes < 0:
                break
            response.workflows.append(message)
        return response

    async def GetWorkflow(
        self, request: pb.GetWorkflowRequest, context: Any
    ) -> pb.GetWorkflowResponse:
        """Reads one workflow with the latest steps of its timeline that fit in one answer."""
        root = _read_root(request.root_correlation_id)
        max_steps = _read_limit("max_steps", request.max_steps, DEFAULT_STEPS, MAX_STEPS)
        response = pb.GetWorkflowResponse(workflow=_to_workflow(self._tracker.workflow(root)))
        timeline = self._tracker.timeline(root, max_steps)
        latest = await _write_latest(
            timeline.steps, MAX_BATCH_BYTES - response.ByteSize() - _FLAG_BYTES
        )
        for index, message in enumerate(reversed(latest)):
            await _take_turns(index)
            response.steps.append(message)
        response.is_truncated = timeline.is_truncated or len(latest) < len(timeline.steps)
        return response


async def _write_latest(steps: Sequence[Step], room_bytes: int) -> list[pb.TimelineStep]:
    """Returns as many steps as there is room for, latest first."""
    latest: list[pb.TimelineStep] = []
    for index, step in enumerate(reversed(steps)):
        await _take_turns(index)
        message = _to_step(step)
        room_bytes -= message.ByteSize() + _ENTRY_FRAME_BYTES
        if room_bytes < 0:
            break
        latest.append(message)
    return latest


async def _take_turns(index: int) -> None:
    """Lets others have the loop between some entries of an answer."""
    if index % _TURN_ENTRIES == _TURN_ENTRIES - 1:
        await asyncio.sleep(0)


def _to_workflow(workflow: Workflow) -> pb.Workflow:
    message = pb.Workflow(
        root_correlation_id=workflow.root,
        message_count=workflow.message_count,
        stages=map(_to_stage, workflow.stages),
        source_ids=workflow.source_ids,
        trace_ids=workflow.trace_ids,
    )
    message.started_at.FromNanoseconds(workflow.started_at_ns)
    message.active_at.FromNanoseconds(workflow.active_at_ns)
    return message


def _to_stage(stage: Stage) -> pb.WorkflowStage:
    message = pb.WorkflowStage(name=stage.name, message_count=stage.message_count)
    message.began_at.FromNanoseconds(stage.began_at_ns)
    message.active_at.FromNanoseconds(stage.active_at_ns)
    return message


def _to_step(step: Step) -> pb.TimelineStep:
    message = pb.TimelineStep(
        topic=step.topic,
        source_id=step.source_id,
        message_type=eventbus_pb2.MessageType.ValueType(step.message_type),
        correlation=to_message(step.correlation),
        message_count=step.message_count,
    )
    message.accepted_at.FromNanoseconds(step.accepted_at_ns)
    return message


def _read_limit(field: str, value: int, default: int, maximum: int) -> int:
    if value > maximum:
        raise InvalidRequestError(
            f"{field} {value} is more than {maximum}; ask for fewer",
            field=field,
            value=value,
            limit=maximum,
        )
    return value or default


def _read_root(root: str) -> str:
    size = len(root.encode())
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidRequestError(
            f"root_correlation_id is {size} bytes; use 1 to {MAX_ID_BYTES} bytes",
            field="root_correlation_id",
            size=size,
            limit=MAX_ID_BYTES,
        )
    return root


def _read_tags(tags: Mapping[str, str]) -> Mapping[str, str]:
    validate_tags(tags)
    return tags


def _read_trace_id(trace_id: str) -> str | None:
    if not trace_id:
        return None
    validate_trace_id(trace_id)
    return trace_id
