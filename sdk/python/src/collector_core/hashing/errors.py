"""Why a file has no digest: a closed set of kinds, so that answers are no oracle.

::

    HashError                  internal
      FileUnavailableError     unavailable          not there, not readable, not a regular file
        FileChangedError       unavailable          it changed while it was read
      FileTooLargeError        too_large
      HashTimeoutError         timeout
      PathNotAllowedError      path_not_allowed     outside of the allowed roots
      HashCapacityError        resource_exhausted   a bound of the hasher was reached
        HashingPausedError     resource_exhausted   hashing is off to save resources
        HashingStoppedError    resource_exhausted   the hasher was closed
      InvalidPathError         invalid_request
      HashFailedError          internal

Invariant: message and metadata of an error say nothing that tells a file that does not exist from one
that may not be seen. What really happened goes to the local debug log and nowhere else.
"""

import errno
import logging
from enum import StrEnum
from typing import ClassVar, Self

from daemoneye_mesh.errors import (
    DaemoneyeError,
    DeadlineError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionError,
)

__all__ = [
    "FileChangedError",
    "FileTooLargeError",
    "FileUnavailableError",
    "HashCapacityError",
    "HashError",
    "HashErrorKind",
    "HashFailedError",
    "HashTimeoutError",
    "HashingPausedError",
    "HashingStoppedError",
    "InvalidPathError",
    "PathNotAllowedError",
    "translate_os_error",
]

log = logging.getLogger("daemoneye.hashing")

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class HashErrorKind(StrEnum):
    """All that a peer learns about a failure; the kinds of ``common.v1.AnalysisErrorKind``."""

    UNAVAILABLE = "unavailable"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    PATH_NOT_ALLOWED = "path_not_allowed"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    INVALID_REQUEST = "invalid_request"
    INTERNAL = "internal"


class HashError(DaemoneyeError):
    """A file has no digest; ``kind`` says why, as far as a peer may know."""

    kind: ClassVar[HashErrorKind] = HashErrorKind.INTERNAL
    sentence: ClassVar[str] = "hashing failed; look into the log of the collector"

    def __init__(self, message: str = "", **metadata: object) -> None:
        metadata.setdefault("kind", self.kind)
        super().__init__(message or self.sentence, reason=None, **metadata)

    def again(self) -> Self:
        """Returns an equal error without a traceback, for each of several waiters."""
        return type(self)(self.message, **self.metadata)


class FileUnavailableError(HashError, NotFoundError):
    """There is no regular file that may be read; why not is not said."""

    kind = HashErrorKind.UNAVAILABLE
    sentence = "the file is not available for hashing; check its path, type and mode on the host"


class FileChangedError(FileUnavailableError):
    """The file changed while it was read: no digest would be that of any of its versions.

    A signal worth a look on the host; peers see the same as for a file that is not there.
    """


class FileTooLargeError(HashError, PreconditionError):
    """The file is larger than the hasher reads."""

    kind = HashErrorKind.TOO_LARGE
    sentence = "the file is larger than is hashed; raise max_file_bytes"


class HashTimeoutError(HashError, DeadlineError):
    """Reading the file took longer than a file may take."""

    kind = HashErrorKind.TIMEOUT
    sentence = "hashing took longer than timeout_s; try again later or raise it"


class PathNotAllowedError(HashError, PermissionDeniedError):
    """The path does not lie beneath an allowed root."""

    kind = HashErrorKind.PATH_NOT_ALLOWED
    sentence = "the path lies outside of the allowed roots; ask for a file beneath one of them"


class HashCapacityError(HashError, OverloadedError):
    """A bound of the hasher was reached; the request may be repeated later."""

    kind = HashErrorKind.RESOURCE_EXHAUSTED
    sentence = "no capacity is left for hashing; try again later"


class HashingPausedError(HashCapacityError):
    """Hashing is off for now, to save resources."""

    sentence = "hashing is paused to save resources; try again later"


class HashingStoppedError(HashCapacityError):
    """The hasher was closed."""

    sentence = "the hasher was closed; ask the collector again once it runs"


class InvalidPathError(HashError, InvalidRequestError):
    """The path, or the descriptor, cannot name a file to be hashed."""

    kind = HashErrorKind.INVALID_REQUEST
    sentence = "the target is no absolute path without '..' of 1 to 4096 bytes; correct it"


class HashFailedError(HashError, InternalError):
    """A defect of ours; the log has the story."""


def translate_os_error(error: OSError, target: object) -> HashError:
    """Returns what a peer may learn of ``error``; the rest goes to the debug log."""
    log.debug("cannot hash %r: %s", target, error)
    if error.errno in _OUT_OF_RESOURCES:
        return HashCapacityError()
    if error.errno == errno.EXDEV:
        return PathNotAllowedError()
    return FileUnavailableError()
