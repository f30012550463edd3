"""Decides which events of a collector deserve a closer look, and asks for it.

Invariant: deduplication and rate are used up by requests that ``emit`` took, and by nothing else: a
full queue, a failing emit or a stop leaves a target as if it had never been looked at. Every match
that is not emitted is counted by its reason.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

from collector_core.event import Emit, Event
from collector_core.trigger.lanes import Lanes, Refusal
from collector_core.trigger.limits import TriggerLimits
from collector_core.trigger.message import to_event, to_subject
from collector_core.trigger.pace import Allowance, RecentTargets
from collector_core.trigger.request import TriggerRequest, key_of
from collector_core.trigger.spec import TriggerSpec
from collector_core.trigger.subject import Subject
from daemoneye.eventbus.v1 import event_data_pb2
from daemoneye_mesh.errors import InvalidRequestError

__all__ = ["TriggerEngine"]

log = logging.getLogger("daemoneye.triggers")


class TriggerEngine:
    """The triggers of one collector; used from its event loop only.

    Args:
        specs: what to look for; the more urgent are tried first.
        limits: how much to ask.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        specs: Sequence[TriggerSpec],
        limits: TriggerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._specs = sorted(specs, key=lambda spec: -spec.priority)
        self._has_cmdline = any("cmdline" in spec.condition.fields for spec in specs)
        self._limits = limits or TriggerLimits()
        self._clock = clock
        self._lanes: Lanes[TriggerRequest] = Lanes()
        self._recent = RecentTargets()
        self._waiting_keys: set[Hashable] = set()
        self._waiting_count: Counter[str] = Counter()
        self._allowances: dict[str, Allowance] = {}
        self._complained: set[str] = set()
        self._is_failing = False
        self.emitted = 0
        """Requests that were emitted."""
        self.refused: Counter[str] = Counter()
        """Matches that came to nothing, by ``Refusal``."""

    @property
    def pending(self) -> int:
        """Requests that wait to be emitted."""
        return len(self._lanes)

    @property
    def forgotten(self) -> int:
        """Targets that may be asked about again too early, because too many were remembered."""
        return self._recent.forgotten

    def apply_limits(self, limits: TriggerLimits) -> None:
        """Obeys other limits from now on; what waits already is kept."""
        self._limits = limits
        for allowance in self._allowances.values():
            allowance.change(limits.per_minute, self._clock())

    def examine(self, event: Event) -> int:
        """Looks at an event that is emitted; never raises.

        Returns:
            How many requests it gave rise to, which ``run`` will emit.
        """
        if not self._specs or not isinstance(event.data, event_data_pb2.ProcessEventData):
            return 0
        try:
            subject = to_subject(event.data, has_cmdline=self._has_cmdline)
            topic = f"events.{event.topic.split('.')[1]}.trigger"
        except Exception:  # an author's event must not stop the source that emits it
            self._complain("", "an event cannot be examined")
            return 0
        return sum(self._try(spec, subject, topic, event.time_ns) for spec in self._specs)

    async def run(self, emit: Emit) -> None:
        """Emits what was asked for until cancelled; what is left then waits for the next run."""
        while True:
            request = await self._lanes.take()
            try:
                await emit(to_event(request))
            except Exception:
                self._lanes.finish()
                self._forget(request)
                self.refused[Refusal.EMIT_FAILED] += 1
                self._complain_of_emit(request)
            except BaseException:
                self._lanes.put_back(request, request.priority)
                raise
            else:
                self._lanes.finish()
                self._commit(request)
                self._is_failing = False

    def _try(self, spec: TriggerSpec, subject: Subject, topic: str, time_ns: int) -> bool:
        try:
            if not _holds(spec, subject):
                return False
            refusal = self._refusal_of(spec, subject)
            if refusal is None:
                self._enqueue(TriggerRequest.of(spec, subject, topic, time_ns))
        except InvalidRequestError as err:
            log.debug("trigger %s made an invalid request: %s", spec.id, err.message)
            refusal = Refusal.INVALID
        except Exception:  # a condition of an author must not stop the others
            self._complain(spec.id, "a condition failed")
            return False
        if refusal is not None:
            self.refused[refusal] += 1
        return refusal is None

    def _refusal_of(self, spec: TriggerSpec, subject: Subject) -> Refusal | None:
        now_s, limits = self._clock(), self._limits
        key = key_of(spec, subject)
        if key in self._waiting_keys or self._recent.holds(key, now_s, limits.dedup_s):
            return Refusal.DUPLICATE
        waiting = self._waiting_count[spec.target_collector]
        if not self._allowance(spec.target_collector).has_room(waiting, now_s):
            return Refusal.RATE_LIMITED
        return self._lanes.refusal_of(spec.priority, limits.max_pending)

    def _enqueue(self, request: TriggerRequest) -> None:
        self._waiting_keys.add(request.dedup_key)
        self._waiting_count[request.target_collector] += 1
        self._lanes.put(request, request.priority)

    def _forget(self, request: TriggerRequest) -> None:
        self._waiting_keys.discard(request.dedup_key)
        self._waiting_count[request.target_collector] -= 1

    def _commit(self, request: TriggerRequest) -> None:
        self._forget(request)
        now_s, limits = self._clock(), self._limits
        self._recent.record(request.dedup_key, now_s, limits.dedup_s, limits.max_remembered)
        self._allowance(request.target_collector).take(now_s)
        self.emitted += 1

    def _allowance(self, target: str) -> Allowance:
        if target not in self._allowances:
            self._allowances[target] = Allowance(self._limits.per_minute, self._clock())
        return self._allowances[target]

    def _complain_of_emit(self, request: TriggerRequest) -> None:
        if not self._is_failing:  # an emit that keeps failing would fill the log
            log.exception("trigger request %s cannot be emitted", request.trigger_id)
        self._is_failing = True

    def _complain(self, spec_id: str, problem: str) -> None:
        """Counts each time and logs the first only: this is once an event."""
        self.refused[Refusal.INVALID] += 1
        if spec_id not in self._complained:
            self._complained.add(spec_id)
            log.exception("triggers: %s", problem, extra={"trigger": spec_id})


def _holds(spec: TriggerSpec, subject: Subject) -> bool:
    # Of a process that has ended nothing but its file can be looked at: who wants that says so.
    if subject.kind == "stop" and "kind" not in spec.condition.fields:
        return False
    return spec.condition.holds(subject)
