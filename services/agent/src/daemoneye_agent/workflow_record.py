"""A request for an analysis and what became of it, as the event store keeps them; no I/O.

Invariant: every stored request gets exactly one record, whatever happens to it, and every text of a
record is bounded.
"""

from dataclasses import dataclass
from enum import StrEnum

__all__ = [
    "TRIGGER_EVENT",
    "AnalysisRecord",
    "Asked",
    "Cause",
    "Outcome",
    "StoredTrigger",
    "Verdict",
]

TRIGGER_EVENT = "trigger"
"""``collector_events.event_type`` of a request."""


class Outcome(StrEnum):
    """What became of a request."""

    DONE = "done"
    FAILED = "failed"
    """The collector that was asked says that it cannot."""
    UNDELIVERABLE = "undeliverable"
    """Nobody could be asked."""
    REFUSED = "refused"
    """Nobody was asked, because the request or the time was wrong."""


class Cause(StrEnum):
    """Why a request is not done, where no collector said a kind of its own."""

    NOT_REGISTERED = "not_registered"
    NOT_IN_SERVICE = "not_in_service"
    UNREACHABLE = "unreachable"
    NOT_OFFERED = "not_offered"
    OVERLOADED = "overloaded"
    EXPIRED = "expired"
    """The agent was away for too long."""
    QUEUE_FULL = "queue_full"
    REQUEST_INVALID = "request_invalid"
    REQUEST_TOO_LARGE = "request_too_large"
    PAYLOAD_UNSUPPORTED = "payload_unsupported"
    ANSWER_INVALID = "answer_invalid"
    TIMEOUT = "timeout"
    INVALID_REQUEST = "invalid_request"
    RESOURCE_EXHAUSTED = "resource_exhausted"


@dataclass(frozen=True, slots=True)
class StoredTrigger:
    """A stored request that has no record yet."""

    event_id: int
    source_id: str
    time_ns: int
    data: str | None
    """The request as JSON; None when it is larger than any request can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who asked whom for what."""

    event_id: int
    source_id: str
    trigger_id: str
    target_collector: str = ""
    analysis_type: str = ""
    custom_type: str = ""
    priority: str = ""
    requested_ns: int = 0
    boot_id: str | None = None
    pid: int | None = None
    start_ticks: int | None = None
    path: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What makes two requests the same."""
        return self.source_id, self.trigger_id


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a request."""

    outcome: Outcome
    error_kind: str | None = None
    sha256: str | None = None
    blake3: str | None = None
    findings: str | None = None
    """JSON; None when there is no result."""
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class AnalysisRecord:
    """A row of ``analysis_results`` without its id."""

    asked: Asked
    verdict: Verdict
    finished_ns: int
