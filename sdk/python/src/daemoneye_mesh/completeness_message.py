"""Completeness to and from its message."""

from collections.abc import Iterable

from daemoneye.common.v1 import completeness_pb2 as pb
from daemoneye_mesh.completeness import Degradation, DegradedReason

__all__ = ["from_completeness", "to_completeness"]

_PREFIX = "DEGRADED_REASON_"


def to_completeness(degradations: Iterable[Degradation]) -> pb.Completeness:
    """Returns the message: complete when there is no degradation."""
    causes = [
        pb.DegradedCause(
            reason=pb.DegradedReason.Value(_PREFIX + one.reason),
            subject=one.subject,
            message=one.message,
        )
        for one in degradations
    ]
    state = pb.COMPLETENESS_STATE_DEGRADED if causes else pb.COMPLETENESS_STATE_COMPLETE
    return pb.Completeness(state=state, causes=causes)


def from_completeness(message: pb.Completeness, subject: str) -> tuple[Degradation, ...]:
    """Returns the degradations of ``message``.

    What is neither said to be complete nor explained counts as degraded (MUST-CMP-02), in the name of
    ``subject``.
    """
    found = tuple(
        Degradation(_reason(cause.reason), cause.subject or subject, cause.message)
        for cause in message.causes
    )
    if found or message.state == pb.COMPLETENESS_STATE_COMPLETE:
        return found
    unsaid = f"{subject} did not say whether its answer is complete"
    return (Degradation(DegradedReason.READ_ERRORS, subject, unsaid),)


def _reason(number: int) -> DegradedReason:
    if number not in pb.DegradedReason.values():
        return DegradedReason.READ_ERRORS
    name = pb.DegradedReason.Name(pb.DegradedReason.ValueType(number)).removeprefix(_PREFIX)
    return DegradedReason.__members__.get(name, DegradedReason.READ_ERRORS)
