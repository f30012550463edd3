"""The SDK for collectors: implement what is particular to a platform, operations come for free.

A collector is an ``EventSource`` with a ``watch`` coroutine, handed to ``run``. It must never need
gRPC itself: transport, identity, registration, delivery, health and shutdown are in here.
"""

from collector_core.analysis import (
    AnalysisError,
    AnalysisErrorKind,
    AnalysisFinding,
    AnalysisRequest,
    AnalysisTarget,
    TriggerPriority,
)
from collector_core.capability import SourceCaps
from collector_core.collector import Collector
from collector_core.event import Emit, Event, EventClass, EventData, Record
from collector_core.run import run, run_with_settings
from collector_core.settings import CollectorSettings
from collector_core.source import EventSource, SourceContext, TaskReport

__all__ = [
    "AnalysisError",
    "AnalysisErrorKind",
    "AnalysisFinding",
    "AnalysisRequest",
    "AnalysisTarget",
    "Collector",
    "CollectorSettings",
    "Emit",
    "Event",
    "EventClass",
    "EventData",
    "EventSource",
    "Record",
    "SourceCaps",
    "SourceContext",
    "TaskReport",
    "TriggerPriority",
    "run",
    "run_with_settings",
]
