"""Triggers: a collector looks at its own events and asks others for a closer look.

Operators write conditions (``load_triggers``), the SDK shows every process event that is emitted to
the ``TriggerEngine``, and what it decides leaves the collector as an event like any other. Invariant:
a target uses up its deduplication and its rate only by a request that was really emitted.
"""

from collector_core.trigger.condition import (
    Condition,
    ExecutablePathPattern,
    HashMismatch,
    MissingExecutable,
    Predicate,
    ProcessNamePattern,
    ResourceAnomaly,
    SuspiciousParentChild,
)
from collector_core.trigger.document import load_triggers
from collector_core.trigger.engine import TriggerEngine
from collector_core.trigger.limits import TriggerLimits
from collector_core.trigger.spec import AnalysisKind, TriggerSpec
from collector_core.trigger.subject import Subject

__all__ = [
    "AnalysisKind",
    "Condition",
    "ExecutablePathPattern",
    "HashMismatch",
    "MissingExecutable",
    "Predicate",
    "ProcessNamePattern",
    "ResourceAnomaly",
    "Subject",
    "SuspiciousParentChild",
    "TriggerEngine",
    "TriggerLimits",
    "TriggerSpec",
    "load_triggers",
]
