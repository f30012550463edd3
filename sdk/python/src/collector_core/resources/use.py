"""Budget, use and the levels between them."""

from dataclasses import dataclass
from enum import IntEnum

from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["DegradationLevel", "ResourceBudget", "ResourceUse"]


class DegradationLevel(IntEnum):
    """What a collector does without; each level includes the ones before.

    The names are those of the contract's enum without prefix, the numbers only order them.
    """

    NONE = 0
    NO_HASHING = 1
    NO_ENRICHMENT = 2
    SAMPLING = 3

    @property
    def consequence(self) -> str:
        """What that means for the data, as the end of a sentence; empty for NONE."""
        return _CONSEQUENCES[self]


_CONSEQUENCES = {
    DegradationLevel.NONE: "",
    DegradationLevel.NO_HASHING: "file hashes are left out",
    DegradationLevel.NO_ENRICHMENT: "file hashes and enrichment are left out",
    DegradationLevel.SAMPLING: (
        "file hashes, enrichment and some events of the lossy classes are left out"
    ),
}


@dataclass(frozen=True, slots=True)
class ResourceBudget:
    """What the process should use at most.

    Raises:
        InvalidConfigError: a budget is not above zero.
    """

    cpu_share: float
    """Share of one core; 0.25 is a quarter, 2.0 are two cores."""
    rss_bytes: int
    """Resident memory."""

    def __post_init__(self) -> None:
        if not self.cpu_share > 0:
            raise InvalidConfigError(
                f"cpu_budget_share is {self.cpu_share}; give a share of one core above 0",
                cpu_budget_share=self.cpu_share,
            )
        if self.rss_bytes <= 0:
            raise InvalidConfigError(
                f"rss_budget_bytes is {self.rss_bytes}; give a size above 0",
                rss_budget_bytes=self.rss_bytes,
            )


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """What the process uses, against its budget."""

    cpu_share: float
    """Share of one core, smoothed over about ten seconds."""
    cpu_budget_share: float
    rss_bytes: int
    rss_budget_bytes: int
    level: DegradationLevel
    """What it does without because of that."""

    @property
    def is_over(self) -> bool:
        """Whether either budget is exceeded."""
        return self.cpu_share > self.cpu_budget_share or self.rss_bytes > self.rss_budget_bytes

    def is_below(self, share: float) -> bool:
        """Whether both uses are under that share of their budgets."""
        return (
            self.cpu_share < self.cpu_budget_share * share
            and self.rss_bytes < self.rss_budget_bytes * share
        )

    def excess(self) -> tuple[str, str]:
        """What is exceeded, as the start of a sentence, and which settings to raise; may be empty."""
        parts, settings = [], []
        if self.cpu_share > self.cpu_budget_share:
            parts.append(
                f"uses {_percent(self.cpu_share)} of a core, "
                f"budget {_percent(self.cpu_budget_share)}"
            )
            settings.append("cpu_budget_share")
        if self.rss_bytes > self.rss_budget_bytes:
            parts.append(
                f"uses {_mebibytes(self.rss_bytes)} of memory, "
                f"budget {_mebibytes(self.rss_budget_bytes)}"
            )
            settings.append("rss_budget_bytes")
        return " and ".join(parts), " and ".join(settings)


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %" if share >= 0.1 else f"{share * 100:.1f} %"


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"
