"""What a collector uses of the host, and what it does without to stay within its budget."""

from collector_core.resources.guard import ResourceGuard
from collector_core.resources.measurement import (
    ResourceSample,
    ResourcesUnreadableError,
    measure_self,
)
from collector_core.resources.sampler import Sampler
from collector_core.resources.use import DegradationLevel, ResourceBudget, ResourceUse

__all__ = [
    "DegradationLevel",
    "ResourceBudget",
    "ResourceGuard",
    "ResourceSample",
    "ResourceUse",
    "ResourcesUnreadableError",
    "Sampler",
    "measure_self",
]
