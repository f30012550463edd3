"""The log of events: nothing that is in it is lost before it is acknowledged, or it says so.

``EventLog`` is for one process at a time; docs/wal.md specifies its files.
"""

from collector_core.wal.errors import LogUnusableError, LogUnwritableError
from collector_core.wal.limits import SyncPolicy, WalLimits
from collector_core.wal.log import EventLog
from collector_core.wal.loss import LogLoss, LogPosition, LossReason
from collector_core.wal.recovery import Recovery

__all__ = [
    "EventLog",
    "LogLoss",
    "LogPosition",
    "LogUnusableError",
    "LogUnwritableError",
    "LossReason",
    "Recovery",
    "SyncPolicy",
    "WalLimits",
]
