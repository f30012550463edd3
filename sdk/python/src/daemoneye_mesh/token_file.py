"""Tokens on their way to a process: one file each, readable by its owner alone.

Invariant: a token appears in no error, log line or repr of this module.
"""

import re
from pathlib import Path

from daemoneye_mesh.private_file import (
    OTHERS_ANY,
    FileMissingError,
    FileStamp,
    FileUnusableError,
    read_file,
    stamp_of,
    write_file,
)

__all__ = ["FileTokenSource", "write_token_file"]

_TOKEN_MODE = 0o400
# The characters of RFC 6750 section 2.1, so that no file content can smuggle in a second header.
_BEARER = re.compile(rb"[A-Za-z0-9._~+/-]{1,4096}=*")


def write_token_file(path: Path, token: str) -> None:
    """Writes a token for one process, atomically and with mode 0400.

    Raises:
        FileUnusableError: the text is no token, or the file cannot be written.
    """
    content = token.encode("utf-8", "replace")
    if not _BEARER.fullmatch(content):
        raise FileUnusableError(f"refusing to write {path}: the text is no bearer token", path=path)
    write_file(path, content + b"\n", _TOKEN_MODE)


class FileTokenSource:
    """Reads a token from a file, and again whenever the file was replaced.

    Args:
        path: the file; only its owner may have access to it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: FileStamp | None = None
        self._token = ""

    def __repr__(self) -> str:
        return f"FileTokenSource({str(self._path)!r})"

    def token(self) -> str:
        """Returns the current token.

        Raises:
            FileMissingError: the file is not there (yet).
            FileUnusableError: others have access to it, or it holds no token.
        """
        try:
            if stamp_of(self._path.stat(follow_symlinks=False)) != self._stamp:
                self._reload()
        except FileNotFoundError:
            self._forget()
            raise FileMissingError(
                f"token file {self._path} is not there; ask the agent for a token, "
                "or check the path",
                path=self._path,
            ) from None
        return self._token

    def _reload(self) -> None:
        self._forget()
        file = read_file(self._path, forbidden_mode=OTHERS_ANY)
        content = file.content.strip()
        if not _BEARER.fullmatch(content):
            raise FileUnusableError(
                f"token file {self._path} holds no token; ask the agent for a new one",
                path=self._path,
            )
        self._token, self._stamp = content.decode("ascii"), file.stamp

    def _forget(self) -> None:
        self._token, self._stamp = "", None
