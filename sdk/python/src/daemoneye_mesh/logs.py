"""Logs of a process: JSON lines for machines, coloured one-liners on a terminal.

Invariants: one record is one line of JSON, or one line of text plus an indented traceback, whatever
its message contains; a token never reaches the stream, neither under a telling key nor by its
looks; every line carries the correlation id of the request it was written for.
"""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

from daemoneye_mesh.errors import InvalidConfigError

__all__ = ["LEVELS", "LogStyle", "bind_correlation", "configure_logs", "correlation_id"]

LEVELS = ("debug", "info", "warning", "error", "critical")
MASK = "***"
MAX_TEXT_CHARS = 16_384
MAX_DEPTH = 6
MAX_ENTRIES = 256

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
"""Links the lines of one request across tasks and processes."""

_SECRET_KEY = re.compile(r"(?:.*[_-])?(?:token|authorization|password|secret)", re.IGNORECASE)
# Each alternative begins at a boundary, so that a hostile text is scanned once and not once per
# character.
_SECRET_TEXT = re.compile(
    r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?"
    r"|(?i:(?<=bearer )\S+)"
    r"|(?i:(?<=token=)\S+|(?<=secret=)\S+|(?<=password=)\S+|(?<=authorization=)\S+)"
)
_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
_OUR_FIELDS = ("ts", "level", "logger", "process", "pid", "message", "correlation_id", "exception")
_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


class LogStyle(StrEnum):
    """How lines look; AUTO is TEXT on a terminal and JSON elsewhere."""

    AUTO = "auto"
    JSON = "json"
    TEXT = "text"


def configure_logs(
    process: str,
    level: str = "info",
    stream: TextIO | None = None,
    style: LogStyle | str = LogStyle.AUTO,
) -> None:
    """Sends the logs of this process to one stream; a second call replaces the first.

    Args:
        process: the name of the process, on every line.
        level: the lowest level shown, one of ``LEVELS``.
        stream: where to, standard error when left out.
        style: ``auto``, ``json`` or ``text``. Colour is for terminals alone and obeys ``NO_COLOR``
            and ``TERM=dumb``.

    Raises:
        InvalidConfigError: the level or the style is unknown.
    """
    numeric_level = logging.getLevelNamesMapping()[_choice("level", level, LEVELS).upper()]
    chosen = LogStyle(_choice("style", style, tuple(LogStyle)))
    target = stream or sys.stderr
    handler = _StreamHandler(target)
    handler.setFormatter(_formatter(process, chosen, target))
    root = logging.getLogger()
    for previous in [one for one in root.handlers if isinstance(one, _StreamHandler)]:
        root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(numeric_level)


@contextmanager
def bind_correlation(correlation: str) -> Iterator[None]:
    """Puts a correlation id on every line written inside the block, child tasks included."""
    token = correlation_id.set(correlation)
    try:
        yield
    finally:
        # An abandoned async generator is closed by another task, whose context never had the id.
        with suppress(ValueError):
            correlation_id.reset(token)


class _StreamHandler(logging.StreamHandler[TextIO]):
    """Marks the handler as ours, so that configuring again replaces nobody else's."""


class _JsonFormatter(logging.Formatter):
    """One JSON object per record."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "pid": record.process,
            "message": _clean_text(record.getMessage()),
        }
        if (correlation := correlation_id.get()) is not None:
            line["correlation_id"] = _clean_text(correlation)
        for key, value in _extras(record).items():
            line[f"extra_{key}" if key in _OUR_FIELDS else key] = value
        if trace := _trace(self, record):
            line["exception"] = trace
        return json.dumps(line, allow_nan=False)


class _TextFormatter(logging.Formatter):
    """One line per record, a traceback indented below it."""

    def __init__(self, process: str, is_coloured: bool) -> None:
        super().__init__()
        self._process = process
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        level = self._paint(_COLOURS.get(record.levelname, "0"), f"{record.levelname:<8}")
        clock = self._paint("2", _timestamp(record)[11:])
        message = _clean_text(record.getMessage())
        fields = _extras(record)
        if (correlation := correlation_id.get()) is not None:
            fields["correlation_id"] = _clean_text(correlation)
        pairs = "".join(f" {key}={_plain(value)}" for key, value in fields.items())
        source = f"{self._process} {record.name}"
        line = f"{clock} {level} {source}: {message}{self._paint('2', pairs)}"
        trace = _trace(self, record)
        return line + "".join(f"\n  | {part}" for part in trace.splitlines())

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._is_coloured and text else text


def _formatter(process: str, style: LogStyle, stream: TextIO) -> logging.Formatter:
    is_terminal = stream.isatty()
    if style is LogStyle.JSON or (style is LogStyle.AUTO and not is_terminal):
        return _JsonFormatter(process)
    wants_colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return _TextFormatter(process, is_terminal and wants_colour)


def _choice(what: str, text: str, choices: tuple[str, ...]) -> str:
    if text.lower() in choices:
        return text.lower()
    allowed = ", ".join(choices)
    raise InvalidConfigError(
        f"log {what} {text!a} is unknown; use one of {allowed}", setting=what, allowed=allowed
    )


def _timestamp(record: logging.LogRecord) -> str:
    instant = datetime.fromtimestamp(record.created, UTC)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extras(record: logging.LogRecord) -> dict[str, object]:
    """Returns what the caller passed as ``extra``, safe to print."""
    own = {key: value for key, value in vars(record).items() if key not in _STANDARD_FIELDS}
    cleaned = _clean(own)
    return cleaned if isinstance(cleaned, dict) else {}


def _clean(value: object, depth: int = 0) -> object:
    """Returns a value made of JSON types, without secrets, control characters or surprises."""
    is_finite = isinstance(value, float) and math.isfinite(value)
    if value is None or is_finite or isinstance(value, int):
        return value
    if isinstance(value, str):
        return _clean_text(value)
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return _clean_mapping(value, depth)
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(entry, depth + 1) for entry in list(value)[:MAX_ENTRIES]]
    return _clean_text(str(value))


def _clean_mapping(mapping: Mapping[object, object], depth: int) -> dict[str, object]:
    cleaned: dict[str, object] = {}
    for key, value in list(mapping.items())[:MAX_ENTRIES]:
        name = _clean_text(str(key))
        is_secret = _SECRET_KEY.fullmatch(name) is not None
        cleaned[name] = MASK if is_secret else _clean(value, depth + 1)
    return cleaned


def _clean_text(text: str, keep: str = "") -> str:
    masked = _SECRET_TEXT.sub(MASK, text[:MAX_TEXT_CHARS])
    if len(text) > MAX_TEXT_CHARS:
        masked += f"... ({len(text)} characters)"
    if masked.isprintable():
        return masked
    return "".join(one if one.isprintable() or one in keep else _escape(one) for one in masked)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return _clean_text("\n".join(parts), keep="\n")


def _plain(value: object) -> str:
    if isinstance(value, str) and value and not any(one in value for one in " =\"'"):
        return value
    return json.dumps(value, ensure_ascii=False)
