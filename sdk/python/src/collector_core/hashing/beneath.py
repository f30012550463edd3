"""Opening a file beneath a directory that is open already, without following a single link.

Two ways with one result: openat2(2), where the kernel confines the whole walk, and a walk component
by component for kernels and sandboxes without it. Invariant: neither follows a symbolic link, leaves
the directory by ``..`` or hangs on a fifo; what was opened is not yet known to be a regular file.
"""

import ctypes
import errno
import os
import platform
import sys

__all__ = ["open_beneath", "open_by_openat2", "open_by_walk"]

_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_STEP_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_OPENAT2 = 437
"""System calls from 424 on have one number on all of these machines (syscalls(2))."""
_MACHINES = ("x86_64", "aarch64")
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RACE_ATTEMPTS = 8


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


_libc = ctypes.CDLL(None, use_errno=True)
_how = _OpenHow(
    flags=_OPEN_FLAGS,
    mode=0,
    resolve=_RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS,
)


def open_beneath(directory: int, components: tuple[bytes, ...]) -> int:
    """Opens the file at ``components`` beneath ``directory`` for reading.

    Args:
        directory: descriptor of a directory; O_PATH is enough.
        components: at least one name; none is empty, ``.`` or ``..``, none holds a slash.

    Returns:
        A descriptor that the caller closes.

    Raises:
        OSError: it cannot be opened; ELOOP or ENOTDIR when there is a link in the way.
    """
    try:
        return open_by_openat2(directory, components)
    except OSError as error:
        # ENOSYS: an old kernel; EPERM: a sandbox that does not know the call answers so, too.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return open_by_walk(directory, components)


def open_by_openat2(directory: int, components: tuple[bytes, ...]) -> int:
    """Like ``open_beneath``, by openat2(2); ENOSYS where it is not known to exist."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    path = ctypes.c_char_p(b"/".join(components))
    size = ctypes.c_size_t(ctypes.sizeof(_how))
    number = errno.EAGAIN
    for _ in range(_RACE_ATTEMPTS):
        descriptor: int = _libc.syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_int(directory), path, ctypes.byref(_how), size
        )
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        # EAGAIN: something was renamed meanwhile and the kernel could not be sure.
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number))


def open_by_walk(directory: int, components: tuple[bytes, ...]) -> int:
    """Like ``open_beneath``, one openat(2) for each component."""
    *parents, name = components
    current = directory
    try:
        for parent in parents:
            step = os.open(parent, _STEP_FLAGS, dir_fd=current)
            if current != directory:
                os.close(current)
            current = step
        return os.open(name, _OPEN_FLAGS, dir_fd=current)
    finally:
        if current != directory:
            os.close(current)
