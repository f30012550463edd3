"""How far a collector's log goes, as its heartbeats say; no I/O.

Invariant: a position that exists is bounded, and its sequences fit into the event store. Whether they
make sense together is for the reader to judge: a heartbeat is too precious to be refused for that.
"""

from dataclasses import dataclass

from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["MAX_LOG_LOSSES", "MAX_LOG_POSITIONS", "LogLoss", "LogPosition"]

MAX_LOG_POSITIONS = 17
MAX_LOG_LOSSES = 64
_MAX_SEQUENCE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class LogLoss:
    """A range that the log does not have any more."""

    first_sequence: int
    last_sequence: int
    reason: int
    """Number of ``ipc.v1.EventLossReason``."""

    def __post_init__(self) -> None:
        _check_range("first_sequence of a loss", self.first_sequence, 0, _MAX_SEQUENCE)
        _check_range("last_sequence of a loss", self.last_sequence, 0, _MAX_SEQUENCE)


@dataclass(frozen=True, slots=True)
class LogPosition:
    """How far one epoch of the log goes; see ``ipc.v1.LogPosition``."""

    source_epoch: int
    first_sequence: int
    """First that is still held; ``last_sequence`` + 1 when none is."""
    last_sequence: int
    acknowledged_sequence: int
    losses: tuple[LogLoss, ...] = ()

    def __post_init__(self) -> None:
        _check_range("source_epoch", self.source_epoch, 0, _MAX_SEQUENCE)
        _check_range("first_sequence", self.first_sequence, 0, _MAX_SEQUENCE)
        _check_range("last_sequence", self.last_sequence, 0, _MAX_SEQUENCE)
        _check_range("acknowledged_sequence", self.acknowledged_sequence, 0, _MAX_SEQUENCE)
        _check_range("number of losses", len(self.losses), 0, MAX_LOG_LOSSES)

    @property
    def unacknowledged_count(self) -> int:
        """Events that were given out and not acknowledged yet."""
        return max(self.last_sequence - self.acknowledged_sequence, 0)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequestError(
            f"{name} is {value}; use {low} to {high}", name=name, value=value, low=low, high=high
        )
