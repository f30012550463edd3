"""Correlation as the messages that carry it.

Invariant: what is read is within the bounds of the contract, else it is refused; nothing is cut.
"""

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_mesh.correlation import Correlation

__all__ = ["from_message", "to_message"]


def from_message(message: eventbus_pb2.CorrelationMetadata) -> Correlation:
    """Returns what a message says.

    Raises:
        InvalidCorrelationError: it is beyond a bound of the contract, or malformed.
    """
    has = message.HasField
    return Correlation(
        correlation_id=message.correlation_id,
        root_correlation_id=message.root_correlation_id,
        parent_correlation_id=(
            message.parent_correlation_id if has("parent_correlation_id") else None
        ),
        trace_id=message.trace_id if has("trace_id") else None,
        span_id=message.span_id if has("span_id") else None,
        sequence_number=message.sequence_number,
        workflow_stage=message.workflow_stage if has("workflow_stage") else None,
        tags=message.correlation_tags,
    )


def to_message(correlation: Correlation) -> eventbus_pb2.CorrelationMetadata:
    """Returns the message that says it."""
    return eventbus_pb2.CorrelationMetadata(
        correlation_id=correlation.correlation_id,
        root_correlation_id=correlation.root_correlation_id,
        parent_correlation_id=correlation.parent_correlation_id,
        trace_id=correlation.trace_id,
        span_id=correlation.span_id,
        sequence_number=correlation.sequence_number,
        workflow_stage=correlation.workflow_stage,
        correlation_tags=correlation.tags,
    )
