"""How a collector is: its parts report, the worst of them is the whole.

See protos/daemoneye/ipc/v1/collector_health.proto (MUST-HLT-01 to MUST-HLT-03).
"""

from collector_core.health.component import Component
from collector_core.health.monitor import ComponentSnapshot, HealthMonitor, HealthSnapshot
from collector_core.health.status import IllegalTransitionError, Status, StatusMachine, Transition

__all__ = [
    "Component",
    "ComponentSnapshot",
    "HealthMonitor",
    "HealthSnapshot",
    "IllegalTransitionError",
    "Status",
    "StatusMachine",
    "Transition",
]
