"""The SDK for collectors: implement what is particular to a platform, operations come for free.

A collector is an ``EventSource`` with a ``watch`` coroutine, handed to ``run``. It must never need
gRPC itself: transport, identity, registration, delivery, health and shutdown are in here.
"""

from collector_core.collector import Collector
from collector_core.event import Event, EventData, Record
from collector_core.run import run
from collector_core.settings import CollectorSettings
from collector_core.source import Emit, EventSource, SourceCaps, TaskReport, TaskSource

__all__ = [
    "Collector",
    "CollectorSettings",
    "Emit",
    "Event",
    "EventData",
    "EventSource",
    "Record",
    "SourceCaps",
    "TaskReport",
    "TaskSource",
    "run",
]
