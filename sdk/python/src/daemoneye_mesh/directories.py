"""Where the mesh keeps sockets and state, and whether those places are safe to use.

Invariant: a directory returned by a ``prepare_*`` function exists, is a real directory, belongs to us
or to root, and nobody else can create or rename files in it.
"""

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from daemoneye_mesh.errors import ErrorReason, PreconditionError

__all__ = [
    "RUNTIME_DIR_VARIABLE",
    "STATE_DIR_VARIABLE",
    "DirectoryUnusableError",
    "find_runtime_dir",
    "locate_runtime_dir",
    "locate_state_dir",
    "prepare_directory",
]

RUNTIME_DIR_VARIABLE = "DAEMONEYE_RUNTIME_DIR"
STATE_DIR_VARIABLE = "DAEMONEYE_STATE_DIR"
SYSTEM_RUNTIME_DIR = Path("/run/daemoneye")
SYSTEM_STATE_DIR = Path("/var/lib/daemoneye")


class DirectoryUnusableError(PreconditionError):
    """A directory cannot be created, or somebody else could tamper with what lies in it."""

    default_reason = ErrorReason.FILE_UNUSABLE


def locate_runtime_dir(
    environ: Mapping[str, str] = os.environ, system: Path = SYSTEM_RUNTIME_DIR
) -> Path:
    """Returns the directory for sockets of a process that serves; it may not exist yet."""
    if value := environ.get(RUNTIME_DIR_VARIABLE):
        return Path(value)
    if _is_writable(system):
        return system
    if value := environ.get("XDG_RUNTIME_DIR"):
        return Path(value) / "daemoneye"
    return Path(tempfile.gettempdir()) / f"daemoneye-{os.geteuid()}"


def find_runtime_dir(
    environ: Mapping[str, str] = os.environ, system: Path = SYSTEM_RUNTIME_DIR
) -> Path:
    """Returns the directory in which a client finds sockets: it need not be able to write there."""
    if not environ.get(RUNTIME_DIR_VARIABLE) and (system / "agent.sock").exists():
        return system
    return locate_runtime_dir(environ, system)


def locate_state_dir(
    environ: Mapping[str, str] = os.environ, system: Path = SYSTEM_STATE_DIR
) -> Path:
    """Returns the directory for keys, stores and logs that outlive a boot."""
    if value := environ.get(STATE_DIR_VARIABLE):
        return Path(value)
    if _is_writable(system):
        return system
    if value := environ.get("XDG_STATE_HOME"):
        return Path(value) / "daemoneye"
    return Path.home() / ".local" / "state" / "daemoneye"


def prepare_directory(path: Path, mode: int) -> Path:
    """Creates ``path`` when it is missing and verifies that it is safe.

    Args:
        path: absolute path.
        mode: permission bits of a directory that is created here.

    Raises:
        DirectoryUnusableError: it cannot be created, is no directory, is somebody else's, or group
            or others may write in it.
    """
    if not path.is_absolute():
        raise DirectoryUnusableError(f"{path} is relative; give an absolute path", path=path)
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise DirectoryUnusableError(
            f"cannot create {path} ({error.strerror}); create it for this user, or set"
            f" {RUNTIME_DIR_VARIABLE} or {STATE_DIR_VARIABLE} to a place of your own",
            path=path,
        ) from error
    _verify(path, found)
    return path


def _verify(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise DirectoryUnusableError(f"{path} is not a directory; move it away", path=path)
    if found.st_uid not in (os.geteuid(), 0) and os.geteuid() != 0:
        raise DirectoryUnusableError(
            f"{path} belongs to user id {found.st_uid}; use a directory of your own", path=path
        )
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise DirectoryUnusableError(
            f"group or others may write in {path}; run 'chmod go-w {path}'", path=path
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise DirectoryUnusableError(
            f"{path} is not writable by user id {os.geteuid()}; run 'chown' on it, or set"
            f" {RUNTIME_DIR_VARIABLE} or {STATE_DIR_VARIABLE} to a place of your own",
            path=path,
        )


def _is_writable(path: Path) -> bool:
    target = path if path.exists() else path.parent
    return os.access(target, os.W_OK | os.X_OK)
