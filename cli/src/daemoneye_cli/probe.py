"""Whether somebody listens on a socket, told apart from why not.

gRPC answers UNAVAILABLE for a missing socket, a dead server and a missing permission alike; connect(2)
does not.
"""

import asyncio
import socket
from pathlib import Path

from daemoneye_cli.errors import UnreachableError
from daemoneye_mesh.errors import ErrorReason, PermissionDeniedError
from daemoneye_mesh.sockets import check_socket_path

__all__ = ["is_answered", "require_listener"]

PROBE_TIMEOUT_S = 2.0


async def require_listener(path: Path, name: str) -> None:
    """Returns when somebody listens on ``path``.

    Args:
        path: the socket.
        name: whose it is, for messages.

    Raises:
        InvalidConfigError: the path cannot be a socket path.
        UnreachableError: there is no socket, or nobody listens on it.
        PermissionDeniedError: we may not connect to it.
    """
    check_socket_path(path)
    try:
        await _connect(path)
    except FileNotFoundError:
        raise _unreachable(f"no {name}: there is no socket {path}", path, name) from None
    except ConnectionRefusedError:
        raise _unreachable(
            f"no {name}: nobody listens on {path}; it ended without removing its socket", path, name
        ) from None
    except PermissionError:
        raise PermissionDeniedError(
            f"may not connect to {path}; ask its owner to add you to the group of the socket",
            socket=path,
        ) from None
    except TimeoutError:
        raise _unreachable(
            f"{name} does not take connections on {path}; it may be stopped", path, name
        ) from None
    except OSError as error:
        why = (error.strerror or "unknown reason").lower()
        raise _unreachable(f"cannot connect to {path}: {why}", path, name) from None


async def is_answered(path: Path) -> bool:
    """Whether a process listens on ``path``, even one that does not take connections now."""
    try:
        await _connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError:
        return True
    return True


async def _connect(path: Path) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            await loop.sock_connect(probe, str(path))


def _unreachable(message: str, path: Path, name: str) -> UnreachableError:
    return UnreachableError(message, reason=ErrorReason.PEER_UNAVAILABLE, socket=path, peer=name)
