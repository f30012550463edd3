"""For tests of collectors: a fake mesh on real sockets, and collectors in it.

Start with ``FakeMesh``, then ``run_in_process`` for a collector in the loop of the test, or ``spawn``
for a process in any language. ``collector_core.testing.fixtures`` has both as fixtures of pytest.
"""

from collector_core.testing.agent import FakeAgent
from collector_core.testing.changes import Changes, ConditionTimeoutError
from collector_core.testing.delivery import Conflict, DeliveryRecord, SequenceRange
from collector_core.testing.harness import CollectorEndedError, CollectorHarness
from collector_core.testing.in_process import InProcessCollector, run_in_process
from collector_core.testing.mesh import FakeMesh
from collector_core.testing.peer import CollectorControl, CollectorPeer, TaskAnswer
from collector_core.testing.seen_event import SeenEvent
from collector_core.testing.service_bus import FakeBus
from collector_core.testing.spawned import SpawnedCollector, spawn

__all__ = [
    "Changes",
    "CollectorControl",
    "CollectorEndedError",
    "CollectorHarness",
    "CollectorPeer",
    "ConditionTimeoutError",
    "Conflict",
    "DeliveryRecord",
    "FakeAgent",
    "FakeBus",
    "FakeMesh",
    "InProcessCollector",
    "SeenEvent",
    "SequenceRange",
    "SpawnedCollector",
    "TaskAnswer",
    "run_in_process",
    "spawn",
]
