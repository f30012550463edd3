"""What the exit status of ``daemoneye`` means; scripts may rely on every number.

Invariant: "there is no such row" (0) and "could not look" (3 and above) are never the same status.
"""

from enum import IntEnum

from daemoneye_mesh.directories import DirectoryUnusableError
from daemoneye_mesh.errors import Code, DaemoneyeError, InvalidConfigError

__all__ = ["ExitCode", "describe_exit_codes", "exit_code_of"]


class ExitCode(IntEnum):
    """Every exit status of the command."""

    COMPLETE = 0
    FAILURE = 1
    USAGE = 2
    DEGRADED = 3
    UNREACHABLE = 4
    INVALID = 5
    DENIED = 6
    DEADLINE = 7
    INTERRUPTED = 130
    PIPE_CLOSED = 141


_MEANINGS = {
    ExitCode.COMPLETE: "complete: the answer is whole",
    ExitCode.FAILURE: "failure of another kind; the message says which",
    ExitCode.USAGE: "wrong usage or configuration",
    ExitCode.DEGRADED: "degraded: there is an answer, but something may be missing from it",
    ExitCode.UNREACHABLE: "unreachable: no socket, nobody answers on it, or it is shutting down",
    ExitCode.INVALID: "invalid request, such as bad SQL, an unknown table, rule or alert",
    ExitCode.DENIED: "denied: no valid token, or it does not allow this",
    ExitCode.DEADLINE: "deadline: no answer in time, see --timeout",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C before the answer was whole",
    ExitCode.PIPE_CLOSED: "the reader of the output went away",
}

_BY_CODE = {
    Code.INVALID_ARGUMENT: ExitCode.INVALID,
    Code.NOT_FOUND: ExitCode.INVALID,
    Code.ALREADY_EXISTS: ExitCode.INVALID,
    Code.UNIMPLEMENTED: ExitCode.INVALID,
    Code.UNAVAILABLE: ExitCode.UNREACHABLE,
    Code.UNAUTHENTICATED: ExitCode.DENIED,
    Code.PERMISSION_DENIED: ExitCode.DENIED,
    Code.DEADLINE_EXCEEDED: ExitCode.DEADLINE,
}


def exit_code_of(error: DaemoneyeError) -> ExitCode:
    """Returns the exit status for an error.

    ``InvalidConfigError`` and ``DirectoryUnusableError`` are raised on this side only: what a peer
    refuses comes back as a plain ``InvalidRequestError``.
    """
    if isinstance(error, InvalidConfigError | DirectoryUnusableError):
        return ExitCode.USAGE
    return _BY_CODE.get(error.code, ExitCode.FAILURE)


def describe_exit_codes() -> str:
    """Returns the table for ``--help``."""
    lines = (f"  {code.value:>3}  {meaning}" for code, meaning in _MEANINGS.items())
    return "exit status:\n" + "\n".join(lines)
