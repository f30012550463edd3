"""What ties messages together: ids of pieces of work, their stages and tags, and trace context.

Invariant: a ``Correlation`` that exists is within the bounds of the contract (MUST-CORR-02); nothing
is ever cut to fit. Pure values without I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Correlation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """What a message belongs to; see ``CorrelationMetadata``."""

    correlation_id: str
    root_correlation_id: str
    parent_correlation_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    sequence_number: int = 0
    workflow_stage: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
