"""Which collectors there are, and which of them still hold their lease; no I/O.

Invariant: an id has at most one instance, the one with the highest epoch that ever registered. A
lease is renewed by heartbeats of that instance alone, is measured on a monotonic clock, and after
``MISSED_LIMIT`` intervals without one the collector counts as unavailable, until it beats again.

::

    register -> registered -> serving <-> degraded      as its heartbeats say
                     any of them -> unavailable          missed heartbeats, or says so itself
                     unavailable -> registered/serving/degraded   with the next heartbeat
                     any -> deregistered                 said good-bye; must register again
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from daemoneye_agent.registry_records import (
    MAX_TEXT_CHARS,
    Collector,
    CollectorState,
    Heartbeat,
    InstanceSupersededError,
    Lease,
    NotRegisteredError,
    RegistrationRequest,
    ReportedHealth,
    Transition,
)
from daemoneye_mesh.errors import OverloadedError, PermissionDeniedError

__all__ = [
    "DEFAULT_HEARTBEAT_INTERVAL_S",
    "MAX_COLLECTORS",
    "MISSED_LIMIT",
    "Collector",
    "CollectorRegistry",
    "CollectorState",
    "Heartbeat",
    "InstanceSupersededError",
    "Lease",
    "NotRegisteredError",
    "RegistrationRequest",
    "ReportedHealth",
    "Transition",
]

DEFAULT_HEARTBEAT_INTERVAL_S = 5.0
MIN_HEARTBEAT_INTERVAL_S = 1.0
MAX_HEARTBEAT_INTERVAL_S = 60.0
MISSED_LIMIT = 3
MAX_COLLECTORS = 256
_KEPT_TRANSITIONS = 32
_STALL_S = 10.0
_STATE_OF_HEALTH = {
    ReportedHealth.STARTING: CollectorState.REGISTERED,
    ReportedHealth.HEALTHY: CollectorState.SERVING,
    ReportedHealth.DEGRADED: CollectorState.DEGRADED,
    ReportedHealth.UNHEALTHY: CollectorState.UNAVAILABLE,
}


@dataclass(slots=True, eq=False)
class _Entry:
    registration: RegistrationRequest
    interval_s: float
    renewed_s: float
    state: CollectorState
    reason: str
    since_ns: int
    transitions: deque[Transition] = field(default_factory=lambda: deque(maxlen=_KEPT_TRANSITIONS))
    heartbeat: Heartbeat | None = None
    heartbeat_at_ns: int | None = None
    sequence_gaps: int = 0
    has_grace: bool = False

    @property
    def lease(self) -> Lease:
        request = self.registration
        return Lease(
            request.collector_id,
            request.instance_epoch,
            self.interval_s,
            self.interval_s * MISSED_LIMIT,
        )

    def count_missed(self, now_s: float) -> int:
        if self.state is CollectorState.DEREGISTERED:
            return 0
        return max(int((now_s - self.renewed_s) / self.interval_s), 0)

    def renew(self, now_s: float) -> None:
        self.renewed_s = now_s
        self.has_grace = False


class CollectorRegistry:
    """All leases of one agent. Use it from one thread.

    Args:
        clock: seconds that never jump back; CLOCK_BOOTTIME where nothing is given.
        wall_ns: nanoseconds since the Unix epoch, for the times people see.
    """

    def __init__(
        self,
        clock: Callable[[], float] | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._clock = clock or _boottime
        self._wall_ns = wall_ns
        self._entries: dict[str, _Entry] = {}
        self._callbacks: list[Callable[[Transition], None]] = []
        self._swept_s = self._clock()

    def on_change(self, callback: Callable[[Transition], None]) -> Callable[[], None]:
        """Calls back on every change of state, once it is in place; returns what ends that."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def register(self, request: RegistrationRequest, caller_id: str) -> Lease:
        """Grants a lease. The same instance may repeat it; a newer one takes the older's place.

        Args:
            request: what the collector says.
            caller_id: the id in the caller's verified token.

        Raises:
            PermissionDeniedError: the caller is somebody else.
            InstanceSupersededError: a newer instance has registered.
            OverloadedError: the bound of collectors is reached.
        """
        self._check_caller(request.collector_id, caller_id)
        known = self._entries.get(request.collector_id)
        if known is None:
            self._make_room()
            return self._admit(request, None, "registered").lease
        current = known.registration.instance_epoch
        if request.instance_epoch < current:
            raise _superseded(request.collector_id, request.instance_epoch, current)
        if request.instance_epoch > current:
            return self._admit(request, known, f"instance {current} was superseded").lease
        return self._admit(request, known, "registered again").lease

    def heartbeat(self, beat: Heartbeat, caller_id: str) -> Lease:
        """Renews the lease of an instance and takes over the health it reports.

        Raises:
            PermissionDeniedError: the caller is somebody else.
            InstanceSupersededError: a newer instance has registered.
            NotRegisteredError: the instance is not known or has deregistered; register again.
        """
        entry = self._find(beat.collector_id, beat.instance_epoch, caller_id)
        if entry.heartbeat and beat.sequence > entry.heartbeat.sequence + 1:
            entry.sequence_gaps += beat.sequence - entry.heartbeat.sequence - 1
        entry.heartbeat = beat
        entry.heartbeat_at_ns = self._wall_ns()
        entry.renew(self._clock())
        self._move(entry, _state_of(beat), _describe_beat(beat))
        return entry.lease

    def deregister(
        self, collector_id: str, instance_epoch: int, caller_id: str, reason: str = "said good-bye"
    ) -> None:
        """Ends the lease of an instance; repeating it is an error like any unknown instance.

        Raises:
            PermissionDeniedError: the caller is somebody else.
            InstanceSupersededError: a newer instance has registered.
            NotRegisteredError: the instance is not known.
        """
        entry = self._find(collector_id, instance_epoch, caller_id)
        self._move(entry, CollectorState.DEREGISTERED, reason[:MAX_TEXT_CHARS])

    def expire(self, now_s: float | None = None) -> tuple[Transition, ...]:
        """Marks collectors without a heartbeat as unavailable; call it about every second.

        When the sweep itself did not run for a while (the host slept, the agent was stopped),
        nobody could have renewed a lease: each then gets one more interval, once.
        """
        now_s = self._clock() if now_s is None else now_s
        stalled_s, self._swept_s = now_s - self._swept_s, now_s
        overdue = [
            entry
            for entry in tuple(self._entries.values())
            if entry.state not in {CollectorState.UNAVAILABLE, CollectorState.DEREGISTERED}
            and entry.count_missed(now_s) >= MISSED_LIMIT
            and not (stalled_s >= _STALL_S and _grant_grace(entry, now_s))
        ]
        changes = (
            self._move(entry, CollectorState.UNAVAILABLE, _describe_silence(entry, now_s))
            for entry in overdue
        )
        return tuple(change for change in changes if change)

    def get(self, collector_id: str) -> Collector | None:
        """One collector, or None when the id is not known."""
        entry = self._entries.get(collector_id)
        return self._picture(entry) if entry else None

    def collectors(self) -> tuple[Collector, ...]:
        """Every collector that is known, by id; those that said good-bye included."""
        return tuple(self._picture(self._entries[name]) for name in sorted(self._entries))

    def _picture(self, entry: _Entry) -> Collector:
        return Collector(
            registration=entry.registration,
            lease=entry.lease,
            state=entry.state,
            reason=entry.reason,
            since_ns=entry.since_ns,
            missed_heartbeats=entry.count_missed(self._clock()),
            sequence_gaps=entry.sequence_gaps,
            heartbeat=entry.heartbeat,
            heartbeat_at_ns=entry.heartbeat_at_ns,
            transitions=tuple(entry.transitions),
        )

    def _admit(self, request: RegistrationRequest, known: _Entry | None, reason: str) -> _Entry:
        entry = _Entry(
            registration=request,
            interval_s=_clamp_interval(request.heartbeat_interval_s),
            renewed_s=self._clock(),
            state=known.state if known else CollectorState.REGISTERED,
            reason=reason,
            since_ns=self._wall_ns(),
        )
        if known:
            entry.transitions.extend(known.transitions)
        self._entries[request.collector_id] = entry
        self._note(entry, known.state if known else None, CollectorState.REGISTERED, reason)
        return entry

    def _find(self, collector_id: str, instance_epoch: int, caller_id: str) -> _Entry:
        self._check_caller(collector_id, caller_id)
        entry = self._entries.get(collector_id)
        current = entry.registration.instance_epoch if entry else -1
        if instance_epoch < current:
            raise _superseded(collector_id, instance_epoch, current)
        if entry is None or instance_epoch > current or entry.state is CollectorState.DEREGISTERED:
            raise NotRegisteredError(
                f"instance {instance_epoch} of collector {collector_id!r} is not registered; "
                "register again",
                collector_id=collector_id,
                instance_epoch=instance_epoch,
            )
        return entry

    def _check_caller(self, collector_id: str, caller_id: str) -> None:
        if collector_id != caller_id:
            raise PermissionDeniedError(
                f"{caller_id!r} cannot speak for collector {collector_id!r}; "
                "use the collector's own token",
                collector_id=collector_id,
                caller_id=caller_id,
            )

    def _make_room(self) -> None:
        if len(self._entries) < MAX_COLLECTORS:
            return
        gone = [
            entry for entry in self._entries.values() if entry.state is CollectorState.DEREGISTERED
        ]
        if not gone:
            raise OverloadedError(
                f"{MAX_COLLECTORS} collectors are registered, the most there may be; stop one first",
                limit=MAX_COLLECTORS,
            )
        oldest = min(gone, key=lambda entry: entry.since_ns)
        del self._entries[oldest.registration.collector_id]

    def _move(self, entry: _Entry, after: CollectorState, reason: str) -> Transition | None:
        entry.reason = reason
        return None if entry.state is after else self._note(entry, entry.state, after, reason)

    def _note(
        self, entry: _Entry, before: CollectorState | None, after: CollectorState, reason: str
    ) -> Transition:
        entry.state, entry.reason, entry.since_ns = after, reason, self._wall_ns()
        request = entry.registration
        change = Transition(
            request.collector_id, request.instance_epoch, before, after, reason, entry.since_ns
        )
        entry.transitions.append(change)
        for callback in tuple(self._callbacks):
            callback(change)
        return change


