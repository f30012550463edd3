"""Errors of the command itself, and what advice goes with an error.

::

    InvalidConfigError
      UsageError              the command line is wrong
    UnavailableError
      UnreachableError        nobody answers on a socket
    DaemoneyeError
      ChildFailedError        a process of the mesh did not come up
"""

from daemoneye_mesh.errors import (
    DaemoneyeError,
    DeadlineError,
    ErrorReason,
    InvalidConfigError,
    UnauthenticatedError,
    UnavailableError,
)

__all__ = ["ChildFailedError", "UnreachableError", "UsageError", "hint_for"]


class UsageError(InvalidConfigError):
    """The command line is wrong.

    Args:
        message: what is wrong.
        usage: the usage line of the command, for a person.
    """

    def __init__(
        self,
        message: str,
        *,
        usage: str = "",
        reason: ErrorReason | None = None,
        **metadata: object,
    ) -> None:
        super().__init__(message, reason=reason, **metadata)
        self.usage = usage


class UnreachableError(UnavailableError):
    """Nobody answers on a socket."""


class ChildFailedError(DaemoneyeError):
    """A process of the mesh did not come up."""


_SQL_REASONS = (ErrorReason.TABLE_UNKNOWN, ErrorReason.COLUMN_UNKNOWN)


def hint_for(error: DaemoneyeError) -> str:
    """Returns what a person can do about an error; empty when its message already says so."""
    if isinstance(error, UnreachableError):
        return "is the mesh running? start it with 'daemoneye up', or name it with --runtime-dir"
    if error.reason in _SQL_REASONS:
        return "'daemoneye tables' lists the tables, 'daemoneye tables NAME' the columns of one"
    if isinstance(error, DeadlineError):
        return "allow more time with --timeout SECONDS"
    if isinstance(error, UnauthenticatedError) and error.reason is not ErrorReason.FILE_UNUSABLE:
        return "the agent writes a new token when it starts; check --token-file"
    return ""
