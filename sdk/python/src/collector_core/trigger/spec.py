"""One trigger: when to ask whom for what."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from collector_core.analysis import TriggerPriority
from collector_core.trigger.condition import Condition
from daemoneye_mesh.errors import InvalidConfigError

__all__ = [
    "MAX_ARGUMENTS",
    "MAX_ARGUMENTS_BYTES",
    "MAX_CUSTOM_TYPE_BYTES",
    "AnalysisKind",
    "TriggerSpec",
]

MAX_DESCRIPTION_BYTES = 512
MAX_CUSTOM_TYPE_BYTES = 64
MAX_ARGUMENTS = 100
MAX_ARGUMENTS_BYTES = 64 << 10
_ID = re.compile(r"[a-z0-9_-]{1,64}")


class AnalysisKind(StrEnum):
    """What is to be found out; the names of ``common.v1.AnalysisType`` in lower case."""

    BINARY_HASH = "binary_hash"
    MEMORY_ANALYSIS = "memory_analysis"
    YARA_SCAN = "yara_scan"
    NETWORK_ANALYSIS = "network_analysis"
    BEHAVIORAL_ANALYSIS = "behavioral_analysis"
    CUSTOM = "custom"


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerSpec:
    """A condition, and the analysis that is asked for when it holds.

    Raises:
        InvalidConfigError: a field is not as the contract wants it; the metadata names it as ``key``.
    """

    id: str
    """1 to 64 of ``[a-z0-9_-]``."""
    description: str
    """Why, as one sentence for a person; 1 to 512 bytes."""
    condition: Condition
    analysis_type: AnalysisKind
    target_collector: str
    """Id of the collector that is asked."""
    priority: TriggerPriority = TriggerPriority.NORMAL
    custom_type: str = ""
    """Name of a custom analysis, 1 to 64 bytes; else empty."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Arguments by name, as the target documents them; at most 100 entries and 64 KiB."""

    def __post_init__(self) -> None:
        """Checks what the contract says about each field."""
        self._check_id("id", self.id)
        self._check_id("target_collector", self.target_collector)
        self._check_text("description", self.description, MAX_DESCRIPTION_BYTES)
        if self.analysis_type is AnalysisKind.CUSTOM:
            self._check_text("custom_type", self.custom_type, MAX_CUSTOM_TYPE_BYTES)
        elif self.custom_type:
            raise _invalid("custom_type", f"is for analysis_type custom, not {self.analysis_type}")
        if len(self.arguments) > MAX_ARGUMENTS:
            raise _invalid("arguments", f"must have at most {MAX_ARGUMENTS} entries")
        size_bytes = sum(len((key + value).encode()) for key, value in self.arguments.items())
        if size_bytes > MAX_ARGUMENTS_BYTES:
            raise _invalid("arguments", f"must have at most {MAX_ARGUMENTS_BYTES} bytes")

    @staticmethod
    def _check_id(key: str, value: str) -> None:
        if not _ID.fullmatch(value):
            raise _invalid(key, f"must be 1 to 64 of [a-z0-9_-], not {value[:64]!r}")

    @staticmethod
    def _check_text(key: str, value: str, limit_bytes: int) -> None:
        if not 0 < len(value.encode()) <= limit_bytes:
            raise _invalid(key, f"must have 1 to {limit_bytes} bytes")


def _invalid(key: str, problem: str) -> InvalidConfigError:
    return InvalidConfigError(f"{key} {problem}", key=key, problem=problem)
