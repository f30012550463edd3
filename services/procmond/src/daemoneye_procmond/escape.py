r"""Bytes of a Linux process as bounded, valid UTF-8 text.

Invariant: what leaves this module encodes as UTF-8, holds no control character and is never longer
than its limit. An invalid or control byte reads ``\xNN``; a literal backslash is kept as it is.
"""

import re
from collections.abc import Iterator

__all__ = ["ARGV_LIMIT_BYTES", "ARGV_LIMIT_COUNT", "PATH_LIMIT_BYTES", "escape_argv", "escape_text"]

ARGV_LIMIT_BYTES = 32 * 1024
"""Most bytes all arguments of one process take together, after escaping."""
ARGV_LIMIT_COUNT = 1024
"""Most arguments of one process."""
PATH_LIMIT_BYTES = 4096
"""Most bytes of one path or other single text, after escaping."""

# C1 controls are included: U+009B alone starts a terminal escape sequence.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def escape_text(raw: bytes, limit_bytes: int = PATH_LIMIT_BYTES) -> tuple[str, bool]:
    """Returns the text of ``raw`` and whether it had to be cut to ``limit_bytes``.

    The cut never splits a character or an escape.
    """
    if len(raw) <= limit_bytes:
        text = _escape(raw)
        if text.isascii():
            if len(text) <= limit_bytes:
                return text, False
        elif len(text.encode()) <= limit_bytes:
            return text, False
    return _escape_cut(raw, limit_bytes), True


def escape_argv(
    raw: bytes, limit_bytes: int = ARGV_LIMIT_BYTES, limit_count: int = ARGV_LIMIT_COUNT
) -> tuple[tuple[str, ...], bool]:
    """Splits NUL-separated arguments and escapes them; True when something was cut off.

    Empty arguments at the end are dropped: a process that writes a shorter title over its arguments
    leaves NUL padding which looks the same.
    """
    raw = raw.rstrip(b"\0")
    if not raw:
        return (), False
    parts = raw.split(b"\0", limit_count)
    cut = len(parts) > limit_count
    arguments: list[str] = []
    room = limit_bytes
    for part in parts[:limit_count]:
        text, text_cut = escape_text(part, room)
        if text_cut:
            return (*arguments, text) if text else tuple(arguments), True
        arguments.append(text)
        room -= len(text) if text.isascii() else len(text.encode())
    return tuple(arguments), cut


def _escape(raw: bytes) -> str:
    text = raw.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else _CONTROL.sub(_escape_match, text)


def _escape_match(match: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode())


def _escape_cut(raw: bytes, limit_bytes: int) -> str:
    kept: list[str] = []
    room = limit_bytes
    for unit in _units(raw, limit_bytes):
        room -= len(unit.encode())
        if room < 0:
            break
        kept.append(unit)
    return "".join(kept)


def _units(raw: bytes, limit_bytes: int) -> Iterator[str]:
    # Output is never shorter than input, and four bytes more hold any character that begins at the
    # limit: so a character split by this slice always lies behind the cut.
    for character in raw[: limit_bytes + 4].decode("utf-8", "surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            yield f"\\x{ord(character) - 0xDC00:02x}"
        else:
            yield _CONTROL.sub(_escape_match, character)
