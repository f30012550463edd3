"""Unix socket hygiene: one server a path, nobody else's file removed, no window with a wrong mode.

grpc binds over a live socket without a word and both servers then believe that they own the path, so
a server claims the path first: an flock keeps a second one out, and a file that is in the way is
removed only when it is a socket on which nobody answers. See unix(7), flock(2).
"""

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from daemoneye_mesh.directories import prepare_directory
from daemoneye_mesh.errors import ErrorReason, InvalidConfigError, PreconditionError

__all__ = [
    "MAX_PATH_BYTES",
    "SOCKET_MODE",
    "SocketClaim",
    "SocketUnusableError",
    "check_socket_path",
    "restrict_umask",
    "socket_target",
]

MAX_PATH_BYTES = 107
"""sun_path holds 108 bytes including the final NUL (unix(7))."""

SOCKET_MODE = 0o660
"""connect(2) needs write permission: owner and group, nobody else."""

_PROBE_TIMEOUT_S = 1.0


class SocketUnusableError(PreconditionError):
    """A socket path cannot be served: it is held by another server, or not ours to replace."""

    default_reason = ErrorReason.SOCKET_UNUSABLE


def check_socket_path(path: Path) -> Path:
    """Returns ``path`` when a socket can be bound there.

    Raises:
        InvalidConfigError: it is relative or longer than 107 bytes.
    """
    if not path.is_absolute():
        raise InvalidConfigError(
            f"socket path {path} is relative; give an absolute path",
            reason=ErrorReason.SOCKET_UNUSABLE,
            path=path,
        )
    size_bytes = len(os.fsencode(path))
    if size_bytes > MAX_PATH_BYTES:
        raise InvalidConfigError(
            f"socket path {path} is {size_bytes} bytes long, and a Unix socket takes at most"
            f" {MAX_PATH_BYTES}; set DAEMONEYE_RUNTIME_DIR to a shorter directory",
            reason=ErrorReason.SOCKET_UNUSABLE,
            path=path,
            size_bytes=size_bytes,
        )
    return path


def socket_target(path: Path) -> str:
    """Returns the gRPC target of ``path``, encoded as the URI that gRPC's clients read it as."""
    # POSIX keeps two leading slashes; to gRPC they would begin a host name.
    text = "/" + str(check_socket_path(path)).lstrip("/")
    return "unix:" + quote(os.fsencode(text))


@contextmanager
def restrict_umask(mode: int) -> Iterator[None]:
    """Makes files created inside the block have at most ``mode``; the umask is process-wide."""
    previous = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(previous)


class SocketClaim:
    """The right to serve one socket path, held until ``release``."""

    def __init__(self, path: Path) -> None:
        """Claims ``path``.

        Raises:
            InvalidConfigError: the path is relative or too long.
            DirectoryUnusableError: its directory is not safe.
            SocketUnusableError: another server holds it, or a file that is not ours lies there.
        """
        self.path = check_socket_path(path)
        prepare_directory(path.parent, 0o750)
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock_fd = self._lock()
        try:
            self._clear_path()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Gives the path back and removes the lock file; the socket is its server's to remove."""
        if self._lock_fd < 0:
            return
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = -1

    def _lock(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            try:
                fd = os.open(self._lock_path, flags, 0o600)
            except OSError as error:
                raise self._unusable(f"cannot open its lock file ({error.strerror})") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise self._unusable(
                    "another server holds it; stop that one first, or use another runtime dir"
                ) from error
            if self._is_current(fd):
                return fd
            os.close(fd)  # the holder before us removed the file between our open and our flock

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), self._lock_path.stat())
        except FileNotFoundError:
            return False

    def _clear_path(self) -> None:
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise self._unusable("a file that is no socket lies there; move it away")
        if found.st_uid != os.geteuid() and os.geteuid() != 0:
            raise self._unusable(f"the socket there belongs to user id {found.st_uid}")
        if self._is_answered():
            raise self._unusable("a server without our lock answers there; stop it first")
        self.path.unlink()

    def _is_answered(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_TIMEOUT_S)
            try:
                probe.connect(str(self.path))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except OSError:
                return True  # a full backlog or a stopped server: somebody is there
            return True

    def _unusable(self, why: str) -> SocketUnusableError:
        return SocketUnusableError(f"cannot serve {self.path}: {why}", path=self.path)
