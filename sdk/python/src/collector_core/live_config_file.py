"""Where the values that updates set are kept: one small JSON document, 0600.

Invariants: the file is whole at every moment, old or new; one that cannot be used is set aside under
another name and never deleted or overwritten. All calls block, for as long as the disk takes.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from collector_core.live_config_change import Override
from daemoneye_mesh.directories import prepare_directory
from daemoneye_mesh.errors import InvalidConfigError
from daemoneye_mesh.private_file import FileUnusableError, read_file, write_file

__all__ = ["OverrideDocument", "OverrideFile"]

FORMAT = 1
MAX_DOCUMENT_BYTES = 60_000
"""Less than the largest file that ``read_file`` takes."""
MAX_VERSION = 2**63
FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
OTHERS = 0o077

log = logging.getLogger("daemoneye.config")


@dataclass(frozen=True, slots=True)
class OverrideDocument:
    """The values that updates set, and the last update that changed one."""

    version: int = 0
    overrides: Mapping[str, Override] = field(default_factory=lambda: MappingProxyType({}))
    applied_at_ns: int | None = None
    applied_by: str = ""

    def encode(self) -> bytes:
        """Returns the document as JSON.

        Raises:
            InvalidConfigError: it is larger than a document may be.
        """
        values = {name: {"value": one.text, "by": one.by} for name, one in self.overrides.items()}
        document = {
            "format": FORMAT,
            "version": self.version,
            "applied_at_ns": self.applied_at_ns,
            "applied_by": self.applied_by,
            "values": values,
        }
        encoded = (json.dumps(document, indent=2) + "\n").encode()
        if len(encoded) > MAX_DOCUMENT_BYTES:
            raise InvalidConfigError(
                f"the values set while it runs take {len(encoded)} bytes, {MAX_DOCUMENT_BYTES} are"
                " allowed; reset some, or set them in the configuration file",
                size_bytes=len(encoded),
                limit_bytes=MAX_DOCUMENT_BYTES,
            )
        return encoded

    @classmethod
    def decode(cls, content: bytes) -> "OverrideDocument":
        """Reads what ``encode`` wrote.

        Raises:
            ValueError: it is something else; the message continues "the file ...".
        """
        try:
            raw = json.loads(content)
        except (ValueError, RecursionError):
            raise ValueError("is no JSON") from None
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError(f"is no document of format {FORMAT}")
        version: Any = raw.get("version")
        at_ns: Any = raw.get("applied_at_ns")
        by: Any = raw.get("applied_by")
        if not (_is_count(version) and (at_ns is None or _is_count(at_ns)) and _is_text(by)):
            raise ValueError("has a version, a time or an identity that is none")
        return cls(version, _decode_values(raw.get("values")), at_ns, by)


class OverrideFile:
    """The file of one collector.

    Args:
        path: absolute path; its directory is made when it is missing.
        now_ns: clock for the names of files that are set aside, ns since the epoch.
    """

    def __init__(self, path: Path, now_ns: Callable[[], int]) -> None:
        self.path = path
        self._now_ns = now_ns
        self._stored: bytes | None = None
        """What the file holds when the last write is whole; None without a file."""

    def read(self) -> tuple[OverrideDocument, str]:
        """Returns the document, and why an older one could not be used, if so.

        Raises:
            FileUnusableError: it cannot be used and cannot be set aside either.
        """
        try:
            content = read_file(self.path, forbidden_mode=OTHERS, must_own=True).content
            document = OverrideDocument.decode(content)
        except FileNotFoundError:
            return OverrideDocument(), ""
        except FileUnusableError as error:
            return OverrideDocument(), self._set_aside(error.message)
        except ValueError as error:
            return OverrideDocument(), self._set_aside(f"{self.path} {error}")
        self._stored = content
        return document, ""

    def write(self, document: OverrideDocument) -> None:
        """Puts the document in the place of the one before.

        Raises:
            PreconditionError: FILE_UNUSABLE; it cannot be written there. Which of both is there
                then is uncertain until ``restore``.
        """
        content = document.encode()
        prepare_directory(self.path.parent, DIRECTORY_MODE)
        write_file(self.path, content, FILE_MODE)
        self._stored = content

    def snapshot(self) -> bytes | None:
        """Returns what ``restore`` needs."""
        return self._stored

    def restore(self, stored: bytes | None) -> None:
        """Makes the file what it was at a snapshot; does nothing when it is so already.

        Raises:
            PreconditionError: FILE_UNUSABLE; it cannot be read or written.
        """
        if self._find() != stored:
            if stored is None:
                self._remove()
            else:
                write_file(self.path, stored, FILE_MODE)
        self._stored = stored

    def _find(self) -> bytes | None:
        try:
            return read_file(self.path, forbidden_mode=OTHERS, must_own=True).content
        except FileNotFoundError:
            return None

    def _remove(self) -> None:
        try:
            self.path.unlink()
        except OSError as error:
            raise _unusable(self.path, "removed", error) from None

    def _set_aside(self, problem: str) -> str:
        aside = self.path.with_name(f"{self.path.name}.unusable-{self._now_ns()}")
        try:
            self.path.rename(aside)
        except OSError as error:
            raise _unusable(self.path, "used or moved away", error) from None
        log.error("%s; it is set aside as %s", problem, aside)
        return f"{problem}; it is set aside as {aside}"


def _decode_values(raw: Any) -> Mapping[str, Override]:
    if not isinstance(raw, dict):
        raise ValueError("has no values")
    overrides: dict[str, Override] = {}
    for name, one in raw.items():
        if not (isinstance(one, dict) and _is_text(one.get("value")) and _is_text(one.get("by"))):
            raise ValueError("has a value that is none")
        overrides[name] = Override(one["value"], one["by"])
    return MappingProxyType(overrides)


def _is_count(raw: Any) -> bool:
    return type(raw) is int and 0 <= raw < MAX_VERSION


def _is_text(raw: Any) -> bool:
    return isinstance(raw, str)


def _unusable(path: Path, what: str, error: OSError) -> FileUnusableError:
    cause = os.strerror(error.errno or 0).lower()
    return FileUnusableError(
        f"{path} cannot be {what} ({cause}); move it away", path=path, cause=cause
    )