def _grant_grace(entry: _Entry, now_s: float) -> bool:
    """Moves the end of a lease one interval ahead; False when that was done since the last beat."""
    if entry.has_grace:
        return False
    entry.has_grace = True
    entry.renewed_s = now_s - entry.interval_s * (MISSED_LIMIT - 1)
    return True


def _state_of(beat: Heartbeat) -> CollectorState:
    state = _STATE_OF_HEALTH[beat.health]
    # A collector that says it does not do its job is not well, whatever else it says.
    is_well = state in {CollectorState.REGISTERED, CollectorState.SERVING}
    return CollectorState.DEGRADED if beat.failure and is_well else state


def _describe_beat(beat: Heartbeat) -> str:
    said = f"reported {beat.health}"
    if beat.failure:
        said += f", {beat.failure}"
    return f"{said}: {beat.detail}" if beat.detail else said


def _describe_silence(entry: _Entry, now_s: float) -> str:
    return f"no heartbeat for {now_s - entry.renewed_s:.0f} s"


def _clamp_interval(wanted_s: float | None) -> float:
    if wanted_s is None or not wanted_s > 0:  # also catches NaN, which no comparison would
        return DEFAULT_HEARTBEAT_INTERVAL_S
    return min(max(wanted_s, MIN_HEARTBEAT_INTERVAL_S), MAX_HEARTBEAT_INTERVAL_S)


def _superseded(collector_id: str, epoch: int, current: int) -> InstanceSupersededError:
    return InstanceSupersededError(
        f"instance {epoch} of collector {collector_id!r} was superseded by {current}; end it",
        collector_id=collector_id,
        instance_epoch=epoch,
        current_epoch=current,
    )


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
