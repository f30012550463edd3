"""How a collector is as a whole.

Invariant: once ready, the status is that of the worst part (MUST-HLT-01) until the collector stops.
Time in which the host slept or the process was stopped is nobody's silence.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from collector_core.clock import Clock, SuspendWatch, sleep_unless
from collector_core.health.component import Component, ComponentRecord
from collector_core.health.status import Status, StatusMachine, Transition
from collector_core.listeners import Listeners
from daemoneye_mesh.errors import OverloadedError, PreconditionError

__all__ = ["ComponentSnapshot", "HealthMonitor", "HealthSnapshot"]

MAX_COMPONENTS = 256
MIN_WAIT_S = 0.001
"""What is due a rounding error from now is not worth spinning for."""

log = logging.getLogger("daemoneye.health")


@dataclass(frozen=True, slots=True)
class ComponentSnapshot:
    """One part of a collector at one moment; times are nanoseconds since the Unix epoch."""

    name: str
    status: Status
    since_ns: int
    checked_at_ns: int
    """When it reported last."""
    message: str
    """What is wrong and what to do; empty when nothing is."""
    failure_count: int


@dataclass(frozen=True, slots=True)
class HealthSnapshot:
    """A collector at one moment."""

    status: Status
    since_ns: int
    """Nanoseconds since the Unix epoch."""
    components: tuple[ComponentSnapshot, ...]
    """By name."""
    is_shedding: bool
    """Whether events of lossy classes are left out right now."""


class HealthMonitor:
    """Collects what the parts of a collector report.

    Args:
        clock: where time comes from.
        steady_s: how long a part must have been better before that counts, seconds.
        watch: knows when the process was away; whoever passes one runs it.
    """

    def __init__(
        self, clock: Clock, steady_s: float = 5.0, watch: SuspendWatch | None = None
    ) -> None:
        self._clock = clock
        self._steady_s = steady_s
        self._watch = watch or SuspendWatch(clock)
        self._machine = StatusMachine(clock)
        self._records: dict[str, ComponentRecord] = {}
        self._is_ready = False
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self._awaited: dict[asyncio.Future[Status], frozenset[Status]] = {}
        self._listeners = Listeners[Transition]("the health of the collector")
        self.is_shedding = False
        """Whether events of lossy classes are left out right now."""

    @property
    def status(self) -> Status:
        """The status as of the last evaluation."""
        return self._machine.status

    @property
    def is_serving(self) -> bool:
        """Whether grpc.health.v1 is to say SERVING (MUST-HLT-03)."""
        return self.status.is_serving

    @property
    def history(self) -> tuple[Transition, ...]:
        """The last 64 changes of the status, oldest first."""
        return self._machine.history

    @property
    def next_change_s(self) -> float | None:
        """Seconds until time alone may change something; None when only a report can."""
        now_s = self._watch.awake_s()
        grace_s = self._watch.grace_until() - self._clock.boottime_s()
        dues = [
            record.due_in_s(now_s, self._steady_s, grace_s) for record in self._records.values()
        ]
        due_s = min((due for due in dues if due is not None), default=None)
        return None if due_s is None else max(due_s, 0.0)

    def component(self, name: str, max_silence_s: float | None = None) -> Component:
        """Returns the part of that name, added if it is new; the last ``max_silence_s`` holds.

        Args:
            name: such as "source <name>", "log" or "bus".
            max_silence_s: how long it may go without a report, not counting time the process was
                away; None when silence means nothing.

        Raises:
            OverloadedError: there are 256 parts already.
        """
        record = self._records.get(name)
        if record is None:
            record = self._add(name, max_silence_s)
        record.max_silence_s = max_silence_s
        self._woken.set()

        def report(status: Status, message: str) -> None:
            if self._records.get(name) is record:
                self._report(record, status, message)

        return Component(name, report)

    def remove(self, name: str) -> None:
        """Forgets a part; what it says later is ignored. One that failed fatally stays."""
        record = self._records.get(name)
        if record is not None and record.status is not Status.FATAL_ERROR:
            del self._records[name]
            self._apply_worst()

    def ready(self) -> None:
        """The collector has started; from now on its status is that of its worst part."""
        self._is_ready = True
        self.evaluate()

    def stopping(self) -> None:
        """The collector drains."""
        if self.status not in (Status.STOPPING, Status.STOPPED):
            self._change_to(Status.STOPPING)

    def stopped(self) -> None:
        """The collector has drained."""
        self.stopping()
        self._change_to(Status.STOPPED)

    def on_change(self, listener: Callable[[Transition], None]) -> None:
        """Calls ``listener`` with each change of the status."""
        self._listeners.add(listener)

    async def changes(self) -> AsyncIterator[Status]:
        """Yields the status now and after changes, the latest if there were several; ends STOPPED."""
        last: Status | None = None
        while last is not Status.STOPPED:
            changed = self._changed
            if self.status is last:
                await changed.wait()
            else:
                last = self.status
                yield last

    async def wait_for(self, *statuses: Status) -> Status:
        """Returns the first of ``statuses`` that the collector has, now or later.

        Raises:
            PreconditionError: the collector has stopped and will have none of them.
        """
        if self.status in statuses:
            return self.status
        if self.status is Status.STOPPED:
            raise _stopped_error()
        arrival: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
        self._awaited[arrival] = frozenset(statuses)
        try:
            return await arrival
        finally:
            self._awaited.pop(arrival, None)

    def snapshot(self) -> HealthSnapshot:
        """How the collector is now."""
        self.evaluate()
        parts = [_to_snapshot(self._records[name]) for name in sorted(self._records)]
        return HealthSnapshot(self.status, self._machine.since_ns, tuple(parts), self.is_shedding)

    def evaluate(self) -> None:
        """Lets time do its work on every part and on the whole."""
        now_s, at_ns = self._watch.awake_s(), self._clock.wall_ns()
        is_grace = self._clock.boottime_s() < self._watch.grace_until()
        for record in self._records.values():
            before = record.status
            record.review(now_s, self._steady_s, at_ns, is_grace)
            _log_change(record, before)
        self._apply_worst()

    async def run(self) -> None:
        """Evaluates whenever something is due, until cancelled."""
        while True:
            self._woken.clear()
            self.evaluate()
            delay_s = self.next_change_s
            if delay_s is not None:
                delay_s = max(delay_s, MIN_WAIT_S)
            await sleep_unless(self._clock, delay_s, self._woken)

    def _add(self, name: str, max_silence_s: float | None) -> ComponentRecord:
        if len(self._records) >= MAX_COMPONENTS:
            raise OverloadedError(
                f"a collector has at most {MAX_COMPONENTS} parts; remove some before adding {name}",
                limit=MAX_COMPONENTS,
                component=name,
            )
        now_s, at_ns = self._watch.awake_s(), self._clock.wall_ns()
        record = ComponentRecord(name, max_silence_s, now_s, at_ns)
        self._records[name] = record
        return record

    def _report(self, record: ComponentRecord, status: Status, message: str) -> None:
        before = record.status
        record.report(status, message, self._watch.awake_s(), self._clock.wall_ns())
        _log_change(record, before)
        if status is not before:
            # It may be due earlier than what run() waits for; a part that stays OK is not.
            self._woken.set()
            self._apply_worst()

    def _apply_worst(self) -> None:
        worst = max(
            (record.status for record in self._records.values()),
            key=lambda status: status.severity,
            default=Status.OK,
        )
        if self.status in (Status.FATAL_ERROR, Status.STOPPING, Status.STOPPED):
            return
        if self._is_ready:
            self._change_to(worst if worst.severity else Status.OK)
        elif worst.severity >= Status.PERMANENT_ERROR.severity:
            # What is not ready must not become SERVING, so this is as far as it goes before.
            self._change_to(worst)

    def _change_to(self, status: Status) -> None:
        change = self._machine.change_to(status)
        if change is None:
            return
        log.info("health: %s -> %s", change.before, change.after)
        self._changed.set()
        self._changed = asyncio.Event()
        self._resolve_awaited(change.after)
        self._listeners.tell(change)

    def _resolve_awaited(self, status: Status) -> None:
        for arrival, wanted in self._awaited.items():
            if arrival.done():
                continue
            if status in wanted:
                arrival.set_result(status)
            elif status is Status.STOPPED:
                arrival.set_exception(_stopped_error())


def _stopped_error() -> PreconditionError:
    return PreconditionError("the collector has stopped; start it again")


def _to_snapshot(record: ComponentRecord) -> ComponentSnapshot:
    return ComponentSnapshot(
        name=record.name,
        status=record.status,
        since_ns=record.since_ns,
        checked_at_ns=record.checked_at_ns,
        message=record.message,
        failure_count=record.failure_count,
    )


def _log_change(record: ComponentRecord, before: Status) -> None:
    if record.status is before:
        return
    level = logging.WARNING if record.status.severity else logging.INFO
    log.log(level, "health of %s: %s -> %s %s", record.name, before, record.status, record.message)
