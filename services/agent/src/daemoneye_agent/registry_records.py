"""What the registry of collectors takes in and hands out; no I/O.

Invariant: a record that exists is bounded, and its collector id is well formed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from daemoneye_agent.log_position import MAX_LOG_POSITIONS, LogPosition
from daemoneye_mesh.errors import (
    ConflictError,
    ErrorReason,
    InvalidRequestError,
    PreconditionError,
)

__all__ = [
    "MAX_TEXT_CHARS",
    "Collector",
    "CollectorState",
    "Heartbeat",
    "InstanceSupersededError",
    "Lease",
    "NotRegisteredError",
    "RegistrationRequest",
    "ReportedHealth",
    "Transition",
]

MAX_TEXT_CHARS = 512
_COLLECTOR_ID = re.compile(r"[a-z0-9_-]{1,64}")
_MAX_NAMES = 256
_MAX_METRICS = 64
_MAX_EPOCH = 2**63 - 1
_FAILURES = {4: "permanent error", 5: "fatal error"}
"""By number of ``ipc.v1.CollectorStatus``."""


class CollectorState(StrEnum):
    """What the agent holds a collector to be."""

    REGISTERED = "registered"
    SERVING = "serving"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"
    DEREGISTERED = "deregistered"


class ReportedHealth(StrEnum):
    """What a collector says of itself in a heartbeat."""

    STARTING = "starting"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class InstanceSupersededError(ConflictError):
    """A newer instance of the same collector has registered; this one should end."""

    default_reason = ErrorReason.SUPERSEDED


class NotRegisteredError(PreconditionError):
    """The agent does not know the instance, as after the agent's restart; register again."""

    default_reason = ErrorReason.NOT_REGISTERED


@dataclass(frozen=True, slots=True)
class RegistrationRequest:
    """What a collector says when it registers."""

    collector_id: str
    instance_epoch: int
    """Rises with each start of the collector, such as its start time in nanoseconds."""
    version: str = ""
    socket_path: str = ""
    domains: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    pid: int = 0
    heartbeat_interval_s: float | None = None
    """What the collector would like; None for the default."""

    def __post_init__(self) -> None:
        if not _COLLECTOR_ID.fullmatch(self.collector_id):
            raise InvalidRequestError(
                f"collector id {self.collector_id!r} is malformed; use 1 to 64 of a-z 0-9 _ -",
                collector_id=self.collector_id,
            )
        _check_range("instance_epoch", self.instance_epoch, 0, _MAX_EPOCH)
        _check_range("length of version", len(self.version), 0, MAX_TEXT_CHARS)
        _check_range("length of socket_path", len(self.socket_path), 0, MAX_TEXT_CHARS)
        _check_range("pid", self.pid, 0, 2**31 - 1)
        for name, values in (("domains", self.domains), ("capabilities", self.capabilities)):
            _check_range(f"number of {name}", len(values), 0, _MAX_NAMES)
            for value in values:
                _check_range(f"length of an entry of {name}", len(value), 1, MAX_TEXT_CHARS)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One sign of life."""

    collector_id: str
    instance_epoch: int
    sequence: int
    """Rises by one with each heartbeat of an instance."""
    health: ReportedHealth = ReportedHealth.HEALTHY
    detail: str = ""
    """Why it is not healthy."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    status: int = 0
    """Number of ``ipc.v1.CollectorStatus``; 0 when the collector did not say."""
    is_shedding: bool = False
    config_version: int = 0
    log_positions: tuple[LogPosition, ...] = ()
    """How far its log goes, newest epoch first; empty when it keeps none."""

    def __post_init__(self) -> None:
        _check_range("sequence", self.sequence, 0, _MAX_EPOCH)
        _check_range("length of detail", len(self.detail), 0, MAX_TEXT_CHARS)
        _check_range("number of metrics", len(self.metrics), 0, _MAX_METRICS)
        for name in self.metrics:
            _check_range("length of a metric's name", len(name), 1, MAX_TEXT_CHARS)
        _check_range("config_version", self.config_version, 0, _MAX_EPOCH)
        _check_range("number of log_positions", len(self.log_positions), 0, MAX_LOG_POSITIONS)

    @property
    def failure(self) -> str:
        """What its own status says is wrong; empty while it does its job."""
        return _FAILURES.get(self.status, "")


@dataclass(frozen=True, slots=True)
class Lease:
    """What the agent grants; the collector must beat every ``heartbeat_interval_s``."""

    collector_id: str
    instance_epoch: int
    heartbeat_interval_s: float
    lease_s: float
    """Without a heartbeat for this long the collector counts as unavailable."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of state."""

    collector_id: str
    instance_epoch: int
    before: CollectorState | None
    """None when the collector was not known."""
    after: CollectorState
    reason: str
    at_ns: int
    """Wall clock, for people; decisions are made on the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Collector:
    """A collector as it stands, for display and routing."""

    registration: RegistrationRequest
    lease: Lease
    state: CollectorState
    reason: str
    since_ns: int
    """Wall clock of the latest change of state."""
    missed_heartbeats: int
    sequence_gaps: int
    """Heartbeats that were sent and never came, by their sequence numbers."""
    heartbeat: Heartbeat | None
    heartbeat_at_ns: int | None
    """Wall clock of the latest heartbeat."""
    transitions: tuple[Transition, ...]
    """The latest ones, oldest first; instances before this one included."""


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidRequestError(
            f"{name} is {value}; use {low} to {high}", name=name, value=value, low=low, high=high
        )
