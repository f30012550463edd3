"""The directories beneath which files may be hashed, held open from the start.

Invariant: a file that is opened lay, at that moment, beneath a directory that was opened when the
process started, with no symbolic link on the way: the kernel sees to it, not a comparison of texts.
A root itself may be a link (``/bin``): paths are accepted beneath its name and beneath the place the
link led to. Open the roots before privileges are dropped.
"""

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from collector_core.hashing.beneath import open_beneath
from collector_core.hashing.errors import (
    FileUnavailableError,
    InvalidPathError,
    PathNotAllowedError,
    translate_os_error,
)
from collector_core.hashing.settings import DEFAULT_ROOTS
from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["MAX_PATH_BYTES", "AllowedRoots", "TargetPath", "split_path"]

log = logging.getLogger("daemoneye.hashing")

MAX_PATH_BYTES = 4096

TargetPath = str | bytes | Path
"""A path as callers have it; text stands for bytes as in ``os.fsencode``."""

Opener = Callable[[int, tuple[bytes, ...]], int]
_Components = tuple[bytes, ...]


def split_path(path: TargetPath) -> _Components:
    """Returns the names of an absolute path.

    Raises:
        InvalidPathError: it is relative, empty, too long, or holds a NUL or ``..``.
    """
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        raise InvalidPathError() from None
    if not 1 <= len(raw) <= MAX_PATH_BYTES or not raw.startswith(b"/") or b"\0" in raw:
        raise InvalidPathError()
    components = tuple(name for name in raw.split(b"/") if name not in (b"", b"."))
    if b".." in components:
        raise InvalidPathError()
    return components


@dataclass(frozen=True, slots=True)
class _Root:
    descriptor: int
    names: tuple[_Components, ...]
    """As configured, and as it is without links; the same once if they agree."""


class AllowedRoots:
    """Open directories beneath which files may be opened; made by ``AllowedRoots.open``.

    ``open_beneath`` may be called from several threads; ``close`` only once none of them runs.
    """

    def __init__(self, roots: Iterable[_Root], opener: Opener = open_beneath) -> None:
        self._roots = tuple(roots)
        self._opener = opener

    @classmethod
    def open(
        cls,
        paths: Iterable[TargetPath] = DEFAULT_ROOTS,
        tolerate_missing: bool = True,
        opener: Opener = open_beneath,
    ) -> Self:
        """Opens the directories at ``paths``.

        Args:
            paths: absolute paths of directories; links to directories are followed, here only.
            tolerate_missing: whether a directory that does not exist is left out.
            opener: opens beneath a descriptor; tests give their own.

        Raises:
            InvalidConfigError: a path is malformed or cannot be opened as a directory, or none is
                left.
        """
        roots: list[_Root] = []
        try:
            for path in paths:
                roots.extend(_open_root(path, tolerate_missing))
            if not roots:
                raise InvalidConfigError(
                    "no directory to hash files in exists; name at least one allowed root"
                )
        except BaseException:
            _close_all(roots)
            raise
        return cls(roots, opener)

    def open_beneath(self, path: TargetPath) -> int:
        """Opens the file at ``path`` for reading and returns a descriptor for the caller to close.

        Blocks as long as the file system does. The file need not be regular: look at the
        descriptor.

        Raises:
            InvalidPathError: the path is malformed.
            PathNotAllowedError: it lies outside of the roots.
            FileUnavailableError: it cannot be opened, or a link is in the way.
            HashCapacityError: the process has no descriptor left.
        """
        root, rest = self._locate(split_path(path))
        if not rest:
            raise FileUnavailableError()
        try:
            return self._opener(root.descriptor, rest)
        except OSError as error:
            raise translate_os_error(error, path) from None

    def check(self, path: TargetPath) -> None:
        """Refuses a path that could never be opened, without touching the file system.

        Raises:
            InvalidPathError: the path is malformed.
            PathNotAllowedError: it lies outside of the roots.
        """
        self._locate(split_path(path))

    def close(self) -> None:
        """Closes the directories; from then on every path is outside."""
        roots, self._roots = self._roots, ()
        _close_all(roots)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _locate(self, components: _Components) -> tuple[_Root, _Components]:
        found: tuple[int, _Root] | None = None
        for root in self._roots:
            for name in root.names:
                depth = len(name)
                if components[:depth] == name and (found is None or depth > found[0]):
                    found = depth, root
        if found is None:
            raise PathNotAllowedError()
        return found[1], components[found[0] :]


def _open_root(path: TargetPath, tolerate_missing: bool) -> tuple[_Root, ...]:
    try:
        name = split_path(path)
    except InvalidPathError:
        raise _unusable(path, "is no absolute path without '..'") from None
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        if not tolerate_missing:
            raise _unusable(path, "does not exist") from None
        log.debug("allowed root %r does not exist", path)
        return ()
    except OSError as error:
        raise _unusable(path, f"cannot be opened ({error.strerror})") from None
    names = dict.fromkeys((name, *_real_name(path, descriptor)))
    return (_Root(descriptor, tuple(names)),)


def _real_name(path: TargetPath, descriptor: int) -> tuple[_Components, ...]:
    """Returns where ``path`` leads, unless it leads elsewhere by now than when it was opened."""
    try:
        real = os.path.realpath(os.fsencode(path), strict=True)
        if os.path.samestat(os.stat(real), os.fstat(descriptor)):  # noqa: PTH116 -- bytes
            return (split_path(real),)
    except (OSError, InvalidPathError) as error:
        log.debug("cannot resolve allowed root %r: %s", path, error)
    return ()


def _unusable(path: TargetPath, cause: str) -> InvalidConfigError:
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    return InvalidConfigError(
        f"allowed root {shown} {cause}; name a directory that exists", path=shown, cause=cause
    )


def _close_all(roots: Iterable[_Root]) -> None:
    for root in roots:
        os.close(root.descriptor)
