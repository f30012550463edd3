"""The states of a collector and the ways between them.

Invariant: a status changes only as MUST-HLT-02 of collector_health.proto allows.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from collector_core.clock import Clock
from daemoneye_mesh.errors import PreconditionError

__all__ = ["IllegalTransitionError", "Status", "StatusMachine", "Transition"]

HISTORY_LENGTH = 64


class Status(StrEnum):
    """How a collector or a part of it is; the names of the contract's enum without prefix."""

    STARTING = "STARTING"
    OK = "OK"
    RECOVERABLE_ERROR = "RECOVERABLE_ERROR"
    PERMANENT_ERROR = "PERMANENT_ERROR"
    FATAL_ERROR = "FATAL_ERROR"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"

    @property
    def severity(self) -> int:
        """How bad it is, from 0; a part that is starting is not bad."""
        return _SEVERITY.get(self, 0)

    @property
    def is_serving(self) -> bool:
        """Whether grpc.health.v1 says SERVING (MUST-HLT-03)."""
        return self in (Status.OK, Status.RECOVERABLE_ERROR)


_SEVERITY = {Status.RECOVERABLE_ERROR: 1, Status.PERMANENT_ERROR: 2, Status.FATAL_ERROR: 3}

_WORKING = frozenset({Status.OK, Status.RECOVERABLE_ERROR, Status.PERMANENT_ERROR})
_ENDING = frozenset({Status.FATAL_ERROR, Status.STOPPING})

_NEXT: dict[Status, frozenset[Status]] = {
    Status.STARTING: _WORKING | _ENDING,
    Status.OK: (_WORKING - {Status.OK}) | _ENDING,
    Status.RECOVERABLE_ERROR: (_WORKING - {Status.RECOVERABLE_ERROR}) | _ENDING,
    Status.PERMANENT_ERROR: (_WORKING - {Status.PERMANENT_ERROR}) | _ENDING,
    Status.FATAL_ERROR: frozenset({Status.STOPPING}),
    Status.STOPPING: frozenset({Status.STOPPED}),
    Status.STOPPED: frozenset(),
}


class IllegalTransitionError(PreconditionError):
    """A status was to change in a way that the contract does not have."""

    def __init__(self, before: Status, after: Status) -> None:
        allowed = ", ".join(sorted(_NEXT[before])) or "nothing"
        super().__init__(
            f"a collector that is {before} cannot become {after}; {allowed} may follow",
            before=before,
            after=after,
            allowed=allowed,
        )


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of the status."""

    before: Status
    after: Status
    at_ns: int
    """When, nanoseconds since the Unix epoch."""


class StatusMachine:
    """The status of one collector.

    Args:
        clock: says when a status began.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._history: deque[Transition] = deque(maxlen=HISTORY_LENGTH)
        self.status = Status.STARTING
        """The status now."""
        self.since_ns = clock.wall_ns()
        """Since when, nanoseconds since the Unix epoch."""

    @property
    def history(self) -> tuple[Transition, ...]:
        """The last 64 changes, oldest first."""
        return tuple(self._history)

    def change_to(self, status: Status) -> Transition | None:
        """Changes the status; None when it is that already.

        Raises:
            IllegalTransitionError: the contract has no such change.
        """
        if status is self.status:
            return None
        if status not in _NEXT[self.status]:
            raise IllegalTransitionError(self.status, status)
        change = Transition(self.status, status, self._clock.wall_ns())
        self._history.append(change)
        self.status, self.since_ns = status, change.at_ns
        return change
