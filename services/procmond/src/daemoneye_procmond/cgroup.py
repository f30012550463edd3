"""What ``/proc/<pid>/cgroup`` says: the path in the hierarchy and the container, if there is one.

Invariant: pure functions over bytes; a malformed line is skipped, never guessed at.
"""

import re
from functools import lru_cache

__all__ = ["find_container_id", "select_cgroup_path"]

_SCOPE_ID = re.compile(
    rb"(?:^|:)(?:docker|libpod|crio|cri-containerd|nerdctl)[-:]([0-9a-f]{12,64})(?:\.scope)?$"
)
_PLAIN_ID = re.compile(rb"^([0-9a-f]{64})(?:\.scope)?$")
_DOCKER_ID = re.compile(rb"^([0-9a-f]{12,64})$")


# Most processes share a group with others; the same few files come again and again.
@lru_cache(maxsize=512)
def select_cgroup_path(raw: bytes) -> bytes | None:
    """The unified (v2) path; on a host with v1 hierarchies that of systemd or else the longest."""
    paths: dict[bytes, bytes] = {}
    for controllers, path in _entries(raw):
        paths.setdefault(controllers, path)
    unified = paths.pop(b"", None)
    if unified is not None and (unified != b"/" or not paths):
        return unified
    legacy = paths.get(b"name=systemd") or max(paths.values(), key=len, default=None)
    return legacy if legacy is not None else unified


@lru_cache(maxsize=512)
def find_container_id(raw: bytes) -> str | None:
    """The innermost container id in any hierarchy's path; None outside of a container."""
    for _controllers, path in _entries(raw):
        found = _container_of_path(path)
        if found is not None:
            return found.decode("ascii")
    return None


def _entries(raw: bytes) -> list[tuple[bytes, bytes]]:
    parts = (line.split(b":", 2) for line in raw.splitlines())
    return [(part[1], part[2]) for part in parts if len(part) == 3 and part[2].startswith(b"/")]


def _container_of_path(path: bytes) -> bytes | None:
    segments = path.split(b"/")
    for index in range(len(segments) - 1, 0, -1):
        segment = segments[index]
        match = _SCOPE_ID.search(segment) or _PLAIN_ID.match(segment)
        if match is None and segments[index - 1] == b"docker":
            match = _DOCKER_ID.match(segment)
        if match is not None:
            return match[1]
    return None
