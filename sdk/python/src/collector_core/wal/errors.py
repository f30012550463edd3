"""What a log of events can fail with, and what that means to who holds it."""

import os
from pathlib import Path

from daemoneye_mesh.errors import DaemoneyeError, ErrorReason, PreconditionError, UnavailableError

__all__ = ["LogUnusableError", "LogUnwritableError"]


class LogUnusableError(PreconditionError):
    """The log cannot be opened; somebody has to mend its directory first."""

    default_reason = ErrorReason.FILE_UNUSABLE


class LogUnwritableError(UnavailableError):
    """Nothing was appended, because the disk did not take it; the same call may be repeated."""

    default_reason = ErrorReason.LOG_UNWRITABLE


def as_unusable(err: DaemoneyeError) -> LogUnusableError:
    """Returns the error for a file or directory that something else refused."""
    refused = LogUnusableError(err.message)
    refused.metadata.update(err.metadata)
    return refused


def unusable(path: Path, err: OSError) -> LogUnusableError:
    """Returns the error for a file or directory that the system refused."""
    cause = os.strerror(err.errno or 0).lower()
    return LogUnusableError(
        f"the log cannot use {path} ({cause}); check owner, mode and disk of its directory",
        path=path,
        cause=cause,
    )


def unwritable(path: Path, err: OSError) -> LogUnwritableError:
    """Returns the error for a write that the system refused."""
    cause = os.strerror(err.errno or 0).lower()
    return LogUnwritableError(
        f"the log cannot write {path} ({cause}); make room on its disk or mend its permissions",
        path=path,
        cause=cause,
    )
