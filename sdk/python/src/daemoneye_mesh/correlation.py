"""What ties messages together: ids of pieces of work, their stages and tags, and trace context.

Invariant: a ``Correlation`` that exists is within the bounds of the contract (MUST-CORR-02) and stays
so, since its tags are read-only; nothing is ever cut to fit. Pure values without I/O.

Trace context is that of https://www.w3.org/TR/trace-context/. It lives in the fields of the contract
alone: a header of a message that happens to be called ``traceparent`` is for whoever put it there.
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Self

from daemoneye_mesh.errors import InvalidRequestError

__all__ = [
    "MAX_ID_BYTES",
    "MAX_SEQUENCE_NUMBER",
    "MAX_STAGE_BYTES",
    "MAX_TAGS",
    "MAX_TAG_KEY_BYTES",
    "MAX_TAG_VALUE_BYTES",
    "Correlation",
    "InvalidCorrelationError",
    "TraceContext",
    "validate_tags",
    "validate_trace_id",
]

MAX_ID_BYTES = 256
MAX_STAGE_BYTES = 128
MAX_TAGS = 64
MAX_TAG_KEY_BYTES = 128
MAX_TAG_VALUE_BYTES = 1024
MAX_SEQUENCE_NUMBER = 2**64 - 1

_TRACE_ID_DIGITS = 32
_SPAN_ID_DIGITS = 16
_TRACE_ID = re.compile(r"(?!0{32})[0-9a-f]{32}")
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")
# A later version may append fields; only what version 00 defines is read of it.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace_id>[0-9a-f]{32})-(?P<span_id>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-|\Z)"
)
_SAMPLED = 0x01
_NO_TAGS: Mapping[str, str] = MappingProxyType({})


class InvalidCorrelationError(InvalidRequestError):
    """A correlation is beyond a bound of the contract, or malformed; the sender must change it.

    Args:
        name: the field at fault. Its value is not repeated: it may be long, and is not ours.
        problem: what is wrong.
        remedy: what to do instead.
        size: how large the field is, where that is the problem; bytes, or entries for tags.
        limit: how large it may be.
    """

    def __init__(
        self,
        name: str,
        problem: str,
        remedy: str,
        *,
        size: int | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(f"{name} {problem}; {remedy}", field=name, problem=problem, remedy=remedy)
        if size is not None:
            self.metadata["size"] = str(size)
        if limit is not None:
            self.metadata["limit"] = str(limit)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The part of a W3C ``traceparent`` that identifies a span.

    Args:
        trace_id: 32 lower-case hexadecimal digits, not all zero.
        span_id: 16 lower-case hexadecimal digits, not all zero; W3C calls it ``parent-id``.
        is_sampled: whether the sender may have recorded the span.

    Raises:
        InvalidCorrelationError: an id is malformed.
    """

    trace_id: str
    span_id: str
    is_sampled: bool = False

    def __post_init__(self) -> None:
        validate_trace_id(self.trace_id)
        _require_digits("span_id", self.span_id, _SPAN_ID, _SPAN_ID_DIGITS)

    @classmethod
    def parse(cls, traceparent: str) -> Self:
        """Reads a ``traceparent`` of version 00, or of a later one as far as 00 knows it.

        Raises:
            InvalidCorrelationError: it is malformed; W3C asks to go on without it.
        """
        found = _TRACEPARENT.match(traceparent)
        if found is None or (found["more"] and found["version"] == "00"):
            raise InvalidCorrelationError(
                "traceparent",
                f"of {len(traceparent)} characters is malformed",
                "send version-traceid-spanid-flags in lower-case hexadecimal digits",
                size=len(traceparent),
            )
        return cls(found["trace_id"], found["span_id"], bool(int(found["flags"], 16) & _SAMPLED))

    def format(self) -> str:
        """Returns the ``traceparent`` of version 00 that says it."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.is_sampled else 0:02x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    """What a message belongs to; see ``CorrelationMetadata``.

    Args:
        correlation_id: of this piece of work.
        root_correlation_id: of the piece that everything goes back to.
        parent_correlation_id: of the piece that gave rise to it; None at the root.
        trace_id: W3C trace id.
        span_id: W3C span id of the sender; only together with ``trace_id``.
        sequence_number: position among the messages with this ``correlation_id``, from 0.
        workflow_stage: name of the step of a workflow.
        tags: further facts; a read-only copy is kept.

    Raises:
        InvalidCorrelationError: something is beyond a bound of the contract, malformed, or says that
            it is a root and is none.
    """

    correlation_id: str
    root_correlation_id: str
    parent_correlation_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    sequence_number: int = 0
    workflow_stage: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _require_id("correlation_id", self.correlation_id)
        _require_id("root_correlation_id", self.root_correlation_id)
        if self.parent_correlation_id is not None:
            _require_id("parent_correlation_id", self.parent_correlation_id)
        elif self.root_correlation_id != self.correlation_id:
            raise InvalidCorrelationError(
                "root_correlation_id",
                "differs from correlation_id although there is no parent",
                "set both to one id, or name the parent",
            )
        if self.workflow_stage is not None:
            _require_size("workflow_stage", self.workflow_stage, MAX_STAGE_BYTES)
        _require_trace(self.trace_id, self.span_id)
        _require_sequence_number(self.sequence_number)
        if self.tags:
            tags = dict(self.tags)
            validate_tags(tags)
            object.__setattr__(self, "tags", MappingProxyType(tags))
        else:
            object.__setattr__(self, "tags", _NO_TAGS)

    @classmethod
    def begin(
        cls,
        stage: str | None = None,
        tags: Mapping[str, str] | None = None,
        trace: TraceContext | None = None,
    ) -> Self:
        """Starts a piece of work under a new id (MUST-CORR-01).

        Args:
            stage: its first step.
            tags: what all that comes of it inherits.
            trace: the W3C span it happens in.

        Raises:
            InvalidCorrelationError: the stage or a tag is beyond its bound.
        """
        own_id = uuid.uuid4().hex
        return cls(
            correlation_id=own_id,
            root_correlation_id=own_id,
            trace_id=None if trace is None else trace.trace_id,
            span_id=None if trace is None else trace.span_id,
            workflow_stage=stage,
            tags=tags or {},
        )

    def child(self, stage: str | None = None, tags: Mapping[str, str] | None = None) -> Self:
        """Continues this piece of work in one of its own (MUST-CORR-01).

        The child keeps root, trace id, stage and tags and counts its messages from 0. It has no span
        id, since that names a span of whoever sent this one: ``with_trace`` tells the child's own.

        Args:
            stage: another step than this one's.
            tags: come on top of this one's, and win over them.

        Raises:
            InvalidCorrelationError: the stage or a tag is beyond its bound, or together there are too
                many tags.
        """
        return replace(
            self,
            correlation_id=uuid.uuid4().hex,
            parent_correlation_id=self.correlation_id,
            span_id=None,
            sequence_number=0,
            workflow_stage=self.workflow_stage if stage is None else stage,
            tags={**self.tags, **tags} if tags else self.tags,
        )

    def next(self) -> Self:
        """Returns what the next message of this piece of work carries; the last number repeats."""
        return replace(self, sequence_number=min(self.sequence_number + 1, MAX_SEQUENCE_NUMBER))

    def with_trace(self, trace: TraceContext) -> Self:
        """Returns the same in a W3C span; whether that is sampled has no place in the contract."""
        return replace(self, trace_id=trace.trace_id, span_id=trace.span_id)

    @property
    def traceparent(self) -> str | None:
        """The W3C ``traceparent`` of the span, None without one.

        It says "not sampled", which is what W3C has those say who do not know.
        """
        if self.trace_id is None or self.span_id is None:
            return None
        return TraceContext(self.trace_id, self.span_id).format()


def validate_tags(tags: Mapping[str, str]) -> None:
    """Checks that tags are within the bounds of a correlation.

    Raises:
        InvalidCorrelationError: there are too many, or a key or value is too long.
    """
    if len(tags) > MAX_TAGS:
        raise InvalidCorrelationError(
            "tags",
            f"has {len(tags)} entries",
            f"use at most {MAX_TAGS}",
            size=len(tags),
            limit=MAX_TAGS,
        )
    for key, value in tags.items():
        _require_size("tag key", key, MAX_TAG_KEY_BYTES)
        _require_size("tag value", value, MAX_TAG_VALUE_BYTES)


def validate_trace_id(trace_id: str) -> None:
    """Checks that a text is a W3C trace id.

    Raises:
        InvalidCorrelationError: it is not.
    """
    _require_digits("trace_id", trace_id, _TRACE_ID, _TRACE_ID_DIGITS)


def _require_id(name: str, text: str) -> None:
    if not text:
        raise InvalidCorrelationError(
            name, "is empty", f"use 1 to {MAX_ID_BYTES} bytes", size=0, limit=MAX_ID_BYTES
        )
    _require_size(name, text, MAX_ID_BYTES)


def _require_size(name: str, text: str, limit_bytes: int) -> None:
    if text.isascii():
        size_bytes = len(text)
    else:
        try:
            size_bytes = len(text.encode())
        except UnicodeEncodeError:
            raise InvalidCorrelationError(
                name, "is no valid Unicode text", "escape what is not text"
            ) from None
    if size_bytes > limit_bytes:
        raise InvalidCorrelationError(
            name,
            f"is {size_bytes} bytes",
            f"use at most {limit_bytes} bytes",
            size=size_bytes,
            limit=limit_bytes,
        )


def _require_trace(trace_id: str | None, span_id: str | None) -> None:
    if trace_id is not None:
        validate_trace_id(trace_id)
    if span_id is None:
        return
    if trace_id is None:
        raise InvalidCorrelationError(
            "span_id", "comes without a trace_id", "send both, or the trace_id alone"
        )
    _require_digits("span_id", span_id, _SPAN_ID, _SPAN_ID_DIGITS)


def _require_digits(name: str, text: str, pattern: re.Pattern[str], count: int) -> None:
    if pattern.fullmatch(text) is None:
        raise InvalidCorrelationError(
            name,
            f"of {len(text)} characters is malformed",
            f"send {count} lower-case hexadecimal digits that are not all zero",
            size=len(text),
            limit=count,
        )


def _require_sequence_number(number: int) -> None:
    if not 0 <= number <= MAX_SEQUENCE_NUMBER:
        raise InvalidCorrelationError(
            "sequence_number",
            f"is {number}",
            f"use 0 to {MAX_SEQUENCE_NUMBER}",
            size=number,
            limit=MAX_SEQUENCE_NUMBER,
        )
