"""Remembers which messages belong together: workflows by their root, and the latest steps.

Invariants:

* Memory is bounded. At most ``max_workflows`` workflows, of which each lists a bounded number of
  stages, sources and traces; over all of them at most ``max_steps`` steps of at most
  ``max_step_bytes``. Whatever was forgotten to stay within these bounds is counted, so that at every
  moment ``tracked_steps == steps + forgotten_steps + expired_steps``.
* What a query tells does not depend on when ``sweep`` ran: a workflow that is overdue is gone.
* Steps are kept for whole groups, and everything told in messages counts messages.
"""

import sys
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from daemoneye_eventbus.group import Envelope
from daemoneye_mesh.correlation import Correlation
from daemoneye_mesh.errors import InvalidConfigError, NotFoundError

__all__ = [
    "MAX_SOURCES",
    "MAX_STAGES",
    "MAX_TRACES",
    "Stage",
    "Step",
    "Timeline",
    "Tracker",
    "TrackerCounters",
    "UnknownWorkflowError",
    "Workflow",
]

MAX_STAGES = 64
"""Stages listed of one workflow; the messages of further ones are counted."""
MAX_SOURCES = 64
MAX_TRACES = 16

_STEP_OVERHEAD_BYTES: Final = 704
"""Objects around the texts of a step, measured on CPython 3.11 and rounded up."""
_TAG_OVERHEAD_BYTES: Final = 136
"""Places of one tag in the tables of a step, likewise."""
_SHOWN_CHARACTERS = 80


