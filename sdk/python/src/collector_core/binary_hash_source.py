"""Answers BINARY_HASH: digests of a file, or of the image that a process runs.

Invariant: what is hashed for a process is the image of exactly that process. The kernel's directory
of the process is held open meanwhile, so that its number cannot come to mean another one, and boot
and start are compared before and after the image is opened.
"""

import asyncio
import contextlib
import errno
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from collector_core.analysis import (
    AnalysisError,
    AnalysisErrorKind,
    AnalysisFinding,
    AnalysisRequest,
    AnalysisTarget,
)
from collector_core.capability import SourceCaps
from collector_core.hashing import BinaryHashAnalyzer, FileHash, FileHasher, HashError
from collector_core.hashing.message import to_hash_results
from collector_core.source import EventSource
from daemoneye.common.v1 import analysis_pb2

if TYPE_CHECKING:
    from collector_core.source import SourceContext

__all__ = ["BinaryHashSource"]

PROC = Path("/proc")
MAX_STAT_BYTES = 4096
_STARTTIME_AFTER_NAME = 19
"""Field 22 of /proc/<pid>/stat, counted from what follows the name in parentheses."""
_DELETED = b" (deleted)"
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# Collectors may or may not escape control characters (MUST-PROC-01): both forms are one path.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class BinaryHashSource(EventSource):
    """A source that sees nothing by itself and hashes when asked.

    A path is hashed when it lies beneath the allowed roots of the collector's hasher. A process is
    hashed through its running image, wherever that lies and even when it was deleted; with a path
    beside it, only while the process runs that path.

    Args:
        caps: the domain of the collector it is part of, since it has none of its own.
        proc: where the kernel shows its processes; tests give their own.
    """

    name = "binary-hash"
    analyses = frozenset({analysis_pb2.ANALYSIS_TYPE_BINARY_HASH})

    def __init__(self, caps: SourceCaps, proc: Path = PROC) -> None:
        self.caps = caps
        self._proc = proc
        self._hasher: FileHasher | None = None

    async def prepare(self, context: "SourceContext") -> None:
        """Takes over the hasher of the collector."""
        self._hasher = context.hasher

    async def analyze(self, request: AnalysisRequest) -> AnalysisFinding:
        """Returns the digests.

        Raises:
            AnalysisError: there are none; the kind is all that leaves the process.
        """
        target = request.target
        try:
            if self._hasher is None:
                raise AnalysisError(AnalysisErrorKind.UNAVAILABLE, "the source is not prepared")
            if target.pid is not None:
                return await self._hash_process(self._hasher, target, target.pid)
            if target.path is None:
                raise AnalysisError(AnalysisErrorKind.INVALID_REQUEST, "there is no target")
            found = await BinaryHashAnalyzer(self._hasher)(target.path)
            return _to_finding(found, target.path)
        except HashError as err:
            raise AnalysisError(AnalysisErrorKind[err.kind.name], err.message) from err
        except OSError as err:
            is_exhausted = err.errno in _OUT_OF_RESOURCES
            kind = (
                AnalysisErrorKind.RESOURCE_EXHAUSTED
                if is_exhausted
                else AnalysisErrorKind.UNAVAILABLE
            )
            raise AnalysisError(kind, str(err)) from err

    async def _hash_process(
        self, hasher: FileHasher, target: AnalysisTarget, pid: int
    ) -> AnalysisFinding:
        async with self._opened(target, pid) as (descriptor, path):
            found = await hasher.hash_fd(descriptor, f"image of pid {pid}")
        return _to_finding(found, path)

    @contextlib.asynccontextmanager
    async def _opened(self, target: AnalysisTarget, pid: int) -> AsyncIterator[tuple[int, str]]:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open_image, target, pid))
        try:
            descriptor, path = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)  # a thread cannot be cancelled
            raise
        try:
            yield descriptor, path
        finally:
            os.close(descriptor)

    def _open_image(self, target: AnalysisTarget, pid: int) -> tuple[int, str]:
        self._check_boot(target.boot_id)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        directory = os.open(self._proc / str(pid), flags)
        try:
            _check_start(directory, target)
            path = _check_path(directory, target)
            descriptor = os.open(
                "exe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
            )
            try:
                _check_start(directory, target)
                _check_path(directory, target)  # an exec between both would swap the image
            except BaseException:
                os.close(descriptor)
                raise
        finally:
            os.close(directory)
        return descriptor, path

    def _check_boot(self, boot_id: str) -> None:
        current = (self._proc / "sys/kernel/random/boot_id").read_text("ascii").strip()
        if boot_id != current:
            raise AnalysisError(AnalysisErrorKind.UNAVAILABLE, "the process ran in another boot")


def _check_start(directory: int, target: AnalysisTarget) -> None:
    descriptor = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        line = os.read(descriptor, MAX_STAT_BYTES)
    finally:
        os.close(descriptor)
    fields = line[line.rfind(b")") + 1 :].split()
    if len(fields) <= _STARTTIME_AFTER_NAME or not fields[_STARTTIME_AFTER_NAME].isdigit():
        raise AnalysisError(AnalysisErrorKind.UNAVAILABLE, "the process has ended")
    if int(fields[_STARTTIME_AFTER_NAME]) != target.start_ticks:
        raise AnalysisError(AnalysisErrorKind.UNAVAILABLE, "another process has the pid now")


def _check_path(directory: int, target: AnalysisTarget) -> str:
    """Returns the path to answer with: as it was asked for, else the one that runs."""
    link = os.readlink(b"exe", dir_fd=directory)
    running = [_to_text(link.removesuffix(_DELETED)), _to_text(link)]
    if target.path is None:
        return running[0]
    if _escape(target.path) not in running:
        raise AnalysisError(AnalysisErrorKind.UNAVAILABLE, "the process runs another file now")
    return target.path


def _to_text(path: bytes) -> str:
    return _escape(path.decode("utf-8", "backslashreplace"))


def _escape(text: str) -> str:
    return _CONTROL.sub(lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()), text)


def _close_opened(opening: "asyncio.Future[tuple[int, str]]") -> None:
    if opening.cancelled():
        return
    if opening.exception() is None:
        os.close(opening.result()[0])


def _to_finding(found: FileHash, path: str) -> AnalysisFinding:
    return AnalysisFinding(
        hashes=to_hash_results(found, path),
        findings={
            "size_bytes": str(found.size_bytes),
            "is_stable": "true" if found.is_stable else "false",
        },
    )
