"""What is to be hashed: a path beneath the allowed roots, or a descriptor that a caller opened."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import ClassVar, Protocol

from collector_core.hashing.digest import FileKey
from collector_core.hashing.errors import InvalidPathError, translate_os_error
from collector_core.hashing.reading import check_target
from collector_core.hashing.roots import AllowedRoots, TargetPath

__all__ = ["DescriptorTarget", "PathTarget", "Target", "look_at"]


class Target(Protocol):
    """Something that can be opened for one reading, in a worker."""

    holds_descriptor: ClassVar[bool]
    """Whether it keeps a descriptor open while it waits."""

    def lend(self) -> AbstractContextManager[int]:
        """Lends a descriptor that is open for reading."""

    def release(self) -> None:
        """Lets go of what it holds."""


class PathTarget:
    """A path: opened when its turn comes, so that a long line of them holds no descriptors."""

    holds_descriptor: ClassVar[bool] = False

    def __init__(self, roots: AllowedRoots, path: TargetPath) -> None:
        self._roots = roots
        self._path = path

    def look(self, max_file_bytes: int) -> FileKey:
        """Returns the version that the file at the path is now; blocks.

        Raises:
            HashError: it may not be hashed or cannot be opened.
        """
        with self.lend() as descriptor:
            return look_at(descriptor, max_file_bytes)

    @contextlib.contextmanager
    def lend(self) -> Iterator[int]:
        """Opens the file; closes it in the end."""
        descriptor = self._roots.open_beneath(self._path)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Holds nothing."""


class DescriptorTarget:
    """A duplicate of the descriptor of a caller, who may close theirs meanwhile."""

    holds_descriptor: ClassVar[bool] = True

    def __init__(self, descriptor: int, hint: str = "") -> None:
        try:
            self._descriptor: int | None = os.dup(descriptor)
        except OSError as error:
            raise translate_os_error(error, hint or descriptor) from None

    @contextlib.contextmanager
    def lend(self) -> Iterator[int]:
        """Lends the duplicate."""
        if self._descriptor is None:
            raise InvalidPathError()
        yield self._descriptor

    def release(self) -> None:
        """Closes the duplicate; once is enough, twice is allowed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def look_at(descriptor: int, max_file_bytes: int) -> FileKey:
    """Returns the version that the file behind a descriptor is now.

    Raises:
        InvalidPathError: the descriptor is not open.
        HashError: it is no regular file, or too large.
    """
    try:
        status = os.fstat(descriptor)
    except OSError:
        raise InvalidPathError() from None
    return check_target(status, max_file_bytes)
