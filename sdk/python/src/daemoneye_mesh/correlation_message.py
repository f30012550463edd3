"""Correlation as the messages that carry it."""

from daemoneye.eventbus.v1 import eventbus_pb2
from daemoneye_mesh.correlation import Correlation

__all__ = ["from_message", "to_message"]


def from_message(message: eventbus_pb2.CorrelationMetadata) -> Correlation:
    """Returns what a message says.

    Raises:
        InvalidRequestError: it is beyond a bound of the contract.
    """
    return Correlation(
        correlation_id=message.correlation_id,
        root_correlation_id=message.root_correlation_id,
        parent_correlation_id=_optional(message, "parent_correlation_id"),
        trace_id=_optional(message, "trace_id"),
        span_id=_optional(message, "span_id"),
        sequence_number=message.sequence_number,
        workflow_stage=_optional(message, "workflow_stage"),
        tags=dict(message.correlation_tags),
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


def _optional(message: eventbus_pb2.CorrelationMetadata, field: str) -> str | None:
    return getattr(message, field) if message.HasField(field) else None  # type: ignore[arg-type]