class UnknownWorkflowError(NotFoundError):
    """No message of the workflow was accepted, or it ended or was forgotten since."""

    def __init__(self, root: str) -> None:
        shown = ascii(root[:_SHOWN_CHARACTERS])
        super().__init__(
            f"no workflow of root {shown} is remembered; list those that are",
            root_correlation_id=shown,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One accepted group.

    Args:
        accepted_at_ns: since the Unix epoch.
        topic: of its messages.
        source_id: of their publisher.
        message_type: number of the ``MessageType``.
        message_count: how many they are.
        correlation: what they belong to, as it came.
    """

    accepted_at_ns: int
    topic: str
    source_id: str
    message_type: int
    message_count: int
    correlation: Correlation

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes, rather too much than too little."""
        correlation, tags = self.correlation, self.correlation.tags
        texts = (
            self.topic,
            self.source_id,
            correlation.correlation_id,
            correlation.root_correlation_id,
            correlation.parent_correlation_id,
            correlation.trace_id,
            correlation.span_id,
            correlation.workflow_stage,
        )
        size_bytes = _STEP_OVERHEAD_BYTES + sum(map(sys.getsizeof, texts))
        for tag in tags.items():
            size_bytes += _TAG_OVERHEAD_BYTES + sum(map(sys.getsizeof, tag))
        return size_bytes


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a workflow; times in nanoseconds since the Unix epoch."""

    name: str
    began_at_ns: int
    active_at_ns: int
    message_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """One piece of work with all that came of it, as it was when it was asked for.

    Args:
        root: correlation id that everything goes back to.
        started_at_ns: first message, since the Unix epoch.
        active_at_ns: latest message.
        message_count: messages seen, forgotten ones included.
        stages: in the order in which they began, at most ``MAX_STAGES``.
        unlisted_stage_message_count: messages of stages beyond those.
        source_ids: publishers in the order in which they came, at most ``MAX_SOURCES``.
        trace_ids: likewise, at most ``MAX_TRACES``.
    """

    root: str
    started_at_ns: int
    active_at_ns: int
    message_count: int
    stages: tuple[Stage, ...]
    unlisted_stage_message_count: int
    source_ids: tuple[str, ...]
    trace_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Steps of one workflow in the order of acceptance.

    Args:
        steps: the latest ones.
        is_truncated: whether there were older ones, asked for or not.
    """

    steps: tuple[Step, ...]
    is_truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerCounters:
    """What is remembered, and what no longer is, since the start."""

    active: int
    expired: int
    """Workflows that ended for want of messages."""
    evicted: int
    """Workflows forgotten to make room."""
    tracked_steps: int
    steps: int
    step_bytes: int
    forgotten_steps: int
    """Steps forgotten to make room, those of evicted workflows included."""
    expired_steps: int
    """Steps of expired workflows."""


@dataclass(slots=True)
class _Kept:
    """A step in memory, with what it takes to forget it."""

    step: Step
    serial: int
    size_bytes: int
    tags: frozenset[tuple[str, str]]


class _Entry:
    """One workflow in memory."""

    __slots__ = (
        "active_at_ns",
        "active_s",
        "has_forgotten",
        "message_count",
        "root",
        "source_ids",
        "stages",
        "started_at_ns",
        "steps",
        "tags",
        "trace_ids",
        "unlisted_stage_message_count",
    )

    def __init__(self, root: str, started_at_ns: int) -> None:
        self.root = root
        self.started_at_ns = self.active_at_ns = started_at_ns
        self.active_s = 0.0
        self.message_count = 0
        self.stages: dict[str, Stage] = {}
        self.unlisted_stage_message_count = 0
        self.source_ids: dict[str, None] = {}
        self.trace_ids: dict[str, None] = {}
        self.steps: deque[_Kept] = deque()
        self.has_forgotten = False
        # Most steps inherit their tags, so there are far fewer sets than steps to ask.
        self.tags: Counter[frozenset[tuple[str, str]]] = Counter()

    def observe(self, envelope: Envelope, correlation: Correlation, now_ns: int) -> None:
        self.active_at_ns = now_ns
        self.message_count += envelope.count
        _add_bounded(self.source_ids, envelope.source_id, MAX_SOURCES)
        if correlation.trace_id is not None:
            _add_bounded(self.trace_ids, correlation.trace_id, MAX_TRACES)
        if correlation.workflow_stage is not None:
            self._observe_stage(correlation.workflow_stage, envelope.count, now_ns)

    def _observe_stage(self, name: str, count: int, now_ns: int) -> None:
        stage = self.stages.get(name)
        if stage is not None:
            count += stage.message_count
            self.stages[name] = Stage(name, stage.began_at_ns, now_ns, count)
        elif len(self.stages) < MAX_STAGES:
            self.stages[name] = Stage(name, now_ns, now_ns, count)
        else:
            self.unlisted_stage_message_count += count

    def keep(self, kept: _Kept) -> None:
        self.steps.append(kept)
        if kept.tags:
            self.tags[kept.tags] += 1

    def forget_oldest(self) -> _Kept:
        kept = self.steps.popleft()
        self.has_forgotten = True
        if kept.tags:
            self.tags[kept.tags] -= 1
            if not self.tags[kept.tags]:
                del self.tags[kept.tags]
        return kept

    def matches(self, wanted: frozenset[tuple[str, str]], trace_id: str | None) -> bool:
        if trace_id is not None and not self._has_trace(trace_id):
            return False
        return not wanted or any(wanted <= tags for tags in self.tags)

    def _has_trace(self, trace_id: str) -> bool:
        if trace_id in self.trace_ids or len(self.trace_ids) < MAX_TRACES:
            return trace_id in self.trace_ids
        return any(kept.step.correlation.trace_id == trace_id for kept in self.steps)

    def view(self) -> Workflow:
        return Workflow(
            root=self.root,
            started_at_ns=self.started_at_ns,
            active_at_ns=self.active_at_ns,
            message_count=self.message_count,
            stages=tuple(self.stages.values()),
            unlisted_stage_message_count=self.unlisted_stage_message_count,
            source_ids=tuple(self.source_ids),
            trace_ids=tuple(self.trace_ids),
        )


class Tracker:
    """Keeps what belongs together; to be used from one event loop.

    Args:
        max_steps: steps kept over all workflows; 0 keeps no timelines, and then no tags to ask for.
        max_workflows: workflows kept; the one that was active longest ago makes room.
        timeout_s: how long a workflow lives without a message.
        max_step_bytes: memory of the steps, as ``Step.size_bytes`` has it; the oldest make room.
        monotonic: clock of the timeout, in seconds.
        wall_ns: clock of what is told, in nanoseconds since the Unix epoch.

    Raises:
        InvalidConfigError: a bound is out of range.
    """

    def __init__(
        self,
        max_steps: int = 10_000,
        max_workflows: int = 1_000,
        timeout_s: float = 300.0,
        *,
        max_step_bytes: int = 16 << 20,
        monotonic: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        _require_at_least("max_steps", max_steps, 0)
        _require_at_least("max_workflows", max_workflows, 1)
        _require_at_least("timeout_s", timeout_s, 0.001)
        _require_at_least("max_step_bytes", max_step_bytes, 0)
        self._max_steps = max_steps
        self._max_workflows = max_workflows
        self._timeout_s = timeout_s
        self._max_step_bytes = max_step_bytes
        self._monotonic = monotonic
        self._wall_ns = wall_ns
        # Workflow that was active longest ago first, oldest step first.
        self._workflows: OrderedDict[str, _Entry] = OrderedDict()
        self._ring: OrderedDict[int, _Entry] = OrderedDict()
        self._step_bytes = 0
        self._tracked_steps = self._forgotten_steps = self._expired_steps = 0
        self._expired = self._evicted = 0

    def track(self, envelope: Envelope) -> None:
        """Notes a group that was accepted (MUST-TRACK-01); one without correlation is none of ours."""
        correlation = envelope.correlation
        if correlation is None:
            return
        now_s, now_ns = self._monotonic(), self._wall_ns()
        self.sweep(now_s)
        entry = self._enter(correlation.root_correlation_id, now_ns)
        entry.active_s = now_s
        entry.observe(envelope, correlation, now_ns)
        self._keep(
            entry,
            Step(
                now_ns,
                envelope.topic,
                envelope.source_id,
                envelope.message_type,
                envelope.count,
                correlation,
            ),
        )

    def sweep(self, now_s: float | None = None) -> int:
        """Ends the workflows without a message for ``timeout_s``.

        Args:
            now_s: by the monotonic clock; None reads it.

        Returns:
            How many ended.
        """
        horizon_s = (self._monotonic() if now_s is None else now_s) - self._timeout_s
        ended = 0
        while self._workflows:
            entry = next(iter(self._workflows.values()))
            if entry.active_s > horizon_s:
                break
            self._expired_steps += self._drop(entry)
            ended += 1
        self._expired += ended
        return ended

    def workflows(
        self,
        tags: Mapping[str, str] | None = None,
        trace_id: str | None = None,
        limit: int = 100,
    ) -> list[Workflow]:
        """Returns workflows, latest activity first, for which every criterion holds.

        Args:
            tags: one remembered step carries all of them.
            trace_id: one of its listed traces, or of a remembered step.
            limit: at most so many.
        """
        self.sweep()
        wanted = frozenset((tags or {}).items())
        found = (e for e in reversed(self._workflows.values()) if e.matches(wanted, trace_id))
        return [entry.view() for entry in islice(found, limit)]

    def workflow(self, root: str) -> Workflow:
        """Returns one workflow.

        Raises:
            UnknownWorkflowError: none with this root is remembered.
        """
        return self._find(root).view()

    def timeline(self, root: str, max_steps: int = 1_000) -> Timeline:
        """Returns the latest steps of one workflow in the order of acceptance.

        Raises:
            UnknownWorkflowError: none with this root is remembered.
        """
        entry = self._find(root)
        left_out = max(len(entry.steps) - max_steps, 0)
        steps = tuple(kept.step for kept in islice(entry.steps, left_out, None))
        return Timeline(steps, entry.has_forgotten or left_out > 0)

    def counters(self) -> TrackerCounters:
        """Returns the counts since the start."""
        self.sweep()
        return TrackerCounters(
            active=len(self._workflows),
            expired=self._expired,
            evicted=self._evicted,
            tracked_steps=self._tracked_steps,
            steps=len(self._ring),
            step_bytes=self._step_bytes,
            forgotten_steps=self._forgotten_steps,
            expired_steps=self._expired_steps,
        )

    def _find(self, root: str) -> _Entry:
        self.sweep()
        entry = self._workflows.get(root)
        if entry is None:
            raise UnknownWorkflowError(root)
        return entry

    def _enter(self, root: str, now_ns: int) -> _Entry:
        entry = self._workflows.get(root)
        if entry is not None:
            self._workflows.move_to_end(root)
            return entry
        if len(self._workflows) >= self._max_workflows:
            self._forgotten_steps += self._drop(next(iter(self._workflows.values())))
            self._evicted += 1
        return self._workflows.setdefault(root, _Entry(root, now_ns))

    def _drop(self, entry: _Entry) -> int:
        """Forgets a workflow and returns how many steps went with it."""
        del self._workflows[entry.root]
        for kept in entry.steps:
            del self._ring[kept.serial]
            self._step_bytes -= kept.size_bytes
        return len(entry.steps)

    def _keep(self, entry: _Entry, step: Step) -> None:
        self._tracked_steps += 1
        serial, size_bytes = self._tracked_steps, step.size_bytes
        entry.keep(_Kept(step, serial, size_bytes, frozenset(step.correlation.tags.items())))
        self._ring[serial] = entry
        self._step_bytes += size_bytes
        while len(self._ring) > self._max_steps or self._step_bytes > self._max_step_bytes:
            _, oldest = self._ring.popitem(last=False)
            self._step_bytes -= oldest.forget_oldest().size_bytes
            self._forgotten_steps += 1


def _add_bounded(names: dict[str, None], name: str, limit: int) -> None:
    if name not in names and len(names) < limit:
        names[name] = None


def _require_at_least(setting: str, value: float, minimum: float) -> None:
    if not value >= minimum:
        raise InvalidConfigError(
            f"{setting} of the tracker is {value}; use at least {minimum}",
            setting=setting,
            value=value,
            minimum=minimum,
        )
