"""One analysis as a collector's author sees it: what is asked, what was found, why it failed.

Invariant: of a failure only its kind leaves the process, so that an answer tells nobody whether a
file exists that they may not see (MUST-ANA-01).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from daemoneye.common.v1 import analysis_pb2, common_pb2

__all__ = [
    "AnalysisError",
    "AnalysisErrorKind",
    "AnalysisFinding",
    "AnalysisRequest",
    "AnalysisTarget",
    "TriggerPriority",
]


class TriggerPriority(IntEnum):
    """How urgent an analysis is; the numbers are those of the contract."""

    LOW = 1
    NORMAL = 5
    HIGH = 8
    CRITICAL = 10

    @classmethod
    def of(cls, number: int) -> "TriggerPriority":
        """Returns the next lower priority of a number; LOW for what is below all."""
        return max((one for one in cls if one <= number), default=cls.LOW)


class AnalysisErrorKind(IntEnum):
    """Why an analysis failed; the numbers are those of the contract."""

    UNAVAILABLE = analysis_pb2.ANALYSIS_ERROR_KIND_UNAVAILABLE
    TOO_LARGE = analysis_pb2.ANALYSIS_ERROR_KIND_TOO_LARGE
    TIMEOUT = analysis_pb2.ANALYSIS_ERROR_KIND_TIMEOUT
    PATH_NOT_ALLOWED = analysis_pb2.ANALYSIS_ERROR_KIND_PATH_NOT_ALLOWED
    RESOURCE_EXHAUSTED = analysis_pb2.ANALYSIS_ERROR_KIND_RESOURCE_EXHAUSTED
    INVALID_REQUEST = analysis_pb2.ANALYSIS_ERROR_KIND_INVALID_REQUEST
    INTERNAL = analysis_pb2.ANALYSIS_ERROR_KIND_INTERNAL


class AnalysisError(Exception):
    """An analysis cannot be done.

    Args:
        kind: what the caller is told.
        cause: what the log is told.
    """

    def __init__(self, kind: AnalysisErrorKind, cause: str) -> None:
        super().__init__(f"{kind.name.lower()}: {cause}")
        self.kind = kind
        self.cause = cause


@dataclass(frozen=True, slots=True)
class AnalysisTarget:
    """What to look at: a process, a file, or both."""

    boot_id: str = ""
    pid: int | None = None
    start_ticks: int | None = None
    path: str | None = None


@dataclass(frozen=True, slots=True)
class AnalysisRequest:
    """One analysis that is asked for."""

    trigger_id: str
    analysis_type: analysis_pb2.AnalysisType.ValueType
    target: AnalysisTarget
    priority: TriggerPriority = TriggerPriority.NORMAL
    custom_type: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AnalysisFinding:
    """What an analysis found."""

    hashes: Sequence[common_pb2.HashResult] = ()
    findings: Mapping[str, str] = field(default_factory=dict)
    confidence: float = 1.0
    """How sure it is, from 0 to 1."""
