"""Errors of the process collector's domain; the tree hangs under ``daemoneye_mesh.errors``.

Invariant: trouble with one process is never an exception here. It is a missing field or a counter.
"""

from daemoneye_mesh.errors import InvalidConfigError, InvalidRequestError, UnavailableError

__all__ = ["CpuShareError", "InvalidPatternError", "ProcFsUnavailableError"]


class ProcFsUnavailableError(UnavailableError):
    """The process file system as a whole cannot be read, so nothing can be said about processes."""


class InvalidPatternError(InvalidRequestError):
    """The glob over executable paths is empty or too long."""


class CpuShareError(InvalidConfigError):
    """The scan interval or the share of a core is out of range."""
