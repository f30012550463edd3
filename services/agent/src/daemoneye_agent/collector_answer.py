"""What collectors answer, judged: which errors go on to our own caller, and what breaks the contract.

Invariant: what reaches our caller was written by the collector about the request itself, or by us;
never by the transport, and never about the agent's own token.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import grpc.aio

from daemoneye.ipc.v1 import collector_control_service_pb2, collector_service_pb2, ipc_pb2
from daemoneye_mesh.errors import (
    ConflictError,
    DaemoneyeError,
    DeadlineError,
    ErrorReason,
    InternalError,
    InvalidRequestError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
    UnsupportedError,
)
from daemoneye_mesh.rpc_status import from_rpc_error

__all__ = ["check_chunk", "check_state", "translated"]

_ANSWERS = (
    ConflictError,
    InvalidRequestError,
    OverloadedError,
    PreconditionError,
    UnsupportedError,
)
"""What a collector may say about the request itself; all else is between it and the agent."""

log = logging.getLogger("daemoneye.collectors")


@contextmanager
def translated(collector_id: str) -> Iterator[None]:
    """Raises what a collector answered as an error that our own caller may see.

    What the transport says is foreign text, and a collector that does not accept the agent's token
    has nothing to tell about the token of whoever asked us.

    Raises:
        DaemoneyeError: instead of every failed call in the block.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        known = from_rpc_error(error)
        is_own = _is_from_mesh(error)
        if is_own and _is_about_request(known):
            raise known from None
        log.warning("call to %s failed: %s: %s", collector_id, known.code.name, known.message)
        raise _explain(collector_id, known, is_own) from None


def check_state(
    collector_id: str,
    state: collector_control_service_pb2.MonitoringState.ValueType,
    expected: collector_control_service_pb2.MonitoringState.ValueType,
) -> None:
    """Refuses an OK answer that tells of another state than the one asked for (MUST-CTL-01).

    Raises:
        UnavailableError: it does.
    """
    if state == expected:
        return
    names = collector_control_service_pb2.MonitoringState.DESCRIPTOR.values_by_number
    told = names[state].name.removeprefix("MONITORING_STATE_").lower() if state in names else state
    raise UnavailableError(
        f"collector {collector_id} answers that it is {told} instead; ask 'daemoneye collectors"
        f" health {collector_id}', then try again",
        collector_id=collector_id,
        state=told,
    )


def check_chunk(
    collector_id: str,
    task: ipc_pb2.DetectionTask,
    chunk: collector_service_pb2.ExecuteTaskResponse,
    expected_index: int,
) -> None:
    """Refuses a part of an answer that does not belong where it came.

    Raises:
        UnavailableError: it is of another task, out of order, or tells of a failure.
    """
    if chunk.result.task_id != task.task_id or chunk.chunk_index != expected_index:
        raise UnavailableError(
            f"collector {collector_id} mixed up the parts of its answer (MUST-COL-20); update it",
            collector_id=collector_id,
        )
    if not chunk.result.success:
        log.warning("%s failed at a task: %s", collector_id, chunk.result.error_message[:512])
        raise UnavailableError(
            f"collector {collector_id} failed at the task; its log says why",
            collector_id=collector_id,
        )


def _is_about_request(known: DaemoneyeError) -> bool:
    if isinstance(known, InternalError):
        return known.reason is ErrorReason.APPLY_FAILED  # other defects have their story in its log
    return isinstance(known, _ANSWERS)


def _explain(collector_id: str, known: DaemoneyeError, is_own: bool) -> DaemoneyeError:
    if isinstance(known, DeadlineError):
        return DeadlineError(
            f"collector {collector_id} did not answer in time; try again",
            collector_id=collector_id,
        )
    if isinstance(known, UnsupportedError):  # not of the mesh: the method itself is unknown there
        return UnsupportedError(
            f"collector {collector_id} does not offer this; update it",
            collector_id=collector_id,
        )
    if is_own and known.reason is ErrorReason.DRAINING:
        return UnavailableError(
            f"collector {collector_id} is shutting down; ask again once it was started again",
            collector_id=collector_id,
        )
    return UnavailableError(
        f"collector {collector_id} cannot be asked; see the agent's log and 'daemoneye collectors'",
        collector_id=collector_id,
    )


def _is_from_mesh(error: grpc.aio.AioRpcError) -> bool:
    """Whether a server of the mesh wrote this status, and not gRPC."""
    return any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata() or ())
