"""Texts for people: safe to print, times, durations, sizes.

Invariant: what ``printable`` returns cannot move the cursor, change colours or forge a line. Names
and arguments of processes are chosen by whoever starts them.
"""

import re
import time
from datetime import UTC, datetime

from daemoneye_cli.errors import UsageError

__all__ = [
    "format_clock",
    "format_duration",
    "format_iso",
    "format_size",
    "parse_since",
    "printable",
]

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO = re.compile(r"(\d{1,9})([smhdw])")
_NS = 1_000_000_000
# 9999-12-31; what lies beyond is no time of an event and datetime cannot hold it.
_MAX_TIME_NS = 253_402_300_799 * _NS


def printable(text: str, keep: str = "") -> str:
    """Returns ``text`` with everything escaped that a terminal would obey, apart from ``keep``."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in keep else _escape(one) for one in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def format_iso(time_ns: int, digits: int = 9) -> str:
    """Writes nanoseconds since the Unix epoch as ISO 8601 in UTC.

    Args:
        time_ns: the moment; beyond what a calendar holds it is clamped.
        digits: digits of the second to show, 1 to 9; the others are cut off.
    """
    second, fraction = divmod(min(max(time_ns, 0), _MAX_TIME_NS), _NS)
    return (
        f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}"[: 20 + digits]
        + "Z"
    )


def format_clock(time_ns: int) -> str:
    """Writes the local time of day with milliseconds, for live views."""
    clamped = min(max(time_ns, 0), _MAX_TIME_NS)
    moment = datetime.fromtimestamp(clamped // _NS, UTC).astimezone()
    return f"{moment:%H:%M:%S}.{clamped % _NS // 1_000_000:03d}"


def format_duration(duration_s: float) -> str:
    """Writes a duration in two units at most, such as ``2h 5m``."""
    if duration_s < 60:
        return f"{duration_s:.1f}s"
    whole = int(duration_s)
    for size, upper, lower in ((86_400, "d", "h"), (3_600, "h", "m"), (60, "m", "s")):
        if whole >= size:
            rest = whole % size // _UNITS_S[lower]
            return f"{whole // size}{upper} {rest}{lower}" if rest else f"{whole // size}{upper}"
    return f"{whole}s"


def format_size(size_bytes: int) -> str:
    """Writes a size in binary units, such as ``12.3 MiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size_bytes} B"


def parse_since(text: str, now_ns: int | None = None) -> int:
    """Reads a moment: an age such as ``90s``, ``15m``, ``1h``, ``2d``, or an ISO 8601 time.

    Args:
        text: what the operator wrote; a time without a zone is local.
        now_ns: nanoseconds since the Unix epoch; the wall clock when left out.

    Returns:
        Nanoseconds since the Unix epoch.

    Raises:
        UsageError: neither of the two.
    """
    now = time.time_ns() if now_ns is None else now_ns
    if ago := _AGO.fullmatch(text):
        return max(now - int(ago[1]) * _UNITS_S[ago[2]] * _NS, 0)
    try:
        moment = datetime.fromisoformat(text).astimezone(UTC)
        return max(int(moment.timestamp() * 1_000_000) * 1_000, 0)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{text[:80]!a} is no time; write an age such as 30s, 15m, 1h, 2d, or an ISO 8601"
            " time such as 2026-01-31T12:00:00Z",
            value=text[:80],
        ) from None
