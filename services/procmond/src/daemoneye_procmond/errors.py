"""Errors of the process collector's domain; the tree hangs under ``daemoneye_mesh.errors``.

Invariant: trouble with one process is never an exception here. It is a missing field or a counter.
"""

from daemoneye_mesh.errors import (
    ErrorReason,
    InvalidConfigError,
    InvalidRequestError,
    PreconditionError,
)

__all__ = ["CpuShareError", "InvalidPatternError", "ProcFsUnavailableError"]


class ProcFsUnavailableError(PreconditionError):
    """The process file system as a whole cannot be read, so nothing can be said about processes."""

    default_reason = ErrorReason.FILE_UNUSABLE


class InvalidPatternError(InvalidRequestError):
    """The glob over executable paths is empty or too long."""


class CpuShareError(InvalidConfigError):
    """The scan interval or the share of a core is out of range."""
